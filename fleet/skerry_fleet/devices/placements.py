"""Placements: what ran on a device, from when to when, and whether it was healthy there.

They are recorded from what a device reports, never from what was wished, and answer the question that a
rollback asks: which digest was the last that this very device ran well?
"""

from __future__ import annotations

from enum import StrEnum

import sqlalchemy as sa

from skerry_contract.messages import ModelReport, Phase

from ..models.tables import version
from .tables import desired_model, placement


class Health(StrEnum):
    UNKNOWN = "unknown"
    """It answers requests, on probation."""
    GOOD = "good"
    BAD = "bad"


def record(db: sa.Connection, device: str, model: str, told: ModelReport, at_ms: int) -> None:
    """Bring the placements of one model on one device up to a report."""
    mine = (placement.c.device == device) & (placement.c.model == model)
    running = db.execute(sa.select(placement).where(mine, placement.c.to_ms.is_(None))).mappings().first()
    if running is not None and running["digest"] != told.active:
        db.execute(placement.update().where(placement.c.id == running["id"]).values(to_ms=at_ms))
        running = None
    if told.active is not None:
        health = _health_of_active(told)
        if running is None:
            db.execute(
                placement.insert().values(
                    device=device,
                    model=model,
                    digest=told.active,
                    version=told.active_version,
                    health=health,
                    rollout=_rollout_of(db, device, model, told.active),
                    from_ms=at_ms,
                )
            )
        elif running["health"] != health:
            db.execute(placement.update().where(placement.c.id == running["id"]).values(health=health))
    if told.phase is Phase.ROLLED_BACK and told.target is not None and told.target != told.active:
        last = sa.select(sa.func.max(placement.c.id)).where(mine, placement.c.digest == told.target)
        db.execute(
            placement.update().where(placement.c.id == last.scalar_subquery()).values(health=Health.BAD)
        )


def previous_healthy(db: sa.Connection, device: str, model: str, other_than: str) -> str | None:
    """The last digest but ``other_than`` that was healthy on this device, is published and not
    quarantined."""
    query = (
        sa.select(placement.c.digest)
        .join(version, version.c.digest == placement.c.digest)
        .where(
            placement.c.device == device,
            placement.c.model == model,
            placement.c.digest != other_than,
            placement.c.health == Health.GOOD,
            version.c.quarantined_ms.is_(None),
        )
        .order_by(placement.c.id.desc())
        .limit(1)
    )
    return db.execute(query).scalar()


def ran_since(db: sa.Connection, device: str, model: str, digest: str, since_ms: int) -> bool:
    """Whether the bundle answered requests on this device at any time since then."""
    query = sa.select(placement.c.id).where(
        placement.c.device == device,
        placement.c.model == model,
        placement.c.digest == digest,
        sa.or_(placement.c.to_ms.is_(None), placement.c.to_ms >= since_ms),
    )
    return db.execute(query.limit(1)).first() is not None


def page(
    db: sa.Connection,
    *,
    device: str | None = None,
    model: str | None = None,
    of_version: str | None = None,
    at_ms: int | None = None,
    before: int | None = None,
    limit: int,
) -> list[sa.RowMapping]:
    """Newest first; ``at_ms`` keeps what ran at that time."""
    query = sa.select(placement).order_by(placement.c.id.desc()).limit(limit)
    for column, wanted in (
        (placement.c.device, device),
        (placement.c.model, model),
        (placement.c.version, of_version),
    ):
        if wanted is not None:
            query = query.where(column == wanted)
    if at_ms is not None:
        still = sa.or_(placement.c.to_ms.is_(None), placement.c.to_ms > at_ms)
        query = query.where(placement.c.from_ms <= at_ms, still)
    if before is not None:
        query = query.where(placement.c.id < before)
    return list(db.execute(query).mappings())


def close_all(db: sa.Connection, device: str, at_ms: int) -> None:
    db.execute(
        placement.update()
        .where(placement.c.device == device, placement.c.to_ms.is_(None))
        .values(to_ms=at_ms)
    )


def _health_of_active(told: ModelReport) -> Health:
    on_probation = told.target == told.active and told.phase not in (None, Phase.CONFIRMED)
    return Health.UNKNOWN if on_probation else Health.GOOD


def _rollout_of(db: sa.Connection, device: str, model: str, digest: str) -> str:
    query = sa.select(desired_model.c.rollout).where(
        desired_model.c.device == device, desired_model.c.model == model, desired_model.c.digest == digest
    )
    return db.execute(query).scalar() or ""
