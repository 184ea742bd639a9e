"""One method on one model, in a fresh process: ``python -m benchmarks.packager.child METHOD PREPARED OUT``.

Writes the made model into OUT and prints one JSON object with the verdict, the time and the peak of memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from .prepared import read_prepared


def peak_bytes() -> int:
    """Largest resident set of this process (VmHWM), or of one of its children."""
    own = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def run(method: str, folder: Path, out: Path) -> dict[str, Any]:
    module, _, variant = method.partition(":")
    began = time.monotonic()
    found: dict[str, Any] = {}
    try:
        maker = importlib.import_module(f"benchmarks.packager.methods.{module}")
        arguments = (variant,) if variant else ()
        found = maker.make(read_prepared(folder), out, *arguments) or {}
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the boundary: what a tool raises is its verdict
        text = " ".join(str(error).split())
        found = {"verdict": "crash", "reason": f"{type(error).__name__}: {text[:400]}"}
        if hint := getattr(error, "hint", ""):
            found["hint"] = hint
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        **found,
        "seconds": time.monotonic() - began,
        "cpu_seconds": sum(usage.ru_utime + usage.ru_stime for usage in used),
        "peak_bytes": peak_bytes(),
    }


def main(arguments: list[str]) -> None:
    warnings.simplefilter("ignore")
    prepared, out = Path(arguments[1]).resolve(), Path(arguments[2]).resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Some tools leave files where they run.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        found = run(arguments[0], prepared, out)
        os.chdir(out)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
