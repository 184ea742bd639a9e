"""Rows of devices: identity, presence, reports. Every function runs in its caller's transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from skerry_contract.messages import Hello, ModelReport, Presence, PresenceMessage, UpdateReport

from . import placements
from .tables import credential, desired_model, desired_state, device, device_label, outbox, reported_model


def exists(db: sa.Connection, device_id: str) -> bool:
    """A device that is not removed."""
    query = sa.select(device.c.id).where(device.c.id == device_id, device.c.removed_ms.is_(None))
    return db.execute(query).first() is not None


def add(
    db: sa.Connection,
    device_id: str,
    *,
    device_class: str,
    labels: Mapping[str, str],
    password_hash: str,
    at_ms: int,
) -> None:
    """A new device, or one that was removed and comes back: its revision goes on from where it was."""
    fresh = {"device_class": device_class, "created_ms": at_ms, "removed_ms": None}
    if db.execute(device.update().where(device.c.id == device_id).values(**fresh)).rowcount == 0:
        db.execute(device.insert().values(id=device_id, **fresh))
    if labels:
        rows = [{"device": device_id, "label": label, "value": value} for label, value in labels.items()]
        db.execute(device_label.insert(), rows)
    db.execute(
        credential.insert().values(device=device_id, username=device_id, hash=password_hash, created_ms=at_ms)
    )


def remove(db: sa.Connection, device_id: str, at_ms: int) -> None:
    """Forget credential, labels, desired and reported state; close what ran there. History stays."""
    for table in (credential, device_label, desired_model, desired_state, reported_model, outbox):
        db.execute(table.delete().where(table.c.device == device_id))
    placements.close_all(db, device_id, at_ms)
    cleared = {"presence": "", "epoch": 0, "boot": "", "reported_revision": 0, "last_seen_ms": None}
    db.execute(
        device.update().where(device.c.id == device_id).values(removed_ms=at_ms, hardware=None, **cleared)
    )


def row(db: sa.Connection, device_id: str) -> sa.RowMapping | None:
    query = sa.select(device).where(device.c.id == device_id, device.c.removed_ms.is_(None))
    return db.execute(query).mappings().first()


def page(
    db: sa.Connection, *, after: str | None, limit: int, labels: Mapping[str, str] | None = None
) -> list[sa.RowMapping]:
    """By id; only devices that carry all of the labels."""
    query = sa.select(device).where(device.c.removed_ms.is_(None)).order_by(device.c.id).limit(limit)
    query = query.where(*_carries(labels or {}))
    if after is not None:
        query = query.where(device.c.id > after)
    return list(db.execute(query).mappings())


def ids(db: sa.Connection, labels: Mapping[str, str] | None = None) -> list[str]:
    """Every device that carries all of the labels."""
    query = sa.select(device.c.id).where(device.c.removed_ms.is_(None), *_carries(labels or {}))
    return list(db.execute(query.order_by(device.c.id)).scalars())


def note_revision(db: sa.Connection, device_id: str, revision: int) -> None:
    """The device has seen a desired state of this revision."""
    db.execute(device.update().where(device.c.id == device_id).values(reported_revision=revision))


def note_seen(db: sa.Connection, seen: Mapping[str, int]) -> None:
    """Devices, and when each was last heard of (milliseconds since 1970); never goes back."""
    at = sa.bindparam("at_ms", type_=sa.BigInteger)
    earlier = sa.or_(device.c.last_seen_ms.is_(None), device.c.last_seen_ms < at)
    query = device.update().where(
        device.c.id == sa.bindparam("device_id"), device.c.removed_ms.is_(None), earlier
    )
    rows = [{"device_id": device_id, "at_ms": at_ms} for device_id, at_ms in seen.items()]
    db.execute(query.values(last_seen_ms=at), rows)


def labels_of(db: sa.Connection, device_ids: Collection[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {device_id: {} for device_id in device_ids}
    for item in db.execute(sa.select(device_label).where(device_label.c.device.in_(device_ids))):
        found[item.device][item.label] = item.value
    return found


def reported_of(db: sa.Connection, device_ids: Collection[str]) -> Iterable[sa.RowMapping]:
    return db.execute(sa.select(reported_model).where(reported_model.c.device.in_(device_ids))).mappings()


def presence_counts(db: sa.Connection) -> dict[str, int]:
    """Devices by presence; the empty one was never seen."""
    query = sa.select(device.c.presence, sa.func.count()).where(device.c.removed_ms.is_(None))
    return {presence: count for presence, count in db.execute(query.group_by(device.c.presence))}


def credentials(db: sa.Connection) -> dict[str, str]:
    """User names and password hashes, for the broker."""
    return {user: hashed for user, hashed in db.execute(sa.select(credential.c.username, credential.c.hash))}


def record_hello(db: sa.Connection, device_id: str, hello: Hello, at_ms: int) -> None:
    """A connection begins; whatever has a lower epoch is stale from now on."""
    db.execute(
        device.update()
        .where(device.c.id == device_id)
        .values(
            epoch=hello.epoch,
            boot=hello.boot,
            agent_version=hello.agent_version,
            hardware=msgspec.to_builtins(hello.hardware),
            engines=msgspec.to_builtins(hello.engines),
            capabilities=list(hello.capabilities),
            clock_quality=hello.clock_quality,
            last_seen_ms=at_ms,
            **_presence(Presence.ONLINE, at_ms),
        )
    )


def record_presence(db: sa.Connection, device_id: str, message: PresenceMessage, at_ms: int) -> bool:
    """Returns False, and changes nothing, if the message is of an epoch before the last hello."""
    seen = {"last_seen_ms": at_ms} if message.state is not Presence.LOST else {}
    done = db.execute(
        device.update()
        .where(device.c.id == device_id, device.c.epoch <= message.epoch)
        .values(presence_until=message.until, **seen, **_presence(message.state, at_ms))
    )
    return done.rowcount > 0


def record_report(db: sa.Connection, device_id: str, report: UpdateReport, at_ms: int) -> bool:
    """Returns False, and changes nothing, if the report is of an epoch before the last hello."""
    done = db.execute(
        device.update()
        .where(device.c.id == device_id, device.c.epoch <= report.epoch)
        .values(reported_revision=report.revision, last_seen_ms=at_ms)
    )
    if done.rowcount == 0:
        return False
    for model, told in report.models.items():
        key = {"device": device_id, "model": model}
        values = _reported_values(told, at_ms)
        where = (reported_model.c.device == device_id) & (reported_model.c.model == model)
        if db.execute(reported_model.update().where(where).values(**values)).rowcount == 0:
            db.execute(reported_model.insert().values(**key, **values))
        placements.record(db, device_id, model, told, at_ms)
    return True


def _reported_values(told: ModelReport, at_ms: int) -> dict[str, Any]:
    return {
        "active": told.active,
        "active_version": told.active_version,
        "active_variant": told.active_variant,
        "target": told.target,
        "target_version": told.target_version,
        "phase": told.phase,
        "error_code": told.error.code if told.error else "",
        "error_message": told.error.message if told.error else "",
        "error_hint": told.error.hint if told.error else "",
        "since_ms": told.since,
        "bytes_done": told.bytes_done,
        "bytes_total": told.bytes_total,
        "received_ms": at_ms,
    }


def _presence(state: Presence, at_ms: int) -> dict[str, Any]:
    since = sa.case((device.c.presence == state, device.c.presence_ms), else_=at_ms)
    return {"presence": state, "presence_ms": since}


def _carries(labels: Mapping[str, str]) -> list[sa.ColumnElement[bool]]:
    return [
        device.c.id.in_(
            sa.select(device_label.c.device).where(
                device_label.c.label == label, device_label.c.value == value
            )
        )
        for label, value in labels.items()
    ]
