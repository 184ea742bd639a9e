"""Metrics that only a set of rows has: F1, AUC, functions. Rows are weighted by how often they were drawn.

Each is evaluated with fp32's answers and with the candidate's under the same weights, so the bootstrap is
paired; weights are per row, so the steps of a sequence stay together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from skerry_contract.errors import DataError

from .bounds import bootstrap_statistic
from .custom import CustomMetric
from .scores import Kept

_CUSTOM_RESAMPLES: Final = 200
_BLIND: Final = 0.05
Weighted = Callable[[np.ndarray], np.ndarray]
"""From weights [resamples, rows] to values [resamples], NaN where there is none."""


def paired_bound(one: Weighted, other: Weighted, rows: int, work: int, seed: int) -> float:
    """The 95% point of ``one - other`` over resampled rows."""
    return bootstrap_statistic(rows, work, seed, lambda weights: one(weights) - other(weights))


def f1_of(truths: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> tuple[Weighted, int]:
    """F1 of class 1 where labels and answers are 0 and 1, else the mean over the classes that occur.

    As scikit-learn's ``f1_score`` with ``binary`` or ``macro``; a class without any hit has F1 0.
    """
    classes, flat = np.unique(np.concatenate([*truths, *answers]), return_inverse=True)
    sizes = np.array([len(truth) for truth in truths])
    row = np.repeat(np.arange(len(truths)), sizes)
    truth, answer = np.split(flat.ravel(), [int(sizes.sum())])

    def counts(which: np.ndarray, where: np.ndarray) -> np.ndarray:
        table = np.zeros((len(truths), len(classes)))
        np.add.at(table, (row[where], which[where]), 1.0)
        return table

    everywhere = np.ones(len(row), dtype=bool)
    hits = counts(truth, truth == answer)
    named = counts(truth, everywhere) + counts(answer, everywhere)
    binary = bool(np.isin(classes, (0, 1)).all())
    positive = np.flatnonzero(classes == 1)

    def weighted(weights: np.ndarray) -> np.ndarray:
        hit, sum_named = weights @ hits, weights @ named
        scores = np.divide(2 * hit, sum_named, out=np.zeros_like(hit), where=sum_named > 0)
        if binary:
            return np.asarray(scores[:, positive].sum(axis=1))
        return np.asarray(scores.sum(axis=1) / (sum_named > 0).sum(axis=1))

    return weighted, len(truths) * len(classes)


def auc_of(truths: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> tuple[Weighted, int]:
    """Area under the ROC curve, ties counting half; of more classes one against the rest, mean over those
    that have both sides. As scikit-learn's ``roc_auc_score`` with ``ovr`` and ``macro``.

    Raises:
        DataError: the labels name one class only.
    """
    truth, score = np.concatenate(list(truths)), np.concatenate(list(scores))
    row = np.repeat(np.arange(len(truths)), [len(item) for item in truths])
    columns = [1] if score.shape[1] == 1 else range(score.shape[1])
    sides = [truth == column for column in columns]
    curves = [
        _curve(side, score[:, index], row) for index, side in enumerate(sides) if 0 < side.sum() < len(side)
    ]
    if not curves:
        raise DataError(
            "the metric auc needs rows of at least two classes, and the labels of a split name one only",
            hint="Give data with all classes, mixed; or take another metric.",
        )

    def weighted(weights: np.ndarray) -> np.ndarray:
        values = np.stack([curve(weights) for curve in curves])
        found = ~np.isnan(values)
        total = np.where(found, values, 0.0).sum(axis=0)
        counted = found.sum(axis=0)
        return np.asarray(np.divide(total, counted, out=np.full(len(total), np.nan), where=counted > 0))

    return weighted, 4 * len(truth) * len(curves)


def _curve(positive: np.ndarray, score: np.ndarray, row: np.ndarray) -> Weighted:
    """AUC of one class: the share of pairs of both sides in the right order (Mann and Whitney 1947)."""
    order = np.argsort(score[~positive], kind="stable")
    negatives, owners = score[~positive][order], row[~positive][order]
    below = np.searchsorted(negatives, score[positive], side="left")
    not_above = np.searchsorted(negatives, score[positive], side="right")
    mine = row[positive]

    def weighted(weights: np.ndarray) -> np.ndarray:
        passed = np.zeros((len(weights), len(negatives) + 1))
        np.cumsum(weights[:, owners], axis=1, out=passed[:, 1:])
        own = weights[:, mine]
        wins = (own * (passed[:, below] + passed[:, not_above])).sum(axis=1) / 2
        pairs = own.sum(axis=1) * passed[:, -1]
        return np.asarray(np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0))

    return weighted


def custom_result(
    metric: CustomMetric, rows: Sequence[Kept], seed: int
) -> tuple[float, float, float, float, bool]:
    """fp32's value, the candidate's, the drop and its bound, by a function of the engineer's; whether so few
    rows changed its value that resampling cannot tell.

    A resample misses k rows with a probability of about e^-k: 5% of them find no change where 3 changed.

    Raises:
        DataError: the function fails on all rows or on most resamples, or the rows cannot be stacked.
    """
    both = ([row.reference for row in rows], [row.candidate for row in rows])
    sides = [[_stacked(output, metric) for output in zip(*side, strict=True)] for side in both]
    lengths = [len(row.reference[0]) if row.reference[0].ndim else 1 for row in rows]
    labels = _stacked_labels(rows, lengths, metric)
    names = metric.outputs if len(metric.outputs) == len(sides[0]) else ("output",)
    starts = np.concatenate([[0], np.cumsum(lengths)])

    def values(picks: np.ndarray) -> tuple[float, float]:
        index = np.concatenate([np.arange(starts[pick], starts[pick + 1]) for pick in picks])
        truth = None if labels is None else labels[index if len(labels) == starts[-1] else picks]
        one, other = (
            metric(truth, {name: array[index] for name, array in zip(names, side, strict=True)})
            for side in sides
        )
        return one, other

    reference, candidate = values(np.arange(len(rows)))
    each = _value_of_each_row(values, len(rows), (reference, candidate))

    def resampled(picks: np.ndarray) -> tuple[float, float]:
        if each is None:
            return values(picks)
        one, other = each[picks].mean(axis=0)
        return float(one), float(other)

    generator = np.random.default_rng(seed)
    drops, failure = [], None
    for _ in range(_CUSTOM_RESAMPLES):
        try:
            drops.append(metric.drop(*resampled(generator.integers(0, len(rows), len(rows)))))
        except DataError as error:  # a resample may lack what the function needs, such as a class
            failure = error
    if failure is not None and len(drops) < _CUSTOM_RESAMPLES / 2:
        raise failure
    bound = float(np.quantile(drops, 0.95, method="higher"))
    blind = np.mean(np.equal(drops, 0.0)) >= _BLIND
    return reference, candidate, metric.drop(reference, candidate), bound, bool(blind)


def _value_of_each_row(
    values: Callable[[np.ndarray], tuple[float, float]], rows: int, whole: tuple[float, float]
) -> np.ndarray | None:
    """``[rows, 2]`` if the function is a mean over rows, which is seen by its values; None if it is not.

    Then numbers are resampled, and not whole outputs, which may be gigabytes.
    """
    try:
        each = np.array([values(np.array([row])) for row in range(rows)], dtype=np.float64)
    except DataError:
        return None
    return each if np.allclose(each.mean(axis=0), whole, rtol=1e-9, atol=1e-12) else None


def _stacked(arrays: Sequence[np.ndarray], metric: CustomMetric) -> np.ndarray:
    arrays = [np.atleast_1d(array) for array in arrays]
    if len({array.shape[1:] for array in arrays}) > 1:
        raise DataError(
            f"the metric {metric.name} cannot be taken: the outputs of the rows differ in shape "
            f"({list(arrays[0].shape)}, ...)",
            hint="A function as metric needs outputs of one shape; sequences may differ in length.",
        )
    return np.concatenate(arrays)


def _stacked_labels(rows: Sequence[Kept], lengths: Sequence[int], metric: CustomMetric) -> np.ndarray | None:
    """Rows (or steps) on axis 0, as the outputs have them; one a row if the labels are one a row."""
    found = [row.truth for row in rows if row.truth is not None]
    if len(found) < len(rows):
        return None
    by_step = any(length > 1 for length in lengths) and all(
        truth.ndim and len(truth) == length for truth, length in zip(found, lengths, strict=True)
    )
    return _stacked(found, metric) if by_step else np.stack(found)
