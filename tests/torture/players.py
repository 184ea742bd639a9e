"""What runs beside the agent's models, played in one thread: the loop, jobs, workers, listeners."""

from __future__ import annotations

import collections
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import SelfTestError, SkerryError, UnavailableError
from skerry_runtime.agent.jobs import Jobs
from skerry_runtime.agent.listeners import Listeners
from skerry_runtime.agent.loop import Loop, Timer
from skerry_runtime.agent.worker import Order, Owner, Worker
from skerry_runtime.agent.workers import Workers
from skerry_runtime.ipc import Accept, Drain, Health, Ready
from skerry_runtime.ipc import Message as IpcMessage

_READY: Final = Ready(load_ms=1.0, latency_p50_us=1.0, latency_p95_us=1.0, rss_bytes=1, engine_version="99.0")
_RETRIES: Final = 4
"""How often time passes on the desk: timers that are set anew each time come to an end."""


class DeskLoop(Loop):
    """Calls what is due until nothing is; an exception there would be a traceback in the daemon's log."""

    def __init__(self) -> None:
        self._ready = collections.deque()
        self._later: list[Timer] = []
        self.faults: list[str] = []

    def call_soon(self, call: Callable[[], None]) -> None:
        self._ready.append(call)

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self._later.append(Timer(call))
        return self._later[-1]

    def run(self) -> None:
        while self._ready:
            call = self._ready.popleft()
            try:
                call()
            except Exception:  # noqa: BLE001 - as the daemon's loop; kept, to be judged
                self.faults.append(traceback.format_exc())

    def pass_time(self) -> None:
        """Whatever was put off is due now."""
        for _ in range(_RETRIES):
            self.run()
            due, self._later = self._later, []
            for timer in due:
                if timer.call is not None:
                    self.call_soon(timer.call)
        self.run()


@dataclass(slots=True, kw_only=True)
class Play:
    """How the workers behave."""

    engine: bool = False
    """They load the model for real, and run its golden samples."""
    silent: bool = False
    """They never report, so that a trial goes on."""
    canary_ok: bool = True
    """If not, what they report condemns a trial."""
    loop: DeskLoop = field(default_factory=DeskLoop)


class DeskJobs(Jobs):
    """Runs a job at once, and tells the loop."""

    def __init__(self, loop: DeskLoop) -> None:
        self._loop = loop

    def submit(self, work: Any, then: Any, failed: Any) -> Any:
        cancelled = threading.Event()

        def deliver(call: Callable[[], None]) -> None:
            self._loop.call_soon(lambda: None if cancelled.is_set() else call())

        try:
            result = work(cancelled)
        except SkerryError as error:
            failure = error
            deliver(lambda: failed(failure))
        else:
            deliver(lambda: then(result))
        return cancelled


class DeskWorker(Worker):
    """A process that does what it is told, at once."""

    def __init__(self, play: Play, number: int, order: Order, owner: Owner) -> None:
        self.number, self.order, self.owner = number, order, owner
        self.parent = None
        self.pid = None
        self.ready = None
        self.health = None
        self.error = None
        self.stopping = False
        self.alive = True
        self._play = play

    def begin(self) -> None:
        if not self.alive:
            return
        try:
            if self._play.engine:
                run_golden(Path(self.order.generation))
        except SkerryError as error:
            self._end(error)
            return
        self.ready = _READY
        self.owner.worker_ready(self, _READY)

    def send(self, message: IpcMessage) -> None:
        match message:
            case Accept() if self.order.role == "serve" and not self._play.silent:
                self._play.loop.call_soon(self._report)
            case Drain():
                self._play.loop.call_soon(lambda: self.owner.worker_drained(self))

    def stop(self) -> None:
        if self.alive and not self.stopping:
            self.stopping = True
            self._play.loop.call_soon(lambda: self._end(UnavailableError("it was stopped")))

    def kill(self, error: SkerryError) -> None:
        self._play.loop.call_soon(lambda: self._end(error))

    def _report(self) -> None:
        if self.alive:
            self.owner.worker_health(
                self,
                Health(
                    requests=1,
                    failures=0,
                    latency_p95_us=1.0,
                    rss_bytes=1,
                    in_flight=0,
                    canary_ok=self._play.canary_ok,
                    canaries=1,
                ),
            )

    def _end(self, error: SkerryError) -> None:
        if self.alive:
            self.alive = False
            self.owner.worker_ended(self, error)


class DeskWorkers(Workers):
    def __init__(self, play: Play) -> None:
        self.loop = play.loop
        self._play = play
        self._count = 0

    def spawn(self, order: Order, owner: Owner) -> Worker:
        self._count += 1
        worker = DeskWorker(self._play, self._count, order, owner)
        self.loop.call_soon(worker.begin)
        return worker


class DeskListeners(Listeners):
    """Nobody calls."""

    def __init__(self) -> None:
        self.silent: list[str] = []

    def open(self, model: str, front: bool) -> list[tuple[str, int]]:
        return []

    def refuse(self, model: str, front: bool) -> None:
        self.silent.append(model)


def run_golden(folder: Path) -> None:
    """Load the model for real and compare its answers; raises what a worker would report."""
    from skerry_runtime.worker.generation import load_generation
    from skerry_runtime.worker.loaded import load_model

    model = load_model(load_generation(folder))
    if not model.generation.golden.samples:
        raise SelfTestError("there is no golden sample")
    for index in range(len(model.generation.golden.samples)):
        model.run_golden(index)
