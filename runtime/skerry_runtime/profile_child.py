"""The disposable process of ``skerry-runtime profile``: the model's session, with the engine's profiler on.

``profile_child FOLDER SECONDS SCRATCH`` loads a generation as a worker does, runs its golden samples and
prints one JSON object. It costs what a worker costs, and the worker that answers knows nothing of it. Of an
engine without a profiler that Python can reach whole inferences are timed, and no more is claimed.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import SkerryError

from .worker.engines import Engine, Session, import_engine
from .worker.generation import Generation, load_generation

NO_PROFILER: Final = (
    "{library} has no profiler of operators that Python can reach: only whole inferences are timed here. For"
    "  the cost of each kind of operator on this device: skerry-runtime bench-ops --engine tflite. For this"
    " very model: benchmark_model --enable_op_profiling=true of TensorFlow's tools."
)
_MOST_EVENTS: Final = 50_000
"""In a trace: some 10 MB of JSON."""
_WARM_UP: Final = 3
"""Inferences that the distribution leaves out: they meet cold caches."""


def main(words: list[str]) -> int:
    """Profile and print."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answer:
        try:
            found = profile(Path(words[0]), float(words[1]), Path(words[2]))
        except SkerryError as error:
            found = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        json.dump(found, answer)
    return 0


def profile(folder: Path, seconds: float, scratch: Path) -> dict[str, Any]:
    """Time a generation's model for so many seconds, operator by operator where the engine tells.

    Raises:
        SlotError: the generation is damaged.
        EngineError: the engine is missing or refuses the model.
    """
    generation = load_generation(folder)
    engine = import_engine(generation.variant.engine)
    library = str(vars(engine).get("library", "onnxruntime"))
    if engine.name == "onnx":
        times = _run(_load(engine, generation), generation, seconds / 2)
        told = _profile_onnx(engine, generation, seconds / 2, scratch)
    else:
        times = _run(_load(engine, generation), generation, seconds)
        told = {
            "note": NO_PROFILER.format(library=library), "profiled_us": None, "kernels_us": None,
            "operators": [], "nodes": [],
        }  # fmt: skip
    return {"engine": f"{library} {engine.version}", **distribution(times[_WARM_UP:]), **told}


def _load(engine: Engine, generation: Generation) -> Session:
    return engine.load(generation.open_model(), generation.variant.execution)


def _run(session: Session, generation: Generation, seconds: float, most: int = sys.maxsize) -> list[float]:
    """Microseconds of each inference; at least one more than the warm-up, then at most ``most``."""
    samples = generation.golden.samples
    times: list[float] = []
    end = time.monotonic() + seconds
    while len(times) <= _WARM_UP or (len(times) < most and time.monotonic() < end):
        inputs = samples[len(times) % len(samples)].inputs
        begin = time.perf_counter_ns()
        session.run(inputs)
        times.append((time.perf_counter_ns() - begin) / 1000)
    return times


def _profile_onnx(engine: Engine, generation: Generation, seconds: float, scratch: Path) -> dict[str, Any]:
    """The very session that serves, its options with the profiler on."""
    # Only worker/engines/onnx.py imports the library and makes the options: they change where it takes them.
    library = sys.modules["onnxruntime"]
    plain = vars(library)["SessionOptions"]

    def traced(name: str, seconds: float, most: int) -> tuple[list[float], Sequence[Mapping[str, Any]]]:
        def with_profiler() -> Any:
            options = plain()
            options.enable_profiling = True
            options.profile_file_prefix = str(scratch / name)
            return options

        vars(library)["SessionOptions"] = with_profiler
        times = _run(_load(engine, generation), generation, seconds, most)
        gc.collect()  # the session's end writes the trace
        (trace,) = scratch.glob(f"{name}*")
        return times, json.loads(trace.read_text())

    # The trace grows with every node of every inference, and this may be a small board.
    times, events = traced("few", 0.0, 1)
    most = _MOST_EVENTS * len(times) // len(events)
    times, events = traced("many", seconds, most)
    return {"note": "", "profiled_us": sum(times) / len(times), **summarise(events, len(times))}


def distribution(times: Sequence[float]) -> dict[str, Any]:
    """How long single inferences took, in microseconds. Pure.

    >>> distribution([4.0, 1.0, 3.0, 2.0])["run_us"]
    2.5
    """
    ordered = sorted(times)

    def quantile(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {
        "runs": len(ordered),
        "run_us": sum(ordered) / len(ordered),
        "latency_us": {
            "min": ordered[0],
            "p50": quantile(0.5),
            "p95": quantile(0.95),
            "p99": quantile(0.99),
            "max": ordered[-1],
        },
    }


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
