"""Columns of a table as the inputs of a model and its labels: what CSV and Parquet have in common.

A column feeds the input of its name. Columns ``NAME_0``, ``NAME_1`` … or ``NAME[0]`` … together feed the
input NAME. A model with one input takes all columns, in their order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from skerry_contract.errors import DataError

from ..inspect import TensorInfo
from .options import SourceOptions
from .samples import LABEL_NAMES, LABELS, Samples, encode_labels

_NUMBERED: Final = re.compile(r"(.+?)(?:_(\d{1,6})|\[(\d{1,6})\]|\.(\d{1,6}))")
_HINT: Final = (
    "Name the columns like the inputs (NAME_0, NAME_1, … for one with several numbers), or pick and order "
    "them with --columns."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which columns feed what."""

    feeds: Mapping[str, tuple[str, ...]]
    """Input -> its columns, in order."""
    label: str
    """Empty if there is none."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of the inputs, each once."""
        return tuple(dict.fromkeys(column for columns in self.feeds.values() for column in columns))


def plan_columns(
    columns: Sequence[str], inputs: Sequence[TensorInfo], options: SourceOptions, what: str
) -> Plan:
    """Match the columns of a table with a model's inputs.

    Raises:
        DataError: a column is there twice, missing, or feeds nothing.
    """
    counts = Counter(columns)
    twice = sorted(column for column, count in counts.items() if count > 1 or not column)
    if twice:
        raise DataError(
            f"{what}: column {twice[0]!r} {'has no name' if not twice[0] else 'is there twice'}",
            hint="Every column needs a name of its own in the first line.",
        )
    known = {info.name for info in inputs}
    label = options.label_column
    if label and label not in columns:
        if options.label_required:
            raise DataError(
                f"{what} has no column {label!r}: {_listing(columns)}", hint="Check --label-column."
            )
        label = ""
    if not options.label_column:
        label = next((name for name in LABEL_NAMES if name in columns and name not in known), "")
    missing = [column for column in options.columns if column not in columns]
    if missing:
        raise DataError(f"{what} has no column {missing[0]!r}: {_listing(columns)}", hint="Check --columns.")
    given = options.columns or tuple(column for column in columns if column != label)
    if set(given) == known:
        return Plan(feeds={info.name: (info.name,) for info in inputs}, label=label)
    if len(inputs) == 1:
        if not given:
            raise DataError(f"{what} has no column but the label", hint=_HINT)
        return Plan(feeds={inputs[0].name: given}, label=label)
    feeds: dict[str, dict[int, str]] = {name: {} for name in known}
    strange = []
    for column in given:
        match = _NUMBERED.fullmatch(column)
        if column in known:
            feeds[column][0] = column
        elif match and match[1] in known:
            feeds[match[1]][int(next(number for number in match.groups()[1:] if number is not None))] = column
        else:
            strange.append(column)
    gaps = [
        name for name, found in sorted(feeds.items()) if sorted(found) != list(range(len(found))) or not found
    ]
    if strange or gaps:
        raise DataError(
            f"{what}: the model's inputs are {sorted(known)}"
            + (f"; no columns for {gaps}" if gaps else "")
            + (f"; columns that feed none: {_listing(strange)}" if strange else ""),
            hint=_HINT,
        )
    return Plan(
        feeds={name: tuple(found[number] for number in sorted(found)) for name, found in feeds.items()},
        label=label,
    )


def _listing(columns: Sequence[str]) -> str:
    shown = ", ".join(repr(column[:40]) for column in columns[:8])
    return f"{shown}, … ({len(columns)})" if len(columns) > 8 else shown


def samples_of(
    plan: Plan,
    columns: Mapping[str, np.ndarray],
    labels: Sequence[str] | None,
    inputs: Sequence[TensorInfo],
    options: SourceOptions,
    what: str,
    notes: tuple[str, ...],
) -> Samples:
    """Put the columns together.

    Args:
        columns: numbers [rows], or [rows, width] of a column of vectors.
        labels: as written, one a row.

    Raises:
        DataError: the columns of an input have not the width that the model wants, or a label is missing.
    """
    arrays = {}
    for info in inputs:
        parts = [columns[name] for name in plan.feeds[info.name]]
        parts = [part[:, None] if part.ndim == 1 else part for part in parts]
        joined = np.concatenate(parts, axis=1)
        arrays[info.name] = _typed(_shaped(joined, info, plan.feeds[info.name], what), info)
    names: tuple[str, ...] = ()
    if labels is not None:
        arrays[LABELS], names = encode_labels(labels, options.classes, f"{what}, column {plan.label!r}")
    return Samples(
        arrays=arrays,
        preprocessing={"kind": "table", "columns": {name: list(found) for name, found in plan.feeds.items()}},
        notes=notes,
        class_names=names,
    )


def _shaped(joined: np.ndarray, info: TensorInfo, columns: Sequence[str], what: str) -> np.ndarray:
    """[rows, width] in the shape of the input's items, where their sizes are known and fit."""
    if not info.ranked:
        return joined
    item = (
        info.shape[1:] if info.shape and (info.shape[0] == 1 or not isinstance(info.shape[0], int)) else None
    )
    if item is None:
        item = info.shape
    width = joined.shape[1]
    sizes = [size for size in item if isinstance(size, int)]
    fixed = int(np.prod(sizes, dtype=np.int64))
    if len(sizes) == len(item) and fixed == width:
        return joined.reshape(len(joined), *sizes)
    if len(sizes) == len(item) - 1 and fixed and width % fixed == 0:
        return joined.reshape(
            len(joined), *(size if isinstance(size, int) else width // fixed for size in item)
        )
    raise DataError(
        f"{what}: input {info.name!r} has shape {list(info.shape)} in the model, and its columns give "
        f"{width} numbers: {_listing(columns)}",
        hint="--columns picks them, in the order of the training; --label-column names the labels.",
    )


def _typed(array: np.ndarray, info: TensorInfo) -> np.ndarray:
    """Whole numbers for an input that takes them, if all are whole; else it is left to the next check."""
    kind = "" if info.dtype == "string" else np.dtype(info.dtype).kind
    if kind in "iub" and array.dtype.kind == "f":
        finite = bool(np.isfinite(array).all()) and bool((np.abs(array) < 2.0**53).all())
        if finite and bool((array == np.rint(array)).all()):
            return array.astype(np.int64 if kind != "b" else np.bool_)
    return array.astype(np.float32) if kind == "f" and info.dtype == "float32" else array
