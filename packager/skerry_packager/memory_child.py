"""The fresh process in which `memory` measures: the device's engine, one model, a few runs, nothing else."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from skerry_runtime.worker.engines.onnx import OnnxEngine


def main(request: dict[str, Any]) -> None:
    """Load and run what is in ``request["folder"]``; prints peak and base in bytes, load time in ms."""
    folder = Path(request["folder"])
    with np.load(folder / "feed.npz", allow_pickle=False) as arrays:
        feed = {name: arrays[f"input{number}"] for number, name in enumerate(request["names"])}
    engine = OnnxEngine()
    base = _status("VmRSS")
    start = time.perf_counter()
    session = engine.load((folder / "model.onnx").read_bytes())
    load_ms = (time.perf_counter() - start) * 1000
    for _ in range(request["runs"]):
        session.run(feed)
    json.dump({"base": base, "peak": _status("VmHWM"), "load_ms": round(load_ms, 2)}, sys.stdout)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
