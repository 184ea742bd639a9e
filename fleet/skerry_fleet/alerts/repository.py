"""Rows of alerts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from .tables import alert
from .views import AlertView

_COLUMNS = [alert.c[name] for name in AlertView.__dataclass_fields__]


def find_open(db: sa.Connection, *, kind: str, device: str, model: str, cause: str) -> AlertView | None:
    key = (alert.c.kind == kind, alert.c.device == device, alert.c.model == model, alert.c.cause == cause)
    return _one(db, sa.select(*_COLUMNS).where(*key, alert.c.resolved_ms.is_(None)))


def open_devices(db: sa.Connection, *, kind: str, model: str) -> set[str]:
    key = (alert.c.kind == kind, alert.c.model == model, alert.c.resolved_ms.is_(None))
    return set(db.execute(sa.select(alert.c.device).where(*key)).scalars())


def by_id(db: sa.Connection, alert_id: int) -> AlertView | None:
    return _one(db, sa.select(*_COLUMNS).where(alert.c.id == alert_id))


def add(db: sa.Connection, values: Mapping[str, Any]) -> int:
    """The id of the new alert."""
    return int(db.execute(alert.insert().values(**values).returning(alert.c.id)).scalar_one())


def change(db: sa.Connection, alert_id: int, values: Mapping[str, Any]) -> None:
    db.execute(alert.update().where(alert.c.id == alert_id).values(**values))


def alerts_page(
    db: sa.Connection, *, device: str | None, only_open: bool, before: int | None, limit: int
) -> list[AlertView]:
    """Newest first."""
    query = sa.select(*_COLUMNS).order_by(alert.c.id.desc()).limit(limit)
    if device is not None:
        query = query.where(alert.c.device == device)
    if only_open:
        query = query.where(alert.c.resolved_ms.is_(None))
    if before is not None:
        query = query.where(alert.c.id < before)
    return [AlertView(**row) for row in map(dict, db.execute(query).mappings())]


def _one(db: sa.Connection, query: sa.Select[Any]) -> AlertView | None:
    row = db.execute(query).mappings().first()
    return None if row is None else AlertView(**row)
