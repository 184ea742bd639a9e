"""Rows of rollouts, their waves and their executions (one device within one rollout)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from skerry_contract.messages import Presence

from ..devices.tables import desired_model, device, reported_model
from .policy import Member, PlannedWave, bucket
from .states import ACTIVE, WATCHED, State, Step
from .tables import execution, gate_evaluation, rollout, wave


def add(db: sa.Connection, values: Mapping[str, Any], waves: Sequence[PlannedWave]) -> None:
    db.execute(rollout.insert().values(**values))
    key = values["id"]
    db.execute(
        wave.insert(),
        [
            {"rollout": key, "number": planned.number, "reaches": planned.reaches, "reasons": []}
            for planned in waves
        ],
    )
    rows = [
        {
            "rollout": key,
            "device": name,
            "wave": planned.number,
            "bucket": bucket(key, name),
            "phase": Step.PENDING,
        }
        for planned in waves
        for name in planned.devices
    ]
    db.execute(execution.insert(), rows)


def get(db: sa.Connection, rollout_id: str) -> sa.RowMapping | None:
    return db.execute(sa.select(rollout).where(rollout.c.id == rollout_id)).mappings().first()


def page(db: sa.Connection, *, before: int | None, limit: int) -> list[sa.RowMapping]:
    """Newest first."""
    query = sa.select(rollout).order_by(rollout.c.seq.desc()).limit(limit)
    if before is not None:
        query = query.where(rollout.c.seq < before)
    return list(db.execute(query).mappings())


def active_ids(db: sa.Connection) -> list[str]:
    """Oldest first."""
    return list(
        db.execute(
            sa.select(rollout.c.id).where(rollout.c.state.in_(ACTIVE)).order_by(rollout.c.seq)
        ).scalars()
    )


def change(db: sa.Connection, rollout_id: str, **values: Any) -> None:
    db.execute(rollout.update().where(rollout.c.id == rollout_id).values(**values))


def occupied(db: sa.Connection, model: str, devices: Collection[str]) -> tuple[str, str] | None:
    """A device, and the unfinished rollout of the same model that it takes part in."""
    busy = ACTIVE | {State.DRAFT}
    query = (
        sa.select(execution.c.device, rollout.c.id)
        .join(rollout, rollout.c.id == execution.c.rollout)
        .where(rollout.c.model == model, rollout.c.state.in_(busy))
    )
    wanted = set(devices)
    for row in db.execute(query):
        if row.device in wanted:
            return row.device, row.id
    return None


def waves(db: sa.Connection, rollout_id: str) -> list[sa.RowMapping]:
    query = sa.select(wave).where(wave.c.rollout == rollout_id).order_by(wave.c.number)
    return list(db.execute(query).mappings())


def change_wave(db: sa.Connection, rollout_id: str, number: int, **values: Any) -> None:
    db.execute(wave.update().where(wave.c.rollout == rollout_id, wave.c.number == number).values(**values))


def add_evaluation(
    db: sa.Connection, rollout_id: str, number: int, *, at_ms: int, verdict: str, reasons: Sequence[str]
) -> None:
    db.execute(
        gate_evaluation.insert().values(
            rollout=rollout_id, wave=number, at_ms=at_ms, verdict=verdict, reasons=list(reasons)
        )
    )


def executions(db: sa.Connection, rollout_id: str, *, up_to_wave: int | None = None) -> list[sa.RowMapping]:
    """With the device's presence and what it says is active, by wave and bucket."""
    model = sa.select(rollout.c.model).where(rollout.c.id == rollout_id).scalar_subquery()
    query = (
        sa.select(
            execution,
            (device.c.presence == Presence.ONLINE).label("online"),
            device.c.presence_ms,
            device.c.removed_ms,
            reported_model.c.active,
            reported_model.c.phase.label("reported_phase"),
        )
        .join(device, device.c.id == execution.c.device)
        .outerjoin(
            reported_model,
            (reported_model.c.device == execution.c.device) & (reported_model.c.model == model),
        )
        .where(execution.c.rollout == rollout_id)
        .order_by(execution.c.wave, execution.c.bucket, execution.c.device)
    )
    if up_to_wave is not None:
        query = query.where(execution.c.wave <= up_to_wave)
    return list(db.execute(query).mappings())


def member(item: sa.RowMapping) -> Member:
    """A row of `executions` as the gate sees it."""
    error = ": ".join(part for part in (item["error_code"], item["error_message"]) if part)
    return Member(
        device=item["device"],
        step=Step(item["phase"]),
        reachable=bool(item["was_online"] or item["online"]),
        online=bool(item["online"]),
        error=error,
    )


def change_execution(db: sa.Connection, rollout_id: str, device_id: str, **values: Any) -> None:
    db.execute(
        execution.update()
        .where(execution.c.rollout == rollout_id, execution.c.device == device_id)
        .values(**values)
    )


def watched_of_device(db: sa.Connection, device_id: str) -> list[sa.RowMapping]:
    """Executions of a device whose reports count: those that its desired models still come from."""
    query = (
        sa.select(execution, rollout.c.model, rollout.c.version, rollout.c.digest, rollout.c.state)
        .join(rollout, rollout.c.id == execution.c.rollout)
        .join(
            desired_model,
            (desired_model.c.device == execution.c.device)
            & (desired_model.c.model == rollout.c.model)
            & (desired_model.c.rollout == execution.c.rollout),
        )
        .where(execution.c.device == device_id, rollout.c.state.in_(WATCHED))
    )
    return list(db.execute(query).mappings())


def counts(db: sa.Connection, rollout_ids: Collection[str]) -> dict[str, dict[str, int]]:
    """Devices by step, for each rollout."""
    query = (
        sa.select(execution.c.rollout, execution.c.phase, sa.func.count())
        .where(execution.c.rollout.in_(rollout_ids))
        .group_by(execution.c.rollout, execution.c.phase)
    )
    found: dict[str, dict[str, int]] = {rollout_id: {} for rollout_id in rollout_ids}
    for rollout_id, step, count in db.execute(query):
        found[rollout_id][step] = count
    return found
