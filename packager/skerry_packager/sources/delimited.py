"""A table as text, ``.csv`` or ``.tsv``: one line with the names of the columns, then one row a line.

Read as a stream; only an evenly spread part of the rows is kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from skerry_contract.errors import DataError

from ..inspect import TensorInfo
from .options import SourceOptions
from .samples import Samples, Spread, check_bytes
from .tables import plan_columns, samples_of

_MOST_COLUMNS: Final = 100_000
_DELIMITERS: Final = ",;\t"
_MISSING: Final = frozenset({"", "na", "n/a", "nan", "null", "none"})
_HINT: Final = "Save it as UTF-8 with one line of column names and as many cells in every row."


def read_delimited(path: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """Read a table for a model. An empty cell is NaN.

    Raises:
        DataError: not such a table, a cell that is no number, columns that do not fit; with line and column.
    """
    what = str(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline(1_000_000))
            file.seek(0)
            lines = _lines(file, delimiter, what)
            _, header = next(lines, (1, []))
            _check_header(header, what)
            plan = plan_columns(header, inputs, options, what)
            places = [header.index(column) for column in plan.columns]
            label = header.index(plan.label) if plan.label else -1
            spread = Spread[tuple[np.ndarray, str]](options.max_rows)
            for number, cells in lines:
                if len(cells) != len(header):
                    raise DataError(
                        f"{what}, line {number}: {len(cells)} cells, and the first line has {len(header)}",
                        hint=_HINT,
                    )
                if spread.wants_next():
                    numbers = _numbers([cells[place] for place in places], plan.columns, what, number)
                    spread.add((numbers, cells[label] if plan.label else ""))
                    check_bytes(len(spread.rows) * 8 * len(places), options, what)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{what} cannot be read: {error}", hint=_HINT) from error
    if not spread.rows:
        raise DataError(f"{what} has no rows", hint=_HINT)
    table = np.stack([numbers for numbers, _ in spread.rows])
    columns = {column: table[:, place] for place, column in enumerate(plan.columns)}
    labels = [word for _, word in spread.rows] if plan.label else None
    return samples_of(plan, columns, labels, inputs, options, what, spread.notes(what))


def _delimiter(line: str) -> str:
    """The one of comma, semicolon and tab that the first line has most of."""
    return max(_DELIMITERS, key=line.count)


def _lines(file: Iterator[str], delimiter: str, what: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of every line that is not empty."""
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    for cells in reader:
        if len(cells) > _MOST_COLUMNS:
            raise DataError(f"{what}, line {reader.line_num}: {len(cells):,} cells", hint=_HINT)
        if cells:
            yield reader.line_num, [cell.strip() for cell in cells]


def _check_header(header: Sequence[str], what: str) -> None:
    if not header:
        raise DataError(f"{what} is empty", hint=_HINT)
    if all(_is_number(cell) for cell in header):
        raise DataError(
            f"{what}: the first line has numbers and no names of columns",
            hint="Put a line with the names on top.",
        )


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(cells: Sequence[str], columns: Sequence[str], what: str, line: int) -> np.ndarray:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        pass  # find out which one
    numbers = np.empty(len(cells))
    for place, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        if cell.lower() in _MISSING:
            numbers[place] = np.nan
        elif _is_number(cell):
            numbers[place] = float(cell)
        else:
            raise DataError(
                f"{what}, line {line}: {cell[:60]!r} in column {column!r} is no number",
                hint="Encode categories as numbers as in training (one column for each category, or its "
                "number), or leave the column out with --columns.",
            )
    return numbers
