"""The outbox: what the device has to tell, durable until the fleet says that it has committed it.

Guarantees: a row that `Outbox.append_window` or `Outbox.append_events` returned for survives a power cut; it
leaves only on the fleet's own acknowledgement, or by the budget, and then a ``gaps`` row accounts for it
until an event has told the fleet. Sequence numbers rise for the life of a stream and none is used twice.
A full buffer is first compacted: windows that were never sent are merged, exactly (`compaction`).
One process, one connection, one thread (see `outbox_file`).
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from skerry_contract.errors import StorageError
from skerry_contract.frames import Codec, OutboxFrame
from skerry_contract.limits import KIB
from skerry_contract.messages import Event, EventBatch, encode
from skerry_contract.topics import Up

from . import compaction
from .outbox_file import MIN_BUDGET_BYTES, PAGE_BYTES, OutboxFile

__all__ = ["MIN_BUDGET_BYTES", "Gap", "Kind", "Outbox", "Priority", "Row", "Stamp"]

COMPACT: Final = 0.80
"""Share of the budget beyond which windows are merged."""
FULL: Final = 0.95
"""Share of the budget beyond which the lowest priority goes."""
SHRINK_BYTES: Final = 1 << 20
"""An empty file that is larger gives its space back."""
GAPS: Final = 256
"""Rows of ``gaps`` beyond which neighbours are joined, whatever they were."""
_MAX_BATCH_BYTES: Final = 96 * KIB
"""Of encoded events in one row, before compression; a frame stays within the broker's packet limit."""
_GIVE_UP_ROWS: Final = 16
_MERGE_ROWS: Final = 64
"""Windows that one step of the compaction looks at; the WAL and the pause stay small."""
_MERGE_STEPS: Final = 16
_MERGE_REST: Final = 64
"""Numbers until it is tried again after nothing was left to merge."""


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
    items: int
    """Events or windows; more than numbers if merged windows are among them."""
    priority: Priority
    reason: str
    """``budget``, ``damaged`` (rotten on the disk), ``disk`` (it never reached the disk)."""
    told: bool = False
    """An event about it is stored."""


class Outbox:
    """The file. Every method raises `StorageError` when the disk fails; the next call tries again."""

    def __init__(self, path: Path, budget_bytes: int, note: Callable[[], bytes] = lambda: b"") -> None:
        """``note`` is stored with every change, which costs no page more; see `note`."""
        self._file = OutboxFile(path, budget_bytes)
        self._pages = self._file.sizes.database
        self._make_note = note
        try:
            row = self._file.select("SELECT id, done_seq, next_seq, offered_seq, merged, note FROM stream")[0]
            self._rows = int(self._file.select("SELECT count(*) FROM outbox")[0][0])
        except StorageError:
            self._file.close()
            raise
        self.stream = bytes(row[0])
        self._done, self._next, self._offered, self.merged = (int(value) for value in row[1:5])
        self.note = bytes(row[5])
        """As it was stored when this file was last written before now."""
        self._level, self._merged_to, self._rest_until = 0, 0, 0

    def close(self) -> None:
        self._file.close()

    # --- writing ----------------------------------------------------------------------------------

    def append_window(self, summary: bytes, stamp: Stamp, *, offer: bool = False) -> int:
        """One window summary, one row, one commit; returns its sequence number.

        ``offer``: it is sent at once, so it may not be merged any more.
        """
        return self._append(Kind.WINDOW, Priority.WINDOW, Codec.RAW, [(summary, 1)], stamp, offer, ())

    def append_events(
        self,
        events: Sequence[Event],
        priority: Priority,
        stamp: Stamp,
        *,
        offer: bool = False,
        telling: Sequence[Gap] = (),
    ) -> int:
        """Events that were gathered become one compressed row (or more, if large); returns the last number.

        Each event has a number of its own within the row. Gaps that they tell of count as told from then on.
        """
        bodies = [
            (zlib.compress(encode(EventBatch(events=tuple(batch))), 6), len(batch))
            for batch in _batches(events)
        ]
        return self._append(Kind.EVENTS, priority, Codec.ZLIB, bodies, stamp, offer, telling)

    def _append(
        self,
        kind: Kind,
        priority: Priority,
        codec: Codec,
        bodies: Sequence[tuple[bytes, int]],
        stamp: Stamp,
        offer: bool,
        telling: Sequence[Gap],
    ) -> int:
        """Bodies and how many numbers each takes: all of them in one commit."""
        room = self._make_room(sum(len(body) + PAGE_BYTES for body, _ in bodies))
        if not room and priority is not Priority.AUDIT:
            return self.give_up_unstored({priority: sum(count for _, count in bodies)}, "budget")
        following = self._next
        with self._file.transaction("storing telemetry") as db:
            for body, count in bodies:
                row = (
                    following, following + count - 1, kind, priority, codec,
                    stamp.boot, stamp.mono_ns, stamp.wall_ms, stamp.quality, zlib.crc32(body), body, count,
                )  # fmt: skip
                db.execute("INSERT INTO outbox VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", row)
                following += count
            db.executemany("UPDATE gaps SET told = 1 WHERE from_seq = ?", [(gap.first,) for gap in telling])
            offered = following - 1 if offer else self._offered
            self._write_stream(db, next_seq=following, offered_seq=offered)
        self._next, self._offered = following, offered
        self._rows += len(bodies)
        return following - 1

    def give_up_unstored(self, counts: Mapping[Priority, int], reason: str) -> int:
        """Account for what never became a row: it gets numbers, and they are a gap. Returns the last."""
        following = self._next
        with self._file.transaction("accounting for lost telemetry") as db:
            for priority, count in counts.items():
                self._give_up(db, following, following + count - 1, count, priority, reason)
                following += count
            self._write_stream(db, next_seq=following)
        self._next = following
        return following - 1

    # --- leaving ----------------------------------------------------------------------------------

    def acknowledge(self, stream: bytes, seq: int, *, offer_rows: int = 0) -> int:
        """The fleet has committed everything up to ``seq``; returns how many rows went.

        An acknowledgement of another stream, or of numbers that were never given out, deletes nothing more.
        ``offer_rows``: so many of the rest are sent next.
        """
        seq = min(seq, self._next - 1)
        if stream != self.stream or seq <= self._done:
            return 0
        with self._file.transaction("deleting acknowledged telemetry") as db:
            removed = db.execute("DELETE FROM outbox WHERE last_seq <= ?", (seq,)).rowcount
            db.execute("DELETE FROM gaps WHERE to_seq <= ? AND told", (seq,))
            offered = max(self._offered, self._last_of(offer_rows))
            self._write_stream(db, done_seq=seq, offered_seq=offered)
        self._done, self._offered = seq, offered
        self._rows -= removed
        if not self._rows and self._file.pages() * PAGE_BYTES > SHRINK_BYTES:
            with contextlib.suppress(StorageError):  # it is tried again after the next row
                self._file.shrink()
        return removed

    def _make_room(self, incoming: int) -> bool:
        """Merge windows, then give up rows of the lowest priority, oldest first, until a new row fits."""
        wanted = incoming // PAGE_BYTES + 3
        used = self._file.used_pages()
        if used + wanted > COMPACT * self._pages:
            self._compact_step()
            used = self._file.used_pages()
        while used + wanted > FULL * self._pages:
            if not self._compact_step() and not self._give_up_some():
                return False
            used = self._file.used_pages()
        return True

    def _give_up_some(self) -> bool:
        rows = self._file.select(
            "SELECT first_seq, last_seq, items, prio FROM outbox WHERE prio = (SELECT max(prio) FROM outbox)"
            " AND prio > ? ORDER BY first_seq LIMIT ?",
            Priority.AUDIT,
            _GIVE_UP_ROWS,
        )
        if not rows:
            return False
        with self._file.transaction("giving up telemetry") as db:
            for first, last, items, priority in rows:
                db.execute("DELETE FROM outbox WHERE first_seq = ?", (first,))
                self._give_up(db, first, last, items, Priority(priority), "budget")
        self._rows -= len(rows)
        return True

    def _give_up(
        self, db: sqlite3.Connection, first: int, last: int, items: int, priority: Priority, reason: str
    ) -> None:
        """Record a gap, joined to its neighbour unless that was told already."""
        joined = db.execute(
            "UPDATE gaps SET to_seq = ?, items = items + ?"
            " WHERE to_seq = ? AND prio = ? AND reason = ? AND NOT told",
            (last, items, first - 1, priority, reason),
        ).rowcount
        if joined:
            return
        db.execute("INSERT INTO gaps VALUES (?,?,?,?,?,0)", (first, last, priority, reason, items))
        if db.execute("SELECT count(*) FROM gaps").fetchone()[0] > GAPS:
            _join_neighbours(db)

    def _compact_step(self) -> bool:
        """Merge some of the oldest windows that were never sent; False when there are none for now.

        What was sent stays as it is: the fleet may have committed it.
        """
        if self._next < self._rest_until:
            return False
        for _ in range(_MERGE_STEPS):
            after = max(self._merged_to, self._offered)
            rows = self._file.select(
                "SELECT first_seq, body, crc FROM outbox WHERE kind = ? AND first_seq > ?"
                " ORDER BY first_seq LIMIT ?",
                Kind.WINDOW,
                after,
                _MERGE_ROWS,
            )
            sound = [(first, body) for first, body, crc in rows if zlib.crc32(body) == crc]
            merges, lowest = compaction.plan(sound, compaction.LEVELS_MS[self._level])
            if len(rows) == _MERGE_ROWS:
                # What may still grow is looked at again, unless that were all of it.
                self._merged_to = lowest - 1 if merges and lowest else rows[-1][0]
            else:
                self._level, self._merged_to = self._level + 1, 0
            exhausted = self._level == len(compaction.LEVELS_MS)
            if exhausted:
                self._level, self._rest_until = 0, self._next + _MERGE_REST
            if merges:
                self._merge(merges)
                return True
            if exhausted:
                return False
        return False

    def _merge(self, merges: Sequence[compaction.Merge]) -> None:
        gone = sum(len(merged.gone) for merged in merges)
        with self._file.transaction("compacting telemetry") as db:
            for merged in merges:
                items = 0
                for number in merged.gone:
                    deleted = db.execute("DELETE FROM outbox WHERE first_seq = ? RETURNING items", (number,))
                    items += int(deleted.fetchall()[0][0])
                db.execute(
                    "UPDATE outbox SET body = ?, crc = ?, items = items + ? WHERE first_seq = ?",
                    (merged.body, zlib.crc32(merged.body), items, merged.kept),
                )
            self._write_stream(db, merged=self.merged + gone)
        self.merged += gone
        self._rows -= gone

    def _write_stream(self, db: sqlite3.Connection, **values: int) -> None:
        names = ", ".join(f"{name} = ?" for name in values)
        db.execute(f"UPDATE stream SET {names}, note = ?", (*values.values(), self._make_note()))  # noqa: S608 names are ours

    # --- reading ----------------------------------------------------------------------------------

    def rows_to_send(self, after: int, limit: int) -> Sequence[Row]:
        """As `rows_after`; from now on these rows count as sent, durably, and stay as they are."""
        rows = self.rows_after(after, limit)
        if rows and rows[-1].frame.last > self._offered:
            offered = rows[-1].frame.last
            with self._file.transaction("noting what is sent") as db:
                self._write_stream(db, offered_seq=offered)
            self._offered = offered
        return rows

    def rows_after(self, seq: int, limit: int) -> Sequence[Row]:
        """The next rows in order whose numbers lie above ``seq``, as frames.

        A row that rotted on the disk is given up and accounted.
        """
        rows: list[Row] = []
        while len(rows) < limit:
            found = self._file.select(
                "SELECT first_seq, last_seq, kind, prio, codec, crc, body, items FROM outbox"
                " WHERE first_seq > ? ORDER BY first_seq LIMIT 1",
                max(seq, rows[-1].frame.last if rows else 0),
            )
            if not found:
                break
            first, last, kind, priority, codec, crc, body, items = found[0]
            if zlib.crc32(body) != crc:
                with self._file.transaction("giving up a damaged row") as db:
                    db.execute("DELETE FROM outbox WHERE first_seq = ?", (first,))
                    self._give_up(db, first, last, items, Priority(priority), "damaged")
                self._rows -= 1
                continue
            oldest = self._file.select("SELECT min(first_seq) FROM outbox")[0][0]
            before = self._file.select(
                "SELECT last_seq FROM outbox WHERE first_seq < ? ORDER BY first_seq DESC LIMIT 1", first
            )
            # Nothing before the oldest row is needed any more: acknowledged, merged, or accounted as a gap.
            frame = OutboxFrame(
                stream=self.stream,
                acked=oldest - 1,
                prev=before[0][0] if before else first - 1,
                first=first,
                last=last,
                body=zlib.decompress(body) if codec == Codec.ZLIB else body,
                codec=Codec(codec),
            )
            rows.append(Row(kind=Kind(kind), frame=frame))
        return rows

    def gaps(self) -> Sequence[Gap]:
        """What was given up and is not yet both told and acknowledged."""
        return [
            Gap(
                first=first,
                last=last,
                items=items,
                priority=Priority(priority),
                reason=reason,
                told=bool(told),
            )
            for first, last, items, priority, reason, told in self._file.select(
                "SELECT from_seq, to_seq, items, prio, reason, told FROM gaps ORDER BY from_seq"
            )
        ]

    def rows_between(self, after: int, upto: int) -> int:
        """How many rows have numbers in that range."""
        found = self._file.select(
            "SELECT count(*) FROM outbox WHERE first_seq > ? AND first_seq <= ? AND last_seq <= ?",
            after,
            upto,
            upto,
        )
        return int(found[0][0])

    def waiting(self) -> int:
        """Rows that are not acknowledged yet."""
        return self._rows

    @property
    def next_seq(self) -> int:
        """The next number that is given out."""
        return self._next

    @property
    def done_seq(self) -> int:
        """Everything up to here was acknowledged."""
        return self._done

    @property
    def set_aside(self) -> Path | None:
        """Where a damaged predecessor lies, if there was one at this opening."""
        return self._file.set_aside

    @property
    def broken(self) -> bool:
        """The file may be damaged: close it and open it again, which checks it."""
        return self._file.broken

    def used_bytes(self) -> int:
        return self._file.used_pages() * PAGE_BYTES

    def disk_bytes(self) -> int:
        """What the file and its journal take."""
        return self._file.disk_bytes()

    def _last_of(self, rows: int) -> int:
        """The last number of the oldest so many rows; 0 if there are none."""
        found = self._file.select(
            "SELECT max(last_seq) FROM (SELECT last_seq FROM outbox ORDER BY first_seq LIMIT ?)", rows
        )
        return int(found[0][0] or 0)


def _join_neighbours(db: sqlite3.Connection) -> None:
    """Gaps that follow each other become one, whatever was given up in them and why."""
    rows = db.execute(
        "SELECT from_seq, to_seq, prio, items FROM gaps WHERE NOT told ORDER BY from_seq"
    ).fetchall()
    joined: list[tuple[int, int, int, int]] = []
    for first, last, priority, items in rows:
        if joined and joined[-1][1] == first - 1:
            before = joined.pop()
            first, priority, items = before[0], min(before[2], priority), before[3] + items
        joined.append((first, last, priority, items))
    db.execute("DELETE FROM gaps WHERE NOT told")
    db.executemany("INSERT INTO gaps VALUES (?,?,?,'budget',?,0)", joined)


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
