"""How far a window is from its reference, from counts alone. Pure functions of arrays.

Names: ``p`` reference probabilities, ``counts`` of the window over the same B cells, ``n`` rows of the
window, ``m`` rows of the reference. Rows of a window are correlated; what a statistic proves is
`skerry_fleet.drift.detector`'s matter, here is only how large it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from skerry_contract.monitoring import (
    EXCEEDANCE,
    FIXED_POINT,
    CategoryFeature,
    ClassPrediction,
    Feature,
    FloatFeature,
)
from skerry_contract.summary import FeatureSketch, PredictionSketch

Vector = NDArray[np.float64]

_NORMAL: Final = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """One feature of one window against its reference."""

    name: str
    rows: int
    """Finite values."""
    cells: int
    """B; PSI and total variation depend on it."""
    location: float
    """Shift of the normal scores, in reference sd: robust, at most about 3.5; 0 for categories."""
    shift: float
    """Shift of the mean, in reference sd, as people read it; one outlier moves it. 0 for categories."""
    total_variation: float
    expected_variation: float
    """What the total variation of an unchanged window of independent rows would be on average."""
    psi: float
    """Bias-corrected, so around 0 without drift."""
    ks: float
    out_of_range: float
    """Share of the finite values beyond the reference's range, or of categories that it does not list."""
    null_rate: float
    """Share of the window's rows without a finite value."""
    null_change: float
    """Against the reference's."""


def feature_distance(feature: Feature, sketch: FeatureSketch, reference_rows: int) -> Distance:
    """The distance of one feature."""
    p, counts = _vector(feature.probabilities), _vector(sketch.counts)
    is_float = isinstance(feature, FloatFeature)
    missing = sketch.nulls + sketch.nans
    n = int(counts.sum())
    null_rate = missing / (n + missing) if n + missing else 0.0
    return Distance(
        name=feature.name,
        rows=n,
        cells=len(p),
        location=location_shift(p, counts, reference_rows) if is_float else 0.0,
        shift=mean_shift(sketch) if is_float else 0.0,
        total_variation=total_variation(p, counts),
        expected_variation=expected_total_variation(p, n, reference_rows),
        psi=corrected_psi(p, counts, reference_rows),
        ks=kolmogorov_smirnov(p, counts) if is_float else 0.0,
        out_of_range=_out_of_range(feature, counts),
        null_rate=null_rate,
        null_change=null_rate - feature.null_rate,
    )


def prediction_distance(
    reference: ClassPrediction, sketch: PredictionSketch, reference_rows: int
) -> Distance:
    """The distance of the predicted classes, under the name of the output."""
    p, counts = _vector(reference.probabilities), _vector(sketch.counts)
    n = int(counts.sum())
    return Distance(
        name=f"prediction ({reference.output})",
        rows=n,
        cells=len(p),
        location=0.0,
        shift=0.0,
        total_variation=total_variation(p, counts),
        expected_variation=expected_total_variation(p, n, reference_rows),
        psi=corrected_psi(p, counts, reference_rows),
        ks=0.0,
        out_of_range=0.0,
        null_rate=0.0,
        null_change=0.0,
    )


def location_shift(p: Vector, counts: Vector, m: int) -> float:
    """Mean normal score of the window, in standard deviations of the reference's scores (van der Waerden
    1952).

    A cell's score is the normal quantile of its middle reference rank; a cell that the reference never met
    has the rank of half a row, so the score is finite. Robust: no value counts more than the farthest cell.
    """
    n = counts.sum()
    if n == 0:
        return 0.0
    ranks = np.clip(np.cumsum(p) - p / 2, 0.5 / (m + 1), 1 - 0.5 / (m + 1))
    scores = np.array([_NORMAL.inv_cdf(rank) for rank in ranks])
    center = float(p @ scores)
    variance = float(p @ (scores - center) ** 2)
    if variance <= 0:
        return 0.0
    return (float(counts @ scores) / float(n) - center) / math.sqrt(variance)


def mean_shift(sketch: FeatureSketch) -> float:
    """Shift of the mean in reference sd, from the window's fixed-point sum of standardised values."""
    n = sum(sketch.counts)
    return sketch.total / (n * FIXED_POINT) if n else 0.0


def total_variation(p: Vector, counts: Vector) -> float:
    """Half the sum of the absolute differences of the cell probabilities: 0 alike, 1 disjoint.

    >>> total_variation(np.array([0.5, 0.5]), np.array([10.0, 0.0]))
    0.5
    """
    n = counts.sum()
    return float(0.5 * np.abs(counts / n - p).sum()) if n else 0.0


def expected_total_variation(p: Vector, n: float, m: float) -> float:
    """Mean of the total variation of two samples of one distribution: each cell's difference is close to
    normal with variance ``p (1 - p) (1/n + 1/m)``, whose mean absolute value is ``sqrt(2 / pi)`` times its
    root."""
    if n <= 0:
        return 0.0
    return float(0.5 * np.sqrt(2 / math.pi * p * (1 - p) * (1 / n + 1 / m)).sum())


def corrected_psi(p: Vector, counts: Vector, m: int) -> float:
    """Population stability index less its mean without drift, ``(B - 1)(1/n + 1/m)`` (Yurdakul 2018).

    Half a row is added to every cell (Jeffreys), so that an empty cell is finite. B counts the cells that
    either side met.
    """
    n = float(counts.sum())
    met = (p > 0) | (counts > 0)
    cells = int(met.sum())
    if n == 0 or cells == 0:
        return 0.0
    reference = (p[met] * m + 0.5) / (m + 0.5 * cells)
    current = (counts[met] + 0.5) / (n + 0.5 * cells)
    index = float(((current - reference) * np.log(current / reference)).sum())
    return index - (cells - 1) * (1 / n + 1 / m)


def kolmogorov_smirnov(p: Vector, counts: Vector) -> float:
    """Largest difference of the distribution functions at the cells' upper edges: a lower bound of the KS
    distance of the raw values."""
    n = counts.sum()
    return float(np.abs(np.cumsum(counts / n - p)).max()) if n else 0.0


def _out_of_range(feature: Feature, counts: Vector) -> float:
    n = float(counts.sum())
    if not n:
        return 0.0
    beyond = (
        counts[-1:]
        if isinstance(feature, CategoryFeature)
        else np.r_[counts[:EXCEEDANCE], counts[-EXCEEDANCE:]]
    )
    return float(beyond.sum()) / n


def _vector(values: tuple[float, ...] | tuple[int, ...]) -> Vector:
    return np.array(values, dtype=np.float64)
