"""Windows: counts equal to the plain path, integers that add up, closing by rows, time and command."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.monitoring import (
    SCORE_BINS,
    CategoryFeature,
    ClassPrediction,
    EmbeddingReference,
    Feature,
    FloatFeature,
    MonitoringSpec,
    Source,
)
from skerry_contract.summary import WindowSummary, check, decode, encode, latency_cell, merge
from skerry_runtime.worker.features import fourier_basis
from skerry_runtime.worker.windows import UNIT, Clock, WindowBuilder, cell_edges, count_plain

SPEC_HASH = b"spechash"
FIRST = Source(kind="column", tensor="x")


def builder(spec: MonitoringSpec, *, rows: int = 10_000, clock: FakeClock | None = None) -> WindowBuilder:
    clock = clock or FakeClock()
    return WindowBuilder(
        spec,
        spec_hash=SPEC_HASH,
        bundle=b"bundle--",
        boot=b"boot" * 4,
        first_seq=7,
        seconds=60.0,
        rows=rows,
        clock=Clock(boot_ms=lambda: clock.boot, utc_ms=lambda: clock.utc),
    )


class FakeClock:
    boot = 5_000
    utc = 1_800_000_000_000


def float_feature(edges: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0), **changes: Any) -> FloatFeature:
    cells = len(edges) - 1 + 12
    feature = FloatFeature(
        name="x", source=FIRST, edges=edges, probabilities=(1 / cells,) * cells, mean=0.5, sd=0.3, iqr=0.4
    )
    return replace(feature, **changes)


def spec_of(*features: Feature, prediction: ClassPrediction | None = None) -> MonitoringSpec:
    return MonitoringSpec(rows=100, features=features, prediction=prediction)


def closed(window: WindowBuilder) -> WindowSummary:
    summary = window.close()
    assert summary is not None
    return summary


def scores_spec(form: str = "probabilities") -> ClassPrediction:
    return ClassPrediction(
        output="y", form=form, classes=3, probabilities=(0.5, 0.3, 0.2), calibration=(0.25,) * SCORE_BINS
    )


numbers = st.floats(allow_nan=True, allow_infinity=True, width=64)
near = st.floats(min_value=-3, max_value=4)


@st.composite
def float_features(draw: st.DrawFn) -> FloatFeature:
    edges = sorted(draw(st.sets(st.floats(-1e6, 1e6), min_size=2, max_size=40)))
    sizes = st.floats(1e-9, 1e9)
    feature = float_feature(tuple(edges), mean=draw(st.floats(-1e6, 1e6)), sd=draw(sizes), iqr=draw(sizes))
    return feature


@given(feature=float_features(), data=st.data())
def test_a_float_feature_counts_as_the_plain_path(feature: FloatFeature, data: st.DataObject) -> None:
    on_an_edge = st.sampled_from(feature.edges)
    column = data.draw(st.lists(st.one_of(numbers, near, on_an_edge), max_size=600))
    window = builder(spec_of(feature))
    window.observe(np.array(column, np.float64).reshape(-1, 1))
    if column:
        assert closed(window).features[0] == count_plain(feature, column)


@given(
    values=st.lists(st.one_of(st.integers(-5, 5).map(float), near), unique=True, max_size=31),
    column=st.lists(st.one_of(numbers, st.integers(-6, 6).map(float)), min_size=1, max_size=600),
)
def test_a_category_counts_as_the_plain_path(values: list[float], column: list[float]) -> None:
    cells = len(values) + 1
    feature = CategoryFeature(
        name="c", source=FIRST, values=tuple(values), probabilities=(1 / cells,) * cells
    )
    window = builder(spec_of(feature))
    window.observe(np.array(column, np.float64).reshape(-1, 1))
    assert closed(window).features[0] == count_plain(feature, column)


@given(st.lists(numbers, min_size=1, max_size=300), st.integers(1, 300))
def test_batches_split_anywhere_give_the_same_bytes(column: list[float], at: int) -> None:
    feature = float_feature()
    whole, split = builder(spec_of(feature)), builder(spec_of(feature))
    table = np.array(column, np.float64).reshape(-1, 1)
    whole.observe(table)
    split.observe(table[:at])
    split.observe(table[at:])
    assert encode(closed(whole)) == encode(closed(split))


@given(st.lists(numbers, min_size=2, max_size=300), st.integers(1, 299))
def test_two_windows_merge_into_the_one(column: list[float], at: int) -> None:
    feature = float_feature()
    table = np.array(column, np.float64).reshape(-1, 1)
    whole, parts = builder(spec_of(feature)), builder(spec_of(feature))
    whole.observe(table)
    parts.observe(table[:at])
    first = closed(parts)
    if len(table[at:]):
        parts.observe(table[at:])
        first = merge(first, closed(parts))
    assert first.features == closed(whole).features


def test_cells_are_closed_below_and_the_range_on_both_sides() -> None:
    feature = float_feature((0.0, 0.5, 1.0), iqr=0.4)

    def cell(value: float) -> int:
        return count_plain(feature, [value]).counts.index(1)

    assert [cell(value) for value in (0.0, 0.25, 0.5, 1.0)] == [6, 6, 7, 7]
    # Buckets beyond the range end at 0.25, 0.5, 1, 2 and 4 inter-quartile ranges.
    assert [cell(-d * 0.4) for d in (0.1, 0.3, 0.6, 1.5, 3.0, 9.0)] == [5, 4, 3, 2, 1, 0]
    assert [cell(1 + d * 0.4) for d in (0.1, 0.3, 0.6, 1.5, 3.0, 9.0)] == [8, 9, 10, 11, 12, 13]
    assert cell(math.nextafter(1.0, 2.0)) == 8


def test_an_atom_has_a_cell_of_its_own() -> None:
    feature = float_feature((0.0, math.nextafter(0.0, 1.0), 0.5, 1.0))
    assert count_plain(feature, [0.0, 0.0, 5e-324, 0.25]).counts[6:9] == (2, 2, 0)


def test_edges_that_rounding_swaps_still_ascend() -> None:
    edges = cell_edges(float_feature((1e17, 2e17), iqr=1e-6))
    assert edges == sorted(edges)


def test_moments_are_fixed_point_about_the_reference_mean() -> None:
    sketch = count_plain(float_feature(mean=0.5, sd=0.25), [0.75, 0.25, 1.5, 1e300])
    assert sketch.total == 4096 - 4096 + 4 * 4096 + 1024 * 4096  # the last is clipped at 1024 sd
    assert sketch.exceed_high == 2 * 4096 + 1024 * 4096
    assert sketch.exceed_low == 0
    assert sketch.maximum == pytest.approx(3.4028235e38)


def test_a_summary_passes_the_contract_s_own_check() -> None:
    spec = spec_of(float_feature(), prediction=scores_spec())
    window = builder(spec)
    rows = np.random.default_rng(1).normal(size=(1000, 1))
    predicted = np.arange(1000) % 3
    window.observe(rows, predicted, np.linspace(0, 1, 1000))
    window.latency(123.0)
    window.resident(50 * 2**20)
    window.failed()
    window.dropped(4)
    summary = decode(encode(closed(window)))
    check(summary, spec, SPEC_HASH)
    assert (summary.seq, summary.rows, summary.errors, summary.dropped) == (7, 1000, 1, 4)
    assert (summary.bundle, summary.boot) == (b"bundle--", b"boot" * 4)
    assert summary.health.latency[latency_cell(123.0)] == 1
    assert summary.health.rss_kib == 50 * 1024
    assert summary.prediction is not None
    assert summary.prediction.counts == (334, 333, 333)


def test_predictions_are_counted_by_class_and_score() -> None:
    window = builder(spec_of(prediction=scores_spec()))
    window.observe(np.empty((4, 0)), np.array([0, 2, 2, 9]), np.array([0.0, 1.0, 0.5, 0.9]))
    sketch = closed(window).prediction
    assert sketch is not None
    assert sketch.counts == (1, 0, 2)  # a label beyond the classes is left out
    places = [place for place, count in enumerate(sketch.scores) if count]
    assert places == [0, 2 * SCORE_BINS + 32, 2 * SCORE_BINS + 63]
    assert sketch.sum_max_score == UNIT * 3 // 2
    assert sketch.sum_calibrated == 3 * UNIT // 4


def test_labels_have_no_scores() -> None:
    window = builder(spec_of(prediction=scores_spec("label")))
    window.observe(np.empty((2, 0)), np.array([1, 1]), np.zeros(2))
    sketch = closed(window).prediction
    assert sketch is not None
    assert (sketch.counts, sketch.scores, sketch.sum_max_score) == ((0, 2, 0), (), 0)


def test_an_embedding_is_a_mean_of_random_fourier_features() -> None:
    reference = EmbeddingReference(
        source=Source(kind="output", tensor="e"),
        seed=3,
        dimensions=64,
        bandwidth=2.0,
        mean=(0.0,) * 64,
        norm_edges=(1.0, 2.0),
        norm_probabilities=(0.2, 0.5, 0.3),
    )
    vectors = np.random.default_rng(2).normal(size=(50, 5))
    window = builder(MonitoringSpec(rows=1, features=(), embedding=reference))
    window.observe(np.empty((50, 0)), vectors=vectors)
    sketch = closed(window).embedding
    assert sketch is not None
    frequencies, phases = fourier_basis(3, 64, 2.0, 5)
    wanted = np.cos(vectors @ frequencies + phases).mean(axis=0)
    np.testing.assert_allclose(np.array(sketch.sums) / UNIT / 50, wanted, atol=1e-6)
    norms = np.linalg.norm(vectors, axis=1)
    assert sketch.norms == (
        int((norms < 1).sum()),
        int(((norms >= 1) & (norms < 2)).sum()),
        int((norms >= 2).sum()),
    )


def test_a_window_is_due_by_rows_or_by_time() -> None:
    clock = FakeClock()
    window = builder(spec_of(float_feature()), rows=10, clock=clock)
    window.observe(np.zeros((9, 1)))
    assert not window.due()
    window.observe(np.zeros((1, 1)))
    assert window.due()
    closed(window)
    assert not window.due()
    clock.boot += 60_000
    assert window.due()


def test_windows_are_numbered_and_keep_their_times() -> None:
    clock = FakeClock()
    window = builder(spec_of(float_feature()), clock=clock)
    clock.boot += 1_500
    clock.utc += 9_999_999  # a jump of the wall clock changes no duration
    window.observe(np.zeros((300, 1)))
    first = closed(window)
    assert (first.start_utc_ms, first.start_mono_ms, first.duration_ms) == (1_800_000_000_000, 5_000, 1_500)
    assert window.close() is None  # nothing was seen: no summary and no number
    window.observe(np.zeros((1, 1)))
    second = closed(window)
    assert (first.seq, second.seq) == (7, 8)
    assert (second.start_mono_ms, second.rows) == (6_500, 1)


def test_settings_count_from_the_next_window() -> None:
    window = builder(spec_of(float_feature()), rows=10)
    window.settings(3600.0, 2)
    window.observe(np.zeros((5, 1)))
    assert not window.due()
    closed(window)
    window.observe(np.zeros((2, 1)))
    assert window.due()
