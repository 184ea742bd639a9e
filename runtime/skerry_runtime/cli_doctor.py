"""``skerry-runtime doctor``: look at everything that this device needs, and say what to do."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from skerry_contract.errors import ConfigError, SkerryError, UnavailableError

from .agent import machine, trust_process
from .agent.doctor import AS_WHOM, CHECKS, Check, Finding, Level, Patient, examine, fail, ok, said, warn
from .agent.doctor_machine import MACHINE_CHECKS
from .agent.doctor_network import NETWORK_CHECKS
from .agent.trust import KEY_HINT
from .cli_common import DONE, FAILED, UnreachableError, ask, config_of, fold, print_json

CHILD: Final = "skerry_runtime.doctor_child"
CHILD_SECONDS: Final = 60.0
ENGINES: Final = ("onnx", "tflite")
_INDENT: Final = " " * 21
_MARKS: Final = {Level.OK: "ok  ", Level.WARN: "warn", Level.FAIL: "FAIL"}


def doctor(options: argparse.Namespace) -> int:
    """Run the command: 1 if any check fails."""
    findings = []
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for finding in _findings(options):
        findings.append(finding)
        if not options.json:
            print(_entry(finding, columns), flush=True)
    failed = sum(finding.level is Level.FAIL for finding in findings)
    warned = sum(finding.level is Level.WARN for finding in findings)
    if options.json:
        print_json(
            {"failed": failed, "warned": warned, "findings": [asdict(finding) for finding in findings]}
        )
    else:
        print(
            f"{len(findings)} findings: {failed} failed, {warned} {'warning' if warned == 1 else 'warnings'}"
        )
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
        answer = _child(name)
        if "error" in answer:
            yield fail("engines", f"{name}: {answer['error']}", answer["hint"])
        else:
            library = f" ({answer['library']})" if answer["library"] else ""
            yield ok("engines", f"{name} {answer['version']}{library}, numpy {answer['numpy']}")


def keys(patient: Patient) -> Iterator[Finding]:
    """The public keys of the configuration are such keys."""
    trust = patient.config.trust
    named = trust.by_place()
    if not trust.engineers:
        yield warn(
            "keys",
            "trust.engineers is empty: no bundle can be verified",
            "Put the engineers' public keys there.",
        )
    try:
        problems = trust_process.check_keys(named)
    except UnavailableError as error:
        yield fail("keys", f"keys cannot be read here: {error.message}", error.hint)
        return
    for place, problem in problems.items():
        yield fail("keys", f"{place} is {problem}", KEY_HINT)
    if named and not problems:
        yield ok("keys", f"{', '.join(named)} can be used")


def _child(engine: str) -> Mapping[str, Any]:
    """The child's answer; how it ended, as an ``error`` with a ``hint``, if it gave none."""
    # -I: neither the environment nor the current folder can plant a module in it.
    command = [sys.executable, "-I", "-m", CHILD, engine]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {CHILD_SECONDS:.0f} s", "hint": "See the free memory and the load."}
    except OSError as error:
        return {"error": f"it cannot be tried: {said(error)}", "hint": AS_WHOM}
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


def _entry(finding: Finding, columns: int) -> str:
    """A finding for people; its lines are broken where they are wider than ``columns`` (0: never)."""
    lines = [f"{_MARKS[finding.level]}  {finding.check:<13}  {finding.text}"]
    if finding.hint:
        lines.append(f"{_INDENT}→ {finding.hint}")
    if columns:
        lines = [piece for line in lines for piece in fold(line, columns, _INDENT + "  ")]
    return "\n".join(lines)
