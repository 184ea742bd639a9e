"""Arrays as they are: ``.npz``, ``.npy``, or what a function of the engineer's returns."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy

from skerry_contract.errors import DataError

from ..functions import load_function
from ..inspect import TensorInfo
from .options import SourceOptions
from .samples import LABEL_NAMES, LABELS, Samples, Spread, check_bytes

_PLAIN: Final = "Save plain arrays with numpy.savez: arrays of Python objects are never loaded."
_FUNCTION: Final = (
    "Return an array, a mapping from input names to arrays (labels as 'labels' or 'y'), a pair "
    "(data, labels), or yield one of these for every row."
)
_MOST_ARRAYS: Final = 1024
_BROKEN: Final = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def from_npz(path: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """One array for each input, named like it. What they will occupy is added up before any is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [item for item in archive.infolist() if item.filename.endswith(".npy")]
            if len(members) > _MOST_ARRAYS:
                raise DataError(f"{path} has {len(members)} arrays", hint=_PLAIN)
            check_bytes(sum(item.file_size for item in members), options, str(path))
            arrays = {}
            for item in members:
                with archive.open(item) as file:
                    arrays[item.filename.removesuffix(".npy")] = _read_npy(
                        file, item.file_size, item.filename
                    )
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_PLAIN) from error
    except _BROKEN as error:
        raise DataError(f"{path} cannot be read: {error}", hint=_PLAIN) from error
    return from_mapping(arrays, inputs, options, str(path))


def from_npy(path: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """The array of a model with one input."""
    try:
        size = path.stat().st_size
        check_bytes(size, options, str(path))
        with path.open("rb") as file:
            array = _read_npy(file, size, "it")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", hint=_PLAIN) from error
    except _BROKEN as error:
        raise DataError(f"{path} cannot be read: {error}", hint=_PLAIN) from error
    return from_mapping({"x": array}, inputs, options, str(path))


def _read_npy(file: IO[bytes], size: int, what: str) -> np.ndarray:
    """Read an array whose header does not promise more than the file holds."""
    version = npy.read_magic(file)
    header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if header is None:
        raise ValueError(f"{what}: version {version} of the format is not known")
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects")
    promised = math.prod(shape) * dtype.itemsize
    if promised > size or any(length < 0 for length in shape):
        raise ValueError(f"{what}: the header promises {promised} bytes, the file has {size}")
    data = file.read(promised)
    if len(data) < promised:
        raise ValueError(f"{what} is truncated")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def from_mapping(
    arrays: Mapping[str, Any], inputs: Sequence[TensorInfo], options: SourceOptions, what: str
) -> Samples:
    """Arrays by name; the labels get their one name.

    Raises:
        DataError: something is no array of numbers or text.
    """
    known = {info.name for info in inputs}
    found: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        try:
            found[str(name)] = np.asarray(value)
        except ValueError as error:
            raise DataError(f"{what}: {name!r} is no array: {error}", hint=_PLAIN) from error
    label = next((name for name in LABEL_NAMES if name in found and name not in known), None)
    if label is not None:
        found = {LABELS if name == label else name: array for name, array in found.items()}
    check_bytes(sum(array.nbytes for array in found.values()), options, what)
    return Samples(arrays=found)


def from_function(text: str, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    """Call ``module:function`` and take what it returns or yields.

    Raises:
        InputError: there is no such function.
        DataError: it fails, or returns something else.
    """
    function = load_function(text)
    try:
        returned = function()
        if isinstance(returned, Iterator):
            return _from_rows(returned, inputs, options, text)
    except DataError:
        raise
    except (Exception, SystemExit) as error:  # the boundary to code that is not ours
        raise DataError(f"{text} failed: {type(error).__name__}: {error}", hint=_FUNCTION) from error
    return from_mapping(_named(returned, text), inputs, options, text)


def _named(value: Any, what: str) -> Mapping[str, Any]:
    """An array, a mapping or a pair, as a mapping. Raises `DataError`."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, np.ndarray):
        return {"x": value}
    if isinstance(value, tuple) and len(value) == 2:
        data, labels = value
        return {**_named(data, what), LABELS: labels}
    raise DataError(f"{what} gave {type(value).__name__}, no array and no mapping", hint=_FUNCTION)


def _from_rows(
    rows: Iterator[Any], inputs: Sequence[TensorInfo], options: SourceOptions, what: str
) -> Samples:
    """Stack what a generator yields, row by row, holding no more than is kept."""
    spread = Spread[dict[str, np.ndarray]](options.max_rows)
    held = 0
    for row in rows:
        if not spread.wants_next():
            continue
        named = {str(name): np.array(value) for name, value in _named(row, what).items()}
        if spread.rows:
            _check_alike(spread.rows[0], named, spread.seen - 1, what)
        else:
            held = sum(array.nbytes for array in named.values())
        spread.add(named)
        check_bytes(held * len(spread.rows), options, what)
    if not spread.rows:
        raise DataError(f"{what} yields no row", hint=_FUNCTION)
    arrays = {name: np.stack([row[name] for row in spread.rows]) for name in spread.rows[0]}
    found = from_mapping(arrays, inputs, options, what)
    return Samples(arrays=found.arrays, notes=spread.notes(what))


def _check_alike(
    first: Mapping[str, np.ndarray], row: Mapping[str, np.ndarray], number: int, what: str
) -> None:
    if set(first) != set(row):
        raise DataError(
            f"{what}: row {number} has {sorted(row)}, and the first row has {sorted(first)}", hint=_FUNCTION
        )
    for name, array in row.items():
        if array.shape != first[name].shape:
            raise DataError(
                f"{what}: {name!r} of row {number} has shape {list(array.shape)}, that of the first row "
                f"{list(first[name].shape)}",
                hint="Rows must be alike; pad sequences and give their 'lengths'.",
            )
