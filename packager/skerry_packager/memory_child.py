"""The fresh process in which `memory` measures: the device's engine, one model, a few runs, nothing else.

What an engine of ONNX executed is asked afterwards, so that it costs the measurement nothing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from skerry_runtime.worker.engines import import_engine


def main(request: dict[str, Any]) -> None:
    """Load and run what is in ``request["folder"]``; prints one JSON object.

    ``base`` and ``peak`` are in bytes, ``load_ms`` in milliseconds; ``fused`` and ``plain`` are
    onnxruntime's profiles of one run, with its fusions and without any, if they were asked for.
    """
    folder = Path(request["folder"])
    with np.load(folder / "feed.npz", allow_pickle=False) as arrays:
        feed = {name: arrays[f"input{number}"] for number, name in enumerate(request["names"])}
    engine = import_engine(request["engine"])
    base = _status("VmRSS")
    start = time.perf_counter()
    session = engine.load((folder / "model").read_bytes())
    load_ms = (time.perf_counter() - start) * 1000
    for _ in range(request["runs"]):
        session.run(feed)
    answer: dict[str, Any] = {"base": base, "peak": _status("VmHWM"), "load_ms": round(load_ms, 2)}
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


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
