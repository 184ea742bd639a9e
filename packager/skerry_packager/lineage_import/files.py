"""Bounded reading of files that other tools left: regular files only, no links, so much and no more."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import DataError, InputError, ManifestError
from skerry_contract.strict_json import loads

MAX_BYTES: Final = 2 * 1024 * 1024
_MAX_YAML: Final = 512 * 1024
"""The pure-Python reader takes seconds for more."""
_MAX_FILES: Final = 2000
_MAX_DEPTH: Final = 24


def read_bytes(path: Path, *, most: int = MAX_BYTES) -> bytes:
    """A regular file.

    Raises:
        InputError: there is none, or it is a link, a pipe or a device.
        DataError: it is larger than `most` bytes.
    """
    try:
        # A pipe would block at opening: O_NONBLOCK lets it be refused instead.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", hint="Links are not followed.") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise InputError(f"{path} is no regular file", hint="Give the files of a training run.")
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"{path} has more than {most} bytes", hint="Metadata of one run is far smaller.")
    return data


def read_text(path: Path, *, most: int = MAX_BYTES) -> str:
    """The same as text. Raises as `read_bytes`, and `DataError` if it is not UTF-8."""
    try:
        return read_bytes(path, most=most).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason}", hint="Is this the right file?") from error


def read_json(path: Path) -> Any:
    """JSON, strictly; NaN and infinity, which trackers write, become None.

    Raises:
        DataError: it is damaged, too large or nested too deep.
    """
    text = read_text(path)
    try:
        return loads(text.encode(), max_bytes=MAX_BYTES, max_depth=_MAX_DEPTH, what=str(path))
    except ManifestError as error:
        if "which is not JSON" in error.message:
            return _json_with_nan(path, text)
        raise DataError(error.message, hint="Is this the right file?") from error


def _json_with_nan(path: Path, text: str) -> Any:
    import json

    try:
        return json.loads(text, parse_constant=lambda name: None)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", hint="Is this the right file?") from error


def read_yaml(path: Path) -> Any:
    """YAML by the safe reader; aliases, which can grow without bound, are refused.

    Raises:
        DataError: it is damaged, too large or nested too deep, or has aliases.
        ConfigError: the reader is not installed.
    """
    import yaml

    class Reader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases, which are not accepted")
            return super().compose_node(parent, index)

    text = read_text(path, most=_MAX_YAML)
    try:
        return yaml.load(text, Loader=Reader)  # noqa: S506 - a subclass of the safe loader
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"{path} is not YAML: {said}", hint="Is this the right file?") from error


def read_table(path: Path, read: Any = read_yaml) -> dict[str, Any]:
    """A file that holds a table with text keys.

    Raises:
        DataError: it holds something else.
    """
    found = read(path)
    if not isinstance(found, dict):
        raise DataError(f"{path} must hold a table", hint="Is this the right file?")
    return {str(key): value for key, value in found.items()}


def leaves(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every regular file below a folder with its name relative to it, in order; links are not followed.

    Raises:
        DataError: there are too many.
    """
    count = 0
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            count += 1
            if count > _MAX_FILES:
                raise DataError(
                    f"{folder} has more than {_MAX_FILES} files", hint="Is this one training run?"
                )
            path = Path(parent, name)
            if not path.is_symlink():
                yield path.relative_to(folder).as_posix(), path


def requirements(text: str) -> dict[str, str]:
    """Package -> version, from the pinned lines of a ``requirements.txt``.

    >>> requirements("numpy==2.4\\n# a\\ntorch==2.1.0+cu118 ; python_version > '3'\\nmine @ https://u:p@x/y\\n")
    {'numpy': '2.4', 'torch': '2.1.0+cu118'}
    """
    found = {}
    for line in text.splitlines():
        name, pinned, rest = line.strip().partition("==")
        if pinned and name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            found[name.lower()] = rest.split(";")[0].split()[0] if rest.split(";")[0].split() else ""
    return {name: version for name, version in found.items() if version}
