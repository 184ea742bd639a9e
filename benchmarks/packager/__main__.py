"""``python -m benchmarks.packager``: every model by every method; see ``benchmarks/README.md``."""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from .cells import python_of, run_cell
from .methods import METHODS, Method
from .models.recipe import ROOT
from .prepared import Prepared, read_prepared
from .tables import plot_svg, table

_QUICK: Final = ("digits-mlp", "swift-f0", "silero-vad-if", "iris", "cancer-forest", "digits-convnet-int8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.packager",
        description=__doc__,
        epilog="methods:\n" + "\n".join(f"  {method.name:20} {method.title}" for method in METHODS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="MODEL", help="this model; may be repeated"
    )
    parser.add_argument("--methods", default="", metavar="A,B", help="only these methods")
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(_QUICK)}")
    parser.add_argument("--resume", action="store_true", help="keep the cells that an earlier run finished")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="FOLDER")
    return parser.parse_args()


def _methods(names: str) -> list[Method]:
    wanted = names.split(",") if names else [method.name for method in METHODS]
    if unknown := set(wanted) - {method.name for method in METHODS}:
        sys.exit(f"error: unknown methods {sorted(unknown)}\n  known: {', '.join(m.name for m in METHODS)}")
    return [method for method in METHODS if method.name in wanted]


def _prepare(out: Path, names: list[str]) -> list[Prepared]:
    """All prepared models of those names, made first where they are not there."""
    command = [python_of("bench-data"), "-W", "ignore", "-m", "benchmarks.packager.prepare", str(out), *names]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if listed.returncode:
        sys.exit(
            "error: the models could not be prepared\n"
            "  see the lines above; 'make bench-packager' sets up what it needs"
        )
    made = [line.split(":")[0].strip() for line in listed.stdout.splitlines() if line.startswith("    ")]
    if missing := set(names) - set(made):
        sys.exit(f"error: unknown models {sorted(missing)}")
    return [read_prepared(out / name) for name in made]


def _machine() -> dict[str, Any]:
    """What a reader must know to compare figures."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    options = _arguments()
    methods = _methods(options.methods)
    models = _prepare(options.out / "prepared", options.only or (list(_QUICK) if options.quick else []))
    cells: list[dict[str, Any]] = []
    for prepared in models:
        for method in methods:
            if prepared.facts.engine not in method.engines:
                continue
            kept = options.out / "cells" / prepared.facts.name / f"{method.name}.json"
            if options.resume and kept.is_file():
                cell = json.loads(kept.read_text())
            else:
                cell = run_cell(prepared, method, options.out / "made")
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(cell, indent=1) + "\n")
                print(
                    f"{prepared.facts.name:22} {method.name:20} "
                    f"{cell['ruling']:12} {cell['ruling_reason'][:100]}",
                    flush=True,
                )
            facts = prepared.facts
            cells.append({**cell, "group": facts.group, "engine": facts.engine, "metric": facts.metric})
    text = table(cells)
    (options.out / "table.txt").write_text(text)
    (options.out / "results.json").write_text(
        json.dumps({"machine": _machine(), "cells": cells}, indent=1) + "\n"
    )
    (options.out / "plot.svg").write_text(plot_svg(cells))
    print(f"\n{text}\nwritten to {options.out}: results.json, table.txt, plot.svg")


if __name__ == "__main__":
    main()
