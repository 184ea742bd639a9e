"""``skerry-runtime infer``, ``install`` and ``rollback``: what a person does with models at the device."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from skerry_contract.errors import InputError, NotFoundError, UnavailableError

from .agent import offline
from .cli_common import DONE, UnreachableError, ask, config_of, lines, print_json
from .config import DeviceConfig


def infer(options: argparse.Namespace) -> int:
    """Ask the active model."""
    status = ask(config_of(options), {"do": "status"})
    model = model_of(status, options.model)[1]
    path = f"/v2/models/{options.model}"
    # Only a person's question pays for an HTTP client.
    from .local_client import ask as ask_model
    from .local_client import request_from

    try:
        body = request_from(
            options.input, lambda: str(ask_model(model["socket"], "GET", path)["inputs"][0]["name"])
        )
        answer = ask_model(model["socket"], "POST", f"{path}/infer", body)
    except UnavailableError as error:
        raise UnreachableError(error) from error
    if options.json:
        print_json(answer)
    else:
        for output in answer["outputs"]:
            print(f"{output['name']} {output['datatype']}{output['shape']}: {json.dumps(output['data'])}")
    return DONE


def model_of(status: Mapping[str, Any], name: str) -> tuple[str, Mapping[str, Any]]:
    """A model's name and status; without a name there must be one alone.

    Raises:
        InputError: there is no such model.
        NotFoundError: there is none, or several.
    """
    models = status["models"]
    known = ", ".join(models) or "none"
    if name:
        if name not in models:
            raise InputError(f"there is no model {name!r} here", hint=f"Installed: {known}.")
        return name, models[name]
    if len(models) != 1:
        raise NotFoundError("which model?", hint=f"Installed: {known}.")
    (only,) = models
    return only, models[only]


def install(options: argparse.Namespace) -> int:
    """Install a bundle file, with or without the daemon."""
    config = config_of(options)
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
        except UnreachableError:
            prepared = offline.install(config, file, lambda state: _progress(state, quiet=options.json))
            result = {
                "name": prepared.name, "version": prepared.version, "digest": prepared.digest,
                "variant": prepared.variant, "reason": prepared.reason, "state": "pending",
            }  # fmt: skip
    if options.json:
        print_json(result)
    elif result["state"] == "pending":
        print(
            f"{result['name']} {result['version']} is verified and passed its self-test."
            " No daemon runs: it activates it, in probation, at its next start."
        )
    else:
        print(f"{result['name']} {result['version']} answers now ({result['state']}); {result['reason']}.")
    return DONE


def rollback(options: argparse.Namespace) -> int:
    """Return to the last good version, with or without the daemon."""
    config = config_of(options)
    try:
        result = ask(config, {"do": "rollback", "model": options.model})
        when = "answers again"
    except UnreachableError:
        name, version = offline.roll_back(config, options.model)
        result, when = {"name": name, "version": version}, "will answer when the daemon starts"
    if options.json:
        print_json(result)
    else:
        print(f"{result['name']} {result['version']} {when}; the version that was left is quarantined.")
    return DONE


def _install_by_daemon(config: DeviceConfig, descriptor: int, *, quiet: bool) -> Mapping[str, Any]:
    result: Mapping[str, Any] = {}
    for line in lines(config, {"do": "install"}, (descriptor,)):
        if "state" in line:
            _progress(line["state"], quiet=quiet)
        result = line.get("result", result)
    return result


def _progress(state: str, *, quiet: bool) -> None:
    if not quiet:
        print(state.replace("_", "-"), file=sys.stderr, flush=True)
