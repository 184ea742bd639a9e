"""One model on this device: drives the install state machine, decides what its workers' deaths mean.

Every step is durable before it is acted upon. All methods run in the loop's thread; what takes long is handed
to `jobs` and comes back as an event. What comes back from an update that is not the current one any more is
dropped.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

from skerry_contract.errors import (
    ConflictError,
    NotFoundError,
    OverloadedError,
    SelfTestError,
    SkerryError,
    SlotError,
    StorageError,
    TransferError,
    UnavailableError,
)
from skerry_contract.messages import DesiredModel, ErrorReport, ModelReport

from ..ipc import Health, Window
from . import trust, truth
from .context import Context
from .health import Trial, Verdict, crashes_too_often
from .installer import Installer
from .log import get_logger
from .loop import Timer
from .preflight import BLAMELESS, Preflight
from .record import Record, read_record, record_of, write_record
from .serving import Serving
from .slots import Generation, ModelSlots
from .update import MAX_SELF_TESTS, SETTLED, Action, Event, UpdateState, recover, step
from .workers import Worker

RETRY_SECONDS: Final = 15.0
RETRY_SECONDS_MOST: Final = 600.0
_STARTS: Final = 3
"""Starts in a row of a good generation that may fail before the last good one takes over."""
_TRIAL_RESTARTS: Final = 3
"""How often a trial begins anew because the zygote died, which is not the model's fault."""
_FORWARD: Final = frozenset(
    {Event.OFFERED, Event.OFFERED_FILE, Event.DESCRIBED, Event.TRUSTED, Event.BUILT, Event.DUE, Event.PASSED}
)
_TRANSIENT: Final = (TransferError, UnavailableError, OverloadedError, SlotError)
"""While downloading, worth another try; a damaged blob was removed, so the next try fetches it."""
_log = get_logger("model")
T = TypeVar("T")


class Model:
    """See the module's text. Implements `serving.ServingEvents`."""

    def __init__(self, name: str, folder: Path, context: Context) -> None:
        self.name = name
        self._c = context
        self.slots = ModelSlots(folder, context.store)
        self._record_file = self.slots.state / "update"
        self.record = read_record(self._record_file)
        self.serving = Serving(name, context.surroundings, self)
        self._installer = Installer(name, self.slots, context)
        self._good: Generation | None = None
        self._staged: Generation | None = None
        self._trial: Trial | None = None
        self._trial_restarts = 0
        self._crashes: list[float] = []
        self._failed_starts = 0
        self._cancel: threading.Event | None = None
        self._preflight: Preflight | None = None
        self._retry: Timer | None = None
        self._attempts = 0
        self._progress = (0, 0)
        self._actions: dict[Action, Callable[[], None]] = {
            Action.DESCRIBE: self._describe,
            Action.VERIFY: self._verify,
            Action.IMPORT: self._import,
            Action.FETCH: self._fetch,
            Action.SCHEDULE: lambda: self._later(Event.DUE),
            Action.TEST: self._test,
            Action.ACTIVATE: self._activate,
            Action.WATCH: self._watch,
            Action.CONFIRM: self._confirm,
            Action.QUARANTINE: self._quarantine,
            Action.RESTORE: self._restore,
            Action.FALL_BACK: self._fall_back,
            Action.ABANDON: self._abandon,
            Action.RETRY: self._retry_later,
            Action.COLLECT: self._collect,
        }

    # --- start and end ----------------------------------------------------------------------------

    def start(self) -> None:
        """Recover, then serve what is good at once; no network is needed."""
        for note in self.slots.recover():
            self._c.journal.event("slot.recovered", note, model=self.name)
        self._serve_current()
        pending = self.slots.pending()
        target = self.record.target
        state = recover(
            self.record.state,
            has_pending=pending is not None,
            target_is_current=self._good is not None and target == self._good.digest,
            target_is_bad=target is not None and self.slots.quarantined(target) is not None,
            self_tests=self.record.self_tests,
        )
        if state is UpdateState.REJECTED and self.record.state is UpdateState.SELF_TEST:
            self._reject_interrupted_self_tests()
        elif state is UpdateState.IDLE and self.record.source == "file" and self._good is not None:
            # An import that was killed is a person's to repeat; what the fleet ordered was obeyed before it.
            self.record = replace(record_of(self._good, UpdateState.CONFIRMED), revision=self.record.revision)
            self._persist_or_log()
        elif state is not self.record.state:
            self.record = replace(self.record, state=state, since=self._c.clock.now_ms())
            self._persist_or_log()
        if pending is not None and state is UpdateState.ROLLED_BACK:
            self.slots.drop_pending()
        elif pending is not None:
            self._resume_pending()
        with contextlib.suppress(StorageError):
            self.slots.collect()

    def stop(self) -> None:
        """A clean end: what is tried keeps its tries, workers drain."""
        self._abandon()
        if self.record.state in (UpdateState.PENDING, UpdateState.PROBATION):
            try:
                self.slots.give_try_back()
            except StorageError as error:
                _log.warning("the try could not be given back", extra={"model": self.name, "error": error})
        self.serving.stop()

    # --- orders -----------------------------------------------------------------------------------

    def desire(self, order: DesiredModel, revision: int) -> None:
        """Level-triggered: the newest order counts, an order that was obeyed is not obeyed again."""
        digest = order.manifest.digest
        if self.record.state not in SETTLED:
            if self.record.target == digest:
                self._change(revision=revision, probation=order.probation, source="fleet")
                if self._trial is not None:
                    self._trial = replace(self._trial, probation=order.probation)
                return
            self._supersede()
        elif self.record.revision >= revision and self.record.state is not UpdateState.IDLE:
            return
        self._consider(order, revision)

    def install(self, answer: trust.BundleAnswer) -> str:
        """A person gave a bundle file, which the trust process verified and took into the store.

        Returns the transaction. Raises `ConflictError` if an update is going on, or it is active already.
        """
        if self.record.state not in SETTLED:
            raise ConflictError(
                f"an update of {self.name} to {self.record.version} is {self.record.state}",
                hint="Wait until it is finished, or roll it back first.",
            )
        if self._good is not None and self._good.digest == answer.manifest:
            raise ConflictError(f"{self.name} {answer.version} is installed and active already")
        self.slots.release_quarantine(answer.manifest)
        transaction = secrets.token_hex(4)
        self._fire(
            Event.OFFERED_FILE,
            transaction=transaction,
            source="file",
            target=answer.manifest,
            signature=answer.signature,
            version=answer.version,
            release=answer.release,
            variant=answer.variant,
            reason=answer.reason,
            probation=Record().probation,
            self_tests=0,
        )
        return transaction

    def roll_back(self, why: str) -> str:
        """Return to the last good generation on request; the bundle that is left is quarantined.

        Returns the version that answers afterwards.

        Raises:
            NotFoundError: there is nothing to return to.
            ConflictError: an update is being prepared.
            SlotError: the last good generation is damaged.
        """
        error = ConflictError(f"rolled back on request: {why}")
        if self.record.state in (UpdateState.PENDING, UpdateState.PROBATION):
            if self._good is None:
                raise NotFoundError(
                    f"{self.name} has no earlier generation", hint="Install another bundle instead."
                )
            self._fire(Event.REVERTED, error)
            return self._good.manifest.version
        current, good = self.slots.current(), self._good
        if current is None or good is None or not current.previous:
            raise NotFoundError(
                f"{self.name} has no earlier generation", hint="Install another bundle instead."
            )
        previous = self.slots.load(current.previous)
        self.slots.check(previous)
        self._fire(
            Event.REVERTED,
            error,
            target=good.digest,
            version=good.manifest.version,
            release=good.manifest.release,
            transaction=secrets.token_hex(4),
        )
        return previous.manifest.version

    # --- truth for others -------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        return self.record.state in SETTLED

    @property
    def floor(self) -> int:
        return self.slots.floor()

    def report(self) -> ModelReport:
        """For the fleet."""
        return truth.report(self.record, self.serving, self._progress)

    def status(self) -> dict[str, Any]:
        """For people, as plain JSON."""
        return truth.status(self.record, self.serving, self.slots.current(), self._progress)

    # --- the machine ------------------------------------------------------------------------------

    def _fire(self, event: Event, error: SkerryError | ErrorReport | None = None, **changes: Any) -> None:
        """One step: durable first, then the actions, then the word to the fleet."""
        state, actions = step(self.record.state, event)
        before = self.record
        report = ErrorReport.of(error) if isinstance(error, SkerryError) else error
        since = before.since if state is before.state else self._c.clock.now_ms()
        self.record = replace(before, state=state, error=report, since=since, **changes)
        try:
            write_record(self._record_file, self.record)
        except StorageError as failure:
            if event is Event.HEALTHY:
                # It goes on in probation and is confirmed when the disk takes it.
                self.record = before
                _log.error("the update cannot be confirmed yet", extra={"model": self.name, "error": failure})
                return
            if event in _FORWARD:
                self._fire(Event.REFUSED, failure)
                return
            _log.error("the update's state cannot be stored", extra={"model": self.name, "error": failure})
        for action in actions:
            self._actions[action]()
        self._c.journal.event(
            f"update.{state}",
            f"{self.name} {self.record.version}: {state}",
            transaction=self.record.transaction,
            model=self.name,
            digest=self.record.target,
            error=report,
            version=self.record.version,
            reason=self.record.reason if event in (Event.TRUSTED, Event.OFFERED_FILE) else "",
        )
        self._c.changed()

    def _later(self, event: Event, error: SkerryError | None = None) -> None:
        """An event that follows from an action, after the step that caused the action is finished."""
        transaction, state = self.record.transaction, self.record.state

        def fire() -> None:
            if (self.record.transaction, self.record.state) == (transaction, state):
                self._fire(event, error)

        self._c.loop.call_soon(fire)

    def _change(self, **changes: Any) -> None:
        """Change the record without a step."""
        self.record = replace(self.record, **changes)
        self._persist_or_log()
        self._c.changed()

    def _persist_or_log(self) -> None:
        try:
            write_record(self._record_file, self.record)
        except StorageError as error:
            _log.error("the update's state cannot be stored", extra={"model": self.name, "error": error})

    def _consider(self, order: DesiredModel, revision: int) -> None:
        digest, record = order.manifest.digest, self.record
        same = record.target == digest
        named: dict[str, Any] = {
            "target": digest,
            "version": order.version,
            "release": order.release,
            "revision": revision,
            "source": "fleet",
        }
        if self._good is not None and self._good.digest == digest:
            if same and record.state is UpdateState.CONFIRMED:
                self._change(revision=revision)
            else:
                self._fire(Event.ALREADY_ACTIVE, transaction=secrets.token_hex(4), **named)
        elif (quarantine := self.slots.quarantined(digest)) is not None:
            if same and record.state in (UpdateState.ROLLED_BACK, UpdateState.REJECTED):
                self._change(revision=revision)
            else:
                self._fire(Event.QUARANTINED, quarantine.reason, transaction=secrets.token_hex(4), **named)
        else:
            self._attempts = 0
            self._progress = (0, 0)
            self._fire(
                Event.OFFERED,
                transaction=secrets.token_hex(4),
                signature=order.signature.digest,
                manifest_size=order.manifest.size,
                signature_size=order.signature.size,
                probation=order.probation,
                jitter_s=order.jitter_s,
                variant="",
                reason="",
                generation=0,
                self_tests=self.record.self_tests if same else 0,
                **named,
            )

    def _supersede(self) -> None:
        if self.record.state is UpdateState.PROBATION and self._good is None:
            # There is nothing to return to, and it showed no fault: it stays until the next one is proved.
            self._fire(Event.HEALTHY)
        else:
            self._fire(Event.SUPERSEDED, ConflictError("another bundle is desired now"))

    # --- start, in detail -------------------------------------------------------------------------

    def _serve_current(self) -> None:
        current = self.slots.current()
        if current is None:
            return
        try:
            generation = self.slots.load(current.gen)
            self.slots.check(generation)
        except SlotError as error:
            self._c.journal.event("slot.damaged", f"{self.name}: {error}", model=self.name, error=error)
            try:
                generation = self.slots.fall_back()
            except (SkerryError, OSError) as no_way_back:
                self._c.journal.event(
                    "slot.degraded", f"{self.name}: no generation is usable", model=self.name, error=error,
                    fallback=str(no_way_back),
                )  # fmt: skip
                # Forget that the order was obeyed, so that the bundle is fetched again.
                self.record = replace(self.record, state=UpdateState.IDLE, revision=0)
                return
            self.record = replace(self.record, state=UpdateState.IDLE, revision=0)
        self._good = generation
        self.serving.serve(generation)

    def _reject_interrupted_self_tests(self) -> None:
        error = SelfTestError(
            f"{MAX_SELF_TESTS} self-tests ended with the whole agent or machine",
            hint="The model takes more than this device has: pack a smaller variant.",
        )
        self._fire(Event.CONDEMNED, error)

    def _resume_pending(self) -> None:
        """A start with ``pending``: one try less, written before anything is loaded."""
        pending = self.slots.pending()
        if pending is None:
            return
        try:
            generation = self.slots.load(pending.gen)
            if self.record.target != generation.digest:
                self.record = record_of(generation, UpdateState.PENDING)
            self._staged = generation
            taken = self.slots.take_try()
            if taken is None:
                error = SelfTestError(
                    f"{self.name} {generation.manifest.version} was not confirmed within the allowed starts",
                    hint="Look in the log for what ended the daemon or the machine while it was active.",
                )
                self._fire(Event.CONDEMNED, error)
                return
            self.slots.check(generation)
        except SlotError as error:
            self._fire(Event.REFUSED, error)
            return
        except StorageError as error:
            # The try cannot be counted, so nothing may be tried; the good one serves.
            _log.error("the pending model waits for a disk that can be written", extra={"error": error})
            return
        if not self.record.transaction:
            self.record = replace(self.record, transaction=secrets.token_hex(4))
        self.serving.try_out(generation)

    # --- actions ----------------------------------------------------------------------------------

    def _describe(self) -> None:
        record = self.record
        wait = random.uniform(0.0, max(0.0, record.jitter_s))  # noqa: S311
        self._submit(
            lambda cancelled: self._installer.describe(record, wait, cancelled),
            lambda _: self._fire(Event.DESCRIBED),
        )

    def _verify(self) -> None:
        record, floor = self.record, self.floor
        self._submit(
            lambda _: self._installer.verify(record, floor),
            lambda answer: self._fire(Event.TRUSTED, variant=answer.variant, reason=answer.reason),
        )

    def _fetch(self) -> None:
        record = self.record
        self._submit(
            lambda cancelled: self._installer.fetch(record, cancelled, self._on_progress), self._built
        )

    def _import(self) -> None:
        record = self.record
        self._submit(lambda _: self._installer.stage(record), self._built)

    def _built(self, generation: Generation) -> None:
        self._staged = generation
        self._fire(Event.BUILT, generation=generation.number)

    def _test(self) -> None:
        if self._staged is None:
            self._later(Event.REFUSED, SlotError("the staged generation is gone"))
            return
        self._change(self_tests=self.record.self_tests + 1)
        self._preflight = Preflight(
            self._c.workers,
            self._staged,
            self._c.surroundings.ram_bytes,
            self._test_passed,
            self._test_failed,
        )

    def _test_passed(self) -> None:
        self._preflight = None
        self._fire(Event.PASSED, self_tests=0)

    def _test_failed(self, error: SkerryError) -> None:
        self._preflight = None
        self._fire(Event.REFUSED if isinstance(error, BLAMELESS) else Event.CONDEMNED, error, self_tests=0)

    def _activate(self) -> None:
        generation = self._staged
        try:
            if generation is None:
                raise SlotError("the staged generation is gone")
            self.slots.set_pending(generation)
        except (SlotError, StorageError) as error:
            self._later(Event.REFUSED, error)
            return
        self._trial_restarts = 0
        self.serving.try_out(generation)

    def _watch(self) -> None:
        generation = self._staged
        if generation is not None:
            self._trial = Trial(
                probation=self.record.probation,
                budgets=generation.info.budgets,
                began=self._c.clock.monotonic(),
            )

    def _confirm(self) -> None:
        generation, settled_early = self._staged, self._good is None and self._trial_open()
        self._trial = self._staged = None
        if generation is None:
            return
        self._good = generation
        self._crashes.clear()
        self._failed_starts = 0
        self.serving.confirm()
        self._write_confirmed(generation, raise_floor=not settled_early)

    def _trial_open(self) -> bool:
        """Probation was cut short."""
        return (
            self._trial is not None and self._trial.verdict(self._c.clock.monotonic()) is not Verdict.HEALTHY
        )

    def _write_confirmed(self, generation: Generation, *, raise_floor: bool) -> None:
        if self._good is not generation:
            return
        try:
            self.slots.confirm(generation, raise_floor=raise_floor)
        except StorageError as error:
            _log.error(
                "the confirmed model cannot be recorded yet", extra={"model": self.name, "error": error}
            )
            self._c.loop.call_later(30.0, lambda: self._write_confirmed(generation, raise_floor=raise_floor))

    def _quarantine(self) -> None:
        record = self.record
        if record.target is None or record.error is None:
            return
        try:
            self.slots.quarantine(record.target, record.error, record.since)
        except StorageError as error:
            _log.error("the quarantine cannot be recorded", extra={"model": self.name, "error": error})

    def _restore(self) -> None:
        self._trial = self._staged = None
        self.serving.restore()
        try:
            self.slots.drop_pending()
        except StorageError as error:
            _log.error("the pointer cannot be removed yet", extra={"model": self.name, "error": error})
        if self._good is None:
            self._c.silent(self.name)

    def _fall_back(self) -> None:
        try:
            generation = self.slots.fall_back()
        except (SlotError, NotFoundError, StorageError) as error:
            self._c.journal.event("slot.degraded", f"{self.name}: {error}", model=self.name, error=error)
            return
        self._good = generation
        self._crashes.clear()
        self._failed_starts = 0
        self.serving.serve(generation)

    def _abandon(self) -> None:
        self._staged = None
        if self._cancel is not None:
            self._cancel.set()
            self._cancel = None
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._preflight is not None:
            self._preflight.cancel()
            self._preflight = None

    def _retry_later(self) -> None:
        self._attempts += 1
        most = min(RETRY_SECONDS_MOST, RETRY_SECONDS * 2 ** min(self._attempts - 1, 10))
        seconds = random.uniform(most / 2, most)  # noqa: S311
        _log.info("the download is tried again", extra={"model": self.name, "in_seconds": round(seconds)})
        self._retry = self._c.loop.call_later(seconds, self._describe)

    def _collect(self) -> None:
        try:
            self.slots.collect()
            if self._c.idle():
                self._c.store.collect(())
        except StorageError as error:
            _log.warning("old generations could not be removed", extra={"model": self.name, "error": error})

    # --- background work --------------------------------------------------------------------------

    def _submit(self, work: Callable[[threading.Event], T], then: Callable[[T], None]) -> None:
        self._cancel = self._c.jobs.submit(work, then, self._job_failed)

    def _job_failed(self, error: SkerryError) -> None:
        self._cancel = None
        downloading = self.record.state is UpdateState.DOWNLOADING
        if downloading and isinstance(error, _TRANSIENT):
            self._fire(Event.INTERRUPTED, error)
        elif self.record.state not in SETTLED:
            self._fire(Event.REFUSED, error)

    def _on_progress(self, done: int, total: int) -> None:
        """Called in the background thread."""
        self._progress = (done, total)

    # --- serving.ServingEvents --------------------------------------------------------------------

    def trial_active(self, worker: Worker) -> None:
        if self.record.state is UpdateState.PENDING:
            self._fire(Event.ACTIVATED)
        elif self.record.state is UpdateState.PROBATION:
            self._watch()

    def trial_health(self, health: Health) -> None:
        if self._trial is None or self.record.state is not UpdateState.PROBATION:
            return
        self._trial = self._trial.observe(health)
        match self._trial.verdict(self._c.clock.monotonic()):
            case Verdict.CONDEMNED:
                self._fire(Event.CONDEMNED, self._trial.error)
            case Verdict.HEALTHY:
                self._fire(Event.HEALTHY)
            case Verdict.HOLD:
                pass

    def trial_failed(self, error: SkerryError) -> None:
        if self.record.state not in (UpdateState.PENDING, UpdateState.PROBATION):
            return
        if isinstance(error, UnavailableError) and self._staged and self._trial_restarts < _TRIAL_RESTARTS:
            self._trial_restarts += 1
            self.serving.try_out(self._staged)
            return
        self._fire(Event.REFUSED if isinstance(error, BLAMELESS) else Event.CONDEMNED, error)

    def active_serving(self) -> None:
        self._failed_starts = 0
        self._c.changed()

    def active_lost(self, error: SkerryError, *, started: bool) -> None:
        now = self._c.clock.monotonic()
        self._c.journal.event(
            "worker.ended", f"{self.name}: {error}", model=self.name, error=error, critical=False
        )
        if isinstance(error, UnavailableError):
            return
        self._crashes = [*self._crashes[-16:], now]
        self._failed_starts = 0 if started else self._failed_starts + 1
        current, good = self.slots.current(), self._good
        if good is None or current is None or not current.previous or not self.settled:
            return
        if self._failed_starts >= _STARTS or crashes_too_often(self._crashes, now):
            self._fire(
                Event.REVERTED,
                SelfTestError(f"it died again and again: {error.message}", hint=error.hint),
                target=good.digest,
                version=good.manifest.version,
                release=good.manifest.release,
                transaction=secrets.token_hex(4),
            )

    def window_closed(self, window: Window) -> None:
        self._c.window(window)
