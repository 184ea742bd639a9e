"""What a source gives, and what may be said about how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

import numpy as np

from skerry_contract.errors import DataError, InputError

from .options import SourceOptions

LABELS: Final = "labels"
LENGTHS: Final = "lengths"
"""Array beside padded sequences: how many steps of each are real."""
LABEL_NAMES: Final = ("labels", "label", "y", "Y", "targets", "target")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Arrays that fit the inputs of a model, or are at least named for them."""

    arrays: Mapping[str, np.ndarray]
    """By input name, rows on axis 0; labels under `LABELS`, lengths of sequences under `LENGTHS`."""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """What was done to the raw data, as JSON values: serving must do the same."""
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    """Names of the classes 0, 1, ..., where labels were words."""

    @property
    def labels(self) -> np.ndarray | None:
        return self.arrays.get(LABELS)


class Spread(Generic[Row]):
    """Keeps an evenly spread part of a stream of unknown length: every row, every second one, every fourth …

    At most `most` rows are held at once, and which ones depends on their number alone.
    """

    def __init__(self, most: int) -> None:
        self._most = max(1, most)
        self._stride = 1
        self.seen = 0
        self.rows: list[Row] = []

    def wants_next(self) -> bool:
        """Whether the next row is one that is kept; it is counted as seen either way."""
        wanted = self.seen % self._stride == 0
        self.seen += 1
        return wanted

    def add(self, row: Row) -> None:
        """Keep a row that was wanted."""
        self.rows.append(row)
        if len(self.rows) > self._most:
            del self.rows[1::2]
            self._stride *= 2

    def notes(self, what: str) -> tuple[str, ...]:
        """What to tell if not all were kept."""
        return () if len(self.rows) == self.seen else (spread_note(what, len(self.rows), self.seen),)


def spread_note(what: str, kept: int, seen: int) -> str:
    """The sentence on rows that were left out."""
    return f"{what}: {kept} of {seen} rows were taken, evenly spread"


def spread_evenly(items: Sequence[Row], most: int) -> list[Row]:
    """At most `most` of the items, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[place] for place in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]


def encode_labels(
    values: Sequence[str], classes: Sequence[str], what: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as written: whole numbers are classes, other numbers values to be hit, words become classes.

    Args:
        classes: the order of the words; sorted if empty.

    Returns:
        The labels, and the class names if they were words.

    Raises:
        DataError: an empty label, or a word that `classes` does not have.
    """
    texts = [value.strip() for value in values]
    if "" in texts:
        raise DataError(
            f"{what}: row {texts.index('') + 1} has no label", hint="Label every row, or leave it out."
        )
    if not classes:
        for convert in (int, float):
            try:
                numbers = np.array([convert(text) for text in texts])
            except (ValueError, OverflowError):
                continue
            if numbers.dtype.kind in "if" and np.isfinite(numbers).all():
                return numbers, ()
    names = tuple(classes) or tuple(sorted(set(texts)))
    index = {name: number for number, name in enumerate(names)}
    unknown = sorted(set(texts) - set(index))
    if unknown:
        raise DataError(
            f"{what}: the label {unknown[0]!r} is none of the {len(names)} classes "
            f"({', '.join(names[:5])}{', …' if len(names) > 5 else ''})",
            hint="--labels names all classes in the order of the model's output.",
        )
    return np.array([index[text] for text in texts], dtype=np.int64), names


def check_bytes(wanted: int, options: SourceOptions, what: str) -> None:
    """Raises `DataError` if arrays would grow larger than allowed."""
    if wanted > options.max_bytes:
        raise DataError(
            f"{what}: {wanted / 1e9:.1f} GB of data, and at most {options.max_bytes / 1e9:.1f} GB are read",
            hint="Some thousands of samples are enough: give a part of them.",
        )


def require(condition: bool, message: str, hint: str) -> None:
    """Raises `InputError` with the message unless the condition holds."""
    if not condition:
        raise InputError(message, hint=hint)
