"""Closes connections so that their last answer is read, also by a client that is still sending.

A close with unread bytes resets the connection, and the answer on its way is lost. So only the write side
is shut, and what the client still sends is thrown away until it ends, within bounds of bytes and time. One
thread does it for all: a client that lingers holds neither a thread nor a place of another.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

from ..limits import ServeLimits

_CHUNK = 65536


@dataclass(slots=True, eq=False)
class _Leaving:
    sock: socket.socket
    kind: str
    deadline: float
    bytes_left: int


class Farewell:
    """Takes sockets over and closes them."""

    def __init__(self, limits: ServeLimits) -> None:
        self._limits = limits
        self._arrived: deque[_Leaving] = deque()
        self._leaving: list[_Leaving] = []
        """By deadline: each has the same time. Of the thread alone."""
        self._ended = False
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="farewell", daemon=True)
        self._thread.start()

    def part(self, sock: socket.socket, kind: str, answer: bytes = b"") -> None:
        """Own the socket from now on; an ``answer`` is sent if that takes no waiting. Never blocks."""
        try:
            sock.setblocking(False)
            if answer:
                sock.send(answer)
            sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + self._limits.farewell_s
            self._arrived.append(_Leaving(sock, kind, deadline, self._limits.farewell_bytes))
            self._wake()
        except OSError:
            sock.close()  # the client is gone or takes nothing, or `close` was called

    def close(self) -> None:
        """Close all at once."""
        self._ended = True
        self._wake()
        self._thread.join()
        for leaving in (*self._leaving, *self._arrived):
            leaving.sock.close()
        self._selector.close()
        self._wake_read.close()
        self._wake_write.close()

    def _wake(self) -> None:
        with suppress(BlockingIOError):  # full of calls to wake up
            self._wake_write.send(b"x")

    def _run(self) -> None:
        while not self._ended:
            timeout = max(0.0, self._leaving[0].deadline - time.monotonic()) if self._leaving else None
            for key, _ in self._selector.select(timeout):
                if key.data is None:
                    self._wake_read.recv(64)
                elif not _more_may_come(key.data):
                    self._end(key.data)
            now = time.monotonic()
            while self._leaving and self._leaving[0].deadline <= now:
                self._end(self._leaving[0])
            while self._arrived:
                self._begin(self._arrived.popleft())

    def _begin(self, leaving: _Leaving) -> None:
        same = [other for other in self._leaving if other.kind == leaving.kind]
        if len(same) >= self._limits.farewells:
            self._end(same[0])
        self._leaving.append(leaving)
        self._selector.register(leaving.sock, selectors.EVENT_READ, leaving)

    def _end(self, leaving: _Leaving) -> None:
        self._leaving.remove(leaving)
        self._selector.unregister(leaving.sock)
        leaving.sock.close()


def _more_may_come(leaving: _Leaving) -> bool:
    """Throw away what is there."""
    try:
        size = len(leaving.sock.recv(_CHUNK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    leaving.bytes_left -= size
    return size > 0 and leaving.bytes_left > 0
