"""Sample data as people have it, checked against a model's inputs.

A *row* is one inference. An input of rank r may be given with rank r, when axis 0 is the model's own batch
axis (free or 1) and every row is one item of it, or with rank r + 1, when every row is one complete input.
Of a stateful model a row is a whole *sequence* of inferences (*steps*): one more axis after the first, time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from skerry_contract.errors import DataError

from .engine import Feed
from .inspect import TensorInfo
from .states import begin_states

_LABEL_NAMES: Final = ("y", "Y", "labels", "label", "targets", "target")
_SINGLE_NAMES: Final = ("x", "X", "inputs", "input", "data")
_HINT: Final = (
    "Give an .npz with one array per input, named like the input (or a single 'x'), and 'y' or 'labels' "
    "for labels; an .npy for a model with one input; or module:function returning such a mapping."
)
_STATE_HINT: Final = " States that are left out begin with zeros."
LENGTHS: Final = "lengths"
"""Array beside padded sequences: how many steps of each are real."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a stateful model carries from one step to the next, and how long the sequences are."""

    loops: Mapping[str, str]
    """Output -> input that takes it at the next step."""
    begin: Mapping[str, np.ndarray]
    """State inputs that the data does not give -> their value at the first step."""
    inner: bool = False
    """Whether the model keeps a state inside (variables of TFLite), which `Session.reset` forgets."""
    stepped: frozenset[str] = frozenset()
    """Inputs with a time axis; the others stay the same over a sequence. Empty: rows are single steps."""
    lengths: np.ndarray | None = None
    """Steps of each row; None where rows are single steps."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows that fit a model. Arrays are never changed."""

    inputs: Mapping[str, np.ndarray]
    """Input name -> array with the rows on axis 0 (and, if it is stepped, time on axis 1), in the model's
    dtype."""
    labels: np.ndarray | None
    """One per row, or None. Of sequences also one per step: ``[rows, steps]``, padded as the inputs are."""
    batched: Mapping[str, bool]
    """Whether a row (or a step) of the input still lacks the model's batch axis of 1."""
    numbers: Sequence[int] = ()
    """Row numbers in the source that the rows were taken from; empty if all are there."""
    memory: Memory | None = None
    """None for a model that has none."""
    notes: Sequence[str] = ()
    """What a person should know of how the data was read."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def sequences(self) -> bool:
        """Whether rows are whole sequences, to be rolled out."""
        return self.memory is not None and self.memory.lengths is not None

    def steps(self, row: int) -> int:
        """How many inferences a row takes."""
        if self.memory is None or self.memory.lengths is None:
            return 1
        return int(self.memory.lengths[row])

    def feed(self, row: int, step: int = 0) -> Feed:
        """One complete set of model inputs, of a stateful model with the states of the beginning."""
        feed: dict[str, np.ndarray] = {} if self.memory is None else dict(self.memory.begin)
        for name, array in self.inputs.items():
            at = (row, slice(step, step + 1)) if self._is_stepped(name) else (slice(row, row + 1),)
            feed[name] = array[at] if self.batched[name] else np.asarray(array[at][0])
        return feed

    def _is_stepped(self, name: str) -> bool:
        return self.memory is not None and name in self.memory.stepped

    def label(self, row: int) -> np.ndarray | None:
        """The label of a row; of a sequence labelled step by step those of its real steps."""
        if self.labels is None:
            return None
        found = np.asarray(self.labels[row])
        return found[: self.steps(row)] if self.sequences and self.step_labels else found

    @property
    def step_labels(self) -> bool:
        """Whether the labels of sequences are given step by step."""
        return self.labels is not None and self.sequences and self.labels.ndim > 1

    def take(self, rows: Sequence[int]) -> Dataset:
        """The rows of those numbers, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        memory = self.memory
        if memory is not None and memory.lengths is not None:
            memory = replace(memory, lengths=memory.lengths[index])
        return replace(
            self,
            inputs={name: array[index] for name, array in self.inputs.items()},
            labels=None if self.labels is None else self.labels[index],
            numbers=tuple(self.numbers[row] if self.numbers else int(row) for row in rows),
            memory=memory,
        )

    def _real(self, name: str, row: int) -> np.ndarray:
        """What a row gives for an input, without padding."""
        array = np.asarray(self.inputs[name][row])
        return array[: self.steps(row)] if self._is_stepped(name) else array

    def finite(self, row: int) -> bool:
        """Whether no input of a row has NaN or an infinite value."""
        return not any(_has_no_number(self._real(name, row)) for name in self.inputs)

    def not_finite(self, row: int) -> str:
        """Which input of a row has NaN or an infinite value, in words; empty if none has."""
        number = self.numbers[row] if self.numbers else row
        for name in self.inputs:
            if _has_no_number(self._real(name, row)):
                return f"input {name!r} has NaN or infinite values in row {number}"
        return ""

    def first_not_finite(self) -> str:
        """The same for the first such row, and how many there are."""
        rows = [row for row in range(len(self)) if not self.finite(row)]
        if not rows:
            return ""
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        return f"{self.not_finite(rows[0])}{more}"

    def row_digest(self, row: int) -> bytes:
        """Identifies a row by its inputs."""
        digest = hashlib.sha256()
        for name in sorted(self.inputs):
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(self._real(name, row)).tobytes())
        return digest.digest()


def _has_no_number(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


def match_dataset(
    arrays: Mapping[str, np.ndarray],
    inputs: Sequence[TensorInfo],
    what: str = "data",
    loops: Mapping[str, str] | None = None,
    inner: bool = False,
) -> Dataset:
    """Check arrays against a model's inputs.

    Args:
        loops: the states of a stateful model, see `skerry_packager.states.find_states`. Then an input may
            have a time axis: ``[rows, steps, *one step's input]``, with the batch axis or without it, and an
            array ``lengths`` [rows] says how many steps are real. State inputs may be left out (zeros at the
            beginning), inputs that stay the same over a sequence are given once for each row or as a scalar.
        inner: whether the model keeps a state inside.

    Raises:
        DataError: a missing or surplus name, a wrong dtype or shape, unequal numbers of rows, no rows.
    """
    loops = loops or {}
    stateful = bool(loops) or inner
    states = set(loops.values())
    label_name = next((name for name in _LABEL_NAMES if _is_extra(name, arrays, inputs)), None)
    has_lengths = stateful and _is_extra(LENGTHS, arrays, inputs)
    lengths = np.asarray(arrays[LENGTHS]) if has_lengths else None
    labels = None if label_name is None else np.asarray(arrays[label_name])
    beside = {label_name, LENGTHS} if has_lengths else {label_name}
    given = _named(
        {name: np.asarray(array) for name, array in arrays.items() if name not in beside},
        inputs, states, what, _HINT + (_STATE_HINT if stateful else ""),
    )  # fmt: skip
    present = [info for info in inputs if info.name in given]
    matched = {info.name: _convert(given[info.name], info, what) for info in present}
    batched: dict[str, bool] = {}
    if stateful:
        matched = _repeated(matched)
        fed = [info for info in present if info.name not in states]
        batched |= _stepped(matched, fed, has_lengths, what)
    stepped = frozenset(batched)
    for info in present:
        if info.name not in stepped:
            batched[info.name] = _row_is_item(matched[info.name], info, what)
    counted = {**matched, str(label_name): labels, LENGTHS: lengths}
    _check_counts({name: array for name, array in counted.items() if array is not None}, what)
    if not stateful:
        return Dataset(matched, labels, batched)
    absent = [info for info in inputs if info.name not in matched]
    memory = Memory(loops=loops, begin=begin_states(absent, loops), inner=inner)
    if stepped:
        rows, steps = matched[min(stepped)].shape[:2]
        real = _real_lengths(lengths, labels, rows, steps, what)
        memory = replace(memory, stepped=stepped, lengths=real)
        return Dataset(matched, labels, batched, memory=memory)
    how = f"Give {fed[0].name!r} as [sequences, steps, *one step's input]"
    if lengths is not None:
        raise DataError(f"{what}: {LENGTHS!r} is given, but no input has a time axis", hint=f"{how}.")
    note = (
        f"{what}: the model is stateful, but the rows have no time axis: each was judged as a first step and "
        f"drift over a sequence was not seen. {how}"
    )
    return Dataset(matched, labels, batched, memory=memory, notes=(note,))


def _is_extra(name: str, arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo]) -> bool:
    """Whether an array is given that is no input of the model."""
    return name in arrays and all(name != info.name for info in inputs)


def _named(
    given: dict[str, np.ndarray], inputs: Sequence[TensorInfo], states: set[str], what: str, hint: str
) -> Mapping[str, np.ndarray]:
    """The arrays by the names of the inputs; a single one may be called ``x``, and states may be missing."""
    known = {info.name for info in inputs}
    fed = sorted(known - states)
    strange = [name for name in given if name not in known]
    if len(fed) == len(strange) == 1 and fed[0] not in given and strange[0] in _SINGLE_NAMES:
        given[fed[0]] = given.pop(strange[0])
    missing, surplus = sorted(set(fed) - set(given)), sorted(set(given) - known)
    if missing or surplus:
        raise DataError(
            f"{what}: the model's inputs are {sorted(known)}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; not an input: {surplus}" if surplus else ""),
            hint=hint,
        )
    return given


def _check_counts(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Raises `DataError` unless all have the same number of rows, and some."""
    for name, array in arrays.items():
        if array.ndim == 0:
            raise DataError(f"{what}: {name!r} must have one entry per row", hint=_HINT)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise DataError(
            f"{what}: the arrays differ in their number of rows: {counts}", hint="Axis 0 counts rows."
        )
    if not next(iter(counts.values())):
        raise DataError(f"{what} has no rows", hint="Give at least some tens of samples.")


def _repeated(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scalars as often as there are rows."""
    rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
    return {
        name: array if array.ndim else np.full(rows, array, dtype=array.dtype)
        for name, array in arrays.items()
    }


def _stepped(
    arrays: Mapping[str, np.ndarray], infos: Sequence[TensorInfo], has_lengths: bool, what: str
) -> dict[str, bool]:
    """The inputs with a time axis, all of the same number of steps; whether they lack the batch axis."""
    items = {info.name: _step_is_item(arrays[info.name], info, has_lengths) for info in infos}
    lacks = {name: item for name, item in items.items() if item is not None}
    steps = {name: arrays[name].shape[1] for name in lacks}
    # An array that fits as rows too, and has another number of steps, is rows: it stays the same over time.
    rows = {info.name for info in infos if _fits(info, arrays[info.name].shape[1:])}
    sure = {count for name, count in steps.items() if name not in rows} or set(steps.values())
    if len(sure) > 1:
        raise DataError(
            f"{what}: the sequences differ in their number of steps: {steps}",
            hint=f"Axis 1 counts steps. Pad shorter sequences with zeros and give {LENGTHS!r}.",
        )
    return {name: item for name, item in lacks.items() if steps[name] in sure}


def _step_is_item(array: np.ndarray, info: TensorInfo, has_lengths: bool) -> bool | None:
    """Whether the steps of a sequence lack the model's batch axis; None if the array has no time axis."""
    rank = len(info.shape)
    if not info.ranked or array.ndim < 2:
        return None
    if array.ndim == rank + 2 and _fits(info, array.shape[2:]):
        return False
    if array.ndim == rank + 1 and rank and _fits(info, (1, *array.shape[2:])):
        # [rows, 1, ...] is as well a row with its batch axis.
        return True if array.shape[1] != 1 or has_lengths else None
    return None


def _real_lengths(
    lengths: np.ndarray | None, labels: np.ndarray | None, rows: int, steps: int, what: str
) -> np.ndarray:
    """Steps of each sequence. Raises `DataError` if lengths or labels do not fit."""
    if labels is not None and labels.ndim > 1 and labels.shape[1] != steps:
        raise DataError(
            f"{what}: labels of shape {list(labels.shape)} for sequences of {steps} steps",
            hint="Give one label for each sequence, or [sequences, steps].",
        )
    if lengths is None:
        return np.full(rows, steps, dtype=np.int64)
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.min() < 1 or lengths.max() > steps:
        raise DataError(
            f"{what}: {LENGTHS!r} must hold one whole number for each sequence, from 1 to {steps}",
            hint="It counts the steps of each sequence that are no padding.",
        )
    return lengths.astype(np.int64)


def _convert(array: np.ndarray, info: TensorInfo, what: str) -> np.ndarray:
    """To the model's dtype, if every number survives: float64 may round to float32, 3.7 never becomes 3."""
    if info.dtype == "string":
        if array.dtype.kind not in "USO":
            raise DataError(
                f"{what}: input {info.name!r} takes strings, not {array.dtype}", hint="Give text."
            )
        return array.astype(object)
    wanted = np.dtype(info.dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.kind in "biuf" and wanted.kind == "f":
        return array.astype(wanted)
    if array.dtype.kind in "biu" and wanted.kind in "iu":
        bounds = np.iinfo(wanted)
        if not array.size or (int(array.min()) >= bounds.min and int(array.max()) <= bounds.max):
            return array.astype(wanted)
    if array.dtype.kind == "O":
        raise DataError(
            f"{what}: input {info.name!r} is an array of Python objects",
            hint=f"Pad rows of different length with zeros, and give {LENGTHS!r}: the steps of each.",
        )
    raise DataError(
        f"{what}: input {info.name!r} takes {wanted}, and the array is {array.dtype}",
        hint=f"Convert it where the data is prepared: array.astype({str(wanted)!r}), scaled as in training.",
    )


def _row_is_item(array: np.ndarray, info: TensorInfo, what: str) -> bool:
    """Whether the rows are items of the model's batch axis. Raises `DataError` if the shape does not fit."""
    if not info.ranked:
        return True
    if array.ndim == len(info.shape) >= 1 and _fits(info, (1, *array.shape[1:])):
        return True
    if array.ndim == len(info.shape) + 1 and _fits(info, array.shape[1:]):
        return False
    want = "[" + ", ".join("?" if size is None else str(size) for size in info.shape) + "]"
    raise DataError(
        f"{what}: input {info.name!r} has shape {want} in the model, and the array has {list(array.shape)}",
        hint="Axis 0 of the array counts samples: give [samples, *the shape without its batch axis], or "
        "[samples, *the whole shape].",
    )


def _fits(info: TensorInfo, shape: tuple[int, ...]) -> bool:
    return len(shape) == len(info.shape) and all(
        not isinstance(want, int) or want == size for want, size in zip(info.shape, shape, strict=True)
    )
