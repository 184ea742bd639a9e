"""``skerry-runtime``: the command line of the device. Standard library only; a device has no room for more.

Here are the words of the commands; what they do is in the ``cli_*`` modules, imported when one is called.
Exit codes: 0 done, 1 it failed, 2 the command or the configuration is wrong, 3 no daemon answers.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ConfigError, SkerryError, StorageError

from .agent import machine
from .cli_common import DONE, FAILED, UNREACHABLE, USAGE, UnreachableError, say_error
from .config import DEFAULT_PATH, DeviceConfig, load_config

CONFIG_VARIABLE: Final = "SKERRY_CONFIG"
_MOST_REQUESTS: Final = 10_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ConfigError as error:
        return say_error(error, USAGE, options)
    except UnreachableError as error:
        return say_error(error.error, UNREACHABLE, options)
    except SkerryError as error:
        return say_error(error, FAILED, options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has enough: nothing is to be said to it at the end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def parser() -> argparse.ArgumentParser:
    """Every command and option."""
    parser = argparse.ArgumentParser(
        prog="skerry-runtime",
        description="Runs, verifies and updates models on this device, with or without a network.",
        epilog="Example: skerry-runtime run --config /etc/skerry/device.toml. Exit codes: 0 done, 1 failed,"
        " 2 command or configuration wrong, 3 no daemon answers. With --json an error is JSON, too.",
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"skerry-runtime {machine.agent_version()}",
        help="print the version",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _command(
        commands, "run", _run, "Serve until stopped.",
        "skerry-runtime run --config /etc/skerry/device.toml",
    )  # fmt: skip
    run.add_argument("--insecure-dev", action="store_true", help="allow what a production device must not do")
    run.add_argument(
        "--log", choices=("auto", "journal", "json", "text"), default="auto",
        help="form of the log: journald's fields, or lines on stderr (default: what suits stderr)",
    )  # fmt: skip
    run.add_argument(
        "--log-level", choices=("DEBUG", "INFO", "WARNING", "ERROR"), default="INFO",
        help="the lowest level that is said (default: INFO)",
    )  # fmt: skip

    status = _command(
        commands, "status", _lazy("cli_status", "status"), "What runs here, and how it is.",
        "skerry-runtime status --json",
    )  # fmt: skip
    status.add_argument("--json", action="store_true", help="all of it, for programs")

    doctor = _command(
        commands, "doctor", _lazy("cli_doctor", "doctor"),
        "Look at everything that this device needs, and say what to do. Code 1 if anything fails.",
        "skerry-runtime doctor --json",
    )  # fmt: skip
    doctor.add_argument("--json", action="store_true", help="the findings, for programs")

    logs = _command(
        commands, "logs", _lazy("cli_logs", "logs"),
        "The daemon's newest lines, from its memory; where none answers, from journald.",
        "skerry-runtime logs --follow",
    )  # fmt: skip
    logs.add_argument("--follow", action="store_true", help="go on with what comes, until Ctrl-C")
    logs.add_argument(
        "--lines", type=_count(0), default=200, metavar="N", help="at most so many (default: 200)"
    )
    logs.add_argument("--transaction", default="", metavar="ID", help="only the lines of this update")
    logs.add_argument("--json", action="store_true", help="each line as a JSON object")

    infer = _command(
        commands, "infer", _lazy("cli_models", "infer"), "Ask the active model for an answer.",
        "skerry-runtime infer digits --input digit.npy",
    )  # fmt: skip
    infer.add_argument("model", metavar="MODEL", help="name of the model")
    infer.add_argument(
        "--input", required=True, type=Path, metavar="FILE",
        help=".npy (the first input), .npz (inputs by name), or .json (an Open Inference Protocol request)",
    )  # fmt: skip
    infer.add_argument("--json", action="store_true", help="the whole answer, for programs")

    install = _command(
        commands, "install", _lazy("cli_models", "install"),
        "Install a bundle file, for example from a USB stick.",
        "skerry-runtime install /media/usb/digits-1.4.0.skerry",
    )  # fmt: skip
    install.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="a .skerry file; it is verified like any other"
    )
    install.add_argument("--json", action="store_true", help="the result, for programs")

    rollback = _command(
        commands, "rollback", _lazy("cli_models", "rollback"),
        "Return to the last good version and quarantine the other.", "skerry-runtime rollback digits",
    )  # fmt: skip
    _add_model(rollback)
    rollback.add_argument("--json", action="store_true", help="the result, for programs")

    bench = _command(
        commands, "bench", _lazy("cli_bench", "bench"),
        "Latency and throughput of a model's local endpoint, asked with its golden inputs."
        " The requests count in the model's current window.",
        "skerry-runtime bench digits --requests 5000",
    )  # fmt: skip
    _add_model(bench)
    bench.add_argument(
        "--requests", type=_count(1), default=1000, metavar="N", help="measured of each kind (default: 1000)"
    )
    bench.add_argument(
        "--connections", type=_count(1, 32), default=8, metavar="C",
        help="at once for the throughput, 1 to 32 (default: 8)",
    )  # fmt: skip
    bench.add_argument("--json", action="store_true", help="the figures, for programs")

    profile = _command(
        commands, "profile", _lazy("cli_profile", "profile"),
        "Where the active model's time goes, operator by operator, by the engine's own profiler in a process"
        " of its own.",
        "skerry-runtime profile digits --top 20",
    )  # fmt: skip
    _add_model(profile)
    profile.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="S", help="how long it runs (default: 5)"
    )
    profile.add_argument(
        "--top", type=_count(1), default=10, metavar="N", help="rows of each table (default: 10)"
    )
    profile.add_argument("--json", action="store_true", help="all operators and nodes, for programs")

    bench_ops = _command(
        commands, "bench-ops", _lazy("cli_bench_ops", "bench_ops"),
        "Time single operators on this device, so that a model's latency here can be foretold.",
        "skerry-runtime bench-ops --out this-board.json", config=False,
    )  # fmt: skip
    bench_ops.add_argument(
        "--engine", choices=("onnx", "tflite"), default="onnx", help="the engine to time (default: onnx)"
    )
    bench_ops.add_argument(
        "--seconds", type=_seconds, default=60.0, metavar="S",
        help="how long it may take (default: 60); what does not fit is left out",
    )  # fmt: skip
    bench_ops.add_argument(
        "--store", type=Path, default=Path("/"), metavar="DIR",
        help="where this device keeps models: its free space is part of the result (default: /)",
    )  # fmt: skip
    bench_ops.add_argument("--out", type=Path, metavar="FILE", help="write the table there, as JSON")
    bench_ops.add_argument("--json", action="store_true", help="print the table instead of a summary")
    return parser


def _command(
    commands: Any, name: str, call: Any, text: str, example: str, *, config: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text, epilog=f"Example: {example}"
    )
    if config:
        parser.add_argument(
            "--config", type=Path, metavar="FILE",
            default=Path(os.environ.get(CONFIG_VARIABLE, DEFAULT_PATH)),
            help=f"device configuration (default: ${CONFIG_VARIABLE} or {DEFAULT_PATH})",
        )  # fmt: skip
    parser.set_defaults(command=call)
    return parser


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model", nargs="?", default="", metavar="MODEL", help="may be left out if there is only one"
    )


def _lazy(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """A command whose module is imported when it is called: none pays for another."""

    def call(options: argparse.Namespace) -> int:
        command: Callable[[argparse.Namespace], int] = getattr(
            importlib.import_module(f"skerry_runtime.{module}"), name
        )
        return command(options)

    return call


def _seconds(text: str) -> float:
    value = float(text)
    if not 1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 3600")
    return value


def _count(least: int, most: int = _MOST_REQUESTS) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not from {least} to {most}")
        return value

    return count


def _run(options: argparse.Namespace) -> int:
    from .agent import control
    from .agent.log import get_logger, set_up

    ring = set_up(options.log, options.log_level)
    config = load_config(options.config, insecure_dev=options.insecure_dev)
    if options.insecure_dev:
        print(
            "skerry-runtime: --insecure-dev is for try-outs, never for a device in the field", file=sys.stderr
        )
    _warn_if_readable(options.config, config)
    from .agent.daemon import Daemon

    daemon = Daemon(config)
    server = None
    try:
        server = control.ControlServer(daemon, config.control_socket, ring)
        server.start()
    except StorageError as error:
        # Serving goes first: a disk that has become read-only takes no socket.
        get_logger("control").error("nobody can ask or steer this daemon", extra={"error": error})
    try:
        daemon.run()
    finally:
        if server is not None:
            server.close()
    return DONE


def _warn_if_readable(path: Path, config: DeviceConfig) -> None:
    if (config.fleet or config.serve.token) and path.stat().st_mode & 0o004:
        print(
            f"skerry-runtime: {path} holds secrets and everybody may read it → chmod 640 {path}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
