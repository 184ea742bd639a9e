"""A table as Parquet, read in batches by pyarrow (``pip install 'skerry[parquet]'``). Lists are vectors."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_contract.errors import DataError, InputError

from ..inspect import TensorInfo
from .options import SourceOptions
from .samples import Samples, Spread, check_bytes
from .tables import Plan, plan_columns, samples_of

_BATCH: Final = 1024
_MOST_ROWS: Final = 20_000_000
"""A column of equal numbers takes next to no space in a file, however many there are."""
_MOST_METADATA: Final = 16_000_000
_HINT: Final = "Columns hold numbers, or lists of numbers of one length."


def read_parquet(path: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """Read a table for a model. A null is NaN.

    Raises:
        InputError: pyarrow is not installed.
        DataError: not such a table, or columns that do not fit.
    """
    arrow, reader = _pyarrow()
    what = str(path)
    try:
        with reader.ParquetFile(
            path,
            pre_buffer=False,
            thrift_string_size_limit=_MOST_METADATA,
            thrift_container_size_limit=_MOST_METADATA // 16,
        ) as file:
            return _read(file, arrow, inputs, options, what)
    except (arrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{what} cannot be read: {str(error)[:300]}", hint=_HINT) from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow, which is not installed",
            hint="pip install 'skerry[parquet]', or give CSV.",
        ) from error


def _read(file: Any, arrow: Any, inputs: Sequence[TensorInfo], options: SourceOptions, what: str) -> Samples:
    names = list(file.schema_arrow.names)
    plan = plan_columns(names, inputs, options, what)
    if file.metadata.num_rows > _MOST_ROWS:
        raise DataError(
            f"{what} has {file.metadata.num_rows:,} rows, and at most {_MOST_ROWS:,} are gone through",
            hint="Give a part of it.",
        )
    for group in range(file.metadata.num_row_groups):
        check_bytes(_group_bytes(file.metadata.row_group(group), plan), options, what)
    wanted = [*plan.columns, *([plan.label] if plan.label else [])]
    spread = Spread[tuple[list[np.ndarray], str]](options.max_rows)
    for batch in file.iter_batches(batch_size=_BATCH, columns=wanted):
        parts = [_numbers(batch.column(name), name, arrow, what) for name in plan.columns]
        words = batch.column(plan.label).to_pylist() if plan.label else [""] * batch.num_rows
        for row in range(batch.num_rows):
            if spread.wants_next():
                numbers = [part[row] for part in parts]
                if spread.rows:
                    _check_widths(spread.rows[0][0], numbers, plan, what)
                spread.add((numbers, "" if words[row] is None else str(words[row])))
        check_bytes(len(spread.rows) * 8 * sum(part[0].size for part in parts if len(part)), options, what)
    if not spread.rows:
        raise DataError(f"{what} has no rows", hint=_HINT)
    columns = {
        name: np.array([numbers[place] for numbers, _ in spread.rows])
        for place, name in enumerate(plan.columns)
    }
    labels = [word for _, word in spread.rows] if plan.label else None
    return samples_of(plan, columns, labels, inputs, options, what, spread.notes(what))


def _group_bytes(group: Any, plan: Plan) -> int:
    """What the columns that are read of a row group may occupy: of lists one row may hold all the numbers."""
    total = 0
    for place in range(group.num_columns):
        chunk = group.column(place)
        column, _, nested = chunk.path_in_schema.partition(".")
        if column in plan.columns or column == plan.label:
            total += max(chunk.total_uncompressed_size, 8 * chunk.num_values if nested else 0)
    return int(total)


def _numbers(column: Any, name: str, arrow: Any, what: str) -> np.ndarray:
    """[rows] or, of lists, [rows, width]. Raises `DataError`."""
    kind = column.type
    if arrow.types.is_list(kind) or arrow.types.is_large_list(kind) or arrow.types.is_fixed_size_list(kind):
        if column.null_count:
            raise DataError(f"{what}: column {name!r} lacks lists in some rows", hint=_HINT)
        flat = _numbers(column.flatten(), name, arrow, what)
        lengths = set(arrow.compute.list_value_length(column).to_pylist()) if len(column) else {0}
        if flat.ndim != 1 or len(lengths) > 1:
            raise DataError(
                f"{what}: the lists of column {name!r} differ in length or are nested", hint=_HINT
            )
        return flat.reshape(len(column), -1) if len(column) else flat.reshape(0, 0)
    if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind)):
        raise DataError(
            f"{what}: column {name!r} holds {kind}, no numbers",
            hint="Encode categories as numbers as in training, or leave the column out with --columns.",
        )
    return np.asarray(
        column.cast(arrow.float64(), safe=False).to_numpy(zero_copy_only=False), dtype=np.float64
    )


def _check_widths(first: Sequence[np.ndarray], row: Sequence[np.ndarray], plan: Plan, what: str) -> None:
    for name, one, other in zip(plan.columns, first, row, strict=True):
        if np.shape(one) != np.shape(other):
            raise DataError(f"{what}: the lists of column {name!r} differ in length", hint=_HINT)
