"""The fresh process in which `memory` measures: the device's engine, one model, a few runs, nothing else.

What an engine of ONNX executed is asked afterwards, so that it costs the measurement nothing.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from skerry_runtime.worker.engines import import_engine
from skerry_runtime.worker.engines.model_file import ModelFile
from skerry_runtime.worker.process import PeakMemory, resident_bytes


def main(request: dict[str, Any]) -> None:
    """Load and run what is in ``request["folder"]``; prints one JSON object.

    ``base`` and ``peak`` are in bytes, ``load_ms`` in milliseconds; ``fused`` and ``plain`` are
    onnxruntime's profiles of one run, with its fusions and without any, if they were asked for.
    """
    folder = Path(request["folder"])
    with np.load(folder / "feed.npz", allow_pickle=False) as arrays:
        feed = {name: arrays[f"input{number}"] for number, name in enumerate(request["names"])}
    engine = import_engine(request["engine"])
    base, memory = resident_bytes(), PeakMemory()
    start = time.perf_counter()
    session = engine.load(ModelFile(os.open(folder / "model", os.O_RDONLY | os.O_CLOEXEC)))
    load_ms = (time.perf_counter() - start) * 1000
    memory.droppable = session.mapped_bytes
    peaks = [memory.take()]
    # The first run brings the pages of a mapped model into memory: its peak is not the others'.
    for number in range(request["runs"]):
        session.run(feed)
        if not number:
            peaks.append(memory.take())
    answer: dict[str, Any] = {
        "base": base, "peak": max(*peaks, memory.take()), "load_ms": round(load_ms, 2)
    }  # fmt: skip
    del session
    for name in request["profiles"]:
        answer[name] = _profile(folder, name, feed)
    json.dump(answer, sys.stdout)


def _profile(folder: Path, name: str, feed: dict[str, Any]) -> list[Any]:
    import onnxruntime as ort  # the engine is imported already, its telemetry off

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    # "fused" stops before the layouts of one processor family: what is found holds on others too.
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if name == "fused" else levels.ORT_DISABLE_ALL
    )
    options.enable_profiling = True
    # Packed weights are missing from the profile.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.profile_file_prefix = str(folder / name)
    path = folder / ("model" if name == "fused" else "named")
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    keep = ("op_name", "input_type_shape", "output_type_shape")
    return [
        {"cat": "Node", "name": event["name"], "args": {key: event["args"][key] for key in keep}}
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    ]
