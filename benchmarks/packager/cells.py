"""Makes and judges one cell, a model by a method: child processes with a time limit each, nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from .methods import RUNTIMES, Method
from .models.recipe import ROOT
from .prepared import Prepared, file_bytes
from .verdicts import rule

MAKE_SECONDS: Final = 600
SCORE_SECONDS: Final = 900
_KEPT_OUTPUT: Final = 2000


def python_of(environment: str) -> str:
    """The interpreter of an environment under ``.envs``; of none, the one that runs this."""
    return str(ROOT / ".envs" / environment / "bin" / "python") if environment else sys.executable


def _child(environment: str, module: str, arguments: list[str], seconds: float) -> dict[str, Any]:
    """The JSON object that a child prints; its death and its time limit are findings too."""
    command = [python_of(environment), "-W", "ignore", "-m", f"benchmarks.packager.{module}", *arguments]
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **quiet},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"verdict": "crash", "reason": f"not finished after {seconds:.0f} s", "seconds": seconds}
    try:
        found = json.loads(out.splitlines()[-1])
        return found if isinstance(found, dict) else {"verdict": "crash", "reason": out[-_KEPT_OUTPUT:]}
    except (IndexError, ValueError):
        died = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
        return {"verdict": "crash", "reason": f"died: {died}", "stderr": err[-_KEPT_OUTPUT:]}


def run_cell(prepared: Prepared, method: Method, work: Path) -> dict[str, Any]:
    """Everything about one cell, ``ruling`` and ``ruling_reason`` last."""
    facts = prepared.facts
    out = work / facts.name / method.name
    shutil.rmtree(out, ignore_errors=True)
    cell = _child(method.environment, "child", [method.child, str(prepared.folder), str(out)], MAKE_SECONDS)
    cell["model"], cell["method"] = facts.name, method.name
    made = out / facts.file
    if "verdict" not in cell and not made.is_file():
        cell |= {"verdict": "crash", "reason": "no model was written"}
    if "verdict" not in cell:
        data = prepared.folder / "model.data"
        source = prepared.model.stat().st_size + (data.stat().st_size if data.is_file() else 0)
        cell["bytes"], cell["source_bytes"] = file_bytes(out), source
        cell["size"] = cell["bytes"] / source
        first, *others = RUNTIMES[facts.engine]
        arguments = [str(prepared.folder), str(made)]
        cell |= _child(first, "score", arguments, SCORE_SECONDS)
        cell["runtimes"] = {
            name: _child(name, "score", [*arguments, "--loads-only"], SCORE_SECONDS).get("reason", "")
            for name in others
        }
    ruling = rule(cell, facts.metric, facts.group == "kept")
    return {**cell, "ruling": ruling.verdict, "ruling_reason": ruling.reason}
