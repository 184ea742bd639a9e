"""One model on this device: takes orders from the fleet and from people, recovers, says how it is.

An order becomes an event of the install state machine (`update`), which `runner` steps; `preparation` does
what touches nothing live, `activation` the rest. All methods run in the loop's thread.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import (
    ConflictError,
    MemoryBudgetError,
    NotFoundError,
    SelfTestError,
    SkerryError,
    StorageError,
)
from skerry_contract.messages import DesiredModel, ErrorReport, ModelReport

from . import trust, truth
from .activation import Activation
from .context import Context
from .log import get_logger
from .preparation import Preparation
from .record import Record, record_of
from .room import Taken, resident
from .runner import Runner
from .serving import Serving
from .slots import ModelSlots
from .update import MAX_SELF_TESTS, SETTLED, Action, Event, UpdateState, recover

_START_AGAIN_SECONDS: Final = 5.0
_log = get_logger("model")


class Model:
    """See the module's text."""

    def __init__(self, name: str, folder: Path, context: Context) -> None:
        self.name = name
        self._c = context
        self.slots = ModelSlots(folder, context.store)
        self._runner = Runner(name, self.slots.state / "update", context)
        self._preparation = Preparation(name, self.slots, self._runner, context)
        self._live = Activation(name, self.slots, self._runner, context)
        self._started = False
        self._runner.bind(
            {
                Action.DESCRIBE: self._preparation.describe,
                Action.VERIFY: self._preparation.verify,
                Action.IMPORT: self._preparation.stage,
                Action.FETCH: self._preparation.fetch,
                Action.SCHEDULE: self._preparation.schedule,
                Action.TEST: self._preparation.test,
                Action.ACTIVATE: self._activate,
                Action.WATCH: self._live.watch,
                Action.CONFIRM: self._live.confirm,
                Action.QUARANTINE: self._quarantine,
                Action.RESTORE: self._live.restore,
                Action.FALL_BACK: self._live.fall_back,
                Action.ABANDON: self._preparation.abandon,
                Action.RETRY: self._preparation.retry_later,
                Action.COLLECT: self._collect,
            }
        )

    # --- start and end ----------------------------------------------------------------------------

    def start(self) -> None:
        """Recover, then serve what is good at once; no network is needed.

        Where the disk does not even let the pointers be read, nothing is guessed: it is asked again.
        """
        try:
            self._recover()
        except StorageError as error:
            self._c.journal.event("slot.unreadable", str(error), model=self.name, error=error)
            self._c.loop.call_later(_START_AGAIN_SECONDS, self._start_again)
        else:
            self._started = True

    def _start_again(self) -> None:
        self.start()
        if self._started:
            self._c.obey()

    def _recover(self) -> None:
        """Raises `StorageError` if the pointers cannot be read."""
        try:
            for note in self.slots.recover():
                self._c.journal.event("slot.recovered", note, model=self.name)
        except StorageError as error:
            # What is left half done is harmless; what is good can be served from a disk that is full.
            self._c.journal.event("slot.unrecovered", str(error), model=self.name, error=error)
        self._serve_if_room()
        record, good, pending = self._runner.record, self._live.good, self.slots.pending()
        state = recover(
            record.state,
            has_pending=pending is not None,
            target_is_current=good is not None and record.target == good.digest,
            target_is_bad=record.target is not None and self.slots.quarantined(record.target) is not None,
            self_tests=record.self_tests,
        )
        if state is UpdateState.REJECTED and record.state is UpdateState.SELF_TEST:
            self._reject_interrupted_self_tests()
        elif state is UpdateState.IDLE and record.source == "file" and good is not None:
            # An import that was killed is a person's to repeat; what the fleet ordered was obeyed before it.
            self._runner.replace(replace(record_of(good, UpdateState.CONFIRMED), revision=record.revision))
        elif state is not record.state:
            self._runner.replace(replace(record, state=state, since=self._c.clock.now_ms()))
        if pending is not None and state is UpdateState.ROLLED_BACK:
            self._live.drop_pending()
        elif pending is not None:
            self._live.resume_pending()
        with contextlib.suppress(StorageError):
            self.slots.collect()

    def _serve_if_room(self) -> None:
        try:
            if self.slots.pending() is None:  # what is tried was admitted already
                self._c.room.check_start(self.name, self._live.usage.peak_bytes)
        except MemoryBudgetError as error:
            self._live.wait_for_room(error)
        else:
            self._live.serve_current()

    def start_if_room(self) -> None:
        """For one that waits for memory: look again."""
        if not self._live.waits:
            return
        try:
            self._c.room.check_start(self.name, self._live.usage.peak_bytes)
        except MemoryBudgetError:
            return
        self._c.journal.event("model.started", f"{self.name}: there is memory for it now", model=self.name)
        self._live.serve_current()

    def stop(self) -> None:
        """A clean end: what is tried keeps its tries, workers drain."""
        self._live.usage.save()
        self._preparation.abandon()
        if self._runner.state in (UpdateState.PENDING, UpdateState.PROBATION):
            try:
                self.slots.give_try_back()
            except StorageError as error:
                _log.warning("the try could not be given back", extra={"model": self.name, "error": error})
        self.serving.stop()

    # --- orders -----------------------------------------------------------------------------------

    def desire(self, order: DesiredModel, revision: int) -> None:
        """Level-triggered: the newest order counts, an order that was obeyed is not obeyed again."""
        if not self._started:
            return  # It is looked at again as soon as it is known what is here.
        record = self._runner.record
        if not self.settled:
            if record.target == order.manifest.digest:
                self._runner.change(revision=revision, probation=order.probation, source="fleet")
                self._live.judge_by(order.probation)
                return
            self._supersede()
        elif record.revision >= revision and record.state is not UpdateState.IDLE:
            return
        self._consider(order, revision)

    def install(self, answer: trust.BundleAnswer) -> str:
        """A person gave a bundle file, which the trust process verified and took into the store.

        Returns the transaction. Raises `ConflictError` if an update is going on, or it is active already.
        """
        record, good = self._runner.record, self._live.good
        if not self._started:
            raise StorageError(f"what is installed of {self.name} cannot be read", hint="Check the disk.")
        if not self.settled:
            raise ConflictError(
                f"an update of {self.name} to {record.version} is {record.state}",
                hint="Wait until it is finished, or roll it back first.",
            )
        if good is not None and good.digest == answer.manifest:
            raise ConflictError(f"{self.name} {answer.version} is installed and active already")
        self.slots.release_quarantine(answer.manifest)
        transaction = secrets.token_hex(4)
        self._runner.fire(
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
            SlotError: the last good generation is damaged, or below the security floor.
        """
        error = ConflictError(f"rolled back on request: {why}")
        good = self._live.good
        if good is None:
            raise NotFoundError(
                f"{self.name} has no earlier generation", hint="Install another bundle instead."
            )
        if self._runner.state in (UpdateState.PENDING, UpdateState.PROBATION):
            self._runner.fire(Event.REVERTED, error)
            return good.manifest.version
        previous = self.slots.last_good()
        self._runner.fire(
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
    def used_ms(self) -> int:
        """When it was last asked, Unix time; 0 if never."""
        return self._live.usage.used_ms

    @property
    def taken(self) -> Taken | None:
        """What it takes of the memory; None if it neither answers nor is about to."""
        if not self.serving.wanted:
            return None
        worker, peak = self.serving.worker, self._live.usage.peak_bytes
        if worker is None or worker.pid is None:
            return Taken(peak, False)
        now = resident(worker.pid)
        return Taken(now.pss + max(0, peak - now.rss), True)

    @property
    def serving(self) -> Serving:
        return self._live.serving

    @property
    def settled(self) -> bool:
        return self._runner.settled

    @property
    def transaction(self) -> str:
        """Of the update that is going on, or nothing. Any thread."""
        record = self._runner.record
        return "" if record.state in SETTLED else record.transaction

    @property
    def floor(self) -> int:
        return self.slots.floor()

    def report(self) -> ModelReport:
        """For the fleet."""
        told = truth.report(self._runner.record, self.serving, self._preparation.progress)
        trouble = self._live.trouble
        return replace(told, error=ErrorReport.of(trouble)) if self._live.waits and trouble else told

    def status(self) -> dict[str, Any]:
        """For people, as plain JSON."""
        told = truth.status(
            self._runner.record, self.serving, self.slots.current(), self._preparation.progress
        )
        error = self._live.trouble
        trouble = error and {"code": error.code, "message": error.message, "hint": error.hint}
        return {**told, "probation": self._live.progress(), "trouble": trouble}

    # --- orders, in detail ------------------------------------------------------------------------

    def _consider(self, order: DesiredModel, revision: int) -> None:
        digest, record, good = order.manifest.digest, self._runner.record, self._live.good
        same = record.target == digest
        named: dict[str, Any] = {
            "target": digest,
            "version": order.version,
            "release": order.release,
            "revision": revision,
            "source": "fleet",
        }
        if good is not None and good.digest == digest:
            if same and record.state is UpdateState.CONFIRMED:
                self._runner.change(revision=revision)
            else:
                self._runner.fire(Event.ALREADY_ACTIVE, transaction=secrets.token_hex(4), **named)
        elif (quarantine := self.slots.quarantined(digest)) is not None:
            if same and record.state in (UpdateState.ROLLED_BACK, UpdateState.REJECTED):
                self._runner.change(revision=revision)
            else:
                self._runner.fire(
                    Event.QUARANTINED, quarantine.reason, transaction=secrets.token_hex(4), **named
                )
        else:
            self._preparation.begin()
            self._runner.fire(
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
                self_tests=record.self_tests if same else 0,
                **named,
            )

    def _supersede(self) -> None:
        if self._runner.state is UpdateState.PROBATION and self._live.good is None:
            # There is nothing to return to, and it showed no fault: it stays until the next one is proved.
            self._runner.fire(Event.HEALTHY)
        else:
            self._runner.fire(Event.SUPERSEDED, ConflictError("another bundle is desired now"))

    def _reject_interrupted_self_tests(self) -> None:
        error = SelfTestError(
            f"{MAX_SELF_TESTS} self-tests ended with the whole agent or machine",
            hint="The model takes more than this device has: pack a smaller variant.",
        )
        self._runner.fire(Event.CONDEMNED, error)

    # --- actions of both halves -------------------------------------------------------------------

    def _activate(self) -> None:
        try:
            self._live.activate(self._preparation.take_staged())
        except SkerryError as error:
            self._runner.later(Event.REFUSED, error)

    def _quarantine(self) -> None:
        record = self._runner.record
        if record.target is None or record.error is None:
            return
        try:
            self.slots.quarantine(record.target, record.error, record.since)
        except StorageError as error:
            _log.error("the quarantine cannot be recorded", extra={"model": self.name, "error": error})

    def _collect(self) -> None:
        try:
            self.slots.collect()
            if self._c.idle():
                self._c.store.collect(())
        except StorageError as error:
            _log.warning("old generations could not be removed", extra={"model": self.name, "error": error})
