"""Plays the agent to a real zygote: forks real workers, hands them real sockets, reads what they say."""

from __future__ import annotations

import http.client
import json
import os
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tests.waiting import wait_until

from skerry_runtime.ipc import AnyMessage, Channel, Exited, Message, Spawn, Spawned

TIMEOUT = 120.0
M = TypeVar("M", bound=Message)


@dataclass(slots=True)
class Worker:
    """One forked worker and the agent's end of its channel."""

    pid: int
    channel: Channel
    seen: list[AnyMessage] = field(default_factory=list)

    def send(self, message: Message) -> None:
        self.channel.send(message)

    def expect(self, kind: type[M], timeout: float = TIMEOUT) -> M:
        """The next message of a kind; others are kept in ``seen``."""
        end = time.monotonic() + timeout
        while True:
            message = self._next(end - time.monotonic(), kind.__name__)
            assert message is not None, f"the worker ended instead of sending {kind.__name__}: {self.seen}"
            if isinstance(message, kind):
                return message
            self.seen.append(message)

    def expect_end(self, timeout: float = TIMEOUT) -> None:
        """Until the channel closes."""
        end = time.monotonic() + timeout
        while (message := self._next(end - time.monotonic(), "its end")) is not None:
            self.seen.append(message)

    def _next(self, timeout: float, what: str) -> AnyMessage | None:
        readable, _, _ = select.select([self.channel.sock], [], [], max(0.0, timeout))
        assert readable, f"timed out waiting for {what}; seen: {self.seen}"
        received = self.channel.receive()
        return None if received is None else received[0]


class ZygoteHarness:
    """A zygote process of its own; use as a context manager."""

    def __init__(self) -> None:
        self.channel, theirs = Channel.pair()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "skerry_runtime.worker.zygote", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self._workers: list[Worker] = []
        self._spawned: queue.Queue[Spawned] = queue.Queue()
        self.exited: dict[int, int] = {}
        """Wait status by process."""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def spawn(
        self, role: str, folder: Path, listeners: Sequence[socket.socket] = (), **options: Any
    ) -> Worker:
        """Have a worker forked."""
        ours, theirs = Channel.pair()
        kinds = tuple("unix" if s.family == socket.AF_UNIX else "tcp" for s in listeners)
        spawn = Spawn(id=len(self._workers), role=role, generation=str(folder), sockets=kinds, **options)
        self.channel.send(spawn, [theirs.fileno(), *(s.fileno() for s in listeners)])
        theirs.close()
        spawned = self._spawned.get(timeout=TIMEOUT)
        assert spawned.id == spawn.id
        worker = Worker(spawned.pid, ours)
        self._workers.append(worker)
        return worker

    def wait_exited(self, worker: Worker) -> int:
        """The wait status of a worker, as the zygote reported it."""
        wait_until(lambda: worker.pid in self.exited, f"exit of {worker.pid}")
        return self.exited[worker.pid]

    def __enter__(self) -> ZygoteHarness:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.sock.shutdown(socket.SHUT_RDWR)
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        self.channel.close()
        for worker in self._workers:
            worker.channel.close()

    def _read(self) -> None:
        while (received := self.channel.receive()) is not None:
            match received[0]:
                case Spawned() as spawned:
                    self._spawned.put(spawned)
                case Exited(pid=pid, status=status):
                    self.exited[pid] = status


def listen_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen(128)
    return sock


def listen_tcp() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0), backlog=128)
    return sock


class UnixConnection(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def connect(listener: socket.socket) -> http.client.HTTPConnection:
    """A client of a listening socket."""
    if listener.family == socket.AF_UNIX:
        return UnixConnection(listener.getsockname())
    host, port = listener.getsockname()
    return http.client.HTTPConnection(host, port, timeout=TIMEOUT)


def ask(
    client: http.client.HTTPConnection,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, dict[str, Any], http.client.HTTPMessage]:
    """Status, JSON and headers of an answer; a body that is no bytes is sent as JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    client.request(method, path, data, dict(headers or {}))
    response = client.getresponse()
    text = response.read()
    return response.status, json.loads(text) if text else {}, response.headers


def json_request(**tensors: np.ndarray) -> dict[str, Any]:
    """An ``infer`` body; float32 and int64 arrays."""
    names = {"f": "FP32", "i": "INT64"}
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": names[array.dtype.kind],
                "data": array.ravel().tolist(),
            }
            for name, array in tensors.items()
        ]
    }


def raw_exchange(listener: socket.socket, data: bytes) -> bytes:
    """Send bytes, close our side, read all that comes back."""
    with socket.socket(listener.family) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(listener.getsockname())
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return read_all(sock)


def read_all(sock: socket.socket) -> bytes:
    """Until the peer closes."""
    pieces = []
    try:
        while piece := sock.recv(65536):
            pieces.append(piece)
    except ConnectionResetError:
        pass  # an answer that was sent before the reset was read
    return b"".join(pieces)


def process_threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))
