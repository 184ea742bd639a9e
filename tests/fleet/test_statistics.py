"""Distances of a window from its reference: exact cases, known shifts, and what they are without drift."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests import builders

from skerry_contract.monitoring import EXCEEDANCE, FIXED_POINT, CategoryFeature, FloatFeature, Source
from skerry_contract.summary import FeatureSketch, PredictionSketch
from skerry_fleet.drift.statistics import (
    corrected_psi,
    expected_total_variation,
    feature_distance,
    kolmogorov_smirnov,
    location_shift,
    mean_shift,
    prediction_distance,
    total_variation,
)

Vector = NDArray[np.float64]
NORMAL = NormalDist()
REFERENCE_ROWS = 10_000


def normal_feature(bins: int = 32) -> FloatFeature:
    """Equal-mass bins of a standard normal reference whose range ends at 3.5 sigma."""
    inner = [NORMAL.inv_cdf(i / bins) for i in range(1, bins)]
    edges = (-3.5, *inner, 3.5)
    return FloatFeature(
        name="brightness",
        source=Source(kind="column", tensor="x"),
        edges=edges,
        probabilities=(*(0.0,) * EXCEEDANCE, *(1 / bins,) * bins, *(0.0,) * EXCEEDANCE),
        mean=0.0,
        sd=1.0,
        iqr=1.349,
    )


def sketch_of(feature: FloatFeature, values: Vector, *, nulls: int = 0) -> FeatureSketch:
    """Counts as a device makes them; all that is out of range goes to the nearest bucket."""
    cells = np.searchsorted(feature.edges, values, side="right") - 1 + EXCEEDANCE
    cells = np.clip(cells, EXCEEDANCE - 1, feature.cells - EXCEEDANCE)
    fixed = np.round((values - feature.mean) / feature.sd * FIXED_POINT).astype(int)
    return FeatureSketch(
        nulls=nulls,
        counts=tuple(int(c) for c in np.bincount(cells, minlength=feature.cells)),
        total=int(fixed.sum()),
        squares=int((fixed**2).sum()),
    )


def window_of(mean: float, sd: float, n: int, seed: int = 1) -> FeatureSketch:
    values = np.random.default_rng(seed).normal(mean, sd, n)
    return sketch_of(normal_feature(), values)


@pytest.mark.parametrize("shift", [-3.0, -1.0, -0.25, 0.1, 0.5, 2.0])
def test_a_known_shift_is_found(shift: float) -> None:
    distance = feature_distance(normal_feature(), window_of(shift, 1, 20_000), REFERENCE_ROWS)
    assert distance.shift == pytest.approx(shift, abs=0.03)
    # Normal scores end at the farthest cell, so they understate a large shift.
    assert abs(distance.location) <= abs(shift) + 0.03
    assert np.sign(distance.location) == np.sign(shift)
    if abs(shift) <= 1:
        assert distance.location == pytest.approx(shift, abs=0.06)


def test_one_outlier_moves_the_mean_but_not_the_location() -> None:
    values = np.append(np.random.default_rng(1).normal(0, 1, 500), 1000.0)
    distance = feature_distance(normal_feature(), sketch_of(normal_feature(), values), REFERENCE_ROWS)
    assert distance.shift > 1.5
    assert abs(distance.location) < 0.15


def test_a_wider_spread_shows_in_variation_and_range_alone() -> None:
    distance = feature_distance(normal_feature(), window_of(0, 3, 5000), REFERENCE_ROWS)
    assert abs(distance.location) < 0.1
    assert distance.total_variation > 0.3
    # P(|3 z| > 3.5)
    assert distance.out_of_range == pytest.approx(2 * NORMAL.cdf(-3.5 / 3), abs=0.03)


@pytest.mark.parametrize("n", [200, 1000, 10_000])
def test_without_drift_the_corrected_psi_is_around_nothing_at_every_size(n: int) -> None:
    feature = normal_feature()
    p = np.array(feature.probabilities)
    rng = np.random.default_rng(7)
    values, plain, variations = [], [], []
    for _ in range(200):
        reference = rng.multinomial(REFERENCE_ROWS, p) / REFERENCE_ROWS
        counts = rng.multinomial(n, p).astype(float)
        psi = corrected_psi(reference, counts, REFERENCE_ROWS)
        values.append(psi)
        plain.append(psi + 31 * (1 / n + 1 / REFERENCE_ROWS))
        variations.append(total_variation(reference, counts))
    assert abs(float(np.mean(values))) < 0.1 * float(np.mean(plain))
    expected = expected_total_variation(p, n, REFERENCE_ROWS)
    assert float(np.mean(variations)) == pytest.approx(expected, rel=0.05)


def test_nothing_in_common_is_the_largest_variation() -> None:
    p, counts = np.array([1.0, 0.0]), np.array([0.0, 50.0])
    assert total_variation(p, counts) == 1.0
    assert kolmogorov_smirnov(p, counts) == 1.0
    assert 0 < corrected_psi(p, counts, 1000) < 20


def test_kolmogorov_smirnov_by_hand() -> None:
    p, counts = np.array([0.25, 0.25, 0.5]), np.array([1.0, 1.0, 2.0])
    assert kolmogorov_smirnov(p, counts) == 0.0
    assert kolmogorov_smirnov(p, np.array([4.0, 0.0, 0.0])) == 0.75


def test_nulls_are_measured_against_the_references_own() -> None:
    feature = replace(normal_feature(), null_rate=0.1)
    values = np.random.default_rng(1).normal(0, 1, 500)
    distance = feature_distance(feature, sketch_of(feature, values, nulls=500), REFERENCE_ROWS)
    assert (distance.rows, distance.null_rate) == (500, 0.5)
    assert distance.null_change == pytest.approx(0.4)


@pytest.mark.parametrize("counts", [(0,) * 44, (0,) * 20 + (5,) + (0,) * 23])
def test_empty_and_tiny_windows_have_finite_distances(counts: tuple[int, ...]) -> None:
    distance = feature_distance(normal_feature(), FeatureSketch(counts=counts, nulls=3), 1000)
    numbers = [getattr(distance, name) for name in distance.__dataclass_fields__ if name != "name"]
    assert np.isfinite(numbers).all()


def test_a_constant_feature_has_no_location_but_a_variation() -> None:
    p = np.array([0.0, 1.0, 0.0])
    assert location_shift(p, np.array([0.0, 10.0, 0.0]), 1000) == 0.0
    assert total_variation(p, np.array([0.0, 0.0, 10.0])) == 1.0


def test_categories_have_variation_and_others_but_no_order() -> None:
    feature = CategoryFeature(
        name="gate",
        source=Source(kind="column", tensor="x"),
        values=(1.0, 2.0),
        probabilities=(0.5, 0.5, 0.0),
    )
    distance = feature_distance(feature, FeatureSketch(counts=(10, 0, 30)), 1000)
    assert (distance.location, distance.shift, distance.ks) == (0.0, 0.0, 0.0)
    assert distance.total_variation == 0.75
    assert distance.out_of_range == 0.75


def test_predictions_are_compared_class_by_class() -> None:
    reference = builders.monitoring_spec().prediction
    assert reference is not None
    distance = prediction_distance(reference, PredictionSketch(counts=(100, 0)), 1000)
    assert distance.name == "prediction (scores)"
    assert distance.total_variation == 0.5


@given(st.lists(st.integers(0, 10**9), min_size=44, max_size=44), st.integers(1, 10**6))
def test_any_counts_give_finite_numbers_within_their_bounds(counts: list[int], m: int) -> None:
    p, c = np.array(normal_feature().probabilities), np.array(counts, dtype=float)
    assert 0 <= total_variation(p, c) <= 1 + 1e-9
    assert 0 <= kolmogorov_smirnov(p, c) <= 1 + 1e-9
    assert np.isfinite(corrected_psi(p, c, m))
    assert abs(location_shift(p, c, m)) < 6


def test_mean_shift_of_nothing_is_nothing() -> None:
    assert mean_shift(FeatureSketch(counts=(0, 0))) == 0.0
