"""The self-test: a disposable worker loads the generation, runs the golden samples and is judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from skerry_contract.errors import ConflictError, SkerryError, SlotError, StorageError, UnavailableError

from ..ipc import Health, Ready, Window
from .health import check_self_test
from .serving import hard_limit
from .slots import Generation, variant_of
from .worker import Order, Worker
from .workers import Workers

BLAMELESS: Final = (UnavailableError, StorageError, SlotError)
"""Errors of the device, not of the model: the bundle is not quarantined and may come again."""


class Preflight:
    """The self-test in a disposable worker. Implements `workers.Owner`."""

    def __init__(
        self,
        workers: Workers,
        generation: Generation,
        machine_bytes: int,
        passed: Callable[[], None],
        failed: Callable[[SkerryError], None],
    ) -> None:
        self._generation = generation
        self._passed = passed
        self._failed = failed
        self._over = False
        self.ready: Ready | None = None
        """What it measured, once it has passed."""
        order = Order(
            role="preflight",
            generation=str(generation.folder),
            engine=variant_of(generation).engine,
            ram_limit_bytes=hard_limit(generation.info.budgets, machine_bytes),
        )
        self._worker = workers.spawn(order, self)

    def cancel(self) -> None:
        self._over = True
        self._worker.kill(ConflictError("the self-test was cancelled"))

    def worker_ready(self, worker: Worker, ready: Ready) -> None:
        if self._over:
            return
        self._over = True
        worker.stop()
        try:
            check_self_test(ready, self._generation.info.budgets)
        except SkerryError as error:
            self._failed(error)
        else:
            self.ready = ready
            self._passed()

    def worker_ended(self, worker: Worker, error: SkerryError) -> None:
        if not self._over:
            self._over = True
            self._failed(error)

    def worker_health(self, worker: Worker, health: Health) -> None:
        """A self-test has no traffic."""

    def worker_window(self, worker: Worker, window: Window) -> None:
        """A self-test closes no window."""

    def worker_drained(self, worker: Worker) -> None:
        """A self-test is not drained."""
