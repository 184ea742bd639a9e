"""The disposable process of ``skerry-runtime profile``: the model's session, with the engine's profiler on.

``profile_child FOLDER SECONDS`` loads a generation as a worker does, runs its golden samples and prints one
JSON object. It costs what a worker costs, and the worker that answers knows nothing of it.
"""

from __future__ import annotations

import collections
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skerry_contract.errors import EngineError, SkerryError

from .worker.engines import Session, import_engine
from .worker.generation import Generation, load_generation


def main(words: list[str]) -> int:
    """Profile and print."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answer:
        try:
            found = profile(Path(words[0]), float(words[1]))
        except SkerryError as error:
            found = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        json.dump(found, answer)
    return 0


def profile(folder: Path, seconds: float) -> dict[str, Any]:
    """Time every operator of a generation's model for so many seconds.

    Raises:
        SlotError: the generation is damaged.
        EngineError: the engine is missing, refuses the model, or has no profiler.
    """
    generation = load_generation(folder)
    if generation.variant.engine != "onnx":
        raise EngineError(
            f"the Python library of {generation.variant.engine} has no profiler of its operators",
            hint="'skerry-runtime bench-ops --engine tflite' times operators one by one on this device.",
        )
    with tempfile.TemporaryDirectory(prefix="skerry-profile-") as scratch:
        runs, total_us = _run_onnx(generation, seconds, str(Path(scratch) / "trace"))
        (trace,) = Path(scratch).glob("trace*")
        events = json.loads(trace.read_text())
    return {
        "engine": f"onnxruntime {import_engine('onnx').version}",
        "runs": runs,
        "run_us": total_us / runs,
        **summarise(events, runs),
    }


def _run_onnx(generation: Generation, seconds: float, prefix: str) -> tuple[int, float]:
    """Run the very session that serves, its options with the profiler on; runs and microseconds in all."""
    engine = import_engine("onnx")
    # Only worker/engines/onnx.py imports the library and makes the options: they change where it takes them.
    library = sys.modules["onnxruntime"]
    plain = vars(library)["SessionOptions"]

    def with_profiler() -> Any:
        options = plain()
        options.enable_profiling = True
        options.profile_file_prefix = prefix
        return options

    vars(library)["SessionOptions"] = with_profiler
    session: Session | None = engine.load(generation.model_bytes())
    samples = generation.golden.samples
    runs, end = 0, time.monotonic() + seconds
    begin = time.perf_counter_ns()
    while session is not None and (runs == 0 or time.monotonic() < end):
        session.run(samples[runs % len(samples)].inputs)
        runs += 1
    total_us = (time.perf_counter_ns() - begin) / 1000
    session = None  # its end writes the trace
    return runs, total_us


def summarise(events: Sequence[Mapping[str, Any]], runs: int) -> dict[str, Any]:
    """ONNX Runtime's trace -> microseconds an inference, by operator type and by node. Pure.

    Source: the events of category ``Node`` whose names end in ``_kernel_time``.
    """
    by_node: dict[tuple[str, str], float] = collections.defaultdict(float)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            operator = str(event.get("args", {}).get("op_name", "?"))
            by_node[operator, name.removesuffix("_kernel_time")] += float(event["dur"])
    by_operator: dict[str, list[float]] = collections.defaultdict(list)
    for (operator, _), microseconds in by_node.items():
        by_operator[operator].append(microseconds)
    kernels_us = sum(by_node.values()) or 1.0
    operators = [
        {"operator": operator, "nodes": len(times), "us": sum(times) / runs, "share": sum(times) / kernels_us}
        for operator, times in by_operator.items()
    ]
    nodes = [
        {"operator": operator, "node": node, "us": microseconds / runs, "share": microseconds / kernels_us}
        for (operator, node), microseconds in by_node.items()
    ]
    return {
        "kernels_us": kernels_us / runs,
        "operators": sorted(operators, key=lambda row: -float(str(row["us"]))),
        "nodes": sorted(nodes, key=lambda row: -float(str(row["us"]))),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
