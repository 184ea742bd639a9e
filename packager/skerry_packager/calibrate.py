"""Ranges of activations from sample data, in memory that depends on the number of tensors alone.

One pass: each tensor keeps its minimum, maximum and a histogram of `BINS` equal bins about zero, whose range
doubles (neighbouring bins merge) whenever a value falls outside. onnxruntime's own histogram calibrators
keep every activation of every sample (9.3 GB for 30 images) and fail on varying output shapes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from .engine import Feed, Session

BINS: Final = 2048
_CLIPS: Final = tuple(step / 32 for step in range(16, 33))
"""Fractions of the full range that `mse_range` tries."""


class RangeCollector:
    """Streaming range of one tensor. Not finite values are counted apart and never widen the range."""

    __slots__ = ("counts", "half_width", "high", "low", "not_finite")

    def __init__(self) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.half_width = 0.0
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.not_finite = 0

    def add(self, values: np.ndarray) -> None:
        """Count an array of any shape."""
        flat = values.reshape(-1)
        finite = flat[np.isfinite(flat)]
        self.not_finite += flat.size - finite.size
        if not finite.size:
            return
        low, high = float(finite.min()), float(finite.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-low, high, 0.0)
        if not self.half_width:
            # A power of two, so that the bins do not depend on the order of the samples.
            self.half_width = float(2.0 ** np.ceil(np.log2(reach))) if reach > 1e-30 else 0.0
            if not self.half_width:
                self.counts[BINS // 2] += finite.size
                return
        while reach > self.half_width:
            self._double()
        index = (finite.astype(np.float64) + self.half_width) * (BINS / (2 * self.half_width))
        self.counts += np.bincount(np.minimum(index.astype(np.int64), BINS - 1), minlength=BINS)

    def _double(self) -> None:
        merged = self.counts.reshape(BINS // 2, 2).sum(axis=1)
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
        self.half_width *= 2

    def range(self) -> TensorRange:
        """What was seen so far."""
        if self.low > self.high:
            return TensorRange(0.0, 0.0, 0.0, self.counts.copy(), self.not_finite)
        return TensorRange(self.low, self.high, self.half_width, self.counts.copy(), self.not_finite)


@dataclass(frozen=True, slots=True)
class TensorRange:
    """Range and histogram of one tensor over the calibration data."""

    low: float
    high: float
    half_width: float
    """The histogram's bins cover -half_width .. half_width."""
    counts: np.ndarray
    not_finite: int

    def min_max(self) -> tuple[float, float]:
        """The whole range, zero included, as quantization needs it."""
        return min(self.low, 0.0), max(self.high, 0.0)

    def mse_range(self, levels: int = 255, symmetric: bool = False) -> tuple[float, float]:
        """The clipped range with the least mean squared error of rounding plus clipping."""
        low, high = self.min_max()
        if symmetric:
            low, high = -max(-low, high), max(-low, high)
        if not self.half_width or low == high:
            return low, high
        width = 2 * self.half_width / BINS
        centers = (np.arange(BINS) + 0.5) * width - self.half_width
        best, best_error = (low, high), np.inf
        for clip in reversed(_CLIPS):
            bottom, top = low * clip, high * clip
            step = (top - bottom) / levels
            outside = np.maximum(bottom - centers, 0) + np.maximum(centers - top, 0)
            error = float(np.dot(self.counts, np.where(outside > 0, outside**2, step**2 / 12)))
            if error < best_error * (1 - 1e-9):
                best, best_error = (bottom, top), error
        return best


def collect_ranges(
    model: ModelProto, tensors: Iterable[str], feeds: Iterable[Feed]
) -> Mapping[str, TensorRange]:
    """Run `feeds` through the model and watch `tensors` (float32 values of the top-level graph).

    Raises:
        ModelError: the model does not run on one of them.
    """
    watched = sorted(set(tensors))
    inputs = {value.name for value in model.graph.input}
    session = Session(_with_outputs(model, [name for name in watched if name not in inputs]))
    inner = [name for name in watched if name not in inputs]
    collectors = {name: RangeCollector() for name in watched}
    for feed in feeds:
        values_of = session.run(feed, inner) if inner else []  # no names would mean all outputs
        for name, values in zip(inner, values_of, strict=True):
            collectors[name].add(values)
        for name in inputs & set(watched):
            collectors[name].add(feed[name])
    return {name: collector.range() for name, collector in collectors.items()}


def _with_outputs(model: ModelProto, names: Sequence[str]) -> bytes:
    extended = ModelProto()
    extended.CopyFrom(model)
    present = {value.name for value in extended.graph.output}
    for name in names:
        if name not in present:
            extended.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    data: bytes = extended.SerializeToString()
    return data
