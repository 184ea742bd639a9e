"""The workers of one model: at most one answers, and never none while a good one is left.

A swap is: the new one is ready -> it accepts -> the old one drains and stays warm. Both hold the same
listening sockets, so no connection is refused in between. An active worker that dies is replaced at once;
what its death says about the model is decided in `skerry_runtime.agent.model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from skerry_contract.errors import SkerryError
from skerry_contract.limits import MIB
from skerry_contract.messages import DeviceSettings

from ..ipc import Accept, CloseWindow, Drain, Health, Ready, Window
from .log import get_logger
from .loop import Timer
from .slots import EffectiveBudgets, Generation, variant_of
from .worker import Order, Worker
from .workers import Workers

DRAIN_SECONDS: Final = 10.0
RESPAWN_SECONDS: Final = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before the nth replacement in a row of a worker that dies."""
_HEADROOM: Final = 4
_log = get_logger("serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What every worker of this device is given."""

    workers: Workers
    sockets: Callable[[str], list[tuple[str, int]]]
    """Listening sockets of a model."""
    first_window: Callable[[], int]
    settings: Callable[[], DeviceSettings]
    boot: str
    tcp_token: str
    ram_bytes: int
    """Of the machine."""


class ServingEvents(Protocol):
    """Told by `Serving`, in the loop's thread."""

    def trial_active(self, worker: Worker) -> None:
        """The new generation answers now."""

    def trial_health(self, health: Health) -> None: ...

    def answering_health(self, health: Health) -> None:
        """Of the worker that gets the requests."""

    def trial_failed(self, error: SkerryError) -> None:
        """The new generation could not start, or its worker died."""

    def active_serving(self) -> None:
        """The good generation answers (again)."""

    def active_lost(self, error: SkerryError, *, started: bool) -> None:
        """The worker of the good generation died, or did not start; it is being replaced."""

    def window_closed(self, window: Window) -> None: ...


class Serving:
    """Implements `workers.Owner` for all workers of one model."""

    def __init__(self, name: str, surroundings: Surroundings, events: ServingEvents) -> None:
        self._name = name
        self._with = surroundings
        self._events = events
        self._good: Generation | None = None
        """What is to answer, unless a trial does."""
        self._trial: Generation | None = None
        self._good_worker: Worker | None = None
        self._trial_worker: Worker | None = None
        self._trial_accepts = False
        self._leaving: list[Worker] = []
        """Drained or stopping, no more of use."""
        self._deaths = 0
        self._respawn: Timer | None = None
        self._stopping = False

    # --- what answers -----------------------------------------------------------------------------

    @property
    def answering(self) -> Generation | None:
        """The generation that gets the requests, also while its worker is being replaced."""
        return self._trial if self._trial_accepts else self._good

    @property
    def wanted(self) -> bool:
        """A process runs for this model, or is being started."""
        return self._good is not None or self._trial is not None

    @property
    def worker(self) -> Worker | None:
        """The process that gets the requests now, if there is one."""
        worker = self._trial_worker if self._trial_accepts else self._good_worker
        return worker if worker is not None and worker.ready is not None else None

    # --- orders -----------------------------------------------------------------------------------

    def serve(self, generation: Generation) -> None:
        """Let a good generation answer; what answered before drains and ends when this one is ready."""
        if self._good_worker is not None:
            self._leaving.append(self._good_worker)
        self._good = generation
        self._deaths = 0
        self._start_good()

    def cease(self) -> None:
        """There is no good generation any more: nothing is started again."""
        self._good = None
        if self._respawn is not None:
            self._respawn.cancel()
            self._respawn = None

    def try_out(self, generation: Generation) -> None:
        """Start a new generation beside the good one; it answers as soon as it is ready."""
        self._trial = generation
        self._trial_accepts = False
        self._trial_worker = self._spawn(generation)

    def restore(self) -> None:
        """Let the good generation answer again; the trial ends."""
        trial, accepted = self._trial_worker, self._trial_accepts
        self._trial = self._trial_worker = None
        self._trial_accepts = False
        if self._good_worker is not None and self._good_worker.ready is not None:
            self._good_worker.send(Accept())
        elif self._good is not None and self._good_worker is None:
            self._start_good()
        if trial is not None:
            self._leaving.append(trial)
            if not accepted:
                trial.stop()
            elif self._good is None or (
                self._good_worker is not None and self._good_worker.ready is not None
            ):
                self._drain(trial)
            # Else the trial goes on until the good one is ready: an answer of it is better than none.

    def confirm(self) -> None:
        """The trial is the good one from now on; the one before ends."""
        before, self._good_worker = self._good_worker, self._trial_worker
        self._good, self._trial, self._trial_worker = self._trial, None, None
        self._trial_accepts = False
        self._deaths = 0
        if before is not None:
            self._leaving.append(before)
            before.stop()

    def close_window(self) -> None:
        """End the current window of what answers now."""
        if self.worker is not None:
            self.worker.send(CloseWindow())

    def configure(self) -> None:
        """Tell the workers the current settings."""
        settings = self._with.settings()
        for worker in filter(None, (self._good_worker, self._trial_worker)):
            worker.configure(settings.window_seconds, settings.window_rows)

    def stop(self) -> None:
        """Drain everything and let it end."""
        self._stopping = True
        if self._respawn is not None:
            self._respawn.cancel()
        # Some may be leaving already, and wait for one that will not be ready any more.
        self._leaving.extend(filter(None, (self._good_worker, self._trial_worker)))
        for worker in self._leaving:
            if worker.ready is None:
                worker.stop()
            else:
                self._drain(worker, DRAIN_SECONDS / 2)
        self._good_worker = self._trial_worker = None

    # --- workers.Owner ----------------------------------------------------------------------------

    def worker_ready(self, worker: Worker, ready: Ready) -> None:
        if worker is self._trial_worker:
            worker.send(Accept())
            self._trial_accepts = True
            if self._good_worker is not None:
                self._good_worker.send(Drain(deadline_s=DRAIN_SECONDS))
            self._events.trial_active(worker)
        elif worker is self._good_worker:
            # During a trial it only becomes warm.
            if not self._trial_accepts:
                worker.send(Accept())
                for old in self._leaving:
                    self._drain(old)
            self._events.active_serving()

    def worker_health(self, worker: Worker, health: Health) -> None:
        if worker is self.worker:
            self._events.answering_health(health)
        if worker is self._trial_worker:
            self._events.trial_health(health)
        elif worker is self._good_worker and health.requests > 0:
            self._deaths = 0

    def worker_window(self, worker: Worker, window: Window) -> None:
        self._events.window_closed(window)

    def worker_drained(self, worker: Worker) -> None:
        if worker in self._leaving:
            worker.stop()

    def worker_ended(self, worker: Worker, error: SkerryError) -> None:
        if worker in self._leaving:
            self._leaving.remove(worker)
        elif worker is self._trial_worker:
            self._trial_worker = None
            self._events.trial_failed(error)
        elif worker is self._good_worker:
            self._good_worker = None
            if self._stopping:
                return
            delay = RESPAWN_SECONDS[min(self._deaths, len(RESPAWN_SECONDS) - 1)]
            self._deaths += 1
            _log.error(
                "a worker ended and is replaced",
                extra={"model": self._name, "in_seconds": delay, "error": error},
            )
            self._respawn = self._with.workers.loop.call_later(delay, self._start_good)
            self._events.active_lost(error, started=worker.ready is not None)

    # --- parts ------------------------------------------------------------------------------------

    def _start_good(self) -> None:
        if self._respawn is not None:
            self._respawn.cancel()
            self._respawn = None
        if self._good is not None and not self._stopping:
            self._good_worker = self._spawn(self._good)

    def _drain(self, worker: Worker, seconds: float = DRAIN_SECONDS) -> None:
        """Let a worker that is no more of use finish its answers, but not for ever; then it is stopped."""
        worker.send(Drain(deadline_s=seconds))
        self._with.workers.loop.call_later(2 * seconds, worker.stop)

    def _spawn(self, generation: Generation) -> Worker:
        settings = self._with.settings()
        order = Order(
            role="serve",
            generation=str(generation.folder),
            engine=variant_of(generation).engine,
            sockets=self._with.sockets(self._name),
            ram_limit_bytes=hard_limit(generation.info.budgets, self._with.ram_bytes),
            window_seconds=settings.window_seconds,
            window_rows=settings.window_rows,
            first_window=self._with.first_window(),
            boot=self._with.boot,
            tcp_token=self._with.tcp_token,
        )
        return self._with.workers.spawn(order, self)


def hard_limit(budgets: EffectiveBudgets, machine_bytes: int) -> int:
    """Where the kernel refuses memory to a worker: far above the budget, far below the machine.

    The budget itself is judged by what the worker reports, so that a model over it is rolled back while it
    still answers; this limit is for one that asks for 256 GiB.
    """
    most = machine_bytes * 3 // 4
    return min(most, _HEADROOM * budgets.ram_bytes + 256 * MIB) if budgets.ram_bytes else most
