"""`skerry_packager.pipeline.pack_variants` as a method; the target is this very machine."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..prepared import Prepared

_FOUND = ("accuracy", "frames", "mae")
"""Metrics of the benchmark that the packager finds by itself from the labels."""


def _data(prepared: Prepared, split: str) -> dict[str, np.ndarray]:
    data = prepared.rows(split)
    if len(data) == 1:
        # The name that fits any single input: that of a signature is not that of its tensor.
        data = {"x": next(iter(data.values()))}
    labels = prepared.labels(split)
    if labels is not None:
        data["labels"] = labels
    return data


def _metric(name: str) -> str | None:
    """What a person would say on the command line to be judged by that metric."""
    if name in _FOUND:
        return None
    return name if name == "cosine" else f"benchmarks.packager.measures:{name}"


def make(prepared: Prepared, out: Path) -> dict[str, Any]:
    """Write the chosen variant; returns what was tried. Raises what the packager raises."""
    from skerry_packager.pipeline import pack_variants
    from skerry_packager.results import Target

    target = Target(
        name="this-host",
        max_ir=11,
        max_opset=23,
        arch="x86_64",
        max_slowdown=1.1,
        isa=("avx2", "vnni"),
        engines={"onnxruntime": "1.23.2", "ai-edge-litert": "2.3.0"},
    )
    began, steps = time.monotonic(), dict[str, float]()

    def progress(what: str, done: int, total: int) -> None:
        steps[what] = time.monotonic() - began
        print(f"{steps[what]:.1f} s: {what}", file=sys.stderr, flush=True)

    result = pack_variants(
        prepared.model,
        evaluation=_data(prepared, "evaluation"),
        calibration=_data(prepared, "calibration"),
        targets=[target],
        progress=progress,
        metric=_metric(prepared.facts.metric),
    )
    chosen = result.variant(result.choices[0].variants[0])
    (out / prepared.facts.file).write_bytes(chosen.model)
    return {
        "chosen": chosen.name,
        "notes": list(result.notes),
        "metric": result.metric,
        "steps": steps,
        "variants": [
            {
                "name": each.name,
                "verdict": each.verdict.value,
                "reason": each.reason or result.choices[0].lost.get(each.name, ""),
                "bytes": each.size_bytes,
                "drop_bound": each.fidelity.drop_bound if each.fidelity else None,
                "ratio": each.latency.ratio if each.latency else None,
            }
            for each in result.variants
        ],
    }
