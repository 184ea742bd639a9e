"""Which outputs are scored, and by what: asked for, or found from labels and fp32's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np

from skerry_contract.errors import DataError, InputError
from skerry_contract.manifest import TASKS

from .custom import CustomMetric, load_metric


class Metric(StrEnum):
    """What is compared."""

    ACCURACY = "accuracy"
    F1 = "f1"
    AUC = "auc"
    MAE = "mae"
    AGREEMENT = "top1-agreement"
    COSINE = "cosine"
    SQNR = "sqnr"
    CUSTOM = "custom"
    """A function of the engineer's, see `skerry_packager.metrics.custom`."""


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
    custom: CustomMetric | None = None
    """Scores all outputs at once; `output` is then only the one that figures are shown of."""
    witnesses: tuple[Head, ...] = ()
    """Beside a function: how each output would be judged without labels, see docs/adr/0010."""

    @property
    def name(self) -> str:
        """What people call the metric: its value, or ``module:function``."""
        return self.metric.value if self.custom is None else self.custom.name

    def pick(self, outputs: Sequence[np.ndarray]) -> np.ndarray | Sequence[np.ndarray]:
        """What `score_row` needs of a row's outputs."""
        return outputs[self.output] if self.custom is None else outputs


METRICS: Final = tuple(metric.value for metric in Metric if metric is not Metric.CUSTOM)
"""Names that may be asked for; ``module:function`` may be too."""
_LABELLED: Final = (Metric.ACCURACY, Metric.F1, Metric.AUC, Metric.MAE)
_TASKS: Final = {
    Metric.ACCURACY: "classification", Metric.F1: "classification", Metric.AUC: "classification",
    Metric.AGREEMENT: "classification", Metric.MAE: "regression", Metric.COSINE: "embedding",
}  # fmt: skip
Samples = Sequence[Sequence[np.ndarray]]


def choose_heads(
    samples: Samples,
    labels: np.ndarray | None,
    names: Sequence[str],
    task: str | None,
    metric: str | None = None,
) -> tuple[str, tuple[Head, ...]]:
    """The task and the heads, from fp32's outputs on a few samples (each with its batch axis).

    Args:
        metric: one of `METRICS` or ``module:function``; None takes the accuracy or the mean absolute error
            where there are labels, else agreement, cosine or SQNR, whichever the outputs are made for.

    Raises:
        InputError: `task` or `metric` is not known, or the metric is not for these labels and outputs.
        DataError: the labels fit no output.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"the task {task!r} is not known", hint=f"Known: {', '.join(TASKS)}.")
    asked = _parse(metric)
    if isinstance(asked, CustomMetric):
        head = _custom_head(asked, samples, labels, names, task)
        return task or _TASKS.get(head.metric, "other"), (head,)
    if asked is not None and asked not in _LABELLED:
        heads = _asked_unlabelled(asked, samples, names)
    elif labels is not None:
        heads = (_labelled_head(samples, labels, names, task, asked),)
    elif asked is not None:
        raise InputError(
            f"the metric {asked.value} needs labels, and the data has none",
            hint="Give them (see --label-column, or an array named 'labels'), or take "
            "top1-agreement, cosine or sqnr, which compare with fp32.",
        )
    else:
        heads = tuple(_unlabelled_head(index, samples, task) for index in range(len(names)))
    return task or _TASKS.get(heads[0].metric, "other"), heads


def _parse(metric: str | None) -> Metric | CustomMetric | None:
    if metric is None:
        return None
    if ":" in metric:
        return load_metric(metric)
    if metric not in METRICS:
        raise InputError(
            f"the metric {metric!r} is not known", hint=f"Known: {', '.join(METRICS)}, or module:function."
        )
    return Metric(metric)


def _custom_head(
    custom: CustomMetric, samples: Samples, labels: np.ndarray | None, names: Sequence[str], task: str | None
) -> Head:
    """The engineer's function has the word; what the output looks like is still found for monitoring."""
    found = _unlabelled_head(0, samples, task)
    if labels is not None:
        with suppress(DataError):  # labels of any shape are the function's own business
            found = _labelled_head(samples, labels, names, task, None)
    named = custom.with_outputs(names, found.output)
    witnesses = tuple(_unlabelled_head(index, samples, None) for index in range(len(names)))
    return Head(found.output, Metric.CUSTOM, found.form, named, witnesses)


def _asked_unlabelled(metric: Metric, samples: Samples, names: Sequence[str]) -> tuple[Head, ...]:
    """One head for every output that the metric can be taken of; a dense one counts as one long vector."""
    places = range(len(names))
    floats = [index for index in places if samples[0][index].dtype.kind == "f"]
    if metric is Metric.AGREEMENT:
        heads = [
            Head(index, metric, _scores_form(samples, index) if index in floats else Form.LABEL)
            for index in places
            if index not in floats or _is_wide(samples, index)
        ]
        heads = heads or [Head(index, metric, _binary_form(samples, index)) for index in floats]
    else:
        least = 2 if metric is Metric.COSINE else 1  # one number has a sign and no direction
        heads = [Head(index, metric) for index in floats if all(row[index].size >= least for row in samples)]
    if not heads:
        raise InputError(
            f"the metric {metric.value} fits none of the outputs {list(names)}",
            hint="cosine needs floats, two or more a row, and sqnr floats.",
        )
    return tuple(heads)


def _labelled_head(
    samples: Samples, labels: np.ndarray, names: Sequence[str], task: str | None, asked: Metric | None
) -> Head:
    found = _class_or_number_head(samples, labels, names, task, asked)
    if asked is None or asked is found.metric:
        return found
    if (asked is Metric.MAE) != (found.metric is Metric.MAE):
        raise InputError(
            f"the metric {asked.value} does not fit: with these labels ({labels.dtype}, shape "
            f"{list(labels.shape)}) output {names[found.output]!r} is judged by {found.metric.value}",
            hint="Classes are whole numbers from 0; numbers to be hit are for mae.",
        )
    if asked is Metric.AUC and found.form is Form.LABEL:
        raise InputError(
            f"the metric auc needs scores, and output {names[found.output]!r} tells the class alone",
            hint="Export the model with its probabilities, or take accuracy or f1.",
        )
    return Head(found.output, asked, found.form)


def _class_or_number_head(
    samples: Samples, labels: np.ndarray, names: Sequence[str], task: str | None, asked: Metric | None
) -> Head:
    per_row = int(np.prod(labels.shape[1:], dtype=np.int64))
    columns = _columns(samples, len(names))
    is_float = labels.dtype.kind == "f"
    whole = not is_float or bool(np.all(labels == np.rint(labels)))
    sizes = [max(row[index].size for row in samples) for index in range(len(names))]
    if task == "regression" or asked is Metric.MAE or (asked is None and is_float and not whole):
        for index, column in enumerate(columns):
            if column.dtype.kind == "f" and sizes[index] == per_row and labels.dtype.kind in "iufb":
                return Head(index, Metric.MAE)
        raise _labels_do_not_fit(labels, names)
    named = [
        index
        for index, column in enumerate(columns)
        if column.dtype.kind in "iub" and sizes[index] == per_row
    ]
    highest = int(labels.max()) if labels.dtype.kind in "iufb" else -1
    positions = labels.dtype.kind not in "if" or int(labels.min()) >= 0
    for index, column in enumerate(columns):
        classes = samples[0][index].shape[-1] if samples[0][index].ndim else 1
        if (
            column.dtype.kind != "f"
            or not positions
            or classes <= max(1, highest)
            or sizes[index] != per_row * classes
        ):
            continue
        # A label beside the scores wins only if it says something else: class names that are no positions.
        if not named or all(
            np.array_equal(np.ravel(row[named[0]]), row[index].argmax(-1).ravel()) for row in samples
        ):
            return Head(index, Metric.ACCURACY, _scores_form(samples, index))
    if named:
        return Head(named[0], Metric.ACCURACY, Form.LABEL)
    for index, column in enumerate(columns):
        if column.dtype.kind == "f" and sizes[index] == per_row and labels.dtype.kind in "iufb":
            if not 0 <= labels.min() <= highest <= 1:
                return Head(index, Metric.MAE)
            return Head(index, Metric.ACCURACY, _binary_form(samples, index))
    raise _labels_do_not_fit(labels, names)


def _labels_do_not_fit(labels: np.ndarray, names: Sequence[str]) -> DataError:
    return DataError(
        f"labels of type {labels.dtype} and shape {list(labels.shape)} fit none of the outputs {list(names)}",
        hint="Labels are class numbers from 0, or (regression) numbers shaped like the output. Classes that "
        "are called by other numbers, such as 1 to 10, are named in the order of the output by --labels.",
    )


def _unlabelled_head(index: int, samples: Samples, task: str | None) -> Head:
    if samples[0][index].dtype.kind != "f":
        return Head(index, Metric.AGREEMENT, Form.LABEL)
    if _are_probabilities(samples, index):
        return Head(index, Metric.AGREEMENT, Form.PROBABILITIES)
    wide = _is_wide(samples, index)
    if task == "classification" and wide:
        return Head(index, Metric.AGREEMENT, Form.LOGITS)
    if task == "embedding" or (task is None and wide and _are_unit_vectors(samples, index)):
        return Head(index, Metric.COSINE)
    return Head(index, Metric.SQNR)


def _columns(samples: Samples, outputs: int) -> list[np.ndarray]:
    return [np.concatenate([np.ravel(row[index]) for row in samples]) for index in range(outputs)]


def _is_wide(samples: Samples, index: int) -> bool:
    return all(row[index].ndim >= 1 and row[index].shape[-1] >= 2 for row in samples)


def _scores_form(samples: Samples, index: int) -> Form:
    return Form.PROBABILITIES if _are_probabilities(samples, index) else Form.LOGITS


def _binary_form(samples: Samples, index: int) -> Form:
    """Of scores for one class against the rest."""
    inside = all(bool(np.all((row[index] >= 0) & (row[index] <= 1))) for row in samples)
    return Form.BINARY_PROBABILITY if inside else Form.BINARY_LOGIT


def _are_probabilities(samples: Samples, index: int) -> bool:
    return _is_wide(samples, index) and all(
        bool((row[index] >= 0).all())
        and bool(np.allclose(row[index].sum(axis=-1, dtype=np.float64), 1.0, atol=1e-3))
        for row in samples
    )


def _are_unit_vectors(samples: Samples, index: int) -> bool:
    return all(np.allclose(np.linalg.norm(row[index], axis=-1), 1.0, atol=1e-3) for row in samples)
