"""The benchmark's labelled metrics in the form that ``skerry pack --metric module:function`` takes.

``function(labels, outputs) -> mean over rows``. A row that was seen is not scored again: a bootstrap asks for
the same rows hundreds of times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .metrics import LABELLED


def _measure(metric: str, *names: str) -> Callable[[np.ndarray, Mapping[str, np.ndarray]], float]:
    known: dict[tuple[bytes, bytes], float] = {}

    def one(found: np.ndarray, label: np.ndarray) -> float:
        key = found.tobytes(), label.tobytes()
        # Bytes hash once and for all; a dense output's would be as slow as the metric itself.
        if key not in known:
            known[key] = LABELLED[metric](found, label)
        return known[key]

    def measure(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
        # A TFLite signature has names of its own for its outputs.
        found = outputs[next(name for name in (*names, *outputs) if name in outputs)]
        if metric == "text":
            # What is read depends on the best class of every step alone.
            found = found.argmax(axis=-1)
            return float(
                np.mean([_text(known, row, label) for row, label in zip(found, labels, strict=True)])
            )
        return float(np.mean([one(row, np.asarray(label)) for row, label in zip(found, labels, strict=True)]))

    return measure


def _text(known: dict[tuple[bytes, bytes], float], path: np.ndarray, label: np.ndarray) -> float:
    key = path.tobytes(), label.tobytes()
    if key not in known:
        classes = np.eye(int(path.max()) + 1, dtype=np.int8)[path.reshape(-1)]
        known[key] = LABELLED["text"](classes, label)
    return known[key]


text = _measure("text", "softmax_11.tmp_0")
mask = _measure("mask", "sigmoid_0.tmp_0")
notes = _measure("notes", "StatefulPartitionedCall:1", "note")
pitch = _measure("pitch", "pitch")
wake = _measure("wake", "StatefulPartitionedCall:0")
