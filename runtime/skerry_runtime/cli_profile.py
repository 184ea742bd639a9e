"""``skerry-runtime profile``: where a model's time goes, by the engine's own profiler."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import EngineError, UnavailableError, from_code

from .cli_bench import active_folder
from .cli_common import DONE, ask, config_of, print_json, table
from .cli_models import model_of

CHILD: Final = "skerry_runtime.profile_child"
_SPARE_SECONDS: Final = 120.0
"""For loading the model, and for one inference that takes longer than it should."""


def profile(options: argparse.Namespace) -> int:
    """Run the command."""
    config = config_of(options)
    name, model = model_of(ask(config, {"do": "status"}), options.model)
    found = _run(active_folder(config, name, model), options.seconds)
    result = {
        "model": name, "version": model["active"]["version"], "variant": model["active"]["variant"], **found,
    }  # fmt: skip
    if options.json:
        print_json(result)
    else:
        print(describe(result, options.top))
    return DONE


def describe(result: Mapping[str, Any], top: int) -> str:
    """The operators and the nodes that take most of the time, or why nothing is known of them. Pure."""
    what = f"{result['model']} {result['version']} ({result['variant']})"
    times = "  ".join(f"{name} {us:.1f}" for name, us in result["latency_us"].items())
    lines = [
        f"{what} on {result['engine']}, {result['runs']:,} inferences",
        f"one inference {result['run_us']:.1f} us on average; in us: {times}",
    ]
    if not result["operators"]:
        return "\n".join([*lines, *textwrap.wrap(result["note"], 80, break_on_hyphens=False)])
    outside = max(0.0, result["profiled_us"] - result["kernels_us"])
    lines.append(
        f"with the profiler {result['profiled_us']:.1f} us:"
        f" {result['kernels_us']:.1f} in operators, {outside:.1f} around them"
    )
    operators = [
        (row["operator"], str(row["nodes"]), f"{row['us']:.1f}", f"{row['share']:.1%}")
        for row in result["operators"][:top]
    ]
    nodes = [
        (row["operator"], row["node"][:60], f"{row['us']:.1f}", f"{row['share']:.1%}")
        for row in result["nodes"][:top]
    ]
    lines.append("\n" + table(("operator", "nodes", "us", "share"), operators))
    lines.append("\n" + table(("operator", "node", "us", "share"), nodes, left=2))
    return "\n".join(lines)


def _run(folder: Path, seconds: float) -> Mapping[str, Any]:
    # -I: neither the environment nor the current folder can plant a module in it.
    # The trace's folder is made here, so that it goes also if the child dies.
    with tempfile.TemporaryDirectory(prefix="skerry-profile-") as scratch:
        command = [sys.executable, "-I", "-m", CHILD, str(folder), str(seconds), scratch]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds + _SPARE_SECONDS, check=False,
                cwd="/",
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"the profile did not end within {error.timeout:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"the profiling process ended with status {done.returncode}: {last}")
    found: Mapping[str, Any] = json.loads(done.stdout)
    if "error" in found:
        raise from_code(found["error"]["code"], found["error"]["message"], found["error"]["hint"])
    return found
