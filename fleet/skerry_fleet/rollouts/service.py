"""What an operator does with rollouts, and sees of them."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from skerry_contract.errors import ConflictError, InputError, NotFoundError
from skerry_contract.messages import ErrorReport, Probation

from .. import cursors
from ..clock import Clock
from ..cursors import Page
from ..db import Database
from ..devices.service import DeviceService
from ..governance.service import Journal
from ..models.service import ModelService
from ..models.views import VersionRow
from . import policy, repository
from .policy import Gate
from .states import FINAL, IN_FLIGHT, Event, State, Step, next_state
from .views import MemberView, RolloutDetail, RolloutRequest, RolloutView, VerdictView, WaveView

MAX_DEADLINE_S = 90 * 86_400
_LIST: Final = "'skerry rollout status' lists them (API: GET /v1/rollouts)."
_DONE: Final[Mapping[Event, str]] = {
    Event.START: "Started",
    Event.PAUSE: "Paused",
    Event.RESUME: "Resumed",
    Event.ABORT: "Aborted",
    Event.REVERT: "Reverted",
}


class RolloutService:
    """``observers`` are called after an act that the engine should look at soon."""

    def __init__(
        self, db: Database, clock: Clock, journal: Journal, devices: DeviceService, models: ModelService
    ) -> None:
        self._db = db
        self._clock = clock
        self._journal = journal
        self._devices = devices
        self._models = models
        self.observers: list[Callable[[], None]] = []

    def create(self, request: RolloutRequest, actor: str) -> RolloutDetail:
        """A new rollout, running unless it shall stay a draft.

        Raises:
            InputError: a number is out of range, the waves do not ascend, or no device is meant.
            NotFoundError: no such model or version.
            ConflictError: the version is quarantined, or a device is in an unfinished rollout of the model.
        """
        _check(request)
        selector = dict(request.selector or {})
        rollout_id = f"r{secrets.token_hex(6)}"
        with self._db.write() as db:
            version = self._models.find(db, request.model, request.version)
            _refuse_quarantined(version)
            devices = self._devices.ids(db, selector)
            if not devices:
                raise InputError(
                    "no device carries these labels" if selector else "the fleet has no device yet",
                    hint="'skerry devices list' shows all with their labels, 'skerry devices add' enrols "
                    "one (API: GET and POST /v1/devices).",
                )
            planned = policy.plan_waves(rollout_id, devices, request.waves)
            reached = [name for wave in planned for name in wave.devices]
            busy = repository.occupied(db, request.model, reached)
            if busy is not None:
                raise ConflictError(
                    f"{busy[0]} is in the unfinished rollout {busy[1]} of {request.model}",
                    hint=f"Wait for it, or abort it: 'skerry rollout abort {busy[1]}'.",
                )
            values = {
                "id": rollout_id,
                "model": version.name,
                "digest": version.digest,
                "version": version.version,
                "state": State.DRAFT,
                "selector": selector,
                "probation": msgspec.to_builtins(request.probation),
                "jitter_s": request.jitter_s,
                "deadline_s": request.deadline_s,
                "max_failures": request.max_failures,
                "created_ms": self._clock.now_ms(),
            }
            repository.add(db, values, planned)
            told = {"model": version.name, "version": version.version, "devices": len(reached)}
            self._journal.audit(db, actor, "rollout.created", f"rollout/{rollout_id}", told)
            if request.start:
                self._apply(db, _found(db, rollout_id), Event.START, actor)
            detail = _detail(db, rollout_id)
        self._notify()
        return detail

    def rollouts(self, *, cursor: str | None = None, limit: int = 100) -> Page[RolloutView]:
        """Newest first."""
        before = None if cursor is None else cursors.decode(cursor, int)
        with self._db.read() as db:
            rows = repository.page(db, before=before, limit=cursors.check_limit(limit) + 1)
            counts = repository.counts(db, [row["id"] for row in rows])
            paged = cursors.page(rows, limit, lambda row: int(row["seq"]))
            views = [
                RolloutView(**_fields(row, counts[row["id"]], len(repository.waves(db, row["id"]))))
                for row in paged.items
            ]
        return Page(views, paged.next)

    def rollout(self, rollout_id: str) -> RolloutDetail:
        """Raises `NotFoundError`."""
        with self._db.read() as db:
            return _detail(db, rollout_id)

    def act(self, rollout_id: str, event: Event, actor: str) -> RolloutDetail:
        """Start, pause, resume, abort or revert.

        An abort takes the offer back from every device that has not confirmed it; a revert sets every device
        back that got it.

        Raises:
            NotFoundError: no such rollout.
            ConflictError: its state does not allow that; or it would start with a quarantined version.
        """
        with self._db.write() as db:
            row = _found(db, rollout_id)
            self._apply(db, row, event, actor)
            if event is Event.ABORT:
                self._withdraw(db, row)
            detail = _detail(db, rollout_id)
        self._devices.notify_outbox()
        self._notify()
        return detail

    def _apply(self, db: sa.Connection, row: sa.RowMapping, event: Event, actor: str) -> None:
        state = next_state(State(row["state"]), event)
        if event is Event.START:
            _refuse_quarantined(self._models.find(db, row["model"], row["version"]))
        finished = self._clock.now_ms() if state in FINAL else None
        repository.change(
            db, row["id"], state=state, finished_ms=finished, reason=f"{_DONE[event]} by {actor}."
        )
        self._journal.audit(db, actor, f"rollout.{event}", f"rollout/{row['id']}", {"state": state})

    def _withdraw(self, db: sa.Connection, row: sa.RowMapping) -> None:
        now = self._clock.now_ms()
        for item in repository.executions(db, row["id"]):
            if Step(item["phase"]) in IN_FLIGHT:
                self._devices.set_back(db, item["device"], row["model"], row["digest"])
                repository.change_execution(
                    db, row["id"], item["device"], phase=Step.WITHDRAWN, set_back_ms=now, finished_ms=now
                )

    def _notify(self) -> None:
        for observer in self.observers:
            observer()


def _check(request: RolloutRequest) -> None:
    probation = request.probation
    for name, value, most in (
        ("deadline_s", request.deadline_s, MAX_DEADLINE_S),
        ("jitter_s", request.jitter_s, MAX_DEADLINE_S),
        ("max_failures", request.max_failures, 1 << 31),
        ("probation.requests", probation.requests, 1 << 31),
        ("probation.seconds", probation.seconds, MAX_DEADLINE_S),
        ("probation.max_error_rate", probation.max_error_rate, 1.0),
    ):
        if not math.isfinite(value) or not 0 <= value <= most:
            raise InputError(f"{name} is {value}; it must be between 0 and {most:g}")
    if request.deadline_s <= request.jitter_s:
        raise InputError(
            f"devices may wait {request.jitter_s:g} s before they begin, but "
            f"{request.deadline_s:g} s of silence is a failure",
            hint="Raise the deadline ('--deadline', deadline_s), or lower jitter_s.",
        )


def _refuse_quarantined(version: VersionRow) -> None:
    if version.quarantined_ms is not None:
        raise ConflictError(
            f"{version.name} {version.version} is quarantined: {version.quarantine_reason}",
            hint="Pack and publish a new release with the fault mended.",
        )


def _found(db: sa.Connection, rollout_id: str) -> sa.RowMapping:
    row = repository.get(db, rollout_id)
    if row is None:
        raise NotFoundError(f"there is no rollout {rollout_id[:80]!r}", hint=_LIST)
    return row


def _detail(db: sa.Connection, rollout_id: str) -> RolloutDetail:
    row = _found(db, rollout_id)
    items = repository.executions(db, rollout_id)
    stages = repository.waves(db, rollout_id)
    waves = [
        WaveView(
            number=wave["number"],
            reaches=wave["reaches"],
            begun_ms=wave["begun_ms"],
            verdict=_verdict(row, wave, len(stages), items),
            devices=[_member(item) for item in items if item["wave"] == wave["number"]],
        )
        for wave in stages
    ]
    counts = repository.counts(db, [rollout_id])[rollout_id]
    return RolloutDetail(**_fields(row, counts, len(waves)), waves=waves)


def _fields(row: sa.RowMapping, counts: dict[str, int], wave_count: int) -> dict[str, Any]:
    same = (
        "id", "model", "version", "digest", "reason", "wave", "selector", "jitter_s", "deadline_s",
        "max_failures", "created_ms", "finished_ms",
    )  # fmt: skip
    state = State(row["state"])
    return {
        **{name: row[name] for name in same},
        **({"reason": policy.tell_counts(counts)} if state is State.COMPLETED else {}),
        "state": state,
        "final": state in FINAL,
        "wave_count": wave_count,
        "devices": sum(counts.values()),
        "phases": counts,
        "probation": msgspec.convert(row["probation"], Probation),
    }


def _member(item: sa.RowMapping) -> MemberView:
    step = Step(item["phase"])
    return MemberView(
        device=item["device"],
        phase=step,
        unknown=step in IN_FLIGHT and not (item["was_online"] or item["online"]),
        previous=item["previous"],
        offered_ms=item["offered_ms"],
        finished_ms=item["finished_ms"],
        error=ErrorReport(code=item["error_code"], message=item["error_message"])
        if item["error_code"]
        else None,
    )


def _verdict(
    row: sa.RowMapping, wave: sa.RowMapping, waves: int, items: Sequence[sa.RowMapping]
) -> VerdictView:
    """As it was decided; the reasons of a wave that passed are told as of now."""
    if wave["verdict"] is None:
        return VerdictView(decision=Gate.HOLD, reasons=["It has not begun."], at_ms=None)
    reasons = wave["reasons"]
    if wave["verdict"] == Gate.PASS:
        present = [item for item in items if item["removed_ms"] is None]
        told = policy.tell_passed(
            number=wave["number"],
            waves=waves,
            wave=[repository.member(item) for item in present if item["wave"] == wave["number"]],
            earlier=[repository.member(item) for item in present if item["wave"] < wave["number"]],
            max_failures=row["max_failures"],
        )
        reasons = list(told)
    return VerdictView(decision=Gate(wave["verdict"]), reasons=reasons, at_ms=wave["verdict_ms"])
