"""The score of one row: what fp32 and the candidate are worth on it, and what later sums need of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .heads import Form, Head, Metric

_LEAST: float = 1e-12
"""Probability below which nothing is told apart."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How one row is decided by fp32 and by the candidate, for rows with one answer."""

    chosen: float
    """Log-probability by fp32 of its own class."""
    runner_up: float
    """Of its second class."""
    picked: float
    """Of the class that the candidate names; equal to `chosen` where they agree."""
    chosen_right: bool
    runner_up_right: bool
    picked_right: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """The parts of a row that a metric over all rows is computed from."""

    truth: np.ndarray | None
    reference: tuple[np.ndarray, ...]
    candidate: tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class RowScore:
    """One sample, one head."""

    reference: float
    candidate: float
    drop: float
    """Loss on this sample, where it is one by itself (not for SQNR and MAE)."""
    kl: float
    noise: float
    """Sum of squared differences."""
    total: float
    """Sum of fp32's elements, for its variance."""
    squares: float
    count: int
    max_error: float
    decision: Decision | None = None
    kept: Kept | None = None
    witnesses: tuple[RowScore | None, ...] = ()
    """Of `Head.witnesses`; None where fp32 gives no number."""


Output = np.ndarray | Sequence[np.ndarray]


def score_row(head: Head, reference: Output, candidate: Output, label: np.ndarray | None) -> RowScore:
    """Score one row, which may be a whole sequence: steps on axis 0, with one label each or one for all.

    Args:
        reference: fp32's output of the head (`Head.pick` takes it from all outputs).
        candidate: the candidate's, of the same shape and type.
    """
    alls = (
        tuple(np.asarray(out) for out in _listed(reference)),
        tuple(np.asarray(out) for out in _listed(candidate)),
    )
    shown = head.custom.shown if head.custom is not None and len(alls[0]) > 1 else 0
    a, b = alls[0][shown], alls[1][shown]
    noise, total, squares, count, max_error = _noise(a, b)
    kl = _kl(head.form, a, b) if head.form in (Form.PROBABILITIES, Form.LOGITS) else 0.0
    one, other = _values(head, a, b, label)
    drop = one - other
    if head.metric is Metric.AGREEMENT and head.form is not Form.LABEL:
        drop = _expected_loss(head.form, a, b)
    return RowScore(
        one, other, drop, kl, noise, total, squares, count, max_error,
        decision=_decision(head, a, b, label), kept=_kept(head, alls, label),
        witnesses=tuple(_witness(witness, *alls) for witness in head.witnesses),
    )  # fmt: skip


def _witness(head: Head, reference: Sequence[np.ndarray], candidate: Sequence[np.ndarray]) -> RowScore | None:
    a, b = reference[head.output], candidate[head.output]
    if head.metric is not Metric.SQNR and a.dtype.kind == "f" and not bool(np.isfinite(a).all()):
        return None
    return score_row(head, a, b, None)


def _listed(output: Output) -> Sequence[np.ndarray]:
    return (output,) if isinstance(output, np.ndarray | np.generic) else output


def _noise(reference: np.ndarray, candidate: np.ndarray) -> tuple[float, float, float, int, float]:
    if reference.dtype.kind != "f":
        return 0.0, 0.0, 0.0, 0, 0.0
    finite = np.isfinite(reference) & np.isfinite(candidate)
    keep = slice(None) if finite.all() else np.ravel(finite)  # a mask costs more than all the rest
    a, b = (np.ravel(out)[keep].astype(np.float64) for out in (reference, candidate))
    difference = b - a
    worst = float(np.abs(difference).max(initial=0.0))
    return float(difference @ difference), float(a.sum()), float(a @ a), a.size, worst


def _values(
    head: Head, reference: np.ndarray, candidate: np.ndarray, label: np.ndarray | None
) -> tuple[float, float]:
    both = (reference, candidate)
    if head.metric is Metric.ACCURACY:
        one, other = (float(np.mean(classes_of(head.form, out) == np.ravel(label))) for out in both)  # type: ignore[arg-type]
        return one, other
    if head.metric is Metric.MAE:
        truth = np.ravel(np.asarray(label, dtype=np.float64))
        one, other = (float(np.mean(np.abs(np.ravel(out) - truth))) for out in both)
        return one, other
    if head.metric is Metric.AGREEMENT:
        return 1.0, float(np.mean(classes_of(head.form, reference) == classes_of(head.form, candidate)))
    if head.metric is Metric.COSINE:
        return 1.0, _cosine(*(np.ravel(out).astype(np.float64) for out in both))
    return 0.0, 0.0  # SQNR, F1, AUC and functions are values of all rows together


def classes_of(form: Form, output: np.ndarray) -> np.ndarray:
    """The classes that an output names, flat."""
    if form is Form.LABEL:
        return np.ravel(output)
    if form is Form.BINARY_PROBABILITY:
        return (np.ravel(output) >= 0.5).astype(np.int64)
    if form is Form.BINARY_LOGIT:
        return (np.ravel(output) >= 0).astype(np.int64)
    return np.ravel(np.argmax(output, axis=-1))


def _decision(
    head: Head, reference: np.ndarray, candidate: np.ndarray, label: np.ndarray | None
) -> Decision | None:
    if head.metric is not Metric.ACCURACY or head.form in (Form.LABEL, Form.NONE) or label is None:
        return None
    truth = np.ravel(label)
    logs = class_logs(head.form, reference)
    if len(logs) != 1 or len(truth) != 1 or not np.isfinite(logs).all():
        return None
    row = logs[0]
    first = int(classes_of(head.form, reference)[0])
    second = int(np.argmax(np.where(np.arange(len(row)) == first, -np.inf, row)))
    picked = int(classes_of(head.form, candidate)[0])
    return Decision(
        float(row[first]), float(row[second]), float(row[picked]),
        *(bool(which == truth[0]) for which in (first, second, picked)),
    )  # fmt: skip


def class_logs(form: Form, output: np.ndarray) -> np.ndarray:
    """Log-probabilities [answers, classes] of a classifier's output."""
    values = output.astype(np.float64)
    if form is Form.BINARY_LOGIT:
        z = np.ravel(values)
        return np.stack([-np.logaddexp(0, z), -np.logaddexp(0, -z)], axis=1)
    if form is Form.BINARY_PROBABILITY:
        p = np.ravel(values)
        return np.log(np.clip(np.stack([1 - p, p], axis=1), _LEAST, None))
    return _log_probabilities(form, values).reshape(-1, values.shape[-1])


def _kept(
    head: Head, outputs: tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]], label: np.ndarray | None
) -> Kept | None:
    if head.metric is Metric.CUSTOM:
        return Kept(None if label is None else np.asarray(label), *outputs)
    if head.metric not in (Metric.F1, Metric.AUC):
        return None
    take = classes_of if head.metric is Metric.F1 else _scores_of
    one, other = (np.asarray(take(head.form, out[0])) for out in outputs)
    truth = np.ravel(np.asarray(label))
    if len(truth) != len(one) and len(truth) == 1:
        truth = np.repeat(truth, len(one))
    return Kept(truth, (one,), (other,))


def _scores_of(form: Form, output: np.ndarray) -> np.ndarray:
    """What rows are ordered by: [answers, classes], or [answers, 1] for the second of two classes."""
    if form in (Form.BINARY_PROBABILITY, Form.BINARY_LOGIT):
        return np.ravel(output)[:, None].astype(np.float64)
    values = output.astype(np.float64).reshape(-1, output.shape[-1])
    if form is Form.PROBABILITIES:
        return values if values.shape[1] > 2 else values[:, 1:]
    if values.shape[1] == 2:
        return values[:, 1:] - values[:, :1]
    return np.asarray(np.exp(_log_probabilities(form, values)))


def _expected_loss(form: Form, reference: np.ndarray, candidate: np.ndarray) -> float:
    """Accuracy that the candidate's choices lose if fp32's probabilities are true.

    A flip between two classes that fp32 holds for equally likely costs nothing; a confident one costs all.
    """
    p = np.exp(class_logs(form, reference))
    picked = np.take_along_axis(p, classes_of(form, candidate)[:, None], axis=1)
    return float(np.mean(p.max(axis=1, keepdims=True) - picked))


def _kl(form: Form, reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence along the last axis, in nats."""
    p, q = (_log_probabilities(form, out.astype(np.float64)) for out in (reference, candidate))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def _log_probabilities(form: Form, output: np.ndarray) -> np.ndarray:
    if form is Form.PROBABILITIES:
        return np.asarray(np.log(np.clip(output, _LEAST, None)))
    shifted = output - output.max(axis=-1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.clip(a @ b / lengths, -1.0, 1.0))
