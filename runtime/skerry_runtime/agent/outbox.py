"""The outbox: what the device has to tell, durable until the fleet says that it has committed it.

Guarantees: a row that `Outbox.append` returned for survives a power cut (WAL, synchronous=FULL); it leaves
only on the fleet's own acknowledgement, or by the budget, and then a ``gaps`` row and an event account for
it. Sequence numbers rise for the life of a stream; a damaged file is set aside and a new stream begun. One
process, one connection, one thread (SQLite before 3.51.3 may corrupt a WAL that two connections write).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import StorageError
from skerry_contract.frames import Codec, OutboxFrame
from skerry_contract.limits import KIB, MIB
from skerry_contract.messages import Event, EventBatch, encode
from skerry_contract.topics import Up

PAGE_BYTES: Final = 4096
FULL: Final = 0.95
"""Share of the budget beyond which the lowest priority goes."""
MIN_BUDGET_BYTES: Final = 1 * MIB
_MAX_BATCH_BYTES: Final = 96 * KIB
"""Of encoded events in one row, before compression; a frame stays within the broker's packet limit."""
_SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE outbox(first_seq INTEGER PRIMARY KEY, last_seq INT NOT NULL, kind INT NOT NULL,
  prio INT NOT NULL, codec INT NOT NULL, boot_id BLOB NOT NULL, mono_ns INT NOT NULL, wall_ms INT NOT NULL,
  clock_q INT NOT NULL, crc INT NOT NULL, body BLOB NOT NULL);
CREATE TABLE gaps(from_seq INT NOT NULL, to_seq INT NOT NULL, prio INT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE stream(id BLOB NOT NULL, done_seq INT NOT NULL, next_seq INT NOT NULL);
"""


class Kind(IntEnum):
    """What a row holds."""

    WINDOW = 0
    EVENTS = 1

    @property
    def channel(self) -> Up:
        return Up.TELEMETRY if self is Kind.WINDOW else Up.EVENTS


class Priority(IntEnum):
    """The highest number goes first when the budget is used up."""

    AUDIT = 0
    """Installs, rollbacks, gaps: stay."""
    WINDOW = 1
    DETAIL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """When a row was made, by the device's clocks."""

    boot: bytes
    """16 bytes."""
    mono_ns: int
    wall_ms: int
    quality: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row ready to be sent."""

    kind: Kind
    frame: OutboxFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Rows that were given up."""

    first: int
    last: int
    priority: Priority
    reason: str


class Outbox:
    """The file. Every method raises `StorageError` when the disk fails; the next call tries again."""

    def __init__(self, path: Path, budget_bytes: int) -> None:
        self._path = path
        self._pages = max(budget_bytes, MIN_BUDGET_BYTES) // PAGE_BYTES
        self.set_aside: Path | None = None
        """Where a damaged predecessor lies, if there was one at this start."""
        self._db = self._open()
        self.stream: bytes
        self.stream, self._done, self._next = self._stream_row()
        self._rows = int(self._select("SELECT count(*) FROM outbox")[0][0])

    def close(self) -> None:
        self._db.close()

    # --- writing ----------------------------------------------------------------------------------

    def append_window(self, summary: bytes, stamp: Stamp) -> int:
        """One window summary, one row, one commit; returns its sequence number."""
        return self._append(Kind.WINDOW, Priority.WINDOW, Codec.RAW, summary, 1, stamp)

    def append_events(self, events: Sequence[Event], priority: Priority, stamp: Stamp) -> int:
        """Events that were gathered become one compressed row (or more, if large); returns the last number.

        Each event has a number of its own within the row.
        """
        last = self._next - 1
        for batch in _batches(events):
            body = zlib.compress(encode(EventBatch(events=tuple(batch))), 6)
            last = self._append(Kind.EVENTS, priority, Codec.ZLIB, body, len(batch), stamp)
        return last

    def _append(
        self, kind: Kind, priority: Priority, codec: Codec, body: bytes, count: int, stamp: Stamp
    ) -> int:
        self._make_room(len(body))
        first, last = self._next, self._next + count - 1
        row = (
            first, last, kind, priority, codec,
            stamp.boot, stamp.mono_ns, stamp.wall_ms, stamp.quality, zlib.crc32(body), body,
        )  # fmt: skip
        with self._transaction("storing telemetry"):
            self._db.execute("INSERT INTO outbox VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
            self._db.execute("UPDATE stream SET next_seq = ?", (last + 1,))
        self._next = last + 1
        self._rows += 1
        return last

    # --- leaving ----------------------------------------------------------------------------------

    def acknowledge(self, stream: bytes, seq: int) -> int:
        """The fleet has committed everything up to ``seq``; returns how many rows went.

        An acknowledgement of another stream, or of numbers that were never given out, deletes nothing more.
        """
        seq = min(seq, self._next - 1)
        if stream != self.stream or seq <= self._done:
            return 0
        with self._transaction("deleting acknowledged telemetry"):
            removed = self._db.execute("DELETE FROM outbox WHERE last_seq <= ?", (seq,)).rowcount
            self._db.execute("DELETE FROM gaps WHERE to_seq <= ?", (seq,))
            self._db.execute("UPDATE stream SET done_seq = ?", (seq,))
        self._done = seq
        self._rows -= removed
        return removed

    def _make_room(self, incoming: int) -> None:
        """Give up rows of the lowest priority, oldest first, until the new one fits below `FULL`."""
        wanted = incoming // PAGE_BYTES + 4
        while self._used_pages() + wanted > FULL * self._pages:
            rows = self._db.execute(
                "SELECT first_seq, last_seq, prio FROM outbox WHERE prio = (SELECT max(prio) FROM outbox)"
                " AND prio > ? ORDER BY first_seq LIMIT 64",
                (Priority.AUDIT,),
            ).fetchall()
            if not rows:
                return
            with self._transaction("giving up telemetry"):
                for first, last, priority in rows:
                    self._db.execute("DELETE FROM outbox WHERE first_seq = ?", (first,))
                    self._give_up(first, last, Priority(priority), "budget")
            self._rows -= len(rows)

    def _give_up(self, first: int, last: int, priority: Priority, reason: str) -> None:
        """Record a gap, joined to its neighbour."""
        joined = self._db.execute(
            "UPDATE gaps SET to_seq = ? WHERE to_seq = ? AND prio = ? AND reason = ?",
            (last, first - 1, priority, reason),
        ).rowcount
        if not joined:
            self._db.execute("INSERT INTO gaps VALUES (?,?,?,?)", (first, last, priority, reason))
        self._unreported = True

    _unreported = False

    def take_new_gaps(self) -> Sequence[Gap]:
        """All gaps that are not acknowledged yet, if there is a new one since the last call."""
        if not self._unreported:
            return ()
        self._unreported = False
        return self.gaps()

    # --- reading ----------------------------------------------------------------------------------

    def rows_after(self, seq: int, limit: int) -> Sequence[Row]:
        """The next rows in order whose numbers lie above ``seq``, as frames.

        A row that rotted on the disk is given up and accounted.
        """
        rows: list[Row] = []
        while len(rows) < limit:
            found = self._select(
                "SELECT first_seq, last_seq, kind, prio, codec, crc, body FROM outbox"
                " WHERE first_seq > ? ORDER BY first_seq LIMIT 1",
                max(seq, rows[-1].frame.last if rows else 0),
            )
            if not found:
                break
            first, last, kind, priority, codec, crc, body = found[0]
            if zlib.crc32(body) != crc:
                with self._transaction("giving up a damaged row"):
                    self._db.execute("DELETE FROM outbox WHERE first_seq = ?", (first,))
                    self._give_up(first, last, Priority(priority), "damaged")
                self._rows -= 1
                continue
            oldest = self._select("SELECT min(first_seq) FROM outbox")[0][0]
            before = self._select("SELECT max(last_seq) FROM outbox WHERE first_seq < ?", first)[0][0]
            # Nothing before the oldest row is needed any more: acknowledged, or accounted as a gap.
            frame = OutboxFrame(
                stream=self.stream,
                acked=oldest - 1,
                prev=first - 1 if before is None else before,
                first=first,
                last=last,
                body=zlib.decompress(body) if codec == Codec.ZLIB else body,
                codec=Codec(codec),
            )
            rows.append(Row(kind=Kind(kind), frame=frame))
        return rows

    def gaps(self) -> Sequence[Gap]:
        """What was given up and is not yet acknowledged."""
        return [
            Gap(first=first, last=last, priority=Priority(priority), reason=reason)
            for first, last, priority, reason in self._select("SELECT * FROM gaps ORDER BY from_seq")
        ]

    def rows_between(self, after: int, upto: int) -> int:
        """How many rows have numbers in that range."""
        return int(
            self._select("SELECT count(*) FROM outbox WHERE first_seq > ? AND last_seq <= ?", after, upto)[0][
                0
            ]
        )

    def waiting(self) -> int:
        """Rows that are not acknowledged yet."""
        return self._rows

    @property
    def done_seq(self) -> int:
        """Everything up to here was acknowledged."""
        return self._done

    def used_bytes(self) -> int:
        return self._used_pages() * PAGE_BYTES

    # --- the file ---------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if _is_disk_error(error):
                raise _storage_error("opening the outbox", error) from error
        self.set_aside = self._path.with_name(f"{self._path.name}.damaged-{time.time_ns()}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}{suffix}", f"{self.set_aside}{suffix}")
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            raise _storage_error("opening the outbox", error) from error

    def _connect(self) -> sqlite3.Connection:
        # The umask makes a new file private before SQLite creates it with its journal.
        before = os.umask(0o077)
        try:
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        finally:
            os.umask(before)
        try:
            for pragma in (
                "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=256",
                "journal_size_limit=1048576", f"max_page_count={self._pages}",
            ):  # fmt: skip
                db.execute(f"PRAGMA {pragma}")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise StorageError(
                    f"the outbox was written by a newer version (schema {version})",
                    hint="Run the newer version again, or move the file outbox.db away.",
                )
            if version == 0:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={_SCHEMA_VERSION}; COMMIT;")
            elif db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check found damage")
            if db.execute("SELECT count(*) FROM stream").fetchone()[0] != 1:
                db.execute("BEGIN IMMEDIATE")
                db.execute("DELETE FROM stream")
                db.execute("INSERT INTO stream VALUES (?, 0, 1)", (secrets.token_bytes(8),))
                db.execute("COMMIT")
        except BaseException:
            db.close()
            raise
        return db

    def _stream_row(self) -> tuple[bytes, int, int]:
        stream, done, following = self._select("SELECT id, done_seq, next_seq FROM stream")[0]
        return bytes(stream), int(done), int(following)

    def _used_pages(self) -> int:
        pages = self._select("PRAGMA page_count")[0][0]
        return int(pages - self._select("PRAGMA freelist_count")[0][0])

    def _select(self, query: str, *values: int) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _storage_error("reading the outbox", error) from error

    @contextlib.contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise _storage_error(what, error) from error


def _batches(events: Sequence[Event]) -> Iterator[list[Event]]:
    batch: list[Event] = []
    size = 0
    for event in events:
        length = len(encode(event))
        if batch and size + length > _MAX_BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += length
    if batch:
        yield batch


def _is_disk_error(error: sqlite3.Error) -> bool:
    """The disk, not the file's content, is to blame (primary result codes of SQLite)."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    return code in (
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM,
    )  # fmt: skip


def _storage_error(what: str, error: sqlite3.Error) -> StorageError:
    return StorageError(f"{what} failed: {error}", hint="Check the disk's free space, mode and health.")
