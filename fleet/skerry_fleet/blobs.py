"""Content-addressed files: a blob is there whole, under its digest, or it is not there.

Bytes are written aside, hashed, fsynced and only then renamed to their name. A `Staging` gathers the blobs of
one bundle, so that a refused upload leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from skerry_contract.digests import Digest, digest_of, hex_of
from skerry_contract.errors import BundleFormatError, NotFoundError

from .files import storage_error, sync_folder


class BlobStore:
    """``<root>/<first two digits>/<64 digits>``; unfinished files in ``<root>/tmp``."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._aside = root / "tmp"
        try:
            shutil.rmtree(self._aside, ignore_errors=True)
            self._aside.mkdir(parents=True)
        except OSError as error:
            raise storage_error(f"the blob store {root} cannot be used", error) from error

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """Blobs that become visible by `Staging.commit`; without it, they are removed."""
        folder = Path(tempfile.mkdtemp(dir=self._aside))
        try:
            yield Staging(folder, self._root)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def spool(self) -> Iterator[BinaryIO]:
        """A nameless file on the store's disk, for an upload that is not verified yet."""
        with tempfile.TemporaryFile(dir=self._aside) as file:
            yield file

    def has(self, digest: Digest) -> bool:
        return _path(self._root, digest).is_file()

    def read(self, digest: Digest, offset: int = 0, size: int = -1) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer at the end, none behind it.

        Raises:
            NotFoundError: the store has no such blob.
        """
        try:
            with _path(self._root, digest).open("rb", buffering=0) as file:
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no blob {digest}") from error
        except OSError as error:
            raise storage_error(f"blob {digest} could not be read", error) from error

    def remove_unlisted(self, listed: Collection[str]) -> int:
        """Remove what a crash left between the rename of a blob and the commit of its bundle. Only while
        nobody publishes. Returns how many."""
        removed = 0
        for path in self._root.glob("[0-9a-f][0-9a-f]/*"):
            if f"sha256:{path.name}" not in listed:
                path.unlink()
                removed += 1
        return removed


class Staging:
    """Blobs of one bundle on their way in."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root

    def put_bytes(self, data: bytes) -> Digest:
        digest = digest_of(data)
        self.put(digest, [data])
        return digest

    def put(self, digest: Digest, pieces: Iterable[bytes]) -> int:
        """Write a blob aside; returns its size.

        Raises:
            BundleFormatError: the bytes do not have that digest.
            StorageError: the disk is full or failing.
        """
        hasher = hashlib.sha256()
        size = 0
        try:
            with (self._folder / hex_of(digest)).open("wb") as file:
                for piece in pieces:
                    hasher.update(piece)
                    size += len(piece)
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(f"blob {digest} could not be stored", error) from error
        if hasher.hexdigest() != hex_of(digest):
            raise BundleFormatError(f"blob {digest} was altered", hint="Upload the bundle again.")
        return size

    def read(self, digest: Digest, most: int) -> bytes:
        """The first ``most`` bytes of a blob that was put."""
        with (self._folder / hex_of(digest)).open("rb") as file:
            return file.read(most)

    def commit(self) -> None:
        """Make every blob visible, durably."""
        try:
            folders = set()
            for path in sorted(self._folder.iterdir()):
                target = self._root / path.name[:2] / path.name
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
                folders.add(target.parent)
            for folder in folders:
                sync_folder(folder)
            sync_folder(self._root)
        except OSError as error:
            raise storage_error("the bundle's blobs could not be stored", error) from error


def _path(root: Path, digest: Digest) -> Path:
    name = hex_of(digest)
    return root / name[:2] / name
