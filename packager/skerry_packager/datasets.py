"""Sample data as people have it, checked against a model's inputs, and three disjoint splits of it.

A *row* is one inference. An input of rank r may be given with rank r, when axis 0 is the model's own batch
axis (free or 1) and every row is one item of it, or with rank r + 1, when every row is one complete input.
The splits depend on the seed and the row number alone, so the same data gives the same splits everywhere.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np

from skerry_contract.errors import DataError, InputError

from .engine import Feed
from .inspect import TensorInfo
from .results import SplitInfo

_LABEL_NAMES: Final = ("y", "Y", "labels", "label", "targets", "target")
_SINGLE_NAMES: Final = ("x", "X", "inputs", "input", "data")
_HINT: Final = (
    "Give an .npz with one array per input, named like the input (or a single 'x'), and 'y' or 'labels' "
    "for labels; an .npy for a model with one input; or module:function returning such a mapping."
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows that fit a model. Arrays are never changed."""

    inputs: Mapping[str, np.ndarray]
    """Input name -> array with the rows on axis 0, in the model's dtype."""
    labels: np.ndarray | None
    """One per row, or None."""
    batched: Mapping[str, bool]
    """Whether a row of the input still lacks the model's batch axis of 1."""
    numbers: Sequence[int] = ()
    """Row numbers in the source that the rows were taken from; empty if all are there."""

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def feed(self, row: int) -> Feed:
        """One complete set of model inputs."""
        return {
            name: array[row : row + 1] if self.batched[name] else np.asarray(array[row])
            for name, array in self.inputs.items()
        }

    def take(self, rows: Sequence[int]) -> Dataset:
        """The rows of those numbers, in that order."""
        index = np.asarray(rows, dtype=np.int64)
        labels = None if self.labels is None else self.labels[index]
        numbers = tuple(self.numbers[row] if self.numbers else int(row) for row in rows)
        return Dataset(
            {name: array[index] for name, array in self.inputs.items()}, labels, self.batched, numbers
        )

    def finite(self, row: int) -> bool:
        """Whether no input of a row has NaN or an infinite value."""
        return not any(map(_has_no_number, (array[row] for array in self.inputs.values())))

    def not_finite(self, row: int) -> str:
        """Which input of a row has NaN or an infinite value, in words; empty if none has."""
        number = self.numbers[row] if self.numbers else row
        for name, array in self.inputs.items():
            if _has_no_number(array[row]):
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
            digest.update(name.encode() + b"\0" + np.ascontiguousarray(self.inputs[name][row]).tobytes())
        return digest.digest()


def _has_no_number(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and not bool(np.isfinite(array).all())


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three disjoint sets of rows; a generator sees the first two, only the last word sees the third."""

    calibration: Dataset
    search: Dataset
    held_out: Dataset
    held_out_rows: tuple[int, ...]
    """Row numbers of `held_out` in the evaluation data."""
    info: Mapping[str, SplitInfo]
    notes: tuple[str, ...]


def load_arrays(source: str | Path) -> dict[str, np.ndarray]:
    """Read a data source: the path of an ``.npz`` or ``.npy`` file, or ``module:function``.

    Raises:
        InputError: not there, or not of those forms.
        DataError: there, and not readable.
    """
    text = str(source)
    path = Path(text)
    if path.suffix in (".npz", ".npy"):
        return _load_file(path)
    module, colon, function = text.partition(":")
    if colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")):
        return _call(module, function)
    raise InputError(f"{text}: this form of data is not known", hint=_HINT)


def _load_file(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", hint=_HINT) from error
    except (ValueError, EOFError, BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            hint="Save plain arrays with numpy.savez: arrays of Python objects are never loaded.",
        ) from error


def _call(module: str, function: str) -> dict[str, np.ndarray]:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        target = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise InputError(f"{module}:{function}: {error}", hint="Name an importable module.") from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(target):
        raise InputError(f"{module} has no function {function!r}", hint=_HINT)
    returned: Any = target()
    if isinstance(returned, np.ndarray):
        return {"x": returned}
    if not isinstance(returned, Mapping):
        raise DataError(f"{module}:{function} returned {type(returned).__name__}, not a mapping", hint=_HINT)
    return {str(name): np.asarray(value) for name, value in returned.items()}


def match_dataset(
    arrays: Mapping[str, np.ndarray], inputs: Sequence[TensorInfo], what: str = "data"
) -> Dataset:
    """Check arrays against a model's inputs.

    Raises:
        DataError: a missing or surplus name, a wrong dtype or shape, unequal numbers of rows, no rows.
    """
    known = {info.name for info in inputs}
    label_name = next((name for name in _LABEL_NAMES if name in arrays and name not in known), None)
    given = {name: array for name, array in arrays.items() if name != label_name}
    if len(inputs) == 1 and len(given) == 1 and inputs[0].name not in given:
        name = next(iter(given))
        if name in _SINGLE_NAMES:
            given = {inputs[0].name: given[name]}
    missing, surplus = sorted(known - set(given)), sorted(set(given) - known)
    if missing or surplus:
        raise DataError(
            f"{what}: the model's inputs are {sorted(known)}"
            + (f"; missing: {missing}" if missing else "")
            + (f"; not an input: {surplus}" if surplus else ""),
            hint=_HINT,
        )
    matched: dict[str, np.ndarray] = {}
    batched: dict[str, bool] = {}
    for info in inputs:
        matched[info.name] = _convert(given[info.name], info, what)
        batched[info.name] = _row_is_item(matched[info.name], info, what)
    labels = None if label_name is None else np.asarray(arrays[label_name])
    counts = {name: len(array) for name, array in matched.items()}
    if labels is not None:
        if labels.ndim == 0:
            raise DataError(f"{what}: labels {label_name!r} must have one entry per row", hint=_HINT)
        counts[str(label_name)] = len(labels)
    if len(set(counts.values())) != 1:
        raise DataError(
            f"{what}: the arrays differ in their number of rows: {counts}", hint="Axis 0 counts rows."
        )
    if not next(iter(counts.values())):
        raise DataError(f"{what} has no rows", hint="Give at least some tens of samples.")
    return Dataset(matched, labels, batched)


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
    raise DataError(
        f"{what}: input {info.name!r} takes {wanted}, and the array is {array.dtype}",
        hint=f"Convert it where the data is prepared: array.astype({str(wanted)!r}), scaled as in training.",
    )


def _row_is_item(array: np.ndarray, info: TensorInfo, what: str) -> bool:
    """Whether the rows are items of the model's batch axis. Raises `DataError` if the shape does not fit."""

    def fits(shape: tuple[int, ...]) -> bool:
        return len(shape) == len(info.shape) and all(
            not isinstance(want, int) or want == size for want, size in zip(info.shape, shape, strict=True)
        )

    if not info.ranked:
        return True
    if array.ndim == len(info.shape) >= 1 and fits((1, *array.shape[1:])):
        return True
    if array.ndim == len(info.shape) + 1 and fits(array.shape[1:]):
        return False
    want = "[" + ", ".join("?" if size is None else str(size) for size in info.shape) + "]"
    raise DataError(
        f"{what}: input {info.name!r} has shape {want} in the model, and the array has {list(array.shape)}",
        hint="Axis 0 of the array counts samples: give [samples, *the shape without its batch axis], or "
        "[samples, *the whole shape].",
    )


def make_splits(
    calibration: Dataset | None,
    evaluation: Dataset,
    seed: int = 0,
    most_calibration: int = 128,
    most_rows: int = 1024,
) -> Splits:
    """Divide rows by the hash of their number and the seed.

    With its own calibration data, evaluation rows are halved into search and held-out, and calibration rows
    whose inputs also occur there are dropped. Without it, a fifth of the evaluation rows calibrates.

    Raises:
        DataError: too few rows for three splits.
    """
    order = sorted(range(len(evaluation)), key=lambda row: _rank(seed, row))
    notes: list[str] = []
    if calibration is None:
        used = min(most_calibration, max(1, len(order) // 5))
        calibration_rows, order = order[:used], order[used:]
        source = evaluation
    else:
        source = calibration
        seen = {evaluation.row_digest(row) for row in range(len(evaluation))}
        fresh = [row for row in range(len(calibration)) if calibration.row_digest(row) not in seen]
        if len(fresh) < len(calibration):
            notes.append(
                f"{len(calibration) - len(fresh)} calibration rows also evaluate, and were not calibrated on"
            )
        calibration_rows = sorted(fresh, key=lambda row: _rank(seed, row))[:most_calibration]
    half = len(order) // 2
    search_rows, held_rows = order[:half][:most_rows], order[half:][:most_rows]
    if not calibration_rows or not search_rows:
        raise DataError(
            f"{len(evaluation)} evaluation rows do not divide into calibration, search and held-out data",
            hint="Give more samples (hundreds are good); calibration and evaluation data must differ.",
        )
    if len(held_rows) < 100:
        notes.append(f"only {len(held_rows)} held-out rows: one row is {100 / len(held_rows):.1f} points")
    parts = {
        "calibration": (source, sorted(calibration_rows)),
        "search": (evaluation, sorted(search_rows)),
        "held-out": (evaluation, sorted(held_rows)),
    }
    taken = {name: data.take(rows) for name, (data, rows) in parts.items()}
    return Splits(
        calibration=taken["calibration"],
        search=taken["search"],
        held_out=taken["held-out"],
        held_out_rows=tuple(parts["held-out"][1]),
        info={
            name: SplitInfo(rows=len(rows), sha256=_digest(taken[name], rows))
            for name, (_, rows) in parts.items()
        },
        notes=tuple(notes),
    )


def _rank(seed: int, row: int) -> bytes:
    return hashlib.sha256(f"{seed}:{row}".encode()).digest()


def _digest(data: Dataset, rows: Sequence[int]) -> str:
    digest = hashlib.sha256(",".join(map(str, rows)).encode())
    for position in range(len(data)):
        digest.update(data.row_digest(position))
        if data.labels is not None:
            digest.update(np.ascontiguousarray(data.labels[position]).tobytes())
    return digest.hexdigest()
