"""One worker as the agent sees it: what it was ordered to be, what it said, how long it may be silent.

What its end means is decided by its owner; who forks it and reaps it, in `workers`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from skerry_contract.errors import EngineError, SelfTestError, SkerryError, UnavailableError

from ..ipc import (
    Adopted,
    AnyMessage,
    Channel,
    Drained,
    Failed,
    Health,
    Message,
    Ready,
    Settings,
    Stop,
    Window,
)
from .log import get_logger
from .loop import Loop, Timer

READY_SECONDS: Final = 60.0
"""From the spawn to `Ready`; a model that takes longer hangs."""
STOP_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 30.0
"""A serving worker reports about once a second; one that is silent for so long hangs."""
_log = get_logger("workers")


class Pool(Protocol):
    """What a worker needs of `workers.Workers`."""

    loop: Loop

    def closed(self, worker: Worker) -> None:
        """Its channel is of no use any more."""

    def zygote_hangs(self) -> None:
        """It was not forked in time."""

    def proved(self, engine: str) -> None:
        """It runs with this engine."""

    def outlives(self, worker: Worker) -> None:
        """It will not die with its zygote."""


class Owner(Protocol):
    """Told what becomes of one worker; in the loop's thread."""

    def worker_ready(self, worker: Worker, ready: Ready) -> None:
        """It loaded (serve) or passed (preflight)."""

    def worker_health(self, worker: Worker, health: Health) -> None: ...

    def worker_window(self, worker: Worker, window: Window) -> None: ...

    def worker_drained(self, worker: Worker) -> None: ...

    def worker_ended(self, worker: Worker, error: SkerryError) -> None:
        """Its process is gone: ``error`` says why. The last call for a worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to fork; see `Spawn`."""

    role: str
    generation: str
    engine: str
    sockets: Sequence[tuple[str, int]] = ()
    """Kind and descriptor of each listening socket."""
    ram_limit_bytes: int = 0
    window_seconds: float = 3600.0
    window_rows: int = 100_000
    first_window: int = 1
    boot: str = ""
    tcp_token: str = ""


class Worker:
    """One forked process, from the spawn to its end."""

    def __init__(
        self,
        pool: Pool,
        number: int,
        order: Order,
        owner: Owner,
        channel: Channel | None,
    ) -> None:
        self.number = number
        self.order = order
        self.owner = owner
        self.pid: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        """If the agent started it itself."""
        self.ready: Ready | None = None
        self.health: Health | None = None
        self.error: SkerryError | None = None
        """What it said, or what was found, before it ended."""
        self.stopping = False
        self.alive = True
        self._pool = pool
        self._channel = channel
        self._watchdog: Timer | None = None
        self._status: int | None = None
        self._closed = channel is None

    def send(self, message: Message) -> None:
        """To a dead worker nothing is sent; its end is reported anyway."""
        if self._channel is not None and not self._closed:
            try:
                self._channel.send(message)
            except UnavailableError:
                _log.debug("a worker was gone before a message", extra={"worker": self.number})

    def configure(self, window_seconds: float, window_rows: int) -> None:
        self.send(Settings(window_seconds=window_seconds, window_rows=window_rows))

    def stop(self) -> None:
        """Let it end by itself; after `STOP_SECONDS` it is killed."""
        if self.alive and not self.stopping:
            self.stopping = True
            self.send(Stop())
            self._watch(STOP_SECONDS, UnavailableError(f"worker {self.number} did not stop"))

    def kill(self, error: SkerryError) -> None:
        """SIGKILL; ``error`` is the reason that will be reported."""
        self.error = self.error or error
        # A worker that is not forked yet finds its channel closed as soon as it is.
        if not self.end_process():
            self._pool.closed(self)

    def end_process(self) -> bool:
        """SIGKILL, if there is a process that has not exited."""
        if self.pid is None or self._status is not None:
            return False
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    # --- called by the pool -----------------------------------------------------------------------

    def watch_start(self) -> None:
        what = "the self-test" if self.order.role == "preflight" else "loading the model"
        self._watch(
            READY_SECONDS,
            SelfTestError(
                f"{what} did not finish within {READY_SECONDS:.0f} s", hint="The model hangs on this device."
            ),
        )

    def on_message(self, message: AnyMessage) -> None:
        match message:
            case Ready():
                self.ready = message
                self._pool.proved(self.order.engine)
                self._quiet()
                self._watch_silence()
                self.owner.worker_ready(self, message)
            case Failed(error=report):
                self.error = report.to_error()
            case Health():
                self.health = message
                self._watch_silence()
                self.owner.worker_health(self, message)
            case Window():
                self.owner.worker_window(self, message)
            case Drained():
                self.owner.worker_drained(self)
            case Adopted():
                self._pool.outlives(self)
            case _:
                _log.warning("a worker sent what only the agent may", extra={"kind": type(message).__name__})

    def on_exit(self, status: int) -> None:
        self._status = status
        if self.process is not None:
            self.process.returncode = os.waitstatus_to_exitcode(status)
        if self._closed:
            self.finish()

    def on_close(self, channel_gone: bool) -> None:
        self._closed = channel_gone
        if self._status is not None:
            self.finish()

    def finish(self, zygote_died: bool = False) -> None:
        """Report the end, once."""
        if not self.alive:
            return
        self.alive = False
        self._quiet()
        self.owner.worker_ended(self, self.error or self._why(zygote_died))

    def _why(self, zygote_died: bool) -> SkerryError:
        if self.pid is None or zygote_died:
            return UnavailableError(
                "the process that runs models could not be started",
                hint="Check that an inference engine is installed, the free memory, and the daemon's log.",
            )
        what = {"preflight": "in the self-test", "serve": "while serving"}.get(self.order.role, "")
        if self._status is not None and os.WIFSIGNALED(self._status):
            name = signal.Signals(os.WTERMSIG(self._status)).name
            return SelfTestError(
                f"the model's process was killed by {name} {what}",
                hint="SIGILL: the processor lacks an instruction; SIGKILL: memory; else model or engine.",
            )
        return EngineError(
            f"the model's process ended {what} (status {self._status})",
            hint="See the daemon's log for its last words.",
        )

    def _watch_silence(self) -> None:
        if self.order.role == "serve" and not self.stopping:
            self._watch(
                SILENT_SECONDS,
                EngineError(f"the model's process said nothing for {SILENT_SECONDS:.0f} s: it hangs"),
            )

    def _watch(self, seconds: float, error: SkerryError) -> None:
        self._quiet()
        self._watchdog = self._pool.loop.call_later(seconds, lambda: self._overdue(error))

    def _overdue(self, error: SkerryError) -> None:
        if self.pid is None and not self._closed:
            self._pool.zygote_hangs()
        else:
            self.kill(error)

    def _quiet(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
