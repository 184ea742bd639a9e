"""``skerry-runtime doctor``: look at everything that this device needs, and say what to do."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from skerry_contract.errors import ConfigError, SkerryError

from .agent import machine
from .agent.doctor import CHECKS, Check, Finding, Level, Patient, examine, fail, ok, warn
from .agent.doctor_machine import MACHINE_CHECKS
from .agent.doctor_network import NETWORK_CHECKS
from .cli_common import DONE, FAILED, UnreachableError, ask, config_of, print_json

CHILD: Final = "skerry_runtime.doctor_child"
CHILD_SECONDS: Final = 60.0
ENGINES: Final = ("onnx", "tflite")
_MARKS: Final = {Level.OK: "ok  ", Level.WARN: "warn", Level.FAIL: "FAIL"}


def doctor(options: argparse.Namespace) -> int:
    """Run the command: 1 if any check fails."""
    findings = []
    for finding in _findings(options):
        findings.append(finding)
        if not options.json:
            print(_line(finding), flush=True)
    failed = sum(finding.level is Level.FAIL for finding in findings)
    warned = sum(finding.level is Level.WARN for finding in findings)
    if options.json:
        print_json(
            {"failed": failed, "warned": warned, "findings": [asdict(finding) for finding in findings]}
        )
    else:
        print(f"{len(findings)} findings: {failed} failed, {warned} warnings")
    return FAILED if failed else DONE


def _findings(options: argparse.Namespace) -> Iterator[Finding]:
    try:
        config = config_of(options)
    except ConfigError as error:
        yield fail("configuration", error.message, error.hint)
        yield from engines()
        return
    status = None
    try:
        status = ask(config, {"do": "status"})
    except UnreachableError:
        pass  # the check of the daemon says so
    except SkerryError as error:
        yield fail("daemon", error.message, error.hint)
    patient = Patient(
        config=config, config_path=options.config, status=status, now_ms=time.time_ns() // 1_000_000
    )
    checks: tuple[Check, ...] = (*CHECKS, *MACHINE_CHECKS, lambda _: engines(), keys, *NETWORK_CHECKS)
    yield from examine(checks, patient)


def engines() -> Iterator[Finding]:
    """Each engine whose library is installed is imported in a process of its own."""
    installed = {engine.name for engine in machine.engines()}
    if not installed:
        yield fail(
            "engines", "no inference engine is installed", "pip install 'skerry[onnx]' or 'skerry[tflite]'"
        )
    for name in ENGINES:
        if name not in installed:
            continue
        answer = _child([name], "engine")
        if "error" in answer:
            yield fail("engines", f"{name}: {answer['error']}", answer["hint"])
        else:
            library = f" ({answer['library']})" if answer["library"] else ""
            yield ok("engines", f"{name} {answer['version']}{library}, numpy {answer['numpy']}")


def keys(patient: Patient) -> Iterator[Finding]:
    """The public keys of the configuration are such keys."""
    trust = patient.config.trust
    named = {f"trust.engineers[{index}]": pem for index, pem in enumerate(trust.engineers)}
    if trust.director:
        named["trust.director"] = trust.director
    if not trust.engineers:
        yield warn(
            "keys",
            "trust.engineers is empty: no bundle can be verified",
            "Put the engineers' public keys there.",
        )
    answer = _child([], "keys", json.dumps(list(named.values())))
    if "error" in answer:
        yield fail("keys", f"keys cannot be read here: {answer['error']}", answer["hint"])
        return
    for name, problem in zip(named, answer["errors"], strict=True):
        if problem:
            yield fail("keys", f"{name}: {problem}", "Paste the text of the .pub file.")
    if named and not any(answer["errors"]):
        yield ok("keys", f"{', '.join(named)} can be used")


def _child(words: Sequence[str], job: str, text: str = "") -> Mapping[str, Any]:
    """The child's answer; how it ended, as an ``error`` with a ``hint``, if it gave none."""
    # -I: neither the environment nor the current folder can plant a module in it.
    command = [sys.executable, "-I", "-m", CHILD, job, *words]
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False, cwd="/"
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": str(error), "hint": "See the free memory and the load."}
    if done.returncode == 0:
        answer: Mapping[str, Any] = json.loads(done.stdout)
        return answer
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return {
            "error": f"it was killed by {name}",
            "hint": "SIGILL: it was built for another processor, take another version; SIGKILL: memory.",
        }
    last = done.stderr.strip().splitlines()
    return {"error": last[-1] if last else f"status {done.returncode}", "hint": "Install its package again."}


def _line(finding: Finding) -> str:
    text = f"{_MARKS[finding.level]}  {finding.check:<13}  {finding.text}"
    return f"{text}\n{'':21}→ {finding.hint}" if finding.hint else text
