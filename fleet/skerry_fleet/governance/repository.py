"""Rows of the audit log and of events."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import sqlalchemy as sa

from skerry_contract.strict_json import canonical

from .tables import audit, event
from .views import AuditRow, EventRow

GENESIS: Final = "0" * 64
REPAIR_MS: Final = 2_000
"""A time that is wrong by less stays."""


def append_audit(
    db: sa.Connection, *, at_ms: int, actor: str, action: str, subject: str, data: Mapping[str, Any]
) -> None:
    last = db.execute(sa.select(audit.c.seq, audit.c.hash).order_by(audit.c.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.hash) if last else (1, GENESIS)
    text = canonical(data).decode()
    row = {"seq": seq, "at_ms": at_ms, "actor": actor, "action": action, "subject": subject, "data": text}
    db.execute(audit.insert().values(**row, previous=previous, hash=row_hash(previous, row)))


def row_hash(previous: str, row: Mapping[str, Any]) -> str:
    """SHA-256 over the hash before and the canonical JSON of the row's own fields."""
    own = {name: row[name] for name in ("seq", "at_ms", "actor", "action", "subject", "data")}
    return hashlib.sha256(previous.encode() + canonical(own)).hexdigest()


def first_broken(db: sa.Connection) -> int | None:
    """Sequence number of the first audit row that does not follow from the one before; None if all do."""
    previous = GENESIS
    for expected, row in enumerate(db.execute(sa.select(audit).order_by(audit.c.seq)).mappings(), 1):
        if (
            row["seq"] != expected
            or row["previous"] != previous
            or row["hash"] != row_hash(previous, dict(row))
        ):
            return expected
        previous = row["hash"]
    return None


def audit_page(db: sa.Connection, *, before: int | None, limit: int) -> list[AuditRow]:
    """Newest first."""
    query = sa.select(audit).order_by(audit.c.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(audit.c.seq < before)
    return [
        AuditRow(**{**row, "data": json.loads(row["data"])})
        for row in map(dict, db.execute(query).mappings())
    ]


def add_events(db: sa.Connection, rows: Iterator[Mapping[str, Any]]) -> None:
    listed = [dict(row) for row in rows]
    if listed:
        db.execute(event.insert(), listed)


def repair_times(db: sa.Connection, device: str, boot: str, *, upto_mono_ms: int, offset_ms: int) -> int:
    """Of a device's events of one boot, up to a time since that boot: the wall time follows from the offset.

    What the device's clock said stays in ``wall_ms``.
    """
    right = event.c.mono_ms + offset_ms
    moved = db.execute(
        event.update()
        .where(event.c.device == device, event.c.boot == boot, event.c.source == "device")
        .where(event.c.mono_ms <= upto_mono_ms)
        .where(sa.or_(~event.c.clock_ok, sa.func.abs(event.c.at_ms - right) > REPAIR_MS))
        .values(at_ms=right, clock_ok=True)
    )
    return int(moved.rowcount)


def event_page(db: sa.Connection, *, device: str | None, before: int | None, limit: int) -> list[EventRow]:
    """Newest first."""
    columns = [event.c[name] for name in EventRow.__dataclass_fields__]
    query = sa.select(*columns).order_by(event.c.id.desc()).limit(limit)
    if device is not None:
        query = query.where(event.c.device == device)
    if before is not None:
        query = query.where(event.c.id < before)
    return [EventRow(**row) for row in map(dict, db.execute(query).mappings())]
