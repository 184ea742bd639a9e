"""``python -m benchmarks.runtime``: the gates of the device runtime; see ``benchmarks/README.md``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from .children import ROOT, ChildError
from .device import CommandError
from .gates import GATES, Figure, failing, measures_of, verdict
from .measures import prepare, run
from .report import markdown, plot_svg, table
from .world import World

_FAILURES: Final = (CommandError, ChildError, OSError, ValueError)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtime",
        description=__doc__,
        epilog="gates, by what measures them:\n"
        + "\n".join(f"  {gate.measure:8} {gate.key:16} {gate.what} {gate.target}" for gate in GATES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a look, not a result")
    parser.add_argument(
        "--only", action="append", default=[], metavar="GATE",
        help="this gate or all of a measure; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    results = ROOT / "benchmarks" / "results" / "runtime"
    parser.add_argument("--out", type=Path, default=results, metavar="FOLDER")
    parser.add_argument(
        "--torture", type=Path, default=ROOT / "build" / "torture.json", metavar="FILE",
        help="report of 'make torture', for the power cuts (default: build/torture.json)",
    )  # fmt: skip
    return parser.parse_args()


def _machine() -> dict[str, Any]:
    """What a reader must know to compare figures."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.system() + " " + platform.release().split("-")[0],
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load": [round(one, 2) for one in os.getloadavg()],
    }


def _measure(name: str, world: World) -> Mapping[str, Figure]:
    """A measure that cannot be made is a finding about its gates, not the end of the others."""
    began = time.monotonic()
    try:
        found = run(name, world)
    except _FAILURES as error:
        found = _absent(name, error)
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return found


def _prepare(names: list[str], world: World) -> dict[str, Figure]:
    """What cannot be prepared is not measured."""
    began, failed = time.monotonic(), dict[str, Figure]()
    for name in list(names):
        try:
            prepare(name, world)
        except _FAILURES as error:
            failed |= _absent(name, error)
            names.remove(name)
    print(f"preparing: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return failed


def _absent(name: str, error: Exception) -> dict[str, Figure]:
    said = " ".join(str(error).split())[:300]
    return {
        gate.key: Figure(value=None, detail=f"{type(error).__name__}: {said}")
        for gate in GATES
        if gate.measure == name
    }


def main() -> int:
    options = _arguments()
    try:
        names = measures_of(options.only)
    except KeyError as error:
        sys.exit(f"error: unknown gates {error}\n  known: {', '.join(gate.key for gate in GATES)}")
    began = time.monotonic()
    machine, figures = _machine(), dict[str, Figure]()
    # Not /tmp, which may be a tmpfs: there the kernel charges nothing. A socket's path must be short.
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="skerry-bench-") as folder,
        ExitStack() as stack,
    ):
        world = World(Path(folder), options.quick, options.torture, stack)
        figures |= _prepare(names, world)
        for name in names:
            figures |= _measure(name, world)
    seconds = time.monotonic() - began
    machine["load_after"] = [round(one, 2) for one in os.getloadavg()]
    text = table(figures)
    print(f"{text}{seconds:.0f} s; load {machine['load'][0]} before, {machine['load_after'][0]} after")
    found = {
        "machine": machine,
        "quick": options.quick,
        "seconds": round(seconds),
        "gates": [
            {**asdict(gate), **asdict(figures[gate.key]), "verdict": verdict(gate, figures[gate.key])}
            for gate in GATES
            if gate.key in figures
        ],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.txt").write_text(text)
    (options.out / "table.md").write_text(markdown(figures))
    (options.out / "plot.svg").write_text(plot_svg(figures))
    for path in (options.out / "results.json", options.json):
        if path is not None:
            path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {options.out}: results.json, table.txt, table.md, plot.svg")
    return 1 if failing(figures) else 0


if __name__ == "__main__":
    sys.exit(main())
