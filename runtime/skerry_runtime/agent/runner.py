"""Runs the install state machine of one model: durable first, then the actions, then the word to the fleet.

The record on the disk is never behind what was done, so a kill at any point is found by `update.recover`.
All calls come from the loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import SkerryError, StorageError
from skerry_contract.messages import ErrorReport

from .context import Context
from .log import get_logger
from .record import Record, read_record, write_record
from .update import SETTLED, Action, Event, UpdateState, step

_FORWARD: Final = frozenset(
    {Event.OFFERED, Event.OFFERED_FILE, Event.DESCRIBED, Event.TRUSTED, Event.BUILT, Event.DUE, Event.PASSED}
)
_log = get_logger("update")


class Runner:
    """Holds the record of a model's newest update and steps it."""

    def __init__(self, name: str, file: Path, context: Context) -> None:
        self.record = read_record(file)
        self._name = name
        self._file = file
        self._c = context
        self._actions: Mapping[Action, Callable[[], None]] = {}

    def bind(self, actions: Mapping[Action, Callable[[], None]]) -> None:
        """What each action does; before the first step."""
        self._actions = actions

    @property
    def state(self) -> UpdateState:
        return self.record.state

    @property
    def settled(self) -> bool:
        return self.record.state in SETTLED

    def fire(self, event: Event, error: SkerryError | ErrorReport | None = None, **changes: Any) -> None:
        """One step; ``changes`` are fields of the record. A step forward that the disk refuses is undone.

        Raises:
            ConflictError: the state does not allow the event.
        """
        state, actions = step(self.record.state, event)
        before = self.record
        report = ErrorReport.of(error) if isinstance(error, SkerryError) else error
        since = before.since if state is before.state else self._c.clock.now_ms()
        self.record = replace(before, state=state, error=report, since=since, **changes)
        try:
            write_record(self._file, self.record)
        except StorageError as failure:
            if event is Event.HEALTHY:
                # It goes on in probation and is confirmed when the disk takes it.
                self.record = before
                _log.error(
                    "the update cannot be confirmed yet", extra={"model": self._name, "error": failure}
                )
                return
            if event in _FORWARD:
                self.fire(Event.REFUSED, failure)
                return
            self._say_not_stored(failure)
        for action in actions:
            self._actions[action]()
        self._c.journal.event(
            f"update.{state}",
            f"{self._name} {self.record.version}: {state}",
            transaction=self.record.transaction,
            model=self._name,
            digest=self.record.target,
            error=report,
            version=self.record.version,
            reason=self.record.reason if event in (Event.TRUSTED, Event.OFFERED_FILE) else "",
        )
        self._c.changed()

    def later(self, event: Event, error: SkerryError | None = None) -> None:
        """An event that follows from an action, after the step that caused the action is finished."""
        transaction, state = self.record.transaction, self.record.state

        def fire() -> None:
            if (self.record.transaction, self.record.state) == (transaction, state):
                self.fire(event, error)

        self._c.loop.call_soon(fire)

    def change(self, **changes: Any) -> None:
        """Change the record without a step."""
        self.replace(replace(self.record, **changes))
        self._c.changed()

    def replace(self, record: Record) -> None:
        """Begin anew from this record; it counts also if the disk does not take it."""
        self.record = record
        try:
            write_record(self._file, record)
        except StorageError as error:
            self._say_not_stored(error)

    def _say_not_stored(self, error: StorageError) -> None:
        _log.error("the update's state cannot be stored", extra={"model": self._name, "error": error})
