"""One daemon a data folder: a kernel lock, which a kill releases."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from skerry_contract.errors import ConflictError

from .files import storage_errors


class Lock:
    """Held from construction to `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        """Raises `ConflictError` if another process holds it, `StorageError` if the file cannot be made."""
        with storage_errors(f"opening {path}"):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.pread(self._file, 32, 0).decode("ascii", "replace").strip()
            os.close(self._file)
            raise ConflictError(
                f"another skerry-runtime (process {owner or 'unknown'}) uses {path.parent}",
                hint="Stop it first, or give this one a data_dir of its own.",
            ) from error
        with storage_errors(f"writing {path}"):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, b"%d\n" % os.getpid(), 0)

    def release(self) -> None:
        os.close(self._file)
