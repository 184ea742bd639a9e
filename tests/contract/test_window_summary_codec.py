"""The window summary: what is encoded is decoded, merging is exact, hostile bytes are refused."""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.builders import float_feature, monitoring_spec, window
from tests.contract.summaries import SHAPES, windows

from skerry_contract.errors import MessageError
from skerry_contract.limits import Limits
from skerry_contract.monitoring import EmbeddingReference, FloatFeature, Source, spec_hash
from skerry_contract.summary import (
    LATENCY_CELLS,
    EmbeddingSketch,
    FeatureSketch,
    HealthSketch,
    LabelCount,
    PredictionSketch,
    WindowSummary,
    check,
    decode,
    encode,
    latency_cell,
    latency_quantile,
    merge,
)
from skerry_contract.varints import Writer

# --- coding -------------------------------------------------------------------------------------------------


@given(windows())
def test_what_is_encoded_is_decoded(summary: WindowSummary) -> None:
    assert decode(encode(summary)) == summary


@given(windows())
def test_the_encoding_is_a_fixed_point(summary: WindowSummary) -> None:
    assert encode(decode(encode(summary))) == encode(summary)


def test_a_typical_window_is_small() -> None:
    """10 features of 36 bins (32 of equal mass and the four outer quantiles), 1,000 rows that follow the
    reference: about 700 bytes, and never above 1 KB."""
    rng = random.Random(1)
    masses = [0.001, 0.009, *[0.99 / 34] * 32, 0.009, 0.001]
    features = []
    for _ in range(10):
        rows = rng.choices(range(36), masses, k=1000)
        deviations = [round(rng.gauss(0, 1) * 4096) for _ in rows]
        features.append(
            FeatureSketch(
                counts=(*(0,) * 6, *(rows.count(cell) for cell in range(36)), *(0,) * 6),
                total=sum(deviations),
                squares=sum(value * value for value in deviations),
                minimum=-3.1,
                maximum=3.3,
            )
        )
    latency = [0] * LATENCY_CELLS
    latency[33:38] = [200, 500, 200, 80, 20]
    summary = window(
        monitoring_spec(()),
        rows=1000,
        features=tuple(features),
        prediction=None,
        health=HealthSketch(latency=tuple(latency), rss_kib=61_000, temperature_mc=51_000),
    )
    assert len(encode(summary)) <= 720
    assert decode(encode(summary)).rows == 1000


def test_an_empty_window_is_tiny() -> None:
    empty = window(monitoring_spec(()), rows=0, prediction=None)
    assert len(encode(empty)) < 80
    assert decode(encode(empty)) == empty


@pytest.mark.parametrize(
    ("value", "stored"),
    [(1e300, 3.4028234663852886e38), (-1e300, -3.4028234663852886e38), (math.inf, 3.4028234663852886e38)],
)
def test_extremes_are_clipped_to_float32(value: float, stored: float) -> None:
    sketch = replace(window().features[0], minimum=min(value, 0.25), maximum=max(value, 0.5))
    read = decode(encode(window(monitoring_spec((float_feature(),)), features=(sketch,))))
    assert stored in (read.features[0].minimum, read.features[0].maximum)


def test_a_camera_in_the_cold_has_a_temperature() -> None:
    cold = window(health=HealthSketch(temperature_mc=-12_500))
    assert decode(encode(cold)).health.temperature_mc == -12_500


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": -1},
        {"seq": -1},
        {"errors": 2**63},
        {"start_utc_ms": -1},
        {"features": (FeatureSketch(counts=(-1, 101)),)},
        {"features": (FeatureSketch(counts=(100,), squares=-1),)},
        {"features": (FeatureSketch(counts=(100,), total=2**95),)},
        {"health": HealthSketch(rss_kib=-1)},
    ],
)
def test_what_no_reader_accepts_is_not_written(changes: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        encode(window(**changes))  # type: ignore[arg-type]


# --- merging ------------------------------------------------------------------------------------------------


@given(SHAPES.flatmap(lambda shape: st.tuples(windows(shape), windows(shape))))
def test_merging_is_commutative_byte_for_byte(pair: tuple[WindowSummary, WindowSummary]) -> None:
    a, b = pair
    assert encode(merge(a, b)) == encode(merge(b, a))


@given(SHAPES.flatmap(lambda shape: st.tuples(windows(shape), windows(shape), windows(shape))))
def test_merging_is_associative_byte_for_byte(
    three: tuple[WindowSummary, WindowSummary, WindowSummary],
) -> None:
    a, b, c = three
    assert encode(merge(merge(a, b), c)) == encode(merge(a, merge(b, c)))


@given(
    SHAPES.flatmap(lambda shape: st.lists(windows(shape), min_size=2, max_size=5)),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40)
def test_any_order_gives_the_same_bytes(parts: list[WindowSummary], rng: random.Random) -> None:
    def fold(items: list[WindowSummary]) -> bytes:
        merged = items[0]
        for item in items[1:]:
            merged = merge(decode(encode(merged)), item)
        return encode(merged)

    shuffled = rng.sample(parts, len(parts))
    assert fold(parts) == fold(shuffled)


@given(SHAPES.flatmap(lambda shape: st.tuples(windows(shape), windows(shape))))
def test_a_merged_window_is_a_window(pair: tuple[WindowSummary, WindowSummary]) -> None:
    a, b = pair
    merged = merge(a, b)
    assert decode(encode(merged)) == merged
    assert (merged.rows, merged.dropped, merged.errors) == (
        a.rows + b.rows,
        a.dropped + b.dropped,
        a.errors + b.errors,
    )
    assert merged.start_utc_ms == min(a.start_utc_ms, b.start_utc_ms)
    assert merged.start_utc_ms + merged.duration_ms == max(
        a.start_utc_ms + a.duration_ms, b.start_utc_ms + b.duration_ms
    )
    assert merged.clock_quality == min(a.clock_quality, b.clock_quality)
    assert merged.unknown == ()


def test_an_empty_window_does_not_move_the_extremes() -> None:
    merged = merge(window(rows=100), window(rows=0, seq=2))
    assert [(sketch.minimum, sketch.maximum) for sketch in merged.features] == [(0.25, 0.5)] * 2


def test_a_year_of_saturated_windows_still_fits() -> None:
    row = (1024 * 4096) ** 2  # every value clipped
    worst = replace(window().features[0], counts=(100_000, *(0,) * 15), squares=100_000 * row)
    merged = window(monitoring_spec((float_feature(),)), rows=100_000, features=(worst,), prediction=None)
    for _ in range(13):  # 2^13 hours
        merged = merge(merged, merged)
    assert decode(encode(merged)) == merged
    assert merged.features[0].squares == 100_000 * row << 13


@pytest.mark.parametrize(
    "other",
    [
        window(spec_hash=b"another!"),
        window(bundle=b"another!"),
        window(features=window().features[:1]),
        window(features=tuple(replace(sketch, counts=(*sketch.counts, 0)) for sketch in window().features)),
        window(prediction=PredictionSketch(counts=(100, 0, 0))),
        window(prediction=PredictionSketch(counts=(100, 0))),
    ],
    ids=["spec", "bundle", "features", "bins", "classes", "scores"],
)
def test_windows_that_do_not_belong_together_are_not_merged(other: WindowSummary) -> None:
    for pair in ((window(), other), (other, window())):
        with pytest.raises(MessageError, match=r"cannot be merged"):
            merge(*pair)


def test_labels_of_the_same_window_add_up() -> None:
    def labels(*counts: int) -> tuple[LabelCount, ...]:
        return tuple(LabelCount(window=4, truth=1, predicted=p, count=n) for p, n in enumerate(counts) if n)

    assert merge(window(labels=labels(3, 5)), window(labels=labels(0, 2), seq=2)).labels == labels(3, 7)


# --- hostile bytes ------------------------------------------------------------------------------------------

VALID = encode(
    window(
        embedding=EmbeddingSketch(sums=(1 << 20, -5), norms=(10, 60, 20)),
        labels=(LabelCount(window=3, truth=1, predicted=0, count=7),),
    )
)


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    for candidate in (data, VALID[:36] + data, VALID[:60] + data):
        with contextlib.suppress(MessageError):
            decode(candidate)


@given(st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=500)
def test_mutated_bytes_are_a_window_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(VALID)
    for at, value in changes:
        data[at] = value
    try:
        summary = decode(bytes(data))
    except MessageError:
        return
    assert decode(encode(summary)) == summary


def test_a_window_cut_anywhere_is_refused() -> None:
    for size in range(len(VALID)):
        with pytest.raises(MessageError):
            decode(VALID[:size])
    with pytest.raises(MessageError):
        decode(VALID + b"\0")


def lie(**changes: object) -> bytes:
    return encode(replace(window(), **changes))  # type: ignore[arg-type]


def by_hand(*blocks: tuple[int, bytes]) -> bytes:
    """A head of 100 rows, then any blocks in any order."""
    writer = Writer()
    writer.raw(VALID[:36])
    for number in (1, 0, 1_800_000_000_000, 1, 1, 1, 100, 0, 0):
        writer.number(number)
    for tag, data in blocks:
        writer.number(tag)
        writer.number(len(data))
        writer.raw(data)
    return bytes(writer.out)


def block(*parts: int | tuple[int, ...]) -> bytes:
    writer = Writer()
    for part in parts:
        writer.counts(part) if isinstance(part, tuple) else writer.number(part)
    return bytes(writer.out)


NO_FEATURES = (1, b"\0")
NO_HEALTH = (5, block((0,) * LATENCY_CELLS, 0, 0))
ENDLESS = b"\xff" * 8 + b"\x7f"
"""2^63 - 1, as a varint."""


one = window().features[0]
IMPOSSIBLE = {
    "counts above the rows": lie(rows=99),
    "counts below the rows": lie(rows=101),
    "one feature differs": lie(features=(one, replace(one, nans=1))),
    "more predictions than rows": lie(prediction=PredictionSketch(counts=(101, 0))),
    "scores differ from predictions": lie(
        prediction=PredictionSketch(counts=(100, 0), scores=(99, *(0,) * 127))
    ),
    "scores of half a class": lie(prediction=PredictionSketch(counts=(100, 0), scores=(100, *(0,) * 63))),
    "more embeddings than rows": lie(embedding=EmbeddingSketch(sums=(), norms=(100, 1))),
    "minimum above maximum": lie(features=(replace(one, minimum=1.0, maximum=0.0),)),
    "minimum is NaN": VALID.replace(bytes.fromhex("3e800000"), bytes.fromhex("7fc00000"), 1),
    "maximum is infinite": VALID.replace(bytes.fromhex("3f000000"), bytes.fromhex("7f800000"), 1),
    "clock of another kind": lie(clock_quality=3),
    "flag of another version": lie(flags=8),
    "latency of 95 cells": lie(health=HealthSketch(latency=(0,) * 95)),
    "another magic": b"SKW2" + VALID[4:],
    "only a head": VALID[:36],
    "only numbers": by_hand(),
    "features missing": by_hand(NO_HEALTH),
    "health missing": by_hand(NO_FEATURES),
    "a block twice": by_hand(NO_FEATURES, NO_FEATURES, NO_HEALTH),
    "blocks in another order": by_hand(NO_HEALTH, NO_FEATURES),
    "tag zero": by_hand((0, b""), NO_FEATURES, NO_HEALTH),
    "a block with bytes left over": by_hand((1, b"\0\0"), NO_HEALTH),
    "a block that is cut": by_hand((1, b"\1\0\0"), NO_HEALTH),
    "a block longer than the window": by_hand(NO_FEATURES, NO_HEALTH) + b"\6" + ENDLESS,
    "more labels than bytes": by_hand(NO_FEATURES, (4, ENDLESS), NO_HEALTH),
    "more features than bytes": by_hand((1, b"\x7f"), NO_HEALTH),
    "a run of no zeros": by_hand(NO_FEATURES, (2, b"\2\0\0\0\0\0"), NO_HEALTH),
    "a number that never ends": VALID[:36] + b"\xff" * 40,
    "a number of two forms": VALID[:36] + b"\x80\x00" + VALID[37:],
}


def test_a_window_by_hand_is_accepted() -> None:
    """So that what is wrong below is only what is named."""
    assert decode(by_hand(NO_FEATURES, NO_HEALTH)).rows == 100


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_windows_are_refused(case: str) -> None:
    with pytest.raises(MessageError):
        decode(IMPOSSIBLE[case])


def test_limits_hold() -> None:
    many = lie(features=tuple(FeatureSketch(counts=(100,)) for _ in range(3)))
    decode(many)
    with pytest.raises(MessageError, match="at most 2 are accepted"):
        decode(many, Limits(features=2))
    with pytest.raises(MessageError, match="over the limit of 100"):
        decode(VALID, Limits(summary_bytes=100))
    with pytest.raises(MessageError, match="at most 1 are accepted"):
        decode(VALID, Limits(classes=1))
    with pytest.raises(MessageError, match="at most 17 are accepted"):
        decode(lie(features=(FeatureSketch(counts=(100, *(0,) * 17)),)), Limits(bins=1))


@pytest.mark.attack
@pytest.mark.parametrize(
    "hostile",
    [
        (1, b"\1\0\0" + ENDLESS + b"\0" + ENDLESS),
        (1, b"\1\0\0\x10\0" + ENDLESS),
        (1, ENDLESS),
        (2, ENDLESS + b"\0" + ENDLESS),
        (3, ENDLESS),
        (5, ENDLESS + b"\0" + ENDLESS),
    ],
)
def test_t5_a_few_bytes_never_become_a_long_list(hostile: tuple[int, bytes]) -> None:
    parts = dict([NO_FEATURES, hostile, NO_HEALTH]) | dict([hostile])
    with pytest.raises(MessageError):
        decode(by_hand(*sorted(parts.items())))


def test_blocks_of_a_newer_version_are_kept() -> None:
    newer = window(unknown=((6, b"new"), (300, b"")))
    assert decode(encode(newer)).unknown == ((6, b"new"), (300, b""))


# --- the spec -----------------------------------------------------------------------------------------------


def test_a_window_of_the_spec_is_accepted() -> None:
    spec = monitoring_spec()
    check(decode(encode(window(spec))), spec, spec_hash(spec.to_bytes()))


def test_a_device_may_leave_the_embedding_out() -> None:
    spec = replace(monitoring_spec(), embedding=REFERENCE)
    known = spec_hash(spec.to_bytes())
    check(window(spec), spec, known)
    check(window(spec, embedding=EmbeddingSketch(sums=(0, 0), norms=(0, 0, 0))), spec, known)


REFERENCE = EmbeddingReference(
    source=Source(kind="output", tensor="embedding"), seed=1, dimensions=2, bandwidth=1.0, mean=(0.0, 0.0),
    norm_edges=(1.0, 2.0), norm_probabilities=(0.0, 1.0, 0.0),
)  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"spec_hash": b"another!"},
        {"features": window().features[:1]},
        {"features": (*window().features, one)},
        {"features": (one, replace(one, counts=(*one.counts, 0)))},
        {"prediction": None},
        {"prediction": PredictionSketch(counts=(100, 0, 0))},
        {"prediction": PredictionSketch(counts=(100, 0))},
        {"embedding": EmbeddingSketch(sums=(0,), norms=(0, 0, 0))},
        {"embedding": EmbeddingSketch(sums=(0, 0), norms=(0, 0))},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_window_of_another_shape_is_refused(changes: dict[str, object]) -> None:
    for reference in (None, REFERENCE):
        spec = replace(monitoring_spec(), embedding=reference)
        with pytest.raises(MessageError):
            check(window(spec, **changes), spec, spec_hash(spec.to_bytes()))  # type: ignore[arg-type]


def test_a_prediction_that_the_spec_does_not_have_is_refused() -> None:
    spec = replace(monitoring_spec(), prediction=None)
    with pytest.raises(MessageError, match="disagree"):
        check(window(spec, prediction=PredictionSketch(counts=(100,))), spec, spec_hash(spec.to_bytes()))


def test_cells_of_a_feature_are_those_of_its_sketch() -> None:
    feature: FloatFeature = float_feature(bins=7)
    assert len(window(monitoring_spec((feature,))).features[0].counts) == feature.cells


# --- latency ------------------------------------------------------------------------------------------------


@given(st.floats(1, 2**24 - 1))
def test_a_latency_lies_in_its_cell(microseconds: float) -> None:
    cell = latency_cell(microseconds)
    assert 2 ** (cell / 4) <= microseconds * (1 + 1e-12)
    assert microseconds <= 2 ** ((cell + 1) / 4) * (1 + 1e-12)


@given(st.floats(0, 1e15), st.floats(0, 1e15))
def test_cells_ascend_and_exist(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 0 <= latency_cell(low) <= latency_cell(high) < LATENCY_CELLS


@given(st.lists(st.floats(1, 1e7), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_is_right_within_one_cell(values: list[float], q: float) -> None:
    cells = [0] * LATENCY_CELLS
    for value in values:
        cells[latency_cell(value)] += 1
    exact = sorted(values)[max(math.ceil(q * len(values) - 1e-9) - 1, 0)]
    estimate = latency_quantile(tuple(cells), q)
    assert exact * (1 - 1e-9) <= estimate <= exact * 2**0.25 * (1 + 1e-9)


def test_without_requests_the_latency_is_zero() -> None:
    assert latency_quantile((0,) * LATENCY_CELLS, 0.95) == 0.0
