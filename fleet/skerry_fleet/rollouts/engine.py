"""The engine: brings every active rollout one step further, from what the database says and nothing else.

Each step is one short transaction that is right whenever it runs, so a server that was killed goes on where
it was. What a device reports is counted within the transaction of the report, so no end is missed between two
ticks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import sqlalchemy as sa

from skerry_contract.messages import ErrorReport, ModelReport, Phase, Probation, Severity, UpdateReport

from ..alerts.service import AlertKind, AlertService
from ..clock import Clock
from ..db import Database
from ..devices.service import DeviceService
from ..governance.service import FLEET, Journal
from ..models.service import ModelService
from . import policy, repository
from .policy import Gate, Verdict
from .states import FAILED, FINAL, IN_FLIGHT, Event, State, Step, next_state, step_after

BATCH: Final = 100
"""Devices that one transaction offers a version to, or sets back."""


class RolloutEngine:
    def __init__(
        self,
        db: Database,
        clock: Clock,
        journal: Journal,
        devices: DeviceService,
        models: ModelService,
        alerts: AlertService,
    ) -> None:
        self._db = db
        self._clock = clock
        self._journal = journal
        self._devices = devices
        self._models = models
        self._alerts = alerts
        self._steps: Mapping[State, Callable[[sa.Connection, sa.RowMapping], bool]] = {
            State.RUNNING: self._run,
            State.PAUSED: self._watch,
            State.HALTED: self._begin_set_back,
            State.REVERTING: self._set_back,
        }

    def tick(self) -> None:
        """Do everything that can be done now."""
        with self._db.read() as db:
            active = repository.active_ids(db)
        for rollout_id in active:
            while self._advance(rollout_id):
                self._devices.notify_outbox()
        while self._devices.sign_again():
            pass

    def observe(self, db: sa.Connection, device_id: str, report: UpdateReport) -> None:
        """Count what a device reports; within the transaction of the report."""
        for model, said in report.models.items():
            if self._devices.is_stuck(db, device_id, model, said):
                self._tell_stuck(db, device_id, model, said)
        for item in repository.watched_of_device(db, device_id):
            told = report.models.get(item["model"])
            if told is not None and report.revision >= item["revision"]:
                self._count(db, item, told)

    def _count(self, db: sa.Connection, item: sa.RowMapping, told: ModelReport) -> None:
        now = self._clock.now_ms()
        before = Step(item["phase"])
        after = before
        if told.target == item["digest"] and told.phase is not None:
            after = step_after(before, told.phase)
        elif told.active == item["digest"] and told.phase in (None, Phase.CONFIRMED):
            # At rest on the wished bundle, as after a restart that forgot how it came there.
            after = step_after(before, Phase.CONFIRMED)
        if after is before and told.bytes_done <= item["bytes_done"]:
            return
        error = told.error if after in FAILED else None
        repository.change_execution(
            db,
            item["rollout"],
            item["device"],
            phase=after,
            progress_ms=now,
            bytes_done=max(told.bytes_done, item["bytes_done"]),
            finished_ms=None if after in IN_FLIGHT else now,
            error_code=error.code if error else "",
            error_message=error.message if error else "",
        )
        if after is Step.CONFIRMED:
            for kind in (AlertKind.DEVICE_LEFT, AlertKind.DEVICE_STUCK):
                self._alerts.resolve(db, kind, device=item["device"], model=item["model"])
        elif after in FAILED and before not in FAILED and item["state"] == State.COMPLETED:
            self._tell_left(db, item, after, error)

    def _tell_stuck(self, db: sa.Connection, device_id: str, model: str, told: ModelReport) -> None:
        """A device that failed at what it was set back to is left in peace, and a person is told."""
        self._alerts.raise_alert(
            db,
            AlertKind.DEVICE_STUCK,
            Severity.MAJOR,
            title=f"{device_id} can run neither {model} {told.target_version} nor what it had before",
            detail=f"{told.error.code}: {told.error.message}" if told.error else "It did not say why.",
            device=device_id,
            model=model,
            data={"version": told.target_version, "digest": told.target},
        )

    def _tell_left(
        self, db: sa.Connection, item: sa.RowMapping, after: Step, error: ErrorReport | None
    ) -> None:
        """No gate judges a rollout that is over, so a person is told."""
        bundle = f"{item['model']} {item['version']}"
        did = f"rolled {bundle} back" if after is Step.ROLLED_BACK else f"rejected {bundle}"
        self._alerts.raise_alert(
            db,
            AlertKind.DEVICE_LEFT,
            Severity.MAJOR,
            title=f"{item['device']} {did} after its rollout had completed",
            detail=f"{error.code}: {error.message}" if error else "It did not say why.",
            device=item["device"],
            model=item["model"],
            data={"rollout": item["rollout"], "version": item["version"], "digest": item["digest"]},
        )

    def _advance(self, rollout_id: str) -> bool:
        """One transaction. True if there is more to do at once."""
        with self._db.write() as db:
            row = repository.get(db, rollout_id)
            if row is None or State(row["state"]) not in self._steps:
                return False
            return self._steps[State(row["state"])](db, row)

    def _run(self, db: sa.Connection, row: sa.RowMapping) -> bool:
        waiting = [item for item in repository.executions(db, row["id"]) if item["phase"] == Step.PENDING]
        waiting = [item for item in waiting if item["removed_ms"] is None]
        mine = [item for item in waiting if item["wave"] == row["wave"]]
        if not mine:
            return self._watch(db, row)
        behind = {item["device"]: item for item in waiting if item["wave"] > row["wave"]}
        absent = [item["device"] for item in mine if not item["online"]]
        swaps = policy.stand_ins(absent, [name for name, item in behind.items() if item["online"]])
        for away, stand_in in swaps:
            repository.change_execution(db, row["id"], away, wave=behind[stand_in]["wave"])
            repository.change_execution(db, row["id"], stand_in, wave=row["wave"])
            self._journal.event(
                db,
                away,
                "rollout.deferred",
                model=row["model"],
                data={"rollout": row["id"], "instead": stand_in},
            )
        for item in [] if swaps else mine[:BATCH]:
            self._offer(db, row, item)
        return True

    def _offer(self, db: sa.Connection, row: sa.RowMapping, item: sa.RowMapping) -> None:
        now = self._clock.now_ms()
        device_id = item["device"]
        has_it = item["active"] == row["digest"] and item["reported_phase"] in (None, Phase.CONFIRMED)
        previous = self._devices.previous_healthy(db, device_id, row["model"], row["digest"])
        revision = self._devices.set_desired(
            db,
            device_id,
            row["model"],
            row["digest"],
            rollout=row["id"],
            probation=msgspec.convert(row["probation"], Probation),
            jitter_s=row["jitter_s"],
        )
        repository.change_execution(
            db,
            row["id"],
            device_id,
            phase=Step.CONFIRMED if has_it else Step.OFFERED,
            was_online=bool(item["online"]),
            revision=revision,
            previous=previous,
            offered_ms=now,
            progress_ms=now,
            finished_ms=now if has_it else None,
        )
        if has_it:
            self._alerts.resolve(db, AlertKind.DEVICE_LEFT, device=device_id, model=row["model"])

    def _watch(self, db: sa.Connection, row: sa.RowMapping) -> bool:
        """Give up who is silent, judge the current wave, act on the verdict."""
        self._give_up(db, row)
        members = [
            (item["wave"], repository.member(item))
            for item in repository.executions(db, row["id"], up_to_wave=row["wave"])
            if item["removed_ms"] is None
        ]
        waves = repository.waves(db, row["id"])
        verdict = policy.judge(
            number=row["wave"],
            waves=len(waves),
            wave=[member for number, member in members if number == row["wave"]],
            earlier=[member for number, member in members if number < row["wave"]],
            max_failures=row["max_failures"],
        )
        self._keep_verdict(db, row, waves[row["wave"] - 1], verdict)
        if verdict.gate is Gate.FAIL:
            self._halt(db, row, verdict)
            return True
        if verdict.gate is Gate.PASS and row["state"] == State.RUNNING:
            if row["wave"] < len(waves):
                repository.change(db, row["id"], wave=row["wave"] + 1)
                self._audit(db, row, "wave_passed", {"wave": row["wave"], "reasons": list(verdict.reasons)})
            else:
                self._move(db, row, Event.LAST_WAVE_PASSED, " ".join(verdict.reasons))
                self._alerts.resolve(db, AlertKind.ROLLOUT_HALTED, model=row["model"])
            return True
        return False

    def _give_up(self, db: sa.Connection, row: sa.RowMapping) -> None:
        now = self._clock.now_ms()
        for item in repository.executions(db, row["id"], up_to_wave=row["wave"]):
            late = policy.overdue(
                step=Step(item["phase"]),
                was_online=bool(item["was_online"]),
                online=bool(item["online"]),
                progress_ms=item["progress_ms"] or 0,
                presence_ms=item["presence_ms"],
                deadline_ms=row["deadline_s"] * 1000,
                now_ms=now,
            )
            if late and item["removed_ms"] is None:
                silence = _silence(Step(item["phase"]), row["deadline_s"])
                repository.change_execution(
                    db,
                    row["id"],
                    item["device"],
                    phase=Step.TIMED_OUT,
                    finished_ms=now,
                    error_code="timeout",
                    error_message=silence,
                )
                self._journal.event(
                    db,
                    item["device"],
                    "update.timed_out",
                    model=row["model"],
                    digest=row["digest"],
                    data={"rollout": row["id"]},
                    error=ErrorReport(code="timeout", message=silence),
                )

    def _keep_verdict(
        self, db: sa.Connection, row: sa.RowMapping, wave: sa.RowMapping, verdict: Verdict
    ) -> None:
        reasons = list(verdict.reasons)
        if wave["verdict"] == verdict.gate and wave["reasons"] == reasons:
            return
        now = self._clock.now_ms()
        begun = now if wave["begun_ms"] is None else wave["begun_ms"]
        repository.change_wave(
            db, row["id"], row["wave"], verdict=verdict.gate, reasons=reasons, verdict_ms=now, begun_ms=begun
        )
        if wave["verdict"] != verdict.gate:
            repository.add_evaluation(
                db, row["id"], row["wave"], at_ms=now, verdict=verdict.gate, reasons=reasons
            )

    def _halt(self, db: sa.Connection, row: sa.RowMapping, verdict: Verdict) -> None:
        what = f"{row['model']} {row['version']}"
        why = " ".join(verdict.reasons)
        self._move(db, row, Event.GATE_FAILED, why)
        failed = [item for item in repository.executions(db, row["id"]) if Step(item["phase"]) in FAILED]
        if any(policy.condemns(item["error_code"]) for item in failed):
            failure = f"rollout {row['id']} failed at wave {row['wave']}: {why}"
            self._models.quarantine(db, row["digest"], failure)
        self._alerts.raise_alert(
            db,
            AlertKind.ROLLOUT_HALTED,
            Severity.MAJOR,
            title=f"The rollout of {what} was halted at wave {row['wave']}",
            detail=why,
            model=row["model"],
            data={"rollout": row["id"], "version": row["version"], "wave": row["wave"]},
        )

    def _begin_set_back(self, db: sa.Connection, row: sa.RowMapping) -> bool:
        self._move(db, row, Event.SET_BACK_BEGUN, row["reason"])
        return True

    def _set_back(self, db: sa.Connection, row: sa.RowMapping) -> bool:
        """Set back everybody who was offered the version; done when nobody who could go back runs it."""
        now = self._clock.now_ms()
        offered = [
            item
            for item in repository.executions(db, row["id"])
            if item["phase"] != Step.PENDING and item["removed_ms"] is None
        ]
        waiting = [item for item in offered if item["set_back_ms"] is None]
        for item in waiting[:BATCH]:
            previous = self._devices.set_back(db, item["device"], row["model"], row["digest"])
            step = Step(item["phase"])
            values = {"phase": Step.WITHDRAWN, "finished_ms": now} if step in IN_FLIGHT else {}
            repository.change_execution(
                db, row["id"], item["device"], set_back_ms=now, previous=previous, **values
            )
        if waiting:
            return True
        if any(item["active"] == row["digest"] and item["previous"] is not None for item in offered):
            return False
        self._move(db, row, Event.ALL_BACK, row["reason"])
        return False

    def _move(self, db: sa.Connection, row: sa.RowMapping, event: Event, reason: str) -> None:
        state = next_state(State(row["state"]), event)
        finished = self._clock.now_ms() if state in FINAL else None
        repository.change(db, row["id"], state=state, reason=reason, finished_ms=finished)
        self._audit(db, row, event, {"state": state, "wave": row["wave"], "reason": reason})

    def _audit(self, db: sa.Connection, row: sa.RowMapping, what: str, data: Mapping[str, object]) -> None:
        self._journal.audit(db, FLEET, f"rollout.{what}", f"rollout/{row['id']}", data)


def _silence(step: Step, deadline_s: float) -> str:
    """Why a device is given up."""
    if step is Step.PROBATION:
        return f"away for more than {deadline_s:g} s while on probation"
    return f"silent for more than {deadline_s:g} s while {step.replace('_', ' ')}"
