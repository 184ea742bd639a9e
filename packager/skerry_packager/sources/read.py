"""One door for every form of sample data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import DataError, InputError

from ..functions import is_function_name
from ..inspect import TensorInfo
from .arrays import from_function, from_mapping, from_npy, from_npz
from .audio import SOUNDS, read_sounds
from .delimited import read_delimited
from .folders import check_regular, files_below
from .images import IMAGES, read_images
from .options import SourceOptions
from .parquet import read_parquet
from .samples import Samples

_HINT: Final = (
    "Give an .npz or .npy file, a .csv or .parquet table, a folder of images or of WAV files, or "
    "module:function that returns arrays."
)
_ALWAYS: Final = frozenset({"label_required", "max_rows", "max_bytes", "sequences", "classes"})
"""Limits, and what follows from the model: no mistake where a source has no use for them."""
_USED: Final[Mapping[str, frozenset[str]]] = {
    "arrays": frozenset(),
    "table": frozenset({"label_column", "columns"}),
    "images": frozenset({"input", "size", "resize", "scale", "mean", "std", "bgr"}),
    "sound": frozenset({"input", "sample_rate", "window", "hop"}),
}
"""Kind of source -> options that it has a use for."""


def read_source(
    source: str | Path | Mapping[str, Any], inputs: Sequence[TensorInfo], options: SourceOptions
) -> Samples:
    """Read sample data for a model with these inputs.

    Args:
        source: a path, ``module:function``, or the arrays themselves by name.
        inputs: as the model file declares them; they decide sizes, layouts and types.
        options: how to read it.

    Raises:
        InputError: there is no such source, or an option is wrong or of no use for it.
        DataError: it is there and cannot be used; the message names the file, row or column.
    """
    if isinstance(source, Mapping):
        _check_use("arrays", options, "arrays")
        return from_mapping(source, inputs, options, "data")
    path, text = Path(source), str(source)
    if path.is_dir():
        return _read_folder(path, inputs, options)
    if path.suffix.lower() not in (".npz", ".npy") and not path.exists() and is_function_name(text):
        _check_use("arrays", options, text)
        return from_function(text, inputs, options)
    if not path.exists() and not path.is_symlink():
        raise InputError(f"{text}: no such file or folder", hint=_HINT)
    check_regular(path)
    readers = {
        ".npz": ("arrays", from_npz), ".npy": ("arrays", from_npy),
        ".csv": ("table", read_delimited), ".tsv": ("table", read_delimited),
        ".parquet": ("table", read_parquet), ".pq": ("table", read_parquet),
    }  # fmt: skip
    kind, reader = readers.get(path.suffix.lower(), ("", None))
    if reader is None:
        raise InputError(f"{text}: this form of data is not known", hint=_HINT)
    _check_use(kind, options, text)
    return reader(path, inputs, options)


def _read_folder(folder: Path, inputs: Sequence[TensorInfo], options: SourceOptions) -> Samples:
    kinds = {path.suffix.lower() for path in files_below(folder)}
    images, sounds = kinds & set(IMAGES), kinds & set(SOUNDS)
    if images and sounds:
        raise DataError(
            f"{folder} has both images and sound files", hint="Give a folder with one kind of files."
        )
    if images:
        _check_use("images", options, str(folder))
        return read_images(folder, inputs, options)
    if sounds:
        _check_use("sound", options, str(folder))
        return read_sounds(folder, inputs, options)
    raise DataError(
        f"{folder} has neither images ({', '.join(IMAGES)}) nor sound ({', '.join(SOUNDS)})", hint=_HINT
    )


def _check_use(kind: str, options: SourceOptions, what: str) -> None:
    """Raises `InputError` for an option that would do nothing."""
    for field in fields(SourceOptions):
        if field.name in _ALWAYS or field.name in _USED[kind]:
            continue
        if getattr(options, field.name) != field.default:
            flag = f"--{field.name.replace('_', '-')}"
            good = " or ".join(name for name, used in _USED.items() if field.name in used)
            raise InputError(f"{flag} is for {good}, and {what} is read as {kind}", hint=f"Leave {flag} out.")
