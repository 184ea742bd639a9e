"""Windows: rows of features become the counts of a `WindowSummary`. Integers everywhere.

Rows gather in a preallocated buffer and are counted 256 at a time by ``searchsorted`` and ``bincount``.
`count_plain` does the same with the standard library alone and gives identical counts; it is the
reference of the property test, and the path of a board without numpy.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skerry_contract.monitoring import (
    CLIP_SD,
    EXCEEDANCE_EDGES,
    FIXED_POINT,
    SCORE_BINS,
    CategoryFeature,
    EmbeddingReference,
    Feature,
    FloatFeature,
    MonitoringSpec,
)
from skerry_contract.summary import (
    LATENCY_CELLS,
    EmbeddingSketch,
    FeatureSketch,
    HealthSketch,
    PredictionSketch,
    WindowSummary,
    latency_cell,
)

from .features import Floats, Ints, fourier_basis

BUFFER_ROWS: Final = 256
UNIT: Final = 1 << 20
"""Scores and Fourier features are summed in units of 2^-20."""
_CLIP: Final = CLIP_SD * FIXED_POINT
_FLOAT32_MAX: Final = 3.4028234663852886e38

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Where times come from."""

    boot_ms: Callable[[], int]
    """Milliseconds since boot, sleep included: durations are by this one."""
    utc_ms: Callable[[], int]
    """Milliseconds since 1970; may jump."""


def cell_edges(feature: FloatFeature) -> list[float]:
    """All inner edges of a counts vector, ascending: cell ``i`` holds ``edges[i - 1] <= x < edges[i]``.

    The range's last bin is closed, so its upper edge is the next number after it. An edge that rounding
    puts below its neighbour leaves an empty cell.
    """
    low, high = feature.edges[0], feature.edges[-1]
    below = [low - step * feature.iqr for step in reversed(EXCEEDANCE_EDGES)]
    above = [high + step * feature.iqr for step in EXCEEDANCE_EDGES]
    edges = [*below, *feature.edges[:-1], math.nextafter(high, math.inf), *above]
    for i in range(1, len(edges)):
        edges[i] = max(edges[i], edges[i - 1])
    return edges


class _FloatCounter:
    def __init__(self, feature: FloatFeature) -> None:
        self._feature = feature
        self._edges = np.array(cell_edges(feature))
        self._low, self._high = feature.edges[0], feature.edges[-1]
        self.counts: Counts = np.zeros(feature.cells, np.int64)
        self.nans = self.total = self.squares = self.exceed_low = self.exceed_high = 0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, column: Floats) -> None:
        """Count float64 values of shape ``[rows]``."""
        usable = np.isfinite(column)
        if not usable.all():
            self.nans += int(len(column) - np.count_nonzero(usable))
            column = column[usable]
            if not len(column):
                return
        cells = np.searchsorted(self._edges, column, side="right")
        self.counts += np.bincount(cells, minlength=len(self.counts))
        moments = self._fixed(column - self._feature.mean)
        self.total += int(moments.sum())
        self.squares += int(np.square(moments).sum())
        least, most = float(column.min()), float(column.max())
        if least < self._low:
            self.exceed_low += int(self._fixed(self._low - column[column < self._low]).sum())
        if most > self._high:
            self.exceed_high += int(self._fixed(column[column > self._high] - self._high).sum())
        self.minimum, self.maximum = min(self.minimum, least), max(self.maximum, most)

    def _fixed(self, deviations: Floats) -> Ints:
        scaled = deviations / self._feature.sd * FIXED_POINT
        return np.rint(np.clip(scaled, -_CLIP, _CLIP)).astype(np.int64)

    def sketch(self) -> FeatureSketch:
        return FeatureSketch(
            nans=self.nans,
            counts=tuple(self.counts.tolist()),
            total=self.total,
            squares=self.squares,
            exceed_low=self.exceed_low,
            exceed_high=self.exceed_high,
            minimum=_float32(self.minimum),
            maximum=_float32(self.maximum),
        )


class _CategoryCounter:
    def __init__(self, feature: CategoryFeature) -> None:
        order = sorted(range(len(feature.values)), key=lambda i: feature.values[i])
        self._sorted = np.array([feature.values[i] for i in order])
        self._cells = np.array([*order, len(feature.values)])
        self.counts: Counts = np.zeros(feature.cells, np.int64)
        self.nans = 0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, column: Floats) -> None:
        """Count float64 codes of shape ``[rows]``."""
        usable = np.isfinite(column)
        if not usable.all():
            self.nans += int(len(column) - np.count_nonzero(usable))
            column = column[usable]
            if not len(column):
                return
        if len(self._sorted):
            places = np.minimum(np.searchsorted(self._sorted, column), len(self._sorted) - 1)
            places = np.where(self._sorted[places] == column, places, len(self._sorted))
        else:
            places = np.zeros(len(column), np.int64)
        self.counts += np.bincount(self._cells[places], minlength=len(self.counts))
        self.minimum = min(self.minimum, float(column.min()))
        self.maximum = max(self.maximum, float(column.max()))

    def sketch(self) -> FeatureSketch:
        return FeatureSketch(
            nans=self.nans,
            counts=tuple(self.counts.tolist()),
            minimum=_float32(self.minimum),
            maximum=_float32(self.maximum),
        )


class _PredictionCounter:
    def __init__(self, classes: int, scored: bool, calibration: tuple[float, ...]) -> None:
        self._classes, self._scored = classes, scored
        self._calibration = np.array([round(value * UNIT) for value in calibration], np.int64)
        self.counts: Counts = np.zeros(classes, np.int64)
        self.scores: Counts = np.zeros(classes * SCORE_BINS if scored else 0, np.int64)
        self.sum_max_score = self.sum_calibrated = 0

    def add(self, predicted: Ints, scores: Floats) -> None:
        """Count classes ``[rows]`` and their scores in [0, 1]; a label beyond the classes is left out."""
        known = (predicted >= 0) & (predicted < self._classes)
        predicted, scores = predicted[known], scores[known]
        self.counts += np.bincount(predicted, minlength=self._classes)
        if not self._scored:
            return
        bins = np.minimum((scores * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
        self.scores += np.bincount(predicted * SCORE_BINS + bins, minlength=len(self.scores))
        self.sum_max_score += int(np.rint(scores * UNIT).astype(np.int64).sum())
        if len(self._calibration):
            self.sum_calibrated += int(self._calibration[bins].sum())

    def sketch(self) -> PredictionSketch:
        return PredictionSketch(
            counts=tuple(self.counts.tolist()),
            scores=tuple(self.scores.tolist()),
            sum_max_score=self.sum_max_score,
            sum_calibrated=self.sum_calibrated,
        )


class _EmbeddingCounter:
    def __init__(self, reference: EmbeddingReference) -> None:
        self._reference = reference
        self._basis: tuple[Floats, Floats] | None = None
        self.sums: Counts = np.zeros(reference.dimensions, np.int64)
        self.norms: Counts = np.zeros(len(reference.norm_edges) + 1, np.int64)

    def add(self, vectors: Floats) -> None:
        """Sum the Fourier features of float64 vectors ``[rows, size]``; a vector with NaN is left out."""
        vectors = vectors[np.isfinite(vectors).all(axis=1)]
        reference = self._reference
        if self._basis is None or len(self._basis[0]) != vectors.shape[1]:
            size = vectors.shape[1]
            self._basis = fourier_basis(reference.seed, reference.dimensions, reference.bandwidth, size)
        frequencies, phases = self._basis
        waves = np.cos(vectors @ frequencies + phases)
        self.sums += np.rint(waves * UNIT).astype(np.int64).sum(axis=0)
        cells = np.searchsorted(np.array(reference.norm_edges), np.linalg.norm(vectors, axis=1), side="right")
        self.norms += np.bincount(cells, minlength=len(self.norms))

    def sketch(self) -> EmbeddingSketch:
        return EmbeddingSketch(sums=tuple(self.sums.tolist()), norms=tuple(self.norms.tolist()))


@dataclass(slots=True)
class _Counters:
    """All counts of one window."""

    spec: MonitoringSpec
    start_utc_ms: int
    start_mono_ms: int
    rows: int = 0
    dropped: int = 0
    errors: int = 0
    rss_bytes: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * LATENCY_CELLS)
    features: list[_FloatCounter | _CategoryCounter] = field(init=False)
    prediction: _PredictionCounter | None = field(init=False, default=None)
    embedding: _EmbeddingCounter | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.features = [
            _FloatCounter(feature) if isinstance(feature, FloatFeature) else _CategoryCounter(feature)
            for feature in self.spec.features
        ]
        prediction = self.spec.prediction
        if prediction is not None:
            scored = prediction.form != "label"
            self.prediction = _PredictionCounter(prediction.classes, scored, prediction.calibration)
        if self.spec.embedding is not None:
            self.embedding = _EmbeddingCounter(self.spec.embedding)

    @property
    def empty(self) -> bool:
        return not (self.rows or self.dropped or self.errors)


class WindowBuilder:
    """Counts rows into the open window and closes it. Pure but for the clock; not thread-safe."""

    def __init__(
        self,
        spec: MonitoringSpec,
        *,
        spec_hash: bytes,
        bundle: bytes,
        boot: bytes,
        first_seq: int,
        seconds: float,
        rows: int,
        clock: Clock,
    ) -> None:
        """``bundle`` is the first 8 bytes of the bundle's digest, ``boot`` the 16 of the boot."""
        self._spec, self._spec_hash, self._bundle, self._boot = spec, spec_hash, bundle, boot
        self._seq, self._clock = first_seq, clock
        self._next_limits = self._limits = (seconds, rows)
        self._buffer = np.empty((BUFFER_ROWS, len(spec.features)))
        self._classes = np.zeros(BUFFER_ROWS, np.int64)
        self._scores = np.zeros(BUFFER_ROWS)
        self._filled = 0
        self._window = self._open()

    def observe(
        self,
        features: Floats,
        predicted: Ints | None = None,
        scores: Floats | None = None,
        vectors: Floats | None = None,
    ) -> None:
        """Take rows.

        Args:
            features: float64 ``[rows, features]``.
            predicted: classes ``[rows]``, if the spec has a prediction.
            scores: top scores ``[rows]`` in [0, 1], beside them.
            vectors: float64 ``[rows, size]``, if the spec has an embedding.
        """
        rows = len(features)
        taken = 0
        while taken < rows:
            part = min(rows - taken, BUFFER_ROWS - self._filled)
            begin, end = self._filled, self._filled + part
            self._buffer[begin:end] = features[taken : taken + part]
            if predicted is not None and scores is not None:
                self._classes[begin:end] = predicted[taken : taken + part]
                self._scores[begin:end] = scores[taken : taken + part]
            self._filled = end
            taken += part
            if end == BUFFER_ROWS:
                self._flush()
        self._window.rows += rows
        if vectors is not None and self._window.embedding is not None:
            self._window.embedding.add(vectors)

    def latency(self, microseconds: float) -> None:
        """One inference, without queueing."""
        self._window.latency[latency_cell(microseconds)] += 1

    def dropped(self, rows: int) -> None:
        """Rows that were answered and could not be counted."""
        self._window.dropped += rows

    def failed(self) -> None:
        """One inference that failed."""
        self._window.errors += 1

    def resident(self, rss_bytes: int) -> None:
        """Resident memory as it was seen."""
        self._window.rss_bytes = max(self._window.rss_bytes, rss_bytes)

    def settings(self, seconds: float, rows: int) -> None:
        """From the next window on."""
        self._next_limits = (seconds, rows)

    def due(self) -> bool:
        """Whether the window is full or over."""
        seconds, rows = self._limits
        return self._window.rows >= rows or self._age_ms() >= seconds * 1000

    def close(self) -> WindowSummary | None:
        """The window so far, and a new one begins. None, and no number is used up, if nothing was seen."""
        self._flush()
        window, duration = self._window, self._age_ms()
        self._limits = self._next_limits
        self._window = self._open()
        if window.empty:
            return None
        seq, self._seq = self._seq, self._seq + 1
        return WindowSummary(
            spec_hash=self._spec_hash,
            bundle=self._bundle,
            boot=self._boot,
            seq=seq,
            start_utc_ms=window.start_utc_ms,
            start_mono_ms=window.start_mono_ms,
            duration_ms=duration,
            clock_quality=0,
            rows=window.rows,
            dropped=window.dropped,
            errors=window.errors,
            features=tuple(counter.sketch() for counter in window.features),
            prediction=None if window.prediction is None else window.prediction.sketch(),
            embedding=None if window.embedding is None else window.embedding.sketch(),
            health=HealthSketch(latency=tuple(window.latency), rss_kib=window.rss_bytes // 1024),
        )

    def _open(self) -> _Counters:
        return _Counters(self._spec, max(0, self._clock.utc_ms()), self._clock.boot_ms())

    def _age_ms(self) -> int:
        return max(0, self._clock.boot_ms() - self._window.start_mono_ms)

    def _flush(self) -> None:
        filled, self._filled = self._filled, 0
        if not filled:
            return
        with np.errstate(all="ignore"):
            for index, counter in enumerate(self._window.features):
                counter.add(self._buffer[:filled, index])
            if self._window.prediction is not None:
                self._window.prediction.add(self._classes[:filled], self._scores[:filled])


def count_plain(feature: Feature, column: Sequence[float]) -> FeatureSketch:
    """The sketch of one feature by the standard library alone: slower, and the same to the last bit."""
    usable = [value for value in column if math.isfinite(value)]
    counts = [0] * feature.cells
    nans = len(column) - len(usable)
    minimum = _float32(min(usable, default=math.inf))
    maximum = _float32(max(usable, default=-math.inf))
    if isinstance(feature, CategoryFeature):
        cell_of = {value: cell for cell, value in enumerate(feature.values)}
        for value in usable:
            counts[cell_of.get(value, len(feature.values))] += 1
        return FeatureSketch(nans=nans, counts=tuple(counts), minimum=minimum, maximum=maximum)
    edges = cell_edges(feature)
    low, high = feature.edges[0], feature.edges[-1]
    for value in usable:
        counts[bisect_right(edges, value)] += 1

    def fixed(deviation: float) -> int:
        return round(min(max(deviation / feature.sd * FIXED_POINT, -_CLIP), _CLIP))

    moments = [fixed(value - feature.mean) for value in usable]
    return FeatureSketch(
        nans=nans,
        counts=tuple(counts),
        total=sum(moments),
        squares=sum(moment * moment for moment in moments),
        exceed_low=sum(fixed(low - value) for value in usable if value < low),
        exceed_high=sum(fixed(value - high) for value in usable if value > high),
        minimum=minimum,
        maximum=maximum,
    )


def _float32(value: float) -> float:
    """As the wire carries it; 0 where there was nothing."""
    if math.isinf(value):
        return 0.0
    packed = struct.pack(">f", min(max(value, -_FLOAT32_MAX), _FLOAT32_MAX))
    # No negative zero: which of the two was seen first must not change a byte.
    return float(struct.unpack(">f", packed)[0]) + 0.0
