"""One daemon a data folder: a kernel lock, which a kill releases."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from pathlib import Path

from skerry_contract.errors import ConflictError

from .files import close_quietly, storage_errors


class Lock:
    """Held from construction to `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises `ConflictError` if another process holds it, `StorageError` if the file cannot be made."""
        with storage_errors(f"opening {path}"):
            self._file = _open(path)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise ConflictError(
                f"another skerry-runtime (process {owner or 'unknown'}) uses {path.parent}",
                hint="Stop it first, or give this one a data_dir of its own.",
            ) from error
        # Only the lock counts; on a disk that is full or read-only the note is an old one.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        close_quietly(self._file)


def _open(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o600)
    except OSError as error:
        # What is good is served from a disk that has become read-only, too.
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | flags)
