"""Temporary folders that a killed process does not leave behind for ever.

A folder is removed at the end of its ``with``. What a kill left over is removed by the next process of the
same user that makes one: each folder holds a file that its owner keeps locked, and the kernel opens a lock
when its holder dies, whatever killed it. So neither a process number that was given again, nor a slow owner,
nor two processes that clean at the same time can remove what is in use; folders of other users, links and
folders without the file are never touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PREFIX: Final = "skerry-"
_LOCK: Final = ".skerry-owner"
_cleaned: set[Path] = set()
"""Where this process has looked already."""


@contextlib.contextmanager
def scratch(what: str, within: Path | None = None) -> Iterator[Path]:
    """A new private folder, in the system's folder for temporary files unless ``within`` is given.

    >>> with scratch("doctest") as folder:
    ...     _ = (folder / "notes").write_text("gone soon")
    >>> folder.exists()
    False
    """
    parent = (within or Path(tempfile.gettempdir())).absolute()
    if parent not in _cleaned:
        _cleaned.add(parent)
        clean(parent)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{what}-", dir=parent) as made:
        folder = Path(made)
        lock = _own(folder)
        try:
            yield folder
        finally:
            os.close(lock)


def clean(parent: Path) -> int:
    """Remove what dead processes of this user left in a folder; returns how many folders."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX):
                removed += _remove_if_left(parent / entry.name)
    return removed


def _own(folder: Path) -> int:
    """Lock the folder for this process. The file has its name only when it is locked."""
    draft = folder / f"{_LOCK}.new"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    draft.rename(folder / _LOCK)
    return descriptor


def _remove_if_left(folder: Path) -> bool:
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False  # no folder of ours, or gone in the meantime
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # its owner lives, or another process removes it
    else:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()
    finally:
        os.close(lock)
