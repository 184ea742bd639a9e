"""When things happened on devices whose clocks were not set, or wrong.

Every time of a device comes with its time since boot, which never steps. Once the clock is set, the device
tells its offset (event ``clock.offset``, mqtt-v1 section 2), and everything that it told of that boot before
is placed by it. What its clock had said stays stored beside.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from skerry_contract.messages import Event
from skerry_contract.summary import CLOCK_NONE, WindowSummary, decode

from .days import DAY_MS
from .tables import clock_offset

OFFSET_EVENT: Final = "clock.offset"
SAME_MS: Final = 2_000
"""Offsets and times that differ by less are the same."""
RECORDS: Final = 16
"""Offsets of one boot that are taken: each costs a look at all windows of that boot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """Wall time minus time since boot, of one boot of a device."""

    boot: str
    offset_ms: int
    mono_ms: int
    """When it was measured: what happened before is repaired."""


def read_offset(event: Event, received_ms: int) -> Offset | None:
    """The offset that an event tells; None if it tells none that can be believed."""
    told = event.data.get("offset_ms")
    if event.kind != OFFSET_EVENT or not isinstance(told, int) or isinstance(told, bool):
        return None
    if told < 0 or told + event.mono_ms > received_ms + DAY_MS:
        return None
    return Offset(boot=event.boot, offset_ms=told, mono_ms=event.mono_ms)


def placed_at(summary: WindowSummary, received_ms: int, offset_ms: int | None = None) -> tuple[int, bool]:
    """Where a window lies in time, and whether its device's clock said so. A clock that was never set, or is
    ahead of ours by more than a day, is not believed; then the offset of its boot tells, if it is known, else
    the window ended when it arrived."""
    if summary.clock_quality != CLOCK_NONE and summary.start_utc_ms <= received_ms + DAY_MS:
        return summary.start_utc_ms, True
    if offset_ms is not None and summary.start_mono_ms + offset_ms <= received_ms + DAY_MS:
        return summary.start_mono_ms + offset_ms, True
    return max(0, received_ms - summary.duration_ms), False


def event_at(event: Event, received_ms: int, offset_ms: int | None) -> tuple[int, bool]:
    """The same of an event."""
    if event.clock_quality != CLOCK_NONE and event.wall_ms <= received_ms + DAY_MS:
        return event.wall_ms, True
    if offset_ms is not None and event.mono_ms + offset_ms <= received_ms + DAY_MS:
        return event.mono_ms + offset_ms, True
    return received_ms, False


def offset_of(db: sa.Connection, device: str, boot: str) -> Offset | None:
    """The newest that the device told of that boot."""
    key = (clock_offset.c.device == device) & (clock_offset.c.boot == boot)
    row = db.execute(sa.select(clock_offset).where(key)).first()
    return None if row is None else Offset(boot=boot, offset_ms=row.offset_ms, mono_ms=row.mono_ms)


def save_offset(db: sa.Connection, device: str, offset: Offset, received_ms: int) -> bool:
    """False if it says nothing new, or was told too often."""
    key = (clock_offset.c.device == device) & (clock_offset.c.boot == offset.boot)
    row = db.execute(sa.select(clock_offset).where(key)).first()
    values = {"offset_ms": offset.offset_ms, "mono_ms": offset.mono_ms, "received_ms": received_ms}
    if row is None:
        db.execute(clock_offset.insert().values(device=device, boot=offset.boot, records=1, **values))
        return True
    if abs(row.offset_ms - offset.offset_ms) <= SAME_MS or row.records >= RECORDS:
        return False
    db.execute(clock_offset.update().where(key).values(records=row.records + 1, **values))
    return True


def repair_windows(db: sqlite3.Connection, device: str, offset: Offset) -> int:
    """Place the windows of that boot in one daily file; returns how many moved. Their bodies stay."""
    moved = []
    found = db.execute(
        "SELECT id, at_ms, clock_ok, body FROM window WHERE device = ? AND boot = ?", (device, offset.boot)
    )
    for row in found:
        start_mono_ms = decode(row["body"]).start_mono_ms
        right = start_mono_ms + offset.offset_ms
        wrong = not row["clock_ok"] or abs(row["at_ms"] - right) > SAME_MS
        if start_mono_ms <= offset.mono_ms and wrong:
            moved.append((right, row["id"]))
    db.executemany("UPDATE window SET at_ms = ?, clock_ok = 1 WHERE id = ?", moved)
    return len(moved)
