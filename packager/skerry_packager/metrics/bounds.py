"""Upper ends of one-sided 95% intervals of a mean loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np

RESAMPLES: Final = 2000
CONFIDENCE: Final = 0.95
_CHUNK: Final = 100
_WORK: Final = 200_000_000
"""Numbers that one bootstrap of a set-level metric handles at most, in all resamples together."""
_FEWEST: Final = 200


def exact_bound(rows: int) -> float:
    """Upper end of the one-sided 95% interval of a rate of which none was seen in `rows` independent rows.

    1 - 0.05 ** (1 / n), the case of no event in Clopper and Pearson 1934.
    """
    return float(1 - (1 - CONFIDENCE) ** (1 / rows))


def bootstrap_bound(drops: np.ndarray, seed: int) -> float:
    """Upper end of the one-sided 95% percentile interval of the mean (Efron and Tibshirani 1993, ch. 13).

    The drops are paired differences, so what both models get wrong cancels.
    """
    return _resampled(drops, len(drops), seed)


def sparse_bound(drops: np.ndarray, seed: int) -> float:
    """The same where most drops are 0 and few rows carry all of the loss.

    The plain percentile is too low then: from k equal losses it gives the 95% point of Poisson(k), and the
    exact limit (Garwood 1936) is near that of Poisson(k + 1). So the worst row is put into the urn twice.
    """
    worst = float(drops.max())
    return _resampled(np.append(drops, worst) if worst > 0 else drops, len(drops), seed)


def _resampled(drops: np.ndarray, rows: int, seed: int) -> float:
    generator = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, _CHUNK):
        picks = generator.integers(0, len(drops), (_CHUNK, len(drops)))
        means[start : start + _CHUNK] = drops[picks].sum(axis=1) / rows
    return upper(means)


def upper(values: np.ndarray) -> float:
    """The 95% point of resampled values."""
    return float(np.quantile(values, CONFIDENCE, method="higher"))


def resamples_for(work: int) -> int:
    """How many resamples are affordable if one of them handles `work` numbers."""
    return int(np.clip(_WORK // max(work, 1), _FEWEST, RESAMPLES))


def bootstrap_statistic(rows: int, work: int, seed: int, drops: Callable[[np.ndarray], np.ndarray]) -> float:
    """The 95% point of a statistic that is no mean.

    Args:
        rows: independent units.
        work: numbers that one resample handles.
        drops: from weights [resamples, rows] (how often each row was drawn) to losses [resamples]; NaN where
            a resample has no value, as the AUC of one class has none.
    """
    values = np.concatenate([drops(weights) for weights in _weights(rows, resamples_for(work), seed)])
    values = values[~np.isnan(values)]
    return upper(values) if len(values) else float("nan")


def _weights(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(seed)
    for _ in range(0, resamples, _CHUNK):
        yield generator.multinomial(rows, np.full(rows, 1 / rows), _CHUNK).astype(np.float64)
