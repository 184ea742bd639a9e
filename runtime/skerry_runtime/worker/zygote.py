"""The process that forks workers: numpy and an engine are imported once, here, without a session.

It is single-threaded, so a fork copies no lock in the middle of its use. It ends when its channel closes,
and its workers with it; or it retires, and leaves them to the agent.
"""

from __future__ import annotations

import argparse
import gc
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from skerry_contract.errors import EngineError, UnavailableError

from ..ipc import AnyMessage, Channel, Exited, Preload, Retire, Spawn, Spawned, Stop
from . import process
from .limits import DEFAULT_SERVE_LIMITS

Role = Callable[[Channel, Spawn, Sequence[tuple[socket.socket, str]]], int]
_FAILED: Final = 70
"""Exit status of a worker that failed by an error of its own code; the traceback is on stderr."""


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m skerry_runtime.worker.zygote --fd N``"""
    parser = argparse.ArgumentParser(prog="skerry-zygote", description="Forks the workers of skerry-runtime.")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the channel to the agent")
    channel = Channel(socket.socket(fileno=parser.parse_args(arguments).fd))
    channel.sock.set_inheritable(False)
    process.name_process("skerry-zygote")
    process.silence_standard_streams()
    process.few_arenas()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the agent's to handle
    roles = _import_roles()
    _settle()
    try:
        return Zygote(channel, roles).run()
    except UnavailableError:
        return 0  # the agent is gone, and the workers end with this process


def _import_roles() -> dict[str, Role]:
    """Import all that a worker needs; here and not above, because the libraries read these when imported."""
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ[f"{library}_NUM_THREADS"] = "1"
    from .preflight import preflight
    from .server import serve

    return {"serve": serve, "preflight": lambda channel, spawn, _: preflight(channel, spawn)}


def _settle() -> None:
    """Leave as little as can be for a fork to copy, and nothing for a worker's collections to touch."""
    gc.collect()
    gc.freeze()
    process.give_back_memory()


class Zygote:
    """Forks on `Spawn`, reports `Spawned` and `Exited`."""

    def __init__(self, channel: Channel, roles: dict[str, Role]) -> None:
        self._channel, self._roles = channel, roles
        self._workers: set[int] = set()
        self._signal_read, self._signal_write = socket.socketpair()
        for end in (self._signal_read, self._signal_write):
            end.setblocking(False)

    def run(self) -> int:
        """Until the agent says stop, or is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._signal_write.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel.sock, selectors.EVENT_READ)
            selector.register(self._signal_read, selectors.EVENT_READ)
            going = True
            while going:
                for key, _ in selector.select():
                    if key.fileobj is self._signal_read:
                        self._signal_read.recv(4096)
                        self._reap()
                    else:
                        received = self._channel.receive()
                        going = received is not None and self._obey(*received)
        self._end_workers()
        return 0

    def _obey(self, message: AnyMessage, descriptors: list[int]) -> bool:
        """Whether to go on."""
        match message:
            case Spawn(sockets=sockets) if len(descriptors) == 1 + len(sockets):
                self._spawn(message, descriptors)
            case Preload(engine=engine, proved=proved):
                if proved or _is_harmless(engine):
                    _import(engine)
                    _settle()
            case Retire():
                self._workers.clear()
        for descriptor in descriptors:
            os.close(descriptor)  # the worker has its own; kept here they would never close
        return not isinstance(message, Stop | Retire)

    def _spawn(self, spawn: Spawn, descriptors: list[int]) -> None:
        zygote = os.getpid()
        if spawn.become:
            self._become_worker(os.getppid(), spawn, descriptors)
        try:
            pid = os.fork()
        except OSError as error:  # no memory or no process: the agent sees the worker's channel close
            print(f"skerry zygote: cannot fork: {error}", file=sys.stderr, flush=True)
            return
        if pid == 0:
            self._become_worker(zygote, spawn, descriptors)
        self._workers.add(pid)
        self._channel.send(Spawned(id=spawn.id, pid=pid))

    def _become_worker(self, parent: int, spawn: Spawn, descriptors: list[int]) -> NoReturn:
        """In the child, or instead of forking one."""
        status = _FAILED
        try:
            process.die_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for own in (self._channel.sock, self._signal_read, self._signal_write):
                own.close()
            process.name_process(f"skerry-{spawn.role}")
            process.die_first(on_trial=spawn.role == "preflight")
            process.limit_memory(spawn.ram_limit_bytes, threads=DEFAULT_SERVE_LIMITS.connections)
            channel = Channel(socket.socket(fileno=descriptors[0]))
            sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors[1:]]
            status = self._roles[spawn.role](channel, spawn, list(zip(sockets, spawn.sockets, strict=True)))
        except UnavailableError:
            status = 0  # the agent is gone: nobody is left to be told
        except BaseException:  # noqa: BLE001 - the process' end: whatever it is must not run the zygote's code
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while self._workers:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._workers.discard(pid)
            self._channel.send(Exited(pid=pid, status=status))

    def _end_workers(self) -> None:
        for pid in self._workers:
            os.kill(pid, signal.SIGKILL)
        for pid in self._workers:
            os.waitpid(pid, 0)


def _is_harmless(engine: str) -> bool:
    """Try the import in a process that it may kill, as a library for other processors does."""
    zygote, pid = os.getpid(), os.fork()
    if pid == 0:
        status = _FAILED
        try:
            process.die_with_parent(zygote)
            _import(engine)
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1] == 0


def _import(engine: str) -> None:
    from .engines import import_engine

    try:
        import_engine(engine)
    except EngineError as error:  # the worker that wants it finds the same, and reports it
        print(f"skerry zygote: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    # Python's own end would touch, and so copy, every page that is shared with the workers.
    os._exit(main())
