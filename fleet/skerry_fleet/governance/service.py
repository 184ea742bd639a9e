"""The journal: every act of a person or of the fleet itself, and every event of a device.

Both are written in the transaction of what they tell, so neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from skerry_contract.messages import ErrorReport, Event

from .. import cursors
from ..clock import Clock
from ..cursors import Page
from ..db import Database
from . import repository
from .views import AuditRow, EventRow

Placed = tuple[int, bool]
"""Milliseconds since 1970, and whether that is more than the time of arrival."""
FLEET: Final = "fleet"
"""The actor of what the server does by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditCheck:
    """Whether the audit log is whole."""

    intact: bool
    first_broken: int | None


class Journal:
    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock

    def audit(
        self, db: sa.Connection, actor: str, action: str, subject: str, data: Mapping[str, Any] | None = None
    ) -> None:
        """``subject`` is ``device/pi-7``, ``rollout/…``, ``model/…``; ``action`` is dotted."""
        repository.append_audit(
            db, at_ms=self._clock.now_ms(), actor=actor, action=action, subject=subject, data=data or {}
        )

    def event(
        self,
        db: sa.Connection,
        device: str,
        kind: str,
        *,
        model: str = "",
        digest: str = "",
        data: Mapping[str, Any] | None = None,
        error: ErrorReport | None = None,
    ) -> None:
        """Something that the fleet did to, or saw of, a device."""
        now = self._clock.now_ms()
        told = Event(
            kind=kind,
            wall_ms=now,
            mono_ms=0,
            boot="",
            model=model,
            digest=digest,
            data=data or {},
            error=error,
        )
        repository.add_events(db, iter([_row(told, device, FLEET, now, (now, True))]))

    def device_events(
        self, db: sa.Connection, device: str, events: Iterable[Event], placed: Callable[[Event], Placed]
    ) -> None:
        """Events that a device sent; ``placed`` says when each happened."""
        now = self._clock.now_ms()
        repository.add_events(db, (_row(told, device, "device", now, placed(told)) for told in events))

    def repair_times(
        self, db: sa.Connection, device: str, boot: str, *, upto_mono_ms: int, offset_ms: int
    ) -> int:
        """A device's clock was set: place what it told of that boot before; returns how many moved."""
        return repository.repair_times(db, device, boot, upto_mono_ms=upto_mono_ms, offset_ms=offset_ms)

    def events(
        self, *, device: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[EventRow]:
        """Newest first."""
        before = None if cursor is None else cursors.decode(cursor, int)
        with self._db.read() as db:
            rows = repository.event_page(
                db, device=device, before=before, limit=cursors.check_limit(limit) + 1
            )
        return cursors.page(rows, limit, lambda row: row.id)

    def audit_log(self, *, cursor: str | None = None, limit: int = 100) -> Page[AuditRow]:
        """Newest first."""
        before = None if cursor is None else cursors.decode(cursor, int)
        with self._db.read() as db:
            rows = repository.audit_page(db, before=before, limit=cursors.check_limit(limit) + 1)
        return cursors.page(rows, limit, lambda row: row.seq)

    def check(self) -> AuditCheck:
        """Compute every hash of the audit log again."""
        with self._db.read() as db:
            broken = repository.first_broken(db)
        return AuditCheck(intact=broken is None, first_broken=broken)


def _row(told: Event, device: str, source: str, now: int, placed: Placed) -> dict[str, Any]:
    return {
        "device": device,
        "kind": told.kind[:200],
        "received_ms": now,
        "wall_ms": told.wall_ms,
        "source": source,
        "boot": told.boot,
        "model": told.model,
        "digest": told.digest,
        "data": dict(told.data),
        "error_code": told.error.code if told.error else "",
        "error_message": told.error.message if told.error else "",
        "mono_ms": told.mono_ms,
        "clock_quality": told.clock_quality,
        "at_ms": placed[0],
        "clock_ok": placed[1],
    }
