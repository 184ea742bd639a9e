"""An update before anything live is touched: download, verification, staging, self-test.

Each step runs in the background thread or in a disposable process and ends as one event of the state machine.
What comes back from a step that was abandoned is dropped.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from msgspec.structs import replace

from skerry_contract.errors import (
    MemoryBudgetError,
    OverloadedError,
    SkerryError,
    SlotError,
    TransferError,
    UnavailableError,
)

from .context import Context
from .installer import Installer
from .log import get_logger
from .loop import Timer
from .preflight import BLAMELESS, Preflight
from .runner import Runner
from .slots import Generation, ModelSlots
from .update import Event, UpdateState

RETRY_SECONDS: Final = 15.0
RETRY_SECONDS_MOST: Final = 600.0
_TRANSIENT: Final = (TransferError, UnavailableError, OverloadedError, SlotError)
"""Of a download worth another try; a damaged blob was removed, so the next try fetches it."""
_log = get_logger("preparation")
T = TypeVar("T")


class Preparation:
    """Its public methods are actions of the machine."""

    def __init__(self, name: str, slots: ModelSlots, runner: Runner, context: Context) -> None:
        self._name = name
        self._slots = slots
        self._runner = runner
        self._c = context
        self._installer = Installer(name, slots, context)
        self._staged: Generation | None = None
        self._cancel: threading.Event | None = None
        self._preflight: Preflight | None = None
        self._retry: Timer | None = None
        self._attempts = 0
        self.progress = (0, 0)
        """Bytes done and bytes in total of the download."""

    def begin(self) -> None:
        """A new bundle was offered: forget the attempts at another one."""
        self._attempts = 0
        self.progress = (0, 0)

    def take_staged(self) -> Generation:
        """The generation that was built, once; raises `SlotError` if there is none."""
        staged, self._staged = self._staged, None
        if staged is None:
            raise SlotError("the staged generation is gone")
        return staged

    # --- actions ----------------------------------------------------------------------------------

    def describe(self) -> None:
        record = self._runner.record
        wait = random.uniform(0.0, max(0.0, record.jitter_s))  # noqa: S311
        self._submit(
            lambda cancelled: self._installer.describe(record, wait, cancelled),
            lambda _: self._runner.fire(Event.DESCRIBED),
        )

    def verify(self) -> None:
        record = self._runner.record
        device = replace(self._c.device, ram_budget_bytes=self._c.room.left_for(self._name))
        self._submit(
            lambda _: self._installer.verify(record, self._slots.floor(), device),
            lambda answer: self._runner.fire(Event.TRUSTED, variant=answer.variant, reason=answer.reason),
        )

    def fetch(self) -> None:
        record = self._runner.record
        self._submit(
            lambda cancelled: self._installer.fetch(record, cancelled, self._on_progress), self._built
        )

    def stage(self) -> None:
        record = self._runner.record
        self._submit(lambda _: self._installer.stage(record), self._built)

    def schedule(self) -> None:
        """Nothing speaks against a self-test at once."""
        self._runner.later(Event.DUE)

    def test(self) -> None:
        if self._staged is None:
            self._runner.later(Event.REFUSED, SlotError("the staged generation is gone"))
            return
        self._runner.change(self_tests=self._runner.record.self_tests + 1)
        self._preflight = Preflight(
            self._c.workers,
            self._staged,
            self._c.surroundings.ram_bytes,
            self._test_passed,
            self._test_failed,
        )

    def retry_later(self) -> None:
        self._attempts += 1
        most = min(RETRY_SECONDS_MOST, RETRY_SECONDS * 2 ** min(self._attempts - 1, 10))
        seconds = random.uniform(most / 2, most)  # noqa: S311
        _log.info("the download is tried again", extra={"model": self._name, "in_seconds": round(seconds)})
        self._retry = self._c.loop.call_later(seconds, self.describe)

    def abandon(self) -> None:
        """Stop whatever still runs."""
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

    # --- what comes back --------------------------------------------------------------------------

    def _built(self, generation: Generation) -> None:
        self._staged = generation
        self._runner.fire(Event.BUILT, generation=generation.number)

    def _test_passed(self) -> None:
        ready = self._preflight.ready if self._preflight is not None else None
        self._preflight = None
        try:
            self._c.room.check(self._name, ready.rss_bytes if ready is not None else 0)
        except MemoryBudgetError as error:
            # Beside fewer models it would fit: the bundle is not to blame.
            self._runner.fire(Event.REFUSED, error, self_tests=0)
        else:
            self._runner.fire(Event.PASSED, self_tests=0)

    def _test_failed(self, error: SkerryError) -> None:
        self._preflight = None
        event = Event.REFUSED if isinstance(error, BLAMELESS) else Event.CONDEMNED
        self._runner.fire(event, error, self_tests=0)

    def _submit(self, work: Callable[[threading.Event], T], then: Callable[[T], None]) -> None:
        self._cancel = self._c.jobs.submit(work, then, self._failed)

    def _failed(self, error: SkerryError) -> None:
        self._cancel = None
        by_network = self._runner.record.source == "fleet" and self._runner.state in (
            UpdateState.DOWNLOADING,
            UpdateState.VERIFYING,
        )
        if by_network and isinstance(error, _TRANSIENT):
            self._runner.fire(Event.INTERRUPTED, error)
        elif not self._runner.settled:
            self._runner.fire(Event.REFUSED, error)

    def _on_progress(self, done: int, total: int) -> None:
        """Called in the background thread."""
        self.progress = (done, total)
