"""``skerry-runtime``: the command line of the device. Standard library only; a device has no room for more.

Exit codes: 0 done, 1 it failed, 2 the command or the configuration is wrong, 3 no daemon answers.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ConfigError, InputError, SkerryError, UnavailableError

from .agent import control, machine, offline
from .agent.log import set_up
from .config import DEFAULT_PATH, DeviceConfig, load_config

DONE, FAILED, USAGE, UNREACHABLE = 0, 1, 2, 3
CONFIG_VARIABLE: Final = "SKERRY_CONFIG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        return _say_error(error, USAGE, options)
    except _Unreachable as error:
        return _say_error(error.error, UNREACHABLE, options)
    except SkerryError as error:
        return _say_error(error, FAILED, options)
    except KeyboardInterrupt:
        return 130


class _Unreachable(Exception):
    """No daemon answers."""

    def __init__(self, error: SkerryError) -> None:
        super().__init__(error.message)
        self.error = error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="skerry-runtime",
        description="Runs, verifies and updates models on this device, with or without a network.",
        epilog="Example: skerry-runtime run --config /etc/skerry/device.toml. Exit codes: 0 done, 1 failed,"
        " 2 command or configuration wrong, 3 no daemon answers. With --json an error is JSON, too.",
    )
    parser.add_argument("--version", action="version", version=f"skerry-runtime {machine.agent_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(
        commands, "run", _run, "Serve until stopped.",
        "skerry-runtime run --config /etc/skerry/device.toml",
    )  # fmt: skip
    run.add_argument("--insecure-dev", action="store_true", help="allow what a production device must not do")
    run.add_argument(
        "--log", choices=("auto", "json", "text"), default="auto", help="form of the log on stderr"
    )
    run.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO")

    status = _command(
        commands, "status", _status, "What runs here, and how it is.", "skerry-runtime status --json"
    )
    status.add_argument("--json", action="store_true", help="all of it, for programs")

    infer = _command(
        commands, "infer", _infer, "Ask the active model for an answer.",
        "skerry-runtime infer digits --input digit.npy",
    )  # fmt: skip
    infer.add_argument("model", metavar="MODEL", help="name of the model")
    infer.add_argument(
        "--input", required=True, type=Path, metavar="FILE",
        help=".npy (the first input), .npz (inputs by name), or .json (an Open Inference Protocol request)",
    )  # fmt: skip
    infer.add_argument("--json", action="store_true", help="the whole answer, for programs")

    install = _command(
        commands, "install", _install, "Install a bundle file, for example from a USB stick.",
        "skerry-runtime install /media/usb/digits-1.4.0.skerry",
    )  # fmt: skip
    install.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="a .skerry file; it is verified like any other"
    )
    install.add_argument("--json", action="store_true", help="the result, for programs")

    rollback = _command(
        commands, "rollback", _rollback, "Return to the last good version and quarantine the other.",
        "skerry-runtime rollback digits",
    )  # fmt: skip
    rollback.add_argument(
        "model", nargs="?", default="", metavar="MODEL", help="may be left out if there is only one"
    )
    rollback.add_argument("--json", action="store_true", help="the result, for programs")
    return parser


def _command(commands: Any, name: str, call: Any, text: str, example: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"Example: {example}"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_PATH)),
        help=f"device configuration (default: ${CONFIG_VARIABLE} or {DEFAULT_PATH})",
    )  # fmt: skip
    parser.set_defaults(command=call)
    return parser


# --- commands -------------------------------------------------------------------------------------


def _run(options: argparse.Namespace) -> int:
    set_up(options.log, options.log_level)
    config = load_config(options.config, insecure_dev=options.insecure_dev)
    if options.insecure_dev:
        print(
            "skerry-runtime: --insecure-dev is for try-outs, never for a device in the field", file=sys.stderr
        )
    _warn_if_readable(options.config, config)
    # Only a daemon pays for what a daemon needs.
    from .agent.daemon import Daemon

    daemon = Daemon(config)
    server = control.ControlServer(daemon, config.control_socket)
    server.start()
    try:
        daemon.run()
    finally:
        server.close()
    return DONE


def _status(options: argparse.Namespace) -> int:
    status = _ask(_config(options), {"do": "status"})
    if options.json:
        _print_json(status)
    else:
        print(describe(status))
    return DONE


def _infer(options: argparse.Namespace) -> int:
    status = _ask(_config(options), {"do": "status"})
    model = status["models"].get(options.model)
    if model is None:
        known = ", ".join(status["models"]) or "none"
        raise InputError(f"there is no model {options.model!r} here", hint=f"Installed: {known}.")
    path = f"/v2/models/{options.model}"
    # Only a person's question pays for an HTTP client.
    from .local_client import ask, request_from

    try:
        body = request_from(
            options.input, lambda: str(ask(model["socket"], "GET", path)["inputs"][0]["name"])
        )
        answer = ask(model["socket"], "POST", f"{path}/infer", body)
    except UnavailableError as error:
        raise _Unreachable(error) from error
    if options.json:
        _print_json(answer)
    else:
        for output in answer["outputs"]:
            print(f"{output['name']} {output['datatype']}{output['shape']}: {json.dumps(output['data'])}")
    return DONE


def _install(options: argparse.Namespace) -> int:
    config = _config(options)
    if options.bundle.exists() and not options.bundle.is_file():
        raise InputError(f"{options.bundle} is no file", hint="Name a .skerry file.")
    try:
        file = options.bundle.open("rb")
    except OSError as error:
        raise InputError(
            f"{options.bundle} cannot be read: {error.strerror}", hint="Name a .skerry file."
        ) from error
    with file:
        try:
            result = _install_by_daemon(config, file.fileno(), quiet=options.json)
        except _Unreachable:
            prepared = offline.install(config, file, lambda state: _progress(state, quiet=options.json))
            result = {
                "name": prepared.name, "version": prepared.version, "digest": prepared.digest,
                "variant": prepared.variant, "reason": prepared.reason, "state": "pending",
            }  # fmt: skip
    if options.json:
        _print_json(result)
    elif result["state"] == "pending":
        print(
            f"{result['name']} {result['version']} is verified and passed its self-test."
            " No daemon runs: it activates it, in probation, at its next start."
        )
    else:
        print(f"{result['name']} {result['version']} answers now ({result['state']}); {result['reason']}.")
    return DONE


def _install_by_daemon(config: DeviceConfig, descriptor: int, *, quiet: bool) -> Mapping[str, Any]:
    result: Mapping[str, Any] = {}
    for line in _lines(config, {"do": "install"}, (descriptor,)):
        if "state" in line:
            _progress(line["state"], quiet=quiet)
        result = line.get("result", result)
    return result


def _rollback(options: argparse.Namespace) -> int:
    config = _config(options)
    try:
        result = _ask(config, {"do": "rollback", "model": options.model})
        when = "answers again"
    except _Unreachable:
        name, version = offline.roll_back(config, options.model)
        result, when = {"name": name, "version": version}, "will answer when the daemon starts"
    if options.json:
        _print_json(result)
    else:
        print(f"{result['name']} {result['version']} {when}; the version that was left is quarantined.")
    return DONE


# --- parts ----------------------------------------------------------------------------------------


def describe(status: Mapping[str, Any]) -> str:
    """The status in a few lines for people."""
    fleet, outbox = status["fleet"], status["outbox"]
    lines = [
        f"{status['device']} ({status['org']})  skerry-runtime {status['version']}  process {status['pid']}"
        f"  up {status['uptime_s']:.0f} s",
        f"fleet    {fleet['state']}  desired revision {fleet['revision']}",
    ]
    if fleet["error"]:
        lines.append(f"         {fleet['error']['message']} → {fleet['error']['hint']}")
    http_address = f"  http://{status['serve']['http']}" if status["serve"]["http"] else ""
    lines.append(f"serving  {status['serve']['socket']}{http_address}")
    for name, model in status["models"].items():
        active, health = model["active"], model["health"]
        if active:
            lines.append(
                f"model    {name} {active['version']}  {active['variant']} on {active['engine']}"
                f"  {health['requests']} requests, {health['failures']} failed,"
                f" p95 {health['latency_p95_us'] / 1000:.2f} ms, {health['rss_bytes'] / 1048576:.0f} MiB"
            )
        else:
            lines.append(f"model    {name}: nothing answers")
        if model["phase"] and model["phase"] != "confirmed":
            lines.append(
                f"         {model['target_version']}: {model['phase']}  (transaction {model['transaction']})"
            )
        if model["error"]:
            lines.append(
                f"         {model['error']['code']}: {model['error']['message']} → {model['error']['hint']}"
            )
    if not status["models"]:
        lines.append("model    none yet: roll one out from the fleet, or 'skerry-runtime install BUNDLE'")
    trouble = "".join(
        f"  {text}"
        for text, on in ((f"{outbox['gaps']} gaps", outbox["gaps"]), (outbox["error"], outbox["error"]))
        if on
    )
    lines.append(
        f"outbox   {outbox['waiting_rows']} rows wait, {outbox['used_bytes'] / 1048576:.1f} MiB{trouble}"
    )
    return "\n".join(lines)


def _config(options: argparse.Namespace) -> DeviceConfig:
    # Whether the daemon was started with --insecure-dev is its matter; here nothing is opened to a network.
    return load_config(options.config, insecure_dev=True)


def _ask(config: DeviceConfig, request: Mapping[str, Any]) -> Any:
    for line in _lines(config, request):
        if "result" in line:
            return line["result"]
    raise _Unreachable(UnavailableError("the daemon did not answer"))


def _lines(config: DeviceConfig, request: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> Any:
    try:
        yield from control.request(config.control_socket, request, descriptors)
    except UnavailableError as error:
        raise _Unreachable(error) from error


def _progress(state: str, *, quiet: bool) -> None:
    if not quiet:
        print(state.replace("_", "-"), file=sys.stderr, flush=True)


def _warn_if_readable(path: Path, config: DeviceConfig) -> None:
    if (config.fleet or config.serve.token) and path.stat().st_mode & 0o004:
        print(
            f"skerry-runtime: {path} holds secrets and everybody may read it → chmod 640 {path}",
            file=sys.stderr,
        )


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _say_error(error: SkerryError, code: int, options: argparse.Namespace) -> int:
    if getattr(options, "json", False):
        _print_json({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        return code
    print(f"skerry-runtime: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  → {error.hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
