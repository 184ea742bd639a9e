"""Supervision of the zygote and of the workers that it forks.

A worker is dead when its channel closes; how it died is known a moment later from the zygote. A zygote that
dies takes its workers with it, and the next spawn starts a new one; one that does not fork in time hangs and
is killed. Nothing here decides what a death means.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from skerry_contract.errors import EngineError, SelfTestError, SkerryError, UnavailableError

from ..ipc import (
    AnyMessage,
    Channel,
    Drained,
    Exited,
    Failed,
    Health,
    Ready,
    Settings,
    Spawn,
    Spawned,
    Stop,
    Window,
)
from ..ipc import Message as IpcMessage
from .log import get_logger
from .loop import Loop, Timer

ZYGOTE: Final = "skerry_runtime.worker.zygote"
READY_SECONDS: Final = 60.0
"""From the spawn to `Ready`; a model that takes longer hangs."""
STOP_SECONDS: Final = 10.0
SILENT_SECONDS: Final = 30.0
"""A serving worker reports about once a second; one that is silent for so long hangs."""
_EXIT_SECONDS: Final = 0.25
"""How long a closed channel waits for the zygote's word on how the worker died."""
_log = get_logger("workers")


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

    def __init__(self, pool: Workers, number: int, order: Order, owner: Owner, channel: Channel) -> None:
        self.number = number
        self.order = order
        self.owner = owner
        self.pid: int | None = None
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
        self._closed = False

    def send(self, message: IpcMessage) -> None:
        """To a dead worker nothing is sent; its end is reported anyway."""
        if not self._closed:
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
            case _:
                _log.warning("a worker sent what only the agent may", extra={"kind": type(message).__name__})

    def on_exit(self, status: int) -> None:
        self._status = status
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


class Workers:
    """The zygote and its workers; used in the loop's thread only."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._numbers = itertools.count(1)
        self._workers: dict[int, Worker] = {}
        self._channels: dict[int, Channel] = {}
        self._zygote: subprocess.Popen[bytes] | None = None
        self._zygote_channel: Channel | None = None
        self._closing = False

    @property
    def zygote_pid(self) -> int | None:
        return self._zygote.pid if self._zygote and self._zygote.poll() is None else None

    def spawn(self, order: Order, owner: Owner) -> Worker:
        """Fork a worker; its owner hears of it from now on, also if it could not be forked."""
        zygote = self._ensure_zygote()
        ours, theirs = Channel.pair()
        number = next(self._numbers)
        worker = Worker(self, number, order, owner, ours)
        self._workers[number] = worker
        self._channels[number] = ours
        try:
            zygote.send(
                Spawn(
                    id=number,
                    role=order.role,
                    generation=order.generation,
                    sockets=tuple(kind for kind, _ in order.sockets),
                    ram_limit_bytes=order.ram_limit_bytes,
                    window_seconds=order.window_seconds,
                    window_rows=order.window_rows,
                    first_window=order.first_window,
                    boot=order.boot,
                    tcp_token=order.tcp_token,
                ),
                (theirs.fileno(), *(descriptor for _, descriptor in order.sockets)),
            )
        except UnavailableError:
            # The zygote's own channel has closed too: its reader reports the end of all workers.
            _log.debug("the zygote was gone before a spawn")
        finally:
            theirs.close()
        self.loop.add_reader(ours, lambda: self._read(worker))
        worker.watch_start()
        return worker

    def alive(self) -> int:
        """How many workers are not reported as ended."""
        return len(self._workers)

    def start(self) -> None:
        """Have the zygote import its libraries before the first model is wanted."""
        self._ensure_zygote()

    def close(self) -> None:
        """End the zygote, and with it whatever worker is left."""
        self._closing = True
        if self._zygote_channel is not None:
            self.loop.remove_reader(self._zygote_channel)
            try:
                self._zygote_channel.send(Stop())
            except UnavailableError:
                _log.debug("the zygote was gone before it was stopped")
            self._zygote_channel.close()
            self._zygote_channel = None
        if self._zygote is not None:
            try:
                self._zygote.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._zygote.kill()
                self._zygote.wait()

    def closed(self, worker: Worker) -> None:
        """The worker's channel has closed, or is of no use any more."""
        channel = self._channels.pop(worker.number, None)
        if channel is None:
            return
        self.loop.remove_reader(channel)
        channel.close()
        worker.on_close(channel_gone=True)
        if worker.alive:
            self.loop.call_later(_EXIT_SECONDS, lambda: self._finish(worker))
        else:
            self._workers.pop(worker.number, None)

    def zygote_hangs(self) -> None:
        """A worker was not forked in time: begin again with another zygote."""
        _log.error("the zygote does not fork: it is replaced")
        self._zygote_gone()

    # --- the zygote -------------------------------------------------------------------------------

    def _ensure_zygote(self) -> Channel:
        if self._zygote_channel is not None:
            return self._zygote_channel
        ours, theirs = Channel.pair()
        # -I: neither the environment nor the current folder can plant a module in it.
        command = [sys.executable, "-I", "-m", ZYGOTE, "--fd", str(theirs.fileno())]
        try:
            self._zygote = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
            )
        except OSError as error:
            _log.error("the zygote cannot be started", extra={"error": str(error)})
            # Its channel closes now, and every spawn over it reports the failure.
        finally:
            theirs.close()
        self._zygote_channel = ours
        self.loop.add_reader(ours, self._read_zygote)
        return ours

    def _read_zygote(self) -> None:
        channel = self._zygote_channel
        message = _receive(channel) if channel is not None else None
        match message:
            case None:
                self._zygote_gone()
            case Spawned(id=number, pid=pid) if number in self._workers:
                self._workers[number].pid = pid
            case Spawned(pid=pid):
                # Nobody wants it any more, and a model that hangs would never see its channel closed.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            case Exited(pid=pid, status=status):
                for worker in list(self._workers.values()):
                    if worker.pid == pid:
                        worker.on_exit(status)
                        if not worker.alive:
                            self._workers.pop(worker.number, None)
            case _:
                _log.warning("the zygote sent what it must not", extra={"kind": type(message).__name__})

    def _zygote_gone(self) -> None:
        if self._zygote_channel is None:
            return
        if not self._closing:
            _log.error("the zygote is gone; the next model starts a new one")
        self.loop.remove_reader(self._zygote_channel)
        self._zygote_channel.close()
        self._zygote_channel = None
        if self._zygote is not None:
            self._zygote.kill()
            self._zygote.wait()
            self._zygote = None
        for worker in list(self._workers.values()):
            # Its death follows from the zygote's: the model is not to blame.
            self._close_channel(worker)
            worker.finish(zygote_died=True)
            self._workers.pop(worker.number, None)

    # --- workers ----------------------------------------------------------------------------------

    def _read(self, worker: Worker) -> None:
        channel = self._channels.get(worker.number)
        message = _receive(channel) if channel is not None else None
        if message is None:
            self.closed(worker)
        else:
            worker.on_message(message)

    def _finish(self, worker: Worker) -> None:
        if worker.number in self._workers:
            self._workers.pop(worker.number)
            # Nobody heard it exit: a process that closed its channel and lingers is of no use.
            worker.end_process()
            worker.finish()

    def _close_channel(self, worker: Worker) -> None:
        channel = self._channels.pop(worker.number, None)
        if channel is not None:
            self.loop.remove_reader(channel)
            channel.close()


def _receive(channel: Channel) -> AnyMessage | None:
    """The next message; None if the peer is gone, or says what nobody understands."""
    try:
        received = channel.receive()
    except (OSError, msgspec.DecodeError, SkerryError) as error:
        _log.error("a process sent an unreadable message", extra={"error": str(error)})
        return None
    if received is None:
        return None
    message, descriptors = received
    for descriptor in descriptors:
        os.close(descriptor)
    return message
