"""Files that survive a power cut: written aside, fsynced, renamed, the folder fsynced."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from skerry_contract.errors import StorageError


def sync_folder(folder: Path) -> None:
    """Make renames within a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file of mode 0600 as a whole.

    Raises:
        StorageError: it could not be written; an older file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise storage_error(f"{path} could not be written", error) from error


def read_or_create(path: Path, make: Callable[[], bytes]) -> bytes:
    """The content of a private file, made at its first use."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        write_private(path, make())
        return path.read_bytes()
    except OSError as error:
        raise storage_error(f"{path} could not be read", error) from error


def storage_error(what: str, error: OSError) -> StorageError:
    return StorageError(
        f"{what}: {error.strerror}", hint="Check free space and permissions of the data folder."
    )
