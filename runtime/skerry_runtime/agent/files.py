"""Files that survive a power cut: every WRITE is tmp, write, fsync file, rename, fsync directory.

Any failure of the disk is a `StorageError`. A failed fsync means that the data is lost: the caller writes
again from the start, nobody retries the fsync. What cannot be read is a `SlotError` only if that is the
file's own fault (missing, no plain file, rotten); a lack of descriptors, memory or rights says nothing of it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from skerry_contract.errors import SlotError, StorageError

_CHUNK: Final = 1 << 20
_HINTS: Final = {
    errno.ENOSPC: "Free some space, or give the device a larger disk.",
    errno.EDQUOT: "The user's disk quota is used up: raise it or free some space.",
    errno.EROFS: "The file system is mounted read-only: remount it, and check the disk's health.",
    errno.EIO: "The disk fails to read or write: check its health.",
    errno.EACCES: "Check the owner and the mode of the data folder.",
    errno.EPERM: "Check the owner and the mode of the data folder.",
}


_OWN_FAULT: Final = frozenset({
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV,
    errno.EIO, errno.EUCLEAN, errno.EBADMSG, errno.ENODATA,
})  # fmt: skip
"""Errors of reading for which the file is to blame: another one is needed."""
T = TypeVar("T")


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StorageError` that says what was being done."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{what} failed: {error.strerror or error}", hint=_HINTS.get(error.errno or 0, "Check the disk.")
        ) from error


def close_quietly(descriptor: int) -> None:
    """Nothing hangs on it: what had to be durable was fsync'd before."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        close_quietly(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of a file durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        close_quietly(descriptor)


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """WRITE: afterwards the file has the old content or the new one, whatever happens.

    Raises:
        StorageError: the disk is full, read-only or failing; the old content stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    with storage_errors(f"writing {path.name}"):
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode
        )
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        finally:
            close_quietly(descriptor)
        temporary.rename(path)
        fsync_dir(path.parent)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Create a folder and its missing parents, durably.

    Raises:
        StorageError: it cannot be created.
    """
    with storage_errors(f"looking for {path}"):
        if path.is_dir():
            return
    make_folder(path.parent, mode)
    with storage_errors(f"creating {path}"):
        path.mkdir(mode=mode, exist_ok=True)
        fsync_dir(path.parent)


def remove_durably(path: Path) -> None:
    """Unlink a file, if it is there, durably."""
    with storage_errors(f"removing {path.name}"):
        try:
            path.unlink()
        except FileNotFoundError:
            return
        fsync_dir(path.parent)


def unreadable(path: Path, error: OSError) -> SlotError | StorageError:
    """The error for a file that cannot be opened or read."""
    message = f"{path.name} cannot be read: {error.strerror or error}"
    if error.errno in _OWN_FAULT:
        return SlotError(message)
    return StorageError(
        message, hint=_HINTS.get(error.errno or 0, "Look in the log for what the machine lacks.")
    )


def ask_again(read: Callable[[], T]) -> T:
    """A disk that fails to read is asked once more, before its file counts as rotten."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return read()


def open_regular(path: Path) -> int:
    """A descriptor for reading a plain file; links and devices are refused.

    Raises:
        SlotError: missing, rotten, or not a plain file.
        StorageError: it could not be opened, and that is not its fault.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = ask_again(lambda: os.open(path, flags))
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        plain = stat.S_ISREG(ask_again(lambda: os.fstat(descriptor)).st_mode)
    except OSError as error:
        close_quietly(descriptor)
        raise unreadable(path, error) from error
    if not plain:
        close_quietly(descriptor)
        raise SlotError(f"{path.name} is not a plain file")
    return descriptor


def read_small(path: Path, most: int) -> bytes:
    """At most so many bytes of a plain file; raises as `hash_file`."""
    descriptor = open_regular(path)
    pieces: list[bytes] = []
    try:
        while most > 0 and (piece := ask_again(partial(os.read, descriptor, most))):
            pieces.append(piece)
            most -= len(piece)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        close_quietly(descriptor)
    return b"".join(pieces)


def hash_file(path: Path) -> tuple[str, int]:
    """SHA-256 in hexadecimal and size of a plain file.

    Raises:
        SlotError: missing, not a plain file, or rotten.
        StorageError: see `open_regular`.
    """
    descriptor = open_regular(path)
    hasher, size = hashlib.sha256(), 0
    try:
        while piece := ask_again(lambda: os.read(descriptor, _CHUNK)):
            hasher.update(piece)
            size += len(piece)
    except OSError as error:
        raise unreadable(path, error) from error
    finally:
        close_quietly(descriptor)
    return hasher.hexdigest(), size
