"""Rows of desired states and of the outbox that carries them to the broker.

A change of what is desired, its signed envelope and its outbox row are one transaction: the database is the
truth, the retained message a copy of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from skerry_contract.digests import Digest
from skerry_contract.messages import DesiredModel, Probation, WireBlob

from ..models.tables import version
from .tables import desired_model, desired_state, device, outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    """To be published, retained, to ``dn/des`` of the device; an empty payload clears the retained
    message."""

    seq: int
    device: str
    revision: int
    payload: bytes


def next_revision(db: sa.Connection, device_id: str) -> int:
    """Revisions of a device only rise, also beyond what it claims to have seen of a database that was
    lost."""
    own, seen = device.c.desired_revision, device.c.reported_revision
    done = db.execute(
        device.update()
        .where(device.c.id == device_id)
        .values(desired_revision=sa.case((own > seen, own), else_=seen) + 1)
        .returning(device.c.desired_revision)
    )
    revision: int = done.scalar_one()
    return revision


def put(db: sa.Connection, device_id: str, model: str, values: dict[str, Any]) -> None:
    where = (desired_model.c.device == device_id) & (desired_model.c.model == model)
    if db.execute(desired_model.update().where(where).values(**values)).rowcount == 0:
        db.execute(desired_model.insert().values(device=device_id, model=model, **values))


def drop(db: sa.Connection, device_id: str, model: str) -> None:
    db.execute(
        desired_model.delete().where(desired_model.c.device == device_id, desired_model.c.model == model)
    )


def of_devices(db: sa.Connection, device_ids: Collection[str]) -> Iterable[sa.RowMapping]:
    """Desired models with their versions."""
    query = (
        sa.select(
            desired_model,
            version.c.version,
            version.c.release,
            version.c.manifest_size,
            version.c.signature_digest,
            version.c.signature_size,
        )
        .join(version, version.c.digest == desired_model.c.digest)
        .where(desired_model.c.device.in_(device_ids))
        .order_by(desired_model.c.since_ms, desired_model.c.model)
    )
    return db.execute(query).mappings()


def to_message(row: sa.RowMapping) -> DesiredModel:
    return DesiredModel(
        version=row["version"],
        release=row["release"],
        manifest=WireBlob(digest=Digest(row["digest"]), size=row["manifest_size"]),
        signature=WireBlob(digest=Digest(row["signature_digest"]), size=row["signature_size"]),
        probation=msgspec.convert(row["probation"], Probation),
        jitter_s=row["jitter_s"],
    )


def current(db: sa.Connection, device_id: str, model: str) -> sa.RowMapping | None:
    query = sa.select(desired_model).where(
        desired_model.c.device == device_id, desired_model.c.model == model
    )
    return db.execute(query).mappings().first()


def offer_of(row: sa.RowMapping | None) -> dict[str, Any] | None:
    """What a desired model asks for, to be kept while another is tried."""
    return (
        None if row is None else {name: row[name] for name in ("digest", "rollout", "probation", "jitter_s")}
    )


def mark_failed(db: sa.Connection, device_id: str, model: str) -> None:
    """Remember that what was desired before failed on this device: it must not be desired again by itself."""
    row = current(db, device_id, model)
    if row is not None and row["before"] is not None:
        where = (desired_model.c.device == device_id) & (desired_model.c.model == model)
        db.execute(desired_model.update().where(where).values(before={**row["before"], "failed": True}))


def is_quarantined(db: sa.Connection, digest: str) -> bool:
    query = sa.select(version.c.quarantined_ms).where(version.c.digest == digest)
    return db.execute(query).scalar() is not None


def store(
    db: sa.Connection, device_id: str, revision: int, *, expires_ms: int, envelope: bytes, at_ms: int
) -> None:
    """The new envelope and its outbox row; older rows of the device are superseded."""
    values = {"revision": revision, "expires_ms": expires_ms, "envelope": envelope}
    where = desired_state.c.device == device_id
    if db.execute(desired_state.update().where(where).values(**values)).rowcount == 0:
        db.execute(desired_state.insert().values(device=device_id, **values))
    queue(db, device_id, revision, envelope, at_ms)


def queue(db: sa.Connection, device_id: str, revision: int, payload: bytes, at_ms: int) -> None:
    """Only the newest revision counts, so a device has one row at most."""
    db.execute(outbox.delete().where(outbox.c.device == device_id))
    db.execute(outbox.insert().values(device=device_id, revision=revision, payload=payload, created_ms=at_ms))


def queue_again(db: sa.Connection, device_id: str, at_ms: int) -> None:
    """Publish the newest envelope once more, unless it waits to be published anyway."""
    waiting = sa.select(outbox.c.seq).where(outbox.c.device == device_id)
    if db.execute(waiting).first() is not None:
        return
    newest = sa.select(desired_state).where(desired_state.c.device == device_id)
    row = db.execute(newest).mappings().first()
    if row is not None:
        queue(db, device_id, row["revision"], row["envelope"], at_ms)


def expiring(db: sa.Connection, before_ms: int, limit: int) -> list[str]:
    """Devices whose desired state must be signed again."""
    query = sa.select(desired_state.c.device).where(desired_state.c.expires_ms < before_ms)
    return list(db.execute(query.order_by(desired_state.c.expires_ms).limit(limit)).scalars())


def outbox_rows(db: sa.Connection, limit: int) -> list[OutboxRow]:
    """Oldest first."""
    query = sa.select(outbox.c.seq, outbox.c.device, outbox.c.revision, outbox.c.payload)
    return [
        OutboxRow(**row)
        for row in map(dict, db.execute(query.order_by(outbox.c.seq).limit(limit)).mappings())
    ]


def outbox_done(db: sa.Connection, seqs: Collection[int]) -> None:
    """The broker has them."""
    db.execute(outbox.delete().where(outbox.c.seq.in_(seqs)))
