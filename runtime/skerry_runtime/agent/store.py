"""Content-addressed files: a name in the store is a promise that its bytes were hashed and made durable."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from skerry_contract.digests import Digest, digest_of, hex_of, parse_digest, short
from skerry_contract.errors import SlotError, StorageError
from skerry_contract.limits import MIB
from skerry_contract.manifest import BlobRef

from .files import fsync_dir, fsync_file, hash_file, make_folder, read_small, storage_errors, write_durably

RESERVE_BYTES: Final = 16 * MIB
"""Disk space that an install leaves free, for the outbox and the system."""
_HEX = re.compile(r"[0-9a-f]{64}")


class Store:
    """One folder of blobs, manifests and signatures, and of downloads that grow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)

    def path(self, digest: Digest) -> Path:
        return self.folder / hex_of(parse_digest(digest))

    def part(self, digest: Digest) -> Path:
        """Where a download grows."""
        return self.folder / f"{hex_of(parse_digest(digest))}.part"

    def journal(self, digest: Digest) -> Path:
        """Which blocks of it are there."""
        return self.folder / f"{hex_of(parse_digest(digest))}.map"

    def has(self, digest: Digest, size: int) -> bool:
        """Raises `StorageError`."""
        with storage_errors(f"looking for {short(digest)}"), contextlib.suppress(FileNotFoundError):
            return self.path(digest).lstat().st_size == size
        return False

    def check(self, ref: BlobRef) -> None:
        """Hash a blob again. A damaged one is removed, so that it can be fetched anew.

        Raises:
            SlotError: missing or damaged.
        """
        check_file(self.path(ref.digest), ref)

    def read(self, digest: Digest, most: int) -> bytes:
        """A small blob, hashed. A damaged one is removed, so that it can be fetched anew.

        Raises:
            SlotError: missing, too large or damaged.
        """
        try:
            return read_exactly(self.path(digest), digest, most)
        except SlotError:
            with storage_errors(f"looking for {short(digest)}"):
                damaged = self.path(digest).is_file()
            if damaged:
                self.drop(digest)
            raise

    def add(self, data: bytes) -> Digest:
        """Put bytes in, durably. Raises `StorageError`."""
        digest = digest_of(data)
        try:
            self.read(digest, len(data))
        except SlotError:
            write_durably(self.path(digest), data)
        return digest

    def adopt(self, digest: Digest) -> None:
        """A complete ``.part`` whose bytes were hashed becomes the blob. Raises `StorageError`."""
        with storage_errors(f"storing {short(digest)}"):
            fsync_file(self.part(digest))
            self.part(digest).rename(self.path(digest))
            with contextlib.suppress(FileNotFoundError):
                self.journal(digest).unlink()
            fsync_dir(self.folder)

    def drop(self, digest: Digest) -> None:
        """Forget a blob and what was downloaded of it."""
        with storage_errors(f"removing {short(digest)}"):
            for path in (self.path(digest), self.part(digest), self.journal(digest)):
                path.unlink(missing_ok=True)

    def reserve(self, bytes_needed: int) -> None:
        """Raises `StorageError` if the disk has not so much space beyond `RESERVE_BYTES`."""
        with storage_errors("looking at the disk's free space"):
            free = shutil.disk_usage(self.folder).free
        if bytes_needed + RESERVE_BYTES > free:
            raise StorageError(
                f"the install needs {bytes_needed / MIB:.1f} MiB and {RESERVE_BYTES // MIB} MiB in reserve;"
                f" the disk has {free / MIB:.1f} MiB free",
                hint="Free some space on the disk of data_dir, then start the rollout or install again.",
            )

    def collect(self, keep: Iterable[Digest]) -> int:
        """Remove blobs that no generation links to, and downloads that nobody wants; returns how many.

        A generation holds hard links, so a blob with one link belongs to none.
        """
        kept = {hex_of(digest) for digest in keep}
        removed = 0
        with storage_errors("collecting the store"):
            for path in list(self.folder.iterdir()):
                base = path.name.partition(".")[0]
                if base in kept or (_HEX.fullmatch(path.name) and path.lstat().st_nlink > 1):
                    continue
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def check_file(path: Path, ref: BlobRef) -> None:
    """Raises `SlotError` unless the file has the size and the digest; it is removed if it has not."""
    found, size = hash_file(path)
    if size != ref.size or found != hex_of(ref.digest):
        with storage_errors(f"removing the damaged {path.name}"):
            path.unlink(missing_ok=True)
        raise SlotError(
            f"blob {short(ref.digest)} is damaged on the disk",
            hint="Check the disk's health; it is fetched again.",
        )


def read_exactly(path: Path, digest: Digest, most: int) -> bytes:
    """The whole of a small plain file with that digest.

    Raises:
        SlotError: missing, not a plain file, larger than ``most``, or damaged.
        StorageError: it cannot be read, and that is not its fault.
    """
    data = read_small(path, most + 1)
    if len(data) > most or digest_of(data) != digest:
        raise SlotError(
            f"{path.name} is damaged on the disk", hint="Check the disk's health; it is fetched again."
        )
    return data
