"""What is live of one model: the good generation, the one on trial, and what their workers' deaths mean.

Every change of a pointer is durable before a worker is started or stopped for it.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import Final

from skerry_contract.errors import (
    MemoryBudgetError,
    NotFoundError,
    SelfTestError,
    SkerryError,
    SlotError,
    StorageError,
    UnavailableError,
)
from skerry_contract.messages import ErrorReport, Probation

from ..ipc import Health, Window
from .context import Context
from .health import Trial, Verdict, crashes_too_often
from .log import get_logger
from .preflight import BLAMELESS
from .record import record_of
from .runner import Runner
from .serving import Serving
from .slots import Generation, ModelSlots
from .update import Event, UpdateState
from .usage import Usage
from .worker import Worker

_STARTS: Final = 3
"""Starts in a row of a good generation that may fail before the last good one takes over."""
_TRIAL_RESTARTS: Final = 3
"""How often a trial begins anew because the zygote died, which is not the model's fault."""
_CONFIRM_AGAIN_SECONDS: Final = 30.0
_log = get_logger("activation")


class Activation:
    """See the module's text. Implements `serving.ServingEvents`."""

    def __init__(self, name: str, slots: ModelSlots, runner: Runner, context: Context) -> None:
        self._name = name
        self._slots = slots
        self._runner = runner
        self._c = context
        self.serving = Serving(name, context.surroundings, self)
        self.usage = Usage(slots.state / "memory", context.clock.now_ms)
        self.good: Generation | None = None
        """Confirmed; what is returned to."""
        self._tried: Generation | None = None
        self._trial: Trial | None = None
        self._trial_restarts = 0
        self._crashes: list[float] = []
        self._failed_starts = 0
        self.trouble: SkerryError | None = None
        """Why the good generation does not answer at this moment."""

    # --- at the start -----------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """There is a good generation, and not the memory to start it."""
        return isinstance(self.trouble, MemoryBudgetError) and self.serving.answering is None

    def wait_for_room(self, error: MemoryBudgetError) -> None:
        """Start nothing until `serve_current`: it would not fit."""
        current = self._slots.current()
        if current is None:
            return
        try:
            self._now_good(self._slots.load(current.gen))
        except SlotError:
            self.serve_current()  # it is damaged, which is a matter of its own
            return
        self.trouble = error
        self._c.journal.event("model.waits", f"{self._name}: {error}", model=self._name, error=error)
        self._c.silent(self._name)

    def serve_current(self) -> None:
        """Let what ``current`` names answer, or the last good one if that is damaged."""
        current = self._slots.current()
        if current is None:
            return
        try:
            generation = self._slots.load(current.gen)
            self._slots.check(generation)
        except SlotError as error:
            self._leave_damaged(error)
        else:
            self._now_good(generation)
            self.serving.serve(generation)

    def resume_pending(self) -> None:
        """A start with ``pending``: one try less, written before anything is loaded."""
        pending = self._slots.pending()
        if pending is None:
            return
        try:
            generation = self._slots.load(pending.gen)
            if self._runner.record.target != generation.digest:
                self._runner.record = record_of(generation, UpdateState.PENDING)
            self._tried = generation
            taken = self._slots.take_try()
            if taken is None:
                error = SelfTestError(
                    f"{self._name} {generation.manifest.version} was not confirmed within the allowed starts",
                    hint="Look in the log for what ended the daemon or the machine while it was active.",
                )
                self._runner.fire(Event.CONDEMNED, error)
                return
            self._slots.check(generation)
        except SlotError as error:
            self._runner.fire(Event.REFUSED, error)
            return
        except StorageError as error:
            # The try cannot be counted, so nothing may be tried; the good one serves.
            _log.error("the pending model waits for a disk that can be written", extra={"error": error})
            return
        if not self._runner.record.transaction:
            self._runner.record = replace(self._runner.record, transaction=secrets.token_hex(4))
        self.serving.try_out(generation)

    # --- actions of the machine -------------------------------------------------------------------

    def activate(self, generation: Generation) -> None:
        """WRITE ``pending``, start the new worker. Raises `StorageError`."""
        self._slots.set_pending(generation)
        self._tried = generation
        self._trial_restarts = 0
        self.serving.try_out(generation)

    def watch(self) -> None:
        if self._tried is not None:
            self._trial = Trial(
                probation=self._runner.record.probation,
                budgets=self._tried.info.budgets,
                began=self._c.clock.monotonic(),
            )

    def progress(self) -> dict[str, float] | None:
        """Of the trial that is under way; see `Trial.progress`."""
        return self._trial.progress(self._c.clock.monotonic()) if self._trial is not None else None

    def judge_by(self, probation: Probation) -> None:
        """Other limits for a trial that is under way."""
        if self._trial is not None:
            self._trial = replace(self._trial, probation=probation)

    def confirm(self) -> None:
        generation, settled_early = self._tried, self.good is None and self._trial_open()
        self._trial = self._tried = None
        if generation is None:
            return
        self._now_good(generation)
        self.trouble = None
        self.serving.confirm()
        self.usage.save()
        self._write_confirmed(generation, raise_floor=not settled_early)

    def restore(self) -> None:
        self._trial = self._tried = None
        self.serving.restore()
        if (worker := self.serving.worker) is not None and worker.ready is not None:
            self.usage.begin(worker.ready.rss_bytes)
        self.drop_pending()
        if self.good is None:
            self._c.silent(self._name)

    def drop_pending(self) -> None:
        """Forget what was tried; the next start does it if the disk refuses."""
        try:
            self._slots.drop_pending()
        except StorageError as error:
            _log.error("the pointer cannot be removed yet", extra={"model": self._name, "error": error})

    def fall_back(self) -> None:
        try:
            generation = self._slots.fall_back()
        except (SlotError, NotFoundError, StorageError) as error:
            self._degraded(error)
            return
        self._now_good(generation)
        self.serving.serve(generation)

    # --- serving.ServingEvents --------------------------------------------------------------------

    def trial_active(self, worker: Worker) -> None:
        if worker.ready is not None:
            self.usage.begin(worker.ready.rss_bytes)
        if self._runner.state is UpdateState.PENDING:
            self._runner.fire(Event.ACTIVATED)
        elif self._runner.state is UpdateState.PROBATION:
            self.watch()

    def trial_health(self, health: Health) -> None:
        if self._trial is None or self._runner.state is not UpdateState.PROBATION:
            return
        self._trial = self._trial.observe(health)
        match self._trial.verdict(self._c.clock.monotonic()):
            case Verdict.CONDEMNED:
                self._runner.fire(Event.CONDEMNED, self._trial.error)
            case Verdict.HEALTHY:
                self._runner.fire(Event.HEALTHY)
            case Verdict.HOLD:
                pass

    def answering_health(self, health: Health) -> None:
        self.usage.saw(health)

    def trial_failed(self, error: SkerryError) -> None:
        if self._runner.state not in (UpdateState.PENDING, UpdateState.PROBATION):
            return
        if isinstance(error, UnavailableError) and self._tried and self._trial_restarts < _TRIAL_RESTARTS:
            self._trial_restarts += 1
            self.serving.try_out(self._tried)
            return
        self._runner.fire(Event.REFUSED if isinstance(error, BLAMELESS) else Event.CONDEMNED, error)

    def active_serving(self) -> None:
        self._failed_starts = 0
        self.trouble = None
        self.usage.save()
        self._c.changed()

    def active_lost(self, error: SkerryError, *, started: bool) -> None:
        self.trouble = error
        now = self._c.clock.monotonic()
        self._c.journal.event(
            "worker.ended", f"{self._name}: {error}", model=self._name, error=error, critical=False
        )
        if isinstance(error, UnavailableError):
            return
        self._crashes = [*self._crashes[-16:], now]
        self._failed_starts = 0 if started else self._failed_starts + 1
        if not self._runner.settled:
            return  # It is started again until then.
        if isinstance(error, SlotError):
            self._leave_damaged(error)
            self._c.obey()
        elif self._failed_starts >= _STARTS or crashes_too_often(self._crashes, now):
            self._give_up(error)

    def window_closed(self, window: Window) -> None:
        self._c.window(window)

    # --- parts ------------------------------------------------------------------------------------

    def _give_up(self, error: SkerryError) -> None:
        """The good one dies again and again: the one before takes over, if there is one."""
        bad = self.good
        if bad is None:
            return
        try:
            self._slots.last_good()
        except (SlotError, NotFoundError) as no_way_back:
            # It is started again and again, with pauses: better than nothing.
            self._crashes.clear()
            self._failed_starts = 0
            self._degraded(no_way_back)
            return
        self._runner.fire(
            Event.REVERTED,
            SelfTestError(f"it died again and again: {error.message}", hint=error.hint),
            target=bad.digest,
            version=bad.manifest.version,
            release=bad.manifest.release,
            transaction=secrets.token_hex(4),
        )

    def _leave_damaged(self, error: SlotError) -> None:
        """The disk is to blame: the last good one answers, and what the fleet wants is fetched again."""
        self._c.journal.event("slot.damaged", f"{self._name}: {error}", model=self._name, error=error)
        with contextlib.suppress(SkerryError):
            # Removes what is damaged from the store too.
            if self.good is not None:
                self._slots.check(self.good)
        # Forget that the order was obeyed.
        report = ErrorReport.of(error)
        self._runner.replace(replace(self._runner.record, state=UpdateState.IDLE, revision=0, error=report))
        try:
            generation = self._slots.fall_back()
        except SkerryError as no_way_back:
            self._degraded(no_way_back)
            self.good = None
            self.serving.cease()
            self._c.silent(self._name)
        else:
            self._now_good(generation)
            self.serving.serve(generation)

    def _degraded(self, error: SkerryError) -> None:
        self._c.journal.event(
            "slot.degraded", f"{self._name}: there is nothing to fall back to", model=self._name, error=error
        )

    def _now_good(self, generation: Generation) -> None:
        self.good = generation
        self._crashes.clear()
        self._failed_starts = 0

    def _trial_open(self) -> bool:
        """Probation was cut short."""
        return (
            self._trial is not None and self._trial.verdict(self._c.clock.monotonic()) is not Verdict.HEALTHY
        )

    def _write_confirmed(self, generation: Generation, *, raise_floor: bool) -> None:
        if self.good is not generation:
            return
        try:
            self._slots.confirm(generation, raise_floor=raise_floor)
        except StorageError as error:
            _log.error(
                "the confirmed model cannot be recorded yet", extra={"model": self._name, "error": error}
            )
            self._c.loop.call_later(
                _CONFIRM_AGAIN_SECONDS, lambda: self._write_confirmed(generation, raise_floor=raise_floor)
            )
