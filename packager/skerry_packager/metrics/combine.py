"""From the rows of one head to its figures, with the bound that the gate compares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bounds import bootstrap_bound, exact_bound, sparse_bound
from .disagreement import expected_losses
from .heads import Form, Head, Metric
from .scores import Kept, RowScore
from .sets import auc_of, custom_result, f1_of, paired_bound


@dataclass(frozen=True, slots=True)
class HeadResult:
    """One head over all samples."""

    reference: float
    candidate: float
    drop: float
    drop_bound: float
    """Upper end of the one-sided 95% interval of the loss. For the accuracy of few rows that disagree it is
    about the loss by fp32's odds, and may lie below `drop`: see `skerry_packager.metrics.disagreement`."""
    exact_bound: float | None
    mean_kl: float | None
    sqnr_db: float | None
    max_abs_error: float


def combine(head: Head, rows: Sequence[RowScore], labels: np.ndarray | None, seed: int) -> HeadResult:
    """Sum up the rows of one head, with the bound of its loss.

    Raises:
        DataError: the metric has no value on these rows (AUC of one class, a function that fails).
    """
    noise = np.array([row.noise for row in rows])
    power = _power(rows)
    total_noise = float(noise.sum())
    reference, candidate, drop, bound = _figures(head, rows, labels, seed, power)
    has_kl = head.form in (Form.PROBABILITIES, Form.LOGITS)
    return HeadResult(
        reference=reference,
        candidate=candidate,
        drop=drop,
        drop_bound=bound,
        exact_bound=exact_bound(len(rows)) if _agrees(head, rows) else None,
        mean_kl=float(np.mean([row.kl for row in rows])) if has_kl else None,
        sqnr_db=float(10 * np.log10(power / total_noise)) if total_noise and power else None,
        max_abs_error=max(row.max_error for row in rows),
    )


def _figures(
    head: Head, rows: Sequence[RowScore], labels: np.ndarray | None, seed: int, power: float
) -> tuple[float, float, float, float]:
    """fp32's value, the candidate's, the drop and its bound."""
    kept = [row.kept for row in rows if row.kept is not None]
    if head.metric is Metric.CUSTOM and head.custom is not None:
        before, after, drop, bound, blind = custom_result(head.custom, kept, seed)
        return before, after, drop, max(bound, _second_opinion(head, rows, seed)) if blind else bound
    if head.metric in (Metric.F1, Metric.AUC):
        measure = f1_of if head.metric is Metric.F1 else auc_of
        truths = [row.truth for row in kept if row.truth is not None]
        one, work = measure(truths, [row.reference[0] for row in kept])
        other, _ = measure(truths, [row.candidate[0] for row in kept])
        every = np.ones((1, len(rows)))
        values = float(one(every)[0]), float(other(every)[0])
        return *values, values[0] - values[1], paired_bound(one, other, len(rows), 2 * work, seed)
    reference = np.array([row.reference for row in rows])
    candidate = np.array([row.candidate for row in rows])
    drops = np.array([row.drop for row in rows])
    if head.metric is Metric.SQNR:
        scale = power / len(rows)
        noise = np.array([row.noise for row in rows])
        drops = noise / scale if scale else np.where(noise > 0, 1.0, 0.0)
        reference, candidate = np.zeros(len(rows)), drops
    elif head.metric is Metric.MAE and labels is not None:
        drops = (candidate - reference) / (float(np.mean(np.abs(labels - np.mean(labels)))) or 1.0)
    bound = _bound(head, rows, drops, seed)
    return float(reference.mean()), float(candidate.mean()), float(drops.mean()), bound


def _second_opinion(head: Head, rows: Sequence[RowScore], seed: int) -> float:
    """The bound where a function saw next to no row change: what the outputs lose by the rule for rows
    without labels, or the exact bound where there are so many rows that it is lower."""
    known = [exact_bound(len(rows))]
    if head.custom is not None and head.custom.lower_is_better:
        known = []  # an error has no largest value, so a rate of bad rows bounds nothing
    lost = []
    for number, witness in enumerate(head.witnesses):
        scores = [score for row in rows if (score := row.witnesses[number]) is not None]
        if scores:
            lost.append(_figures(witness, scores, None, seed, _power(scores))[-1])
    return min([max(lost, default=0.0), *known])


def _bound(head: Head, rows: Sequence[RowScore], drops: np.ndarray, seed: int) -> float:
    if head.metric is Metric.ACCURACY:
        decisions = [row.decision for row in rows if row.decision is not None]
        expected = expected_losses(decisions) if len(decisions) == len(rows) else None
        return sparse_bound(drops if expected is None else expected, seed)
    return sparse_bound(drops, seed) if head.metric is Metric.AGREEMENT else bootstrap_bound(drops, seed)


def _power(rows: Sequence[RowScore]) -> float:
    """Sum of squares of fp32's elements about their mean."""
    count, squares = sum(row.count for row in rows), sum(row.squares for row in rows)
    power = squares - sum(row.total for row in rows) ** 2 / count if count else 0.0
    return squares if power <= 1e-12 * squares else power  # a constant output: its own power is all there is


def _agrees(head: Head, rows: Sequence[RowScore]) -> bool:
    """Whether a classifier's bound is degenerate: no row disagrees."""
    if head.metric is Metric.F1:
        return all(row.kept is not None and _same(row.kept) for row in rows)
    return head.metric in (Metric.ACCURACY, Metric.AGREEMENT) and all(
        row.drop == 0 and row.reference == row.candidate for row in rows
    )


def _same(kept: Kept) -> bool:
    return all(map(np.array_equal, kept.reference, kept.candidate))
