"""Blobs from the fleet, pulled block by block over the message link.

The peer is not trusted: a block is taken only if it was asked for, lies within the announced size and has
exactly its length; the blob gets its name in the store only after its digest was right. Blocks may come
twice, late, in any order or never. What has arrived survives a kill (``.part`` and its journal), and the
disk never holds more than the announced size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import random
import secrets
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from skerry_contract.digests import Digest, hex_of, short
from skerry_contract.errors import BundleFormatError, ConflictError, MessageError, TransferError
from skerry_contract.frames import BlockFrame
from skerry_contract.limits import KIB
from skerry_contract.manifest import BlobRef
from skerry_contract.messages import BlockRequest, ErrorReport, decode

from .files import close_quietly, storage_errors
from .store import Store

Progress = Callable[[int, int], None]
"""Bytes done, bytes in total."""
_JOURNAL: Final = struct.Struct(">4sQI")
_MAGIC: Final = b"SKJ1"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """Named numbers with their units."""

    block_bytes: int = 64 * KIB
    window: int = 8
    """Blocks asked for and not yet here."""
    stall_seconds: float = 30.0
    """Without a new block for so long, while connected, the transfer has stalled."""
    stalls: int = 6
    """Stalls in a row that end the attempt."""
    patience_seconds: float = 15.0
    """A block that takes longer is asked for again; usually it is much less, by what blocks took before."""
    backoff_seconds: float = 60.0
    journal_blocks: int = 32
    """New blocks between two writes of the journal."""
    strays: int = 256
    """Frames that were never asked for, of one blob, that end the attempt."""


class Fetcher:
    """One download at a time; `deliver` and `set_online` may come from any thread."""

    def __init__(
        self, store: Store, request: Callable[[BlockRequest], bool], limits: FetchLimits | None = None
    ) -> None:
        """``request`` sends a message; False if there is no connection."""
        self._store = store
        self._request = request
        self._limits = limits or FetchLimits()
        self._inbox: queue.Queue[bytes] = queue.Queue(maxsize=8 * self._limits.window)
        self._online = threading.Event()
        self._busy = threading.Lock()

    def set_online(self, up: bool) -> None:
        if up:
            self._online.set()
        else:
            self._online.clear()

    def deliver(self, payload: bytes) -> None:
        """A frame of the ``blk`` channel; dropped when nobody fetches or too many wait."""
        if self._busy.locked():
            with contextlib.suppress(queue.Full):
                self._inbox.put_nowait(payload)

    def fetch(
        self,
        refs: Sequence[BlobRef],
        *,
        cancelled: threading.Event,
        progress: Progress = lambda done, total: None,
    ) -> None:
        """Bring every blob into the store; what is there already is not fetched. Blocks the caller.

        Raises:
            StorageError: the disk has not enough space, or fails.
            TransferError: the transfer stalled again and again; another attempt goes on where it stopped.
            BundleFormatError: a blob arrived complete and its digest is wrong, twice.
            SkerryError: by the code with which the fleet refused a block.
            ConflictError: ``cancelled`` was set.
        """
        missing = [ref for ref in refs if not self._store.has(ref.digest, ref.size)]
        total = sum(ref.size for ref in refs)
        before = total - sum(ref.size for ref in missing)
        # Space that a part takes already is not needed a second time.
        self._store.reserve(sum(ref.size - _allocated(self._store, ref) for ref in missing))
        with self._busy:
            for ref in missing:
                self._fetch_one(ref, cancelled, lambda done, base=before: progress(base + done, total))  # type: ignore[misc]
                before += ref.size
        progress(total, total)

    def _fetch_one(self, ref: BlobRef, cancelled: threading.Event, progress: Callable[[int], None]) -> None:
        for _ in range(2):
            with contextlib.closing(_Part(self._store, ref, self._limits)) as part:
                progress(part.done_bytes)
                self._pull(part, cancelled, progress)
                complete = part.digest_is_right()
            if complete:
                self._store.adopt(ref.digest)
                return
            # Some block was wrong, and nobody knows which: all of it goes.
            self._store.drop(ref.digest)
        raise BundleFormatError(
            f"blob {short(ref.digest)} arrived with another digest, twice",
            hint="The fleet's copy is damaged: publish the bundle again.",
        )

    def _pull(self, part: _Part, cancelled: threading.Event, progress: Callable[[int], None]) -> None:
        transfer = _Transfer(part, self._limits)
        while part.missing:
            if cancelled.is_set():
                raise ConflictError("the download was cancelled")
            if not self._online.wait(0.2):
                transfer.pause()
                continue
            for request in transfer.requests():
                if not self._request(request):
                    transfer.pause()
                    self._online.wait(0.2)
                    break
            try:
                payload = self._inbox.get(timeout=0.2)
            except queue.Empty:
                pass
            else:
                if transfer.receive(payload):
                    progress(part.done_bytes)
            if (pause := transfer.stalled()) is not None:
                cancelled.wait(pause)


class _Transfer:
    """What was asked for, what is late, and when to give up."""

    def __init__(self, part: _Part, limits: FetchLimits) -> None:
        self._part = part
        self._limits = limits
        self._id = secrets.randbits(63)
        self._asked: dict[int, tuple[float, int]] = {}
        """By block: when, and how many blocks had arrived then."""
        self._arrived = 0
        self._typical_s = 2.0
        """Smoothed time from request to arrival."""
        self._strays = 0
        self._stalls = 0
        self._new_at = time.monotonic()

    def pause(self) -> None:
        """There is no connection: nothing is on its way, and waiting is no stall."""
        self._asked.clear()
        self._new_at = time.monotonic()

    def requests(self) -> list[BlockRequest]:
        """What to ask for now, in runs of neighbouring blocks."""
        now = time.monotonic()
        patience = min(max(4 * self._typical_s, 1.0), self._limits.patience_seconds)
        for block, (asked_at, arrived_then) in list(self._asked.items()):
            if now - asked_at > patience or self._arrived - arrived_then > 2 * self._limits.window:
                del self._asked[block]
                self._typical_s = min(2 * self._typical_s, self._limits.patience_seconds)
        room = self._limits.window - len(self._asked)
        if room < min(self._limits.window // 2, len(self._part.missing) - len(self._asked)):
            return []
        runs: list[list[int]] = []
        for block in self._part.next_missing(room, self._asked):
            self._asked[block] = (now, self._arrived)
            if runs and runs[-1][-1] == block - 1:
                runs[-1].append(block)
            else:
                runs.append([block])
        return [
            BlockRequest(
                transfer=self._id,
                digest=self._part.digest,
                offset=run[0] * self._limits.block_bytes,
                block=self._limits.block_bytes,
                count=len(run),
            )
            for run in runs
        ]

    def receive(self, payload: bytes) -> bool:
        """Take a frame; True if it held a new block.

        Raises:
            SkerryError: the fleet refuses, or sends too much that was never asked for.
        """
        try:
            frame = BlockFrame.decode(payload)
        except MessageError:
            return self._stray()
        if frame.transfer != self._id:
            return False
        if frame.is_error:
            raise decode(frame.data, ErrorReport).to_error()
        block = self._part.block_at(frame.offset, len(frame.data))
        if block is None:
            return self._stray()
        asked = self._asked.pop(block, None)
        if asked is None and block in self._part.missing:
            # Late: it was given up and not asked for again yet. It is what we want all the same.
            asked = (time.monotonic() - self._typical_s, self._arrived)
        if asked is None:
            return False
        self._part.write(block, frame.data)
        now = time.monotonic()
        self._typical_s += 0.125 * (now - asked[0] - self._typical_s)
        self._arrived += 1
        self._new_at, self._stalls = now, 0
        return True

    def stalled(self) -> float | None:
        """Seconds to wait before asking again, if nothing new came for too long.

        Raises:
            TransferError: that has happened too often in a row.
        """
        if time.monotonic() - self._new_at < self._limits.stall_seconds:
            return None
        self._stalls += 1
        if self._stalls >= self._limits.stalls:
            raise TransferError(
                f"the download of {short(self._part.digest)} stalled {self._stalls} times",
                hint="Check the link's quality and the fleet's log; it goes on where it stopped.",
            )
        self.pause()
        most = min(self._limits.backoff_seconds, 2.0**self._stalls)
        return random.uniform(0, most)  # noqa: S311

    def _stray(self) -> bool:
        self._strays += 1
        if self._strays > self._limits.strays:
            raise TransferError(
                f"the fleet sent {self._strays} blocks that nobody asked for",
                hint="Check what answers on the block channel.",
            )
        return False


class _Part:
    """A blob that grows: the file and the journal of its blocks."""

    def __init__(self, store: Store, ref: BlobRef, limits: FetchLimits) -> None:
        self.digest: Digest = ref.digest
        self._size = ref.size
        self._block = limits.block_bytes
        self._count = -(-ref.size // limits.block_bytes)
        self._every = limits.journal_blocks
        self._journal = store.journal(ref.digest)
        self._unsaved = 0
        path = store.part(ref.digest)
        with storage_errors(f"reserving {ref.size} bytes for {short(ref.digest)}"):
            self.missing = self._read_journal() if path.exists() else set(range(self._count))
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
            try:
                os.ftruncate(self._file, ref.size)
                if ref.size:
                    os.posix_fallocate(self._file, 0, ref.size)
            except OSError:
                close_quietly(self._file)
                path.unlink(missing_ok=True)
                raise

    @property
    def done_bytes(self) -> int:
        last = self._count - 1
        done = self._count - len(self.missing)
        short_by = self._count * self._block - self._size if self._count and last not in self.missing else 0
        return done * self._block - short_by

    def block_at(self, offset: int, length: int) -> int | None:
        """The block that begins there and is so long; None if there is none in this blob."""
        block, rest = divmod(offset, self._block)
        if rest or block >= self._count or length != min(self._block, self._size - offset):
            return None
        return block

    def next_missing(self, most: int, but: dict[int, tuple[float, int]]) -> list[int]:
        """The lowest missing blocks, without those that were asked for."""
        found: list[int] = []
        for block in sorted(self.missing) if len(self.missing) < 4096 else range(self._count):
            if len(found) >= most:
                break
            if block in self.missing and block not in but:
                found.append(block)
        return found

    def write(self, block: int, data: bytes) -> None:
        """Raises `StorageError`."""
        with storage_errors(f"writing {short(self.digest)}"):
            written = os.pwrite(self._file, data, block * self._block)
            if written != len(data):
                os.pwrite(self._file, data[written:], block * self._block + written)
        self.missing.discard(block)
        self._unsaved += 1
        if self._unsaved >= self._every:
            self.save()

    def digest_is_right(self) -> bool:
        """Hash what is on the disk."""
        hasher = hashlib.sha256()
        with storage_errors(f"reading {short(self.digest)}"):
            os.lseek(self._file, 0, os.SEEK_SET)
            while piece := os.read(self._file, 1 << 20):
                hasher.update(piece)
        return hasher.hexdigest() == hex_of(self.digest)

    def save(self) -> None:
        """Blocks first, then the journal: it never names a block that is not on the disk."""
        bitmap = bytearray(-(-self._count // 8))
        for block in range(self._count):
            if block not in self.missing:
                bitmap[block // 8] |= 1 << block % 8
        temporary = self._journal.with_name(self._journal.name + ".tmp")
        with storage_errors(f"writing the journal of {short(self.digest)}"):
            os.fdatasync(self._file)
            temporary.write_bytes(_JOURNAL.pack(_MAGIC, self._size, self._block) + bitmap)
            temporary.replace(self._journal)
        self._unsaved = 0

    def close(self) -> None:
        try:
            if self._unsaved and self.missing:
                self.save()
        finally:
            close_quietly(self._file)

    def _read_journal(self) -> set[int]:
        """Blocks that are missing; all of them if the journal is not readable or of another cut."""
        everything = set(range(self._count))
        try:
            data = self._journal.read_bytes()
        except OSError:
            return everything
        if len(data) != _JOURNAL.size + -(-self._count // 8):
            return everything
        if _JOURNAL.unpack_from(data) != (_MAGIC, self._size, self._block):
            return everything
        bitmap = data[_JOURNAL.size :]
        return {block for block in everything if not bitmap[block // 8] >> block % 8 & 1}


def _allocated(store: Store, ref: BlobRef) -> int:
    with contextlib.suppress(OSError):
        return min(ref.size, store.part(ref.digest).stat().st_blocks * 512)
    return 0
