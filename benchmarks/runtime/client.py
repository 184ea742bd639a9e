"""The load generator: raw sockets, whole requests made before, answers read by their Content-Length.

The same code for every server, in a process of its own; it parses nothing of an answer but its head. What it
needs of the processor itself is measured too.
"""

from __future__ import annotations

import select
import socket
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any

from .children import serve
from .spread import quantile

Address = str | tuple[str, int]
_TIMEOUT_S = 30.0


class BadAnswerError(RuntimeError):
    """Not 200."""


class Connection:
    """One keep-alive connection."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.socket = self._connect()
        self.reconnected = 0

    def _connect(self) -> socket.socket:
        if isinstance(self._address, str):
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.settimeout(_TIMEOUT_S)
        made.connect(self._address)
        return made

    def again(self) -> None:
        """A new connection in the place of this one."""
        self.socket.close()
        self.socket = self._connect()
        self.reconnected += 1

    def ask(self, request: bytes) -> bytes:
        """The body of the answer. Raises OSError or `BadAnswerError`."""
        self.socket.sendall(request)
        data = self.socket.recv(1 << 16)
        while (missing := missing_bytes(data)) != 0:
            piece = self.socket.recv(1 << 16)
            if not piece:
                raise ConnectionResetError(f"closed with {missing} bytes missing")
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        if data[9:12] != b"200":
            raise BadAnswerError(data[:400].decode(errors="replace"))
        if b"\r\nconnection: close" in head.lower():
            self.again()
        return body

    def ask_kept(self, request: bytes) -> bytes:
        """As `ask`; a connection that the server closed while it was idle is opened again, as clients do."""
        try:
            return self.ask(request)
        except BrokenPipeError:
            self.again()
            return self.ask(request)


def missing_bytes(data: bytes) -> int:
    """How much of an answer is still to come; -1 while its head is not complete. Pure."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return -1
    lower = data[:end].lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ValueError("the answer has no Content-Length")
    return end + 4 + int(data[at + 17 :].split(b"\r\n", 1)[0]) - len(data)


class Client:
    """What the controller asks for."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._kept: Connection | None = None

    def one(self, request: str) -> dict[str, Any]:
        """The body of one answer, for the check that everybody says the same."""
        connection = Connection(self._address)
        connection.socket.sendall(b64decode(request))
        data = b""
        while not data or missing_bytes(data) != 0:
            data += connection.socket.recv(1 << 16)
        connection.socket.close()
        head, _, body = data.partition(b"\r\n\r\n")
        if data[9:12] != b"200":
            raise BadAnswerError(data[:400].decode(errors="replace"))
        return {"head": head.decode(), "body": b64encode(body).decode()}

    def latency(self, request: str, count: int) -> dict[str, Any]:
        """One request after the other; microseconds."""
        data = b64decode(request)
        self._kept = self._kept or Connection(self._address)
        ask, clock = self._kept.ask, time.perf_counter_ns
        times = []
        for _ in range(count):
            begin = clock()
            ask(data)
            times.append((clock() - begin) / 1000)
        return {"p50": quantile(times, 0.5), "p95": quantile(times, 0.95), "p99": quantile(times, 0.99)}

    def rate(self, request: str, connections: int, seconds: float) -> dict[str, Any]:
        """As many requests as the server answers, one under way on each connection."""
        data = b64decode(request)
        clients = [Connection(self._address) for _ in range(connections)]
        poller = select.epoll()
        buffers = {client.socket.fileno(): b"" for client in clients}
        sockets = {client.socket.fileno(): client.socket for client in clients}
        for number, sock in sockets.items():
            poller.register(number, select.EPOLLIN)
            sock.sendall(data)
        answered = 0
        cpu, begin = time.process_time(), time.perf_counter()
        end = begin + seconds
        while (now := time.perf_counter()) < end:
            for number, _ in poller.poll(1.0):
                got = buffers[number] + sockets[number].recv(1 << 16)
                if missing_bytes(got):
                    buffers[number] = got
                    continue
                if got[9:12] != b"200":
                    raise BadAnswerError(got[:400].decode(errors="replace"))
                buffers[number] = b""
                answered += 1
                sockets[number].sendall(data)
        cpu = time.process_time() - cpu
        poller.close()
        for sock in sockets.values():
            sock.close()
        return {"per_second": answered / (now - begin), "client_cpu": cpu / (now - begin)}

    def paced(self, requests: Sequence[str], per_second: float, until: float) -> dict[str, Any]:
        """Requests at a fixed rate until ``until`` (CLOCK_MONOTONIC); microseconds from when each was due.

        A request that waits because the one before is late counts its wait; that this process wakes up late
        does not count.
        """
        asked = [b64decode(request) for request in requests]
        connection = Connection(self._address)
        failed = 0
        times: list[float] = []
        messages: set[str] = set()
        due = time.monotonic()
        while due < until:
            now = time.monotonic()
            if now < due:
                time.sleep(due - now)
                begin = time.monotonic()
            else:
                begin = due
            try:
                connection.ask_kept(asked[len(times) % len(asked)])
            except (OSError, BadAnswerError, ValueError) as error:
                failed += 1
                messages.add(f"{type(error).__name__}: {error}"[:200])
                connection.again()
            times.append((time.monotonic() - begin) * 1e6)
            due += 1 / per_second
        return {
            "times": times, "failed": failed, "messages": sorted(messages)[:3],
            "reconnected": connection.reconnected,
        }  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    kind, where = arguments
    client = Client(where if kind == "unix" else (kind, int(where)))
    serve({"one": client.one, "latency": client.latency, "rate": client.rate, "paced": client.paced})


if __name__ == "__main__":
    main(sys.argv[1:])
