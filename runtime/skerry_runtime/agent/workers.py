"""Supervision of the zygote and of the workers that it forks.

A worker is dead when its channel closes; how it died is known a moment later from its parent. A zygote that
dies takes its workers with it, and the next spawn starts a new one; one that does not fork in time hangs and
is killed. A zygote that has had nothing to fork for a while retires, because it holds 10 MB or more that no
kernel can evict; its workers become children of the agent, as `adoption` says. Where memory is short, it
does not fork but becomes the worker. Nothing here decides what a death means.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skerry_contract.errors import SkerryError, UnavailableError
from skerry_contract.limits import MIB

from ..ipc import Adopt, AnyMessage, Channel, Exited, Message, Preload, Retire, Spawn, Spawned, Stop
from .adoption import can_adopt, wait_for_end
from .log import get_logger
from .loop import Loop, Timer
from .room import available_bytes
from .worker import STOP_SECONDS, Order, Owner, Worker

ZYGOTE: Final = "skerry_runtime.worker.zygote"
RETIRE_SECONDS: Final = 60.0
"""After the last fork, if all workers are up; a replacement takes a zygote's start longer from then on."""
FRUGAL_RETIRE_SECONDS: Final = 1.0
"""The same where memory is short."""
FRUGAL_BYTES: Final = 256 * MIB
"""With less than this to take, memory is short: a zygote does not fork, but becomes the worker itself."""
_EXIT_SECONDS: Final = 0.25
"""How long a closed channel waits for word on how the worker died."""
_log = get_logger("workers")


@dataclass(slots=True, eq=False)
class Zygote:
    """One process that forks workers."""

    channel: Channel
    process: subprocess.Popen[bytes] | None
    """None if it could not be started: its channel is closed then."""
    engines: set[str] = field(default_factory=set)
    """Imported there."""
    retiring: bool = False


class Workers:
    """The zygote and its workers; used in the loop's thread only."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._numbers = itertools.count(1)
        self._workers: dict[int, Worker] = {}
        self._channels: dict[int, Channel] = {}
        self._parents: dict[int, Zygote] = {}
        """Of the workers that are no children of this process."""
        self._zygote: Zygote | None = None
        """That forks; none between a retirement and the next spawn."""
        self._proved: set[str] = set()
        """Engines that a worker of this device is known to run with."""
        self._clinging: set[int] | None = None
        """During a retirement: numbers of the workers that would still die with their zygote."""
        self._rest: Timer | None = None
        self._closing = False

    @property
    def zygote_pid(self) -> int | None:
        process = self._zygote.process if self._zygote else None
        return process.pid if process and process.poll() is None else None

    def spawn(self, order: Order, owner: Owner) -> Worker:
        """Fork a worker; its owner hears of it from now on, also if it could not be forked."""
        number = next(self._numbers)
        try:
            zygote = self._ensure_zygote()
            ours, theirs = Channel.pair()
        except OSError as error:
            _log.error("there is no descriptor left for a worker", extra={"error": str(error)})
            stillborn = Worker(self, number, order, owner, None)
            self.loop.call_soon(stillborn.finish)
            return stillborn
        worker = Worker(self, number, order, owner, ours)
        become = self._frugal() and not self._children(zygote)
        self._workers[number], self._channels[number], self._parents[number] = worker, ours, zygote
        try:
            if not become:
                self._preload(zygote, order)
            zygote.channel.send(
                Spawn(
                    id=number,
                    role=order.role,
                    become=become,
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
        if become:
            self._has_become(zygote, worker)
        return worker

    def alive(self) -> int:
        """How many workers are not reported as ended."""
        return len(self._workers)

    def start(self) -> None:
        """Have the zygote import its libraries before the first model is wanted."""
        can_adopt()
        self._ensure_zygote()

    def close(self) -> None:
        """End the zygote, and with it whatever worker is left."""
        self._closing = True
        if self._rest is not None:
            self._rest.cancel()
        if self._zygote is not None:
            self._send(self._zygote, Stop())
            self._end_zygote(self._zygote)
        for worker in self._workers.values():
            worker.end_process()

    def closed(self, worker: Worker) -> None:
        """The worker's channel has closed, or is of no use any more."""
        channel = self._channels.pop(worker.number, None)
        if channel is None:
            return
        self.loop.remove_reader(channel)
        channel.close()
        self.outlives(worker)
        worker.on_close(channel_gone=True)
        if worker.alive:
            if worker.number not in self._parents:
                self._wait_for(worker)
            self.loop.call_later(_EXIT_SECONDS, lambda: self._finish(worker))
        else:
            self._forget(worker)

    def zygote_hangs(self) -> None:
        """A worker was not forked in time: begin again with another zygote."""
        _log.error("the zygote does not fork: it is replaced")
        if self._zygote is not None:
            self._zygote_gone(self._zygote)

    def proved(self, engine: str) -> None:
        """A worker runs with this engine, so importing it is harmless here."""
        self._proved.add(engine)

    # --- the zygote -------------------------------------------------------------------------------

    def _ensure_zygote(self) -> Zygote:
        self._stay()
        if self._zygote is not None:
            return self._zygote
        ours, theirs = Channel.pair()
        # -I: neither the environment nor the current folder can plant a module in it.
        command = [sys.executable, "-I", "-m", ZYGOTE, "--fd", str(theirs.fileno())]
        process = None
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                cwd="/",
                process_group=0,  # Ctrl-C is the agent's alone
            )
        except OSError as error:
            _log.error("the zygote cannot be started", extra={"error": str(error)})
            # Its channel closes now, and every spawn over it reports the failure.
        finally:
            theirs.close()
        zygote = self._zygote = Zygote(ours, process)
        self.loop.add_reader(ours, lambda: self._read_zygote(zygote))
        return zygote

    def _preload(self, zygote: Zygote, order: Order) -> None:
        """Import the engine once for all workers; where memory is short each does it for itself."""
        if order.engine not in zygote.engines and not self._frugal():
            zygote.engines.add(order.engine)
            # What serves has passed its self-test here.
            proved = order.role == "serve" or order.engine in self._proved
            zygote.channel.send(Preload(engine=order.engine, proved=proved))

    def _read_zygote(self, zygote: Zygote) -> None:
        message = _receive(zygote.channel)
        match message:
            case None:
                self._zygote_gone(zygote)
            case Spawned(id=number, pid=pid) if number in self._workers:
                self._workers[number].pid = pid
            case Spawned(pid=pid):
                # Nobody wants it any more, and a model that hangs would never see its channel closed.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            case Exited(pid=pid, status=status):
                for worker in self._children(zygote):
                    if worker.pid == pid:
                        self._exited(worker, status)
            case _:
                _log.warning("the zygote sent what it must not", extra={"kind": type(message).__name__})

    def _zygote_gone(self, zygote: Zygote) -> None:
        """It has ended, or is of no use."""
        if zygote is self._zygote:
            self._zygote = None
            self._clinging = None
            if not self._closing:
                _log.error("the zygote is gone; the next model starts a new one")
        self.loop.remove_reader(zygote.channel)
        zygote.channel.close()
        if zygote.process is not None:
            if not zygote.retiring:
                zygote.process.kill()
            self._wait(zygote.process)
        for worker in self._children(zygote):
            if zygote.retiring:
                self._adopt(worker)
                continue
            # Its death follows from the zygote's: the model is not to blame.
            if worker.end_process() and worker.pid is not None:
                wait_for_end(self.loop, worker.pid)
            self._close_channel(worker)
            worker.finish(zygote_died=True)
            self._forget(worker)

    def _end_zygote(self, zygote: Zygote) -> None:
        self.loop.remove_reader(zygote.channel)
        zygote.channel.close()
        if zygote.process is not None:
            self._wait(zygote.process)
        self._zygote = None

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _has_become(self, zygote: Zygote, worker: Worker) -> None:
        """This zygote is a worker now, and the agent its parent."""
        self._zygote = self._clinging = None
        self.loop.remove_reader(zygote.channel)
        zygote.channel.close()
        del self._parents[worker.number]
        if zygote.process is not None:
            worker.pid, worker.process = zygote.process.pid, zygote.process

    # --- its retirement ---------------------------------------------------------------------------

    def _stay(self) -> None:
        """The zygote is needed: a retirement that was begun is called off."""
        if self._rest is not None:
            self._rest.cancel()
        seconds = FRUGAL_RETIRE_SECONDS if self._frugal() else RETIRE_SECONDS
        self._rest = self.loop.call_later(seconds, self._prepare_retirement)
        zygote = self._zygote
        if self._clinging is not None and zygote is not None and zygote.process is not None:
            for worker in self._children(zygote):
                worker.send(Adopt(parent=zygote.process.pid))
        self._clinging = None

    def _prepare_retirement(self) -> None:
        """Have every worker say that it will not die with the zygote."""
        zygote = self._zygote
        if zygote is None or self._closing or not can_adopt():
            return
        children = self._children(zygote)
        if any(worker.ready is None or worker.pid is None or worker.stopping for worker in children):
            self._stay()
            return
        self._clinging = {worker.number for worker in children}
        for worker in children:
            worker.send(Adopt(parent=0))
        self._retire_if_free()

    def outlives(self, worker: Worker) -> None:
        """This worker will not die with its zygote, or is dead."""
        if self._clinging is not None:
            self._clinging.discard(worker.number)
            self._retire_if_free()

    def _frugal(self) -> bool:
        return available_bytes() < FRUGAL_BYTES

    def _retire_if_free(self) -> None:
        if not self._clinging and self._zygote is not None:
            zygote, self._zygote, self._clinging = self._zygote, None, None
            zygote.retiring = True
            _log.info("the zygote retires until it is needed")
            self._send(zygote, Retire())

    def _adopt(self, worker: Worker) -> None:
        """Its zygote has retired: this process is its parent now."""
        self._parents.pop(worker.number, None)
        if worker.number in self._channels:
            worker.send(Adopt(parent=os.getpid()))
        else:
            self._wait_for(worker)

    def _children(self, zygote: Zygote) -> list[Worker]:
        return [self._workers[number] for number, parent in self._parents.items() if parent is zygote]

    def _send(self, zygote: Zygote, message: Message) -> None:
        try:
            zygote.channel.send(message)
        except UnavailableError:
            _log.debug("the zygote was gone before a message")

    # --- workers ----------------------------------------------------------------------------------

    def _read(self, worker: Worker) -> None:
        channel = self._channels.get(worker.number)
        message = _receive(channel) if channel is not None else None
        if message is None:
            self.closed(worker)
        else:
            worker.on_message(message)

    def _wait_for(self, worker: Worker) -> None:
        """It is a child of this process, and about to end."""
        if worker.pid is not None:
            wait_for_end(self.loop, worker.pid, lambda status: self._exited(worker, status))

    def _exited(self, worker: Worker, status: int) -> None:
        worker.on_exit(status)
        if not worker.alive:
            self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        self._workers.pop(worker.number, None)
        self._parents.pop(worker.number, None)

    def _finish(self, worker: Worker) -> None:
        if worker.number in self._workers:
            self._forget(worker)
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
