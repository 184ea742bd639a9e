"""The window summary: what leaves a device instead of its inputs (``docs/spec/window-summary-v1.md``).

Everything that is merged is an integer, so merging is associative, commutative and byte-identical in any
order. Layout: a fixed head, then blocks of tag, length, bytes; blocks of an unknown tag are kept.
The sender's identity comes from the MQTT topic, never from here.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import IntFlag
from itertools import groupby
from typing import Final, TypeVar

from .errors import MessageError
from .limits import DEFAULT_LIMITS, Limits
from .monitoring import SCORE_BINS, MonitoringSpec
from .varints import SUM_BITS, Reader, Writer

MAGIC: Final = b"SKW1"
LATENCY_CELLS: Final = 96
"""Latency histogram: cell ``floor(4 log2(microseconds))``, so each is 19% wide; 1 us to 16.8 s."""
CLOCK_NONE, CLOCK_NTP, CLOCK_GPS = 0, 1, 2

_HEAD: Final = struct.Struct(">4s8s8s16s")
_FEATURES, _PREDICTION, _EMBEDDING, _LABELS, _HEALTH = range(1, 6)
T = TypeVar("T")


class Flags(IntFlag):
    """Marks of a window."""

    HISTORICAL = 1
    """Sent later than it could have been."""
    COMPACTED = 2
    """Several windows merged into one because the buffer was full."""
    DP = 4
    """Differentially private counts."""


NO_FLAGS: Final = Flags(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSketch:
    """Counts of one feature; see `skerry_contract.monitoring.FloatFeature` for the cells."""

    nulls: int = 0
    nans: int = 0
    """NaN and infinities."""
    counts: tuple[int, ...]
    total: int = 0
    """Sum of the fixed-point deviations from the reference mean; 0 for categories."""
    squares: int = 0
    exceed_low: int = 0
    """Sum of the fixed-point distances below the range."""
    exceed_high: int = 0
    minimum: float = 0.0
    """float32, clipped to its finite range; 0 if the window has no finite value."""
    maximum: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionSketch:
    """What a classifier said."""

    counts: tuple[int, ...]
    """A class."""
    scores: tuple[int, ...] = ()
    """``classes * 64`` cells, row-major by predicted class, of the top score; empty for labels only."""
    sum_max_score: int = 0
    """In units of 2^-20."""
    sum_calibrated: int = 0
    """Sum of the calibrated scores, in units of 2^-20."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingSketch:
    sums: tuple[int, ...]
    """Sum of each random Fourier feature, in units of 2^-20."""
    norms: tuple[int, ...]
    """Counts below, between and above the reference's norm edges."""


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class LabelCount:
    """Delayed ground truth, by the window in which the prediction was made."""

    window: int
    truth: int
    predicted: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSketch:
    latency: tuple[int, ...] = (0,) * LATENCY_CELLS
    rss_kib: int = 0
    """Maximum."""
    temperature_mc: int = 0
    """Maximum, in thousandths of a degree Celsius, of either sign; 0 if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSummary:
    """One window of one model on one device; keyed by (device, boot, seq)."""

    spec_hash: bytes
    bundle: bytes
    """First 8 bytes of the bundle's digest."""
    boot: bytes
    """16 bytes."""
    seq: int
    flags: Flags = NO_FLAGS
    start_utc_ms: int
    start_mono_ms: int
    duration_ms: int
    clock_quality: int
    rows: int
    dropped: int = 0
    """Rows that were answered and not counted."""
    errors: int = 0
    """Inferences that failed."""
    features: tuple[FeatureSketch, ...]
    prediction: PredictionSketch | None = None
    embedding: EmbeddingSketch | None = None
    labels: tuple[LabelCount, ...] = ()
    health: HealthSketch = HealthSketch()
    unknown: tuple[tuple[int, bytes], ...] = ()


def encode(summary: WindowSummary) -> bytes:
    """The wire form.

    Raises:
        MessageError: a count below 0, or a number beyond what the form holds.
    """
    w = Writer()
    w.raw(_HEAD.pack(MAGIC, summary.spec_hash, summary.bundle, summary.boot))
    for number in (
        summary.seq, summary.flags, summary.start_utc_ms, summary.start_mono_ms, summary.duration_ms,
        summary.clock_quality, summary.rows, summary.dropped, summary.errors,
    ):  # fmt: skip
        w.number(number)
    blocks = [(_FEATURES, _write_features(summary.features)), (_HEALTH, _write_health(summary.health))]
    if summary.prediction is not None:
        blocks.append((_PREDICTION, _write_prediction(summary.prediction)))
    if summary.embedding is not None:
        blocks.append((_EMBEDDING, _write_embedding(summary.embedding)))
    if summary.labels:
        blocks.append((_LABELS, _write_labels(summary.labels)))
    for tag, data in sorted([*blocks, *summary.unknown]):
        w.number(tag)
        w.number(len(data))
        w.raw(data)
    return bytes(w.out)


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS) -> WindowSummary:
    """Read the wire form.

    Raises:
        MessageError: oversize, truncated, an impossible number, or counts that do not add up.
    """
    if len(data) > limits.summary_bytes:
        raise MessageError(
            f"a window summary of {len(data)} bytes is over the limit of {limits.summary_bytes}"
        )
    r = Reader(data)
    magic, spec_hash, bundle, boot = _HEAD.unpack(r.raw(_HEAD.size))
    if magic != MAGIC:
        raise MessageError("not a window summary of version 1")
    seq, flags, start_utc, start_mono, duration, quality, rows, dropped, errors = (
        r.number() for _ in range(9)
    )
    blocks: dict[int, bytes] = {}
    last = 0
    while not r.done():
        tag = r.number()
        if tag <= last:
            raise MessageError("window summary: blocks must ascend by tag")
        last = tag
        blocks[tag] = r.raw(r.number())
    if _FEATURES not in blocks or _HEALTH not in blocks or quality > CLOCK_GPS or flags > 7:
        raise MessageError("window summary: a mandatory block is missing or a field is out of range")
    features = _whole(blocks.pop(_FEATURES), lambda b: _read_features(b, limits))
    if any(sketch.nulls + sketch.nans + sum(sketch.counts) != rows for sketch in features):
        raise MessageError("window summary: the counts of a feature do not add up to the rows")
    prediction = _optional(blocks.pop(_PREDICTION, None), lambda b: _read_prediction(b, limits))
    if prediction is not None and sum(prediction.counts) > rows:
        raise MessageError("window summary: more predictions than rows")
    embedding = _optional(blocks.pop(_EMBEDDING, None), lambda b: _read_embedding(b, limits))
    if embedding is not None and sum(embedding.norms) > rows:
        raise MessageError("window summary: more embeddings than rows")
    return WindowSummary(
        spec_hash=spec_hash,
        bundle=bundle,
        boot=boot,
        seq=seq,
        flags=Flags(flags),
        start_utc_ms=start_utc,
        start_mono_ms=start_mono,
        duration_ms=duration,
        clock_quality=quality,
        rows=rows,
        dropped=dropped,
        errors=errors,
        features=features,
        prediction=prediction,
        embedding=embedding,
        labels=_optional(blocks.pop(_LABELS, None), _read_labels) or (),
        health=_whole(blocks.pop(_HEALTH), _read_health),
        unknown=tuple(blocks.items()),
    )


def check(summary: WindowSummary, spec: MonitoringSpec, spec_hash: bytes) -> None:
    """Refuse a summary that was not made under the spec.

    Raises:
        MessageError: another spec hash, or other shapes than the spec's.
    """
    if summary.spec_hash != spec_hash:
        raise MessageError(f"the window was made under spec {summary.spec_hash.hex()}, not {spec_hash.hex()}")
    if [len(sketch.counts) for sketch in summary.features] != [feature.cells for feature in spec.features]:
        raise MessageError("the window has other features or bins than its spec")
    if (summary.prediction is None) != (spec.prediction is None):
        raise MessageError("the window and its spec disagree on whether there are predictions")
    if summary.prediction is not None and spec.prediction is not None:
        scores = 0 if spec.prediction.form == "label" else spec.prediction.classes * SCORE_BINS
        if (len(summary.prediction.counts), len(summary.prediction.scores)) != (
            spec.prediction.classes,
            scores,
        ):
            raise MessageError("the window counts other classes than its spec")
    if summary.embedding is not None:  # a device that cannot compute one leaves it out
        shape = (len(summary.embedding.sums), len(summary.embedding.norms))
        reference = spec.embedding
        if reference is None or shape != (reference.dimensions, len(reference.norm_edges) + 1):
            raise MessageError("the window has another embedding than its spec")


def merge(a: WindowSummary, b: WindowSummary) -> WindowSummary:
    """Two windows of one model as one; exact, in any order.

    The result spans both, is keyed by the earlier one, and carries no blocks of unknown tags: only who
    knows a block can merge it.

    Raises:
        MessageError: they were made under different specs, of different bundles, or in different shapes.
    """
    if (a.spec_hash, a.bundle) != (b.spec_hash, b.bundle):
        raise MessageError("windows of different specs or bundles cannot be merged")
    if len(a.features) != len(b.features):
        raise MessageError("windows with different features cannot be merged")
    first = min(a, b, key=lambda s: (s.start_utc_ms, s.boot, s.seq, s.start_mono_ms))
    end = max(s.start_utc_ms + s.duration_ms for s in (a, b))
    temperatures = (a.health.temperature_mc, b.health.temperature_mc)
    return replace(
        first,
        flags=a.flags | b.flags,
        duration_ms=end - first.start_utc_ms,
        clock_quality=min(a.clock_quality, b.clock_quality),
        rows=a.rows + b.rows,
        dropped=a.dropped + b.dropped,
        errors=a.errors + b.errors,
        features=tuple(_merge_feature(x, y) for x, y in zip(a.features, b.features, strict=True)),
        prediction=_both(a.prediction, b.prediction, _merge_prediction),
        embedding=_both(a.embedding, b.embedding, _merge_embedding),
        labels=_merge_labels(a.labels + b.labels),
        health=HealthSketch(
            latency=_add(a.health.latency, b.health.latency),
            rss_kib=max(a.health.rss_kib, b.health.rss_kib),
            temperature_mc=max((t for t in temperatures if t), default=0),
        ),
        unknown=(),
    )


def _merge_feature(a: FeatureSketch, b: FeatureSketch) -> FeatureSketch:
    seen = [sketch for sketch in (a, b) if sum(sketch.counts)]
    return FeatureSketch(
        nulls=a.nulls + b.nulls,
        nans=a.nans + b.nans,
        counts=_add(a.counts, b.counts),
        total=a.total + b.total,
        squares=a.squares + b.squares,
        exceed_low=a.exceed_low + b.exceed_low,
        exceed_high=a.exceed_high + b.exceed_high,
        minimum=min((sketch.minimum for sketch in seen), default=0.0),
        maximum=max((sketch.maximum for sketch in seen), default=0.0),
    )


def _merge_prediction(a: PredictionSketch, b: PredictionSketch) -> PredictionSketch:
    return PredictionSketch(
        counts=_add(a.counts, b.counts),
        scores=_add(a.scores, b.scores),
        sum_max_score=a.sum_max_score + b.sum_max_score,
        sum_calibrated=a.sum_calibrated + b.sum_calibrated,
    )


def _merge_embedding(a: EmbeddingSketch, b: EmbeddingSketch) -> EmbeddingSketch:
    return EmbeddingSketch(sums=_add(a.sums, b.sums), norms=_add(a.norms, b.norms))


def _merge_labels(labels: tuple[LabelCount, ...]) -> tuple[LabelCount, ...]:
    def key(label: LabelCount) -> tuple[int, int, int]:
        return label.window, label.truth, label.predicted

    groups = groupby(sorted(labels, key=key), key)
    return tuple(
        LabelCount(window=window, truth=truth, predicted=predicted, count=sum(label.count for label in group))
        for (window, truth, predicted), group in groups
    )


def _both(a: T | None, b: T | None, combine: Callable[[T, T], T]) -> T | None:
    if a is None or b is None:
        return a if b is None else b
    return combine(a, b)


def _add(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if len(a) != len(b):
        raise MessageError("windows with different bins cannot be merged")
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _write_features(features: tuple[FeatureSketch, ...]) -> bytes:
    w = Writer()
    w.number(len(features))
    for sketch in features:
        w.number(sketch.nulls)
        w.number(sketch.nans)
        w.counts(sketch.counts)
        w.signed(sketch.total)
        for number in (sketch.squares, sketch.exceed_low, sketch.exceed_high):
            w.number(number, SUM_BITS)
        w.floats(sketch.minimum, sketch.maximum)
    return bytes(w.out)


def _read_features(r: Reader, limits: Limits) -> tuple[FeatureSketch, ...]:
    count = r.number()
    if count > limits.features:
        raise MessageError(f"window summary: {count} features; at most {limits.features} are accepted")
    return tuple(_read_feature(r, limits) for _ in range(count))


def _read_feature(r: Reader, limits: Limits) -> FeatureSketch:
    nulls, nans = r.number(), r.number()
    counts = r.counts(limits.bins + 16)
    total, (squares, low, high) = r.signed(), (r.number(SUM_BITS) for _ in range(3))
    minimum, maximum = r.floats()
    if not -math.inf < minimum <= maximum < math.inf:
        raise MessageError("window summary: a minimum is above its maximum, or not a number")
    return FeatureSketch(
        nulls=nulls, nans=nans, counts=counts, total=total, squares=squares, exceed_low=low, exceed_high=high,
        minimum=minimum, maximum=maximum,
    )  # fmt: skip


def _write_prediction(sketch: PredictionSketch) -> bytes:
    w = Writer()
    w.counts(sketch.counts)
    w.counts(sketch.scores)
    w.number(sketch.sum_max_score, SUM_BITS)
    w.number(sketch.sum_calibrated, SUM_BITS)
    return bytes(w.out)


def _read_prediction(r: Reader, limits: Limits) -> PredictionSketch:
    counts = r.counts(limits.classes)
    scores = r.counts(len(counts) * SCORE_BINS)
    if scores and (len(scores) != len(counts) * SCORE_BINS or sum(scores) != sum(counts)):
        raise MessageError("window summary: the scores do not add up to the predictions")
    return PredictionSketch(
        counts=counts, scores=scores, sum_max_score=r.number(SUM_BITS), sum_calibrated=r.number(SUM_BITS)
    )


def _write_embedding(sketch: EmbeddingSketch) -> bytes:
    w = Writer()
    w.number(len(sketch.sums))
    for value in sketch.sums:
        w.signed(value)
    w.counts(sketch.norms)
    return bytes(w.out)


def _read_embedding(r: Reader, limits: Limits) -> EmbeddingSketch:
    size = r.number()
    if size > limits.features:
        raise MessageError(
            f"window summary: {size} embedding features; at most {limits.features} are accepted"
        )
    return EmbeddingSketch(sums=tuple(r.signed() for _ in range(size)), norms=r.counts(limits.bins + 2))


def _write_labels(labels: tuple[LabelCount, ...]) -> bytes:
    w = Writer()
    w.number(len(labels))
    for label in sorted(labels):
        for number in (label.window, label.truth, label.predicted, label.count):
            w.number(number)
    return bytes(w.out)


def _read_labels(r: Reader) -> tuple[LabelCount, ...]:
    # A label takes at least 4 bytes, so the block's own length bounds the count.
    return tuple(
        LabelCount(window=r.number(), truth=r.number(), predicted=r.number(), count=r.number())
        for _ in range(r.number())
    )


def _write_health(sketch: HealthSketch) -> bytes:
    w = Writer()
    w.counts(sketch.latency)
    w.number(sketch.rss_kib)
    w.signed(sketch.temperature_mc)
    return bytes(w.out)


def _read_health(r: Reader) -> HealthSketch:
    latency = r.counts(LATENCY_CELLS)
    if len(latency) != LATENCY_CELLS:
        raise MessageError(
            f"window summary: the latency histogram has {LATENCY_CELLS} cells, not {len(latency)}"
        )
    return HealthSketch(latency=latency, rss_kib=r.number(), temperature_mc=r.signed())


def _whole(data: bytes, read: Callable[[Reader], T]) -> T:
    r = Reader(data)
    value = read(r)
    if not r.done():
        raise MessageError("window summary: a block has bytes left over")
    return value


def _optional(data: bytes | None, read: Callable[[Reader], T]) -> T | None:
    return None if data is None else _whole(data, read)


def latency_cell(microseconds: float) -> int:
    """The histogram cell of a latency; it must be finite.

    >>> [latency_cell(us) for us in (0.5, 1, 2, 1000, 1e12)]
    [0, 0, 4, 39, 95]
    """
    if microseconds <= 1:
        return 0
    half, exponent = math.frexp(microseconds)
    quarter = next(i for i, edge in enumerate((2**-0.75, 2**-0.5, 2**-0.25, 1.0)) if half < edge)
    return min(4 * (exponent - 1) + quarter, LATENCY_CELLS - 1)


def latency_quantile(cells: tuple[int, ...], q: float) -> float:
    """Upper edge, in microseconds, of the cell that holds the q-quantile; 0 if there is nothing."""
    wanted = q * sum(cells)
    for cell, seen in enumerate(_running(cells)):
        if seen and seen >= wanted:
            return float(2 ** ((cell + 1) / 4))
    return 0.0


def _running(cells: tuple[int, ...]) -> Iterator[int]:
    total = 0
    for count in cells:
        total += count
        yield total
