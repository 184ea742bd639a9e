"""How much of fp32 a variant keeps, sample by sample: every metric becomes a paired loss. Pure.

A *head* is one output with one metric. With labels there is one head; without them every output is one, and
the worst decides: nobody has said which output does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from skerry_contract.errors import DataError, InputError
from skerry_contract.manifest import TASKS

_RESAMPLES: Final = 2000
_CONFIDENCE: Final = 0.95


class Metric(StrEnum):
    """What is compared."""

    ACCURACY = "accuracy"
    MAE = "mae"
    AGREEMENT = "top1-agreement"
    COSINE = "cosine"
    SQNR = "sqnr"


class Form(StrEnum):
    """What the numbers of a classifier's output are."""

    NONE = "none"
    PROBABILITIES = "probabilities"
    LOGITS = "logits"
    LABEL = "label"
    """The class itself."""
    BINARY_PROBABILITY = "binary-probability"
    BINARY_LOGIT = "binary-logit"


@dataclass(frozen=True, slots=True)
class Head:
    """One output and how it is scored."""

    output: int
    metric: Metric
    form: Form = Form.NONE


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


def choose_heads(
    samples: Sequence[Sequence[np.ndarray]], labels: np.ndarray | None, names: Sequence[str], task: str | None
) -> tuple[str, tuple[Head, ...]]:
    """The task and the heads, from fp32's outputs on a few samples (each with its batch axis).

    Raises:
        InputError: `task` is not known.
        DataError: the labels fit no output.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"the task {task!r} is not known", hint=f"Known: {', '.join(TASKS)}.")
    columns = [np.concatenate([np.ravel(row[index]) for row in samples]) for index in range(len(names))]
    if labels is not None:
        head = _labelled_head(samples, columns, labels, names, task)
        return (task or ("regression" if head.metric is Metric.MAE else "classification")), (head,)
    heads = tuple(_unlabelled_head(index, samples, columns[index], task) for index in range(len(names)))
    guess = {Metric.AGREEMENT: "classification", Metric.COSINE: "embedding"}.get(heads[0].metric, "other")
    return task or guess, heads


def _labelled_head(
    samples: Sequence[Sequence[np.ndarray]],
    columns: Sequence[np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
    task: str | None,
) -> Head:
    per_row = int(np.prod(labels.shape[1:], dtype=np.int64))
    is_float = labels.dtype.kind == "f"
    whole = not is_float or bool(np.all(labels == np.rint(labels)))
    sizes = [max(row[index].size for row in samples) for index in range(len(names))]
    if task == "regression" or (is_float and not whole):
        for index, column in enumerate(columns):
            if column.dtype.kind == "f" and sizes[index] == per_row:
                return Head(index, Metric.MAE)
        raise _labels_do_not_fit(labels, names)
    named = [
        index
        for index, column in enumerate(columns)
        if column.dtype.kind in "iub" and sizes[index] == per_row
    ]
    highest = int(labels.max()) if labels.dtype.kind in "iufb" else -1
    for index, column in enumerate(columns):
        classes = samples[0][index].shape[-1] if samples[0][index].ndim else 1
        if column.dtype.kind != "f" or classes <= max(1, highest) or sizes[index] != per_row * classes:
            continue
        # A label beside the scores wins only if it says something else: class names that are no positions.
        if not named or all(
            np.array_equal(np.ravel(row[named[0]]), row[index].argmax(-1).ravel()) for row in samples
        ):
            form = Form.PROBABILITIES if _are_probabilities(samples, index) else Form.LOGITS
            return Head(index, Metric.ACCURACY, form)
    if named:
        return Head(named[0], Metric.ACCURACY, Form.LABEL)
    for index, column in enumerate(columns):
        if column.dtype.kind == "f" and sizes[index] == per_row and labels.dtype.kind in "iufb":
            if not 0 <= labels.min() <= highest <= 1:
                return Head(index, Metric.MAE)
            inside = bool(np.all((column >= 0) & (column <= 1)))
            return Head(index, Metric.ACCURACY, Form.BINARY_PROBABILITY if inside else Form.BINARY_LOGIT)
    raise _labels_do_not_fit(labels, names)


def _labels_do_not_fit(labels: np.ndarray, names: Sequence[str]) -> DataError:
    return DataError(
        f"labels of type {labels.dtype} and shape {list(labels.shape)} fit none of the outputs {list(names)}",
        hint="Labels are class numbers from 0, or (regression) numbers shaped like the output.",
    )


def _unlabelled_head(
    index: int, samples: Sequence[Sequence[np.ndarray]], column: np.ndarray, task: str | None
) -> Head:
    if column.dtype.kind != "f":
        return Head(index, Metric.AGREEMENT, Form.LABEL)
    if _are_probabilities(samples, index):
        return Head(index, Metric.AGREEMENT, Form.PROBABILITIES)
    wide = all(row[index].ndim >= 1 and row[index].shape[-1] >= 2 for row in samples)
    if task == "classification" and wide:
        return Head(index, Metric.AGREEMENT, Form.LOGITS)
    if task == "embedding" or (task is None and wide and _are_unit_vectors(samples, index)):
        return Head(index, Metric.COSINE)
    return Head(index, Metric.SQNR)


def _are_probabilities(samples: Sequence[Sequence[np.ndarray]], index: int) -> bool:
    return all(
        row[index].ndim >= 1
        and row[index].shape[-1] >= 2
        and bool((row[index] >= 0).all())
        and bool(np.allclose(row[index].sum(axis=-1, dtype=np.float64), 1.0, atol=1e-3))
        for row in samples
    )


def _are_unit_vectors(samples: Sequence[Sequence[np.ndarray]], index: int) -> bool:
    return all(np.allclose(np.linalg.norm(row[index], axis=-1), 1.0, atol=1e-3) for row in samples)


def score_row(head: Head, reference: np.ndarray, candidate: np.ndarray, label: np.ndarray | None) -> RowScore:
    """Score one sample; both arrays have the same shape and type."""
    kl = noise = total = squares = max_error = 0.0
    count = 0
    if reference.dtype.kind == "f":
        finite = np.isfinite(reference) & np.isfinite(candidate)
        a, b = reference[finite].astype(np.float64), candidate[finite].astype(np.float64)
        difference = b - a
        noise, total, squares = float(difference @ difference), float(a.sum()), float(a @ a)
        count, max_error = a.size, float(np.abs(difference).max(initial=0.0))
    if head.form in (Form.PROBABILITIES, Form.LOGITS):
        kl = _kl(head.form, reference, candidate)
    one, other = _values(head, reference, candidate, label)
    drop = one - other
    if head.metric is Metric.AGREEMENT and head.form is not Form.LABEL:
        drop = _expected_loss(head.form, reference, candidate)
    return RowScore(one, other, drop, kl, noise, total, squares, count, max_error)


def _values(
    head: Head, reference: np.ndarray, candidate: np.ndarray, label: np.ndarray | None
) -> tuple[float, float]:
    if head.metric is Metric.ACCURACY:
        truth = np.ravel(np.asarray(label))
        return tuple(float(np.mean(classes_of(head.form, out) == truth)) for out in (reference, candidate))  # type: ignore[return-value]
    if head.metric is Metric.MAE:
        truth = np.ravel(np.asarray(label, dtype=np.float64))
        return tuple(float(np.mean(np.abs(np.ravel(out) - truth))) for out in (reference, candidate))  # type: ignore[return-value]
    if head.metric is Metric.AGREEMENT:
        return 1.0, float(np.mean(classes_of(head.form, reference) == classes_of(head.form, candidate)))
    if head.metric is Metric.COSINE:
        return 1.0, _cosine(np.ravel(reference).astype(np.float64), np.ravel(candidate).astype(np.float64))
    return 0.0, 0.0  # SQNR needs the variance over all samples


def classes_of(form: Form, output: np.ndarray) -> np.ndarray:
    """The classes that an output names, flat."""
    if form is Form.LABEL:
        return np.ravel(output)
    if form is Form.BINARY_PROBABILITY:
        return (np.ravel(output) >= 0.5).astype(np.int64)
    if form is Form.BINARY_LOGIT:
        return (np.ravel(output) >= 0).astype(np.int64)
    return np.ravel(np.argmax(output, axis=-1))


def _expected_loss(form: Form, reference: np.ndarray, candidate: np.ndarray) -> float:
    """Accuracy that the candidate's choices lose if fp32's probabilities are true.

    A flip between two classes that fp32 holds for equally likely costs nothing; a confident one costs all.
    """
    p = np.exp(_log_probabilities(form, reference.astype(np.float64)))
    picked = np.take_along_axis(p, np.argmax(candidate, axis=-1, keepdims=True), axis=-1)
    return float(np.mean(p.max(axis=-1, keepdims=True) - picked))


def _kl(form: Form, reference: np.ndarray, candidate: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence along the last axis, in nats."""
    p, q = (_log_probabilities(form, out.astype(np.float64)) for out in (reference, candidate))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def _log_probabilities(form: Form, output: np.ndarray) -> np.ndarray:
    if form is Form.PROBABILITIES:
        return np.asarray(np.log(np.clip(output, 1e-12, None)))
    shifted = output - output.max(axis=-1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    if not lengths:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.clip(a @ b / lengths, -1.0, 1.0))


@dataclass(frozen=True, slots=True)
class HeadResult:
    """One head over all samples."""

    reference: float
    candidate: float
    drop: float
    drop_bound: float
    exact_bound: float | None
    mean_kl: float | None
    sqnr_db: float | None
    max_abs_error: float


def combine(head: Head, rows: Sequence[RowScore], labels: np.ndarray | None, seed: int) -> HeadResult:
    """Sum up the samples of one head, with the bound of its mean drop."""
    reference = np.array([row.reference for row in rows])
    candidate = np.array([row.candidate for row in rows])
    noise = np.array([row.noise for row in rows])
    count = sum(row.count for row in rows)
    power = sum(row.squares for row in rows) - sum(row.total for row in rows) ** 2 / count if count else 0.0
    if power <= 1e-12 * sum(row.squares for row in rows):
        power = sum(row.squares for row in rows)  # a constant output: its own power is all there is
    if head.metric is Metric.SQNR:
        scale = power / len(rows)
        drops = noise / scale if scale else np.where(noise > 0, 1.0, 0.0)
        reference, candidate = np.zeros(len(rows)), drops
    elif head.metric is Metric.MAE and labels is not None:
        drops = (candidate - reference) / (float(np.mean(np.abs(labels - np.mean(labels)))) or 1.0)
    else:
        drops = np.array([row.drop for row in rows])
    by_class = head.metric in (Metric.ACCURACY, Metric.AGREEMENT)
    agrees = by_class and not drops.any() and np.array_equal(reference, candidate)
    has_kl = head.form in (Form.PROBABILITIES, Form.LOGITS)
    total_noise = float(noise.sum())
    return HeadResult(
        reference=float(reference.mean()),
        candidate=float(candidate.mean()),
        drop=float(drops.mean()),
        drop_bound=bootstrap_bound(drops, seed),
        exact_bound=exact_bound(len(rows)) if agrees else None,
        mean_kl=float(np.mean([row.kl for row in rows])) if has_kl else None,
        sqnr_db=float(10 * np.log10(power / total_noise)) if total_noise and power else None,
        max_abs_error=max(row.max_error for row in rows),
    )


def exact_bound(rows: int) -> float:
    """Upper end of the one-sided 95% interval of a rate of which none was seen in `rows` independent rows.

    1 - 0.05 ** (1 / n), the case of no event in Clopper and Pearson 1934.
    """
    return float(1 - (1 - _CONFIDENCE) ** (1 / rows))


def bootstrap_bound(drops: np.ndarray, seed: int) -> float:
    """Upper end of the one-sided 95% percentile interval of the mean (Efron and Tibshirani 1993, ch. 13).

    The drops are paired differences, so what both models get wrong cancels.
    """
    generator = np.random.default_rng(seed)
    means = np.empty(_RESAMPLES)
    for start in range(0, _RESAMPLES, 100):
        picks = generator.integers(0, len(drops), (100, len(drops)))
        means[start : start + 100] = drops[picks].mean(axis=1)
    return float(np.quantile(means, _CONFIDENCE, method="higher"))
