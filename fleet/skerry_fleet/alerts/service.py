"""Alerts: raised once for a kind, device, model and cause, kept up to date, resolved when it is over.

An alert is written in the transaction of what it tells, so neither exists without the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa

from skerry_contract.errors import NotFoundError
from skerry_contract.messages import Severity

from .. import cursors
from ..clock import Clock
from ..cursors import Page
from ..db import Database
from ..governance.service import Journal
from . import repository
from .views import AlertView


class AlertKind(StrEnum):
    """What an alert is about."""

    DRIFT = "drift"
    """Inputs or predictions left the reference that the bundle carries."""
    ROLLOUT_HALTED = "rollout.halted"
    DEVICE_STUCK = "device.stuck"
    """A device failed at a version and at what it was set back to. Over when it confirms one in a rollout."""
    DEVICE_LEFT = "device.left"
    """A device rolled a version back, or rejected it, after the rollout had completed. Over when the device
    confirms a version in a rollout again."""


_RANK: Final = {severity: rank for rank, severity in enumerate(Severity)}


class AlertService:
    def __init__(self, db: Database, clock: Clock, journal: Journal) -> None:
        self._db = db
        self._clock = clock
        self._journal = journal

    def raise_alert(
        self,
        db: sa.Connection,
        kind: AlertKind,
        severity: Severity,
        *,
        title: str,
        detail: str = "",
        device: str = "",
        model: str = "",
        cause: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> int:
        """Raise it, or bring the open one of the same kind, device, model and cause up to date. An open alert
        keeps its highest severity. Returns its id."""
        now = self._clock.now_ms()
        told = {"title": title, "detail": detail, "data": dict(data or {}), "updated_ms": now}
        known = repository.find_open(db, kind=kind, device=device, model=model, cause=cause)
        if known is not None:
            highest = max(Severity(known.severity), severity, key=_RANK.__getitem__)
            repository.change(db, known.id, {**told, "severity": highest, "times": known.times + 1})
            return known.id
        key = {"kind": kind, "device": device, "model": model, "cause": cause}
        alert_id = repository.add(db, {**told, **key, "severity": severity, "raised_ms": now})
        self._journal.event(
            db, device, "alert.raised", model=model, data={"alert": alert_id, "kind": kind, "title": title}
        )
        return alert_id

    def resolve(
        self, db: sa.Connection, kind: AlertKind, *, device: str = "", model: str = "", cause: str = ""
    ) -> bool:
        """It is over. False if none was open."""
        known = repository.find_open(db, kind=kind, device=device, model=model, cause=cause)
        if known is None:
            return False
        now = self._clock.now_ms()
        repository.change(db, known.id, {"resolved_ms": now, "updated_ms": now})
        self._journal.event(
            db,
            device,
            "alert.resolved",
            model=model,
            data={"alert": known.id, "kind": kind, "title": known.title},
        )
        return True

    def open_devices(self, db: sa.Connection, kind: AlertKind, model: str) -> set[str]:
        """Devices with an open alert of that kind and model."""
        return repository.open_devices(db, kind=kind, model=model)

    def acknowledge(self, alert_id: int, actor: str) -> AlertView:
        """Somebody looks after it; the first one counts. Raises `NotFoundError`: no such alert."""
        with self._db.write() as db:
            known = repository.by_id(db, alert_id)
            if known is None:
                raise NotFoundError(
                    f"there is no alert {alert_id}",
                    hint="'skerry alerts list' shows them (API: GET /v1/alerts).",
                )
            if known.acknowledged_ms is None:
                now = self._clock.now_ms()
                repository.change(db, alert_id, {"acknowledged_ms": now, "acknowledged_by": actor})
                self._journal.audit(
                    db, actor, "alert.acknowledged", f"alert/{alert_id}", {"title": known.title}
                )
            changed = repository.by_id(db, alert_id)
        assert changed is not None  # noqa: S101 found above, in the same transaction
        return changed

    def alerts(
        self,
        *,
        device: str | None = None,
        only_open: bool = False,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[AlertView]:
        """Newest first."""
        before = None if cursor is None else cursors.decode(cursor, int)
        with self._db.read() as db:
            rows = repository.alerts_page(
                db, device=device, only_open=only_open, before=before, limit=cursors.check_limit(limit) + 1
            )
        return cursors.page(rows, limit, lambda row: row.id)
