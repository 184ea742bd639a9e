"""HTTP/1.1 with a thread a connection, on listening sockets that outlive the worker.

Guarantee of a swap: after `begin_drain` no connection is taken on, every request that arrives on an open
one until the deadline is answered (with ``Connection: close``), and only connections without a request
are closed then. On a Unix socket that last step is atomic: the kernel refuses what is sent after it, so a
client never wonders whether its request was seen.

Guarantee of a crowd: clients of one kind of socket never take a place of the other kind; a full house lets
go who has waited longest without a request, strangers first; a refused client can read why.
"""

from __future__ import annotations

import math
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from ..limits import ServeLimits
from .access import check_tcp
from .api import RETRY, Api
from .farewell import Farewell
from .wire import Head, HttpError, parse_head, write_head

_POLL_S = 5.0
"""A blocked read looks up this often whether its time is over."""
_CHUNK = 65536
_CLOSE_S = 1.0
_TIMEVAL = struct.Struct("@ll")


class HttpServer:
    """Serves one `Api` on any number of listening sockets."""

    def __init__(
        self,
        listeners: Sequence[tuple[socket.socket, str]],
        api: Api,
        limits: ServeLimits,
        *,
        token: str = "",
    ) -> None:
        """Each listener comes with its kind, ``unix`` or ``tcp``; ``token`` is asked of TCP clients."""
        self._listeners = tuple(listeners)
        self.api, self.limits, self.token = api, limits, token
        self.bodies = ByteBudget(limits.bodies_bytes)
        self.farewell = Farewell(limits)
        self._places = {"unix": limits.unix_connections, "tcp": limits.tcp_connections}
        self._changed = threading.Condition()
        self._connections: set[Connection] = set()
        self._accepting = False
        self._turns = 0
        """How often accepting changed: a drain is over once it has changed again."""
        self._ended = False
        self._wake_read, self._wake_write = os.pipe()
        for listener, _ in self._listeners:
            listener.setblocking(False)
        self._acceptor = threading.Thread(target=self._accept_loop, name="accept", daemon=True)
        self._acceptor.start()

    @property
    def accepting(self) -> bool:
        """Whether new connections are taken on; connections close after their answer otherwise."""
        return self._accepting

    def accept(self) -> None:
        """Begin, or go on: takes back any drain that has not ended."""
        self._turn(accepting=True)

    def begin_drain(self) -> int:
        """Take on no more connections, close each after its answer; a number for `end_drain`."""
        return self._turn(accepting=False)

    def end_drain(self, drain: int, deadline_s: float) -> bool:
        """Wait until no connection is left, closing those without a request at the deadline.

        What is in flight then may linger a while and is cut off after that. False if the drain was taken
        back meanwhile.
        """
        self._wait_for_end(drain, deadline_s)
        self._for_each(drain, Connection.retire)
        self._wait_for_end(drain, self.limits.linger_s)
        self._for_each(drain, Connection.cut)
        return self._turns == drain

    def close(self) -> None:
        """End now: what is in flight has a second to be answered and counted."""
        drain = self.begin_drain()
        self._for_each(drain, Connection.retire)
        self._wait_for_end(drain, _CLOSE_S)
        self._for_each(drain, Connection.cut)
        self._ended = True
        os.write(self._wake_write, b"x")
        self._acceptor.join()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.farewell.close()

    @property
    def in_flight(self) -> int:
        """Connections that are between the first byte of a request and the last of its answer."""
        with self._changed:
            return sum(connection.busy for connection in self._connections)

    def forget(self, connection: Connection) -> None:
        """A connection ended."""
        with self._changed:
            self._connections.discard(connection)
            self._changed.notify_all()

    def _turn(self, *, accepting: bool) -> int:
        with self._changed:
            self._accepting = accepting
            self._turns += 1
            turn = self._turns
            self._changed.notify_all()
        os.write(self._wake_write, b"x")
        return turn

    def _wait_for_end(self, drain: int, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._turns != drain or not self._connections, timeout=seconds)

    def _for_each(self, drain: int, act: Callable[[Connection], None]) -> None:
        with self._changed:
            for connection in self._connections if self._turns == drain else ():
                act(connection)

    def _accept_loop(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            registered = False
            while not self._ended:
                if self._accepting != registered:
                    registered = self._accepting
                    for listener, kind in self._listeners:
                        if registered:
                            selector.register(listener, selectors.EVENT_READ, kind)
                        else:
                            selector.unregister(listener)
                for key, _ in selector.select():
                    if key.fileobj == self._wake_read:
                        os.read(self._wake_read, 64)
                    elif self._accepting and isinstance(key.fileobj, socket.socket):
                        self._take_on(key.fileobj, key.data)

    def _take_on(self, listener: socket.socket, kind: str) -> None:
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            return  # another worker was faster
        except OSError:
            time.sleep(0.05)  # out of descriptors or memory: some connection will end
            return
        connection = Connection(self, sock, kind)
        if not self._admit(connection):
            connection.turn_away()
            return
        try:
            threading.Thread(target=connection.run, daemon=True).start()
        except RuntimeError:  # no memory for one more thread
            self.forget(connection)
            connection.turn_away()

    def _admit(self, connection: Connection) -> bool:
        """Whether there is a place for it, if need be that of another of its kind."""
        with self._changed:
            same = [c for c in self._connections if c.kind == connection.kind and not c.evicted]
            if len(same) >= self._places[connection.kind]:
                same.sort(key=lambda other: (other.known, other.waiting_since))
                if not any(other.evict() for other in same):
                    return False
            self._connections.add(connection)
            return True


class Connection:
    """One client; `run` is its thread."""

    def __init__(self, server: HttpServer, sock: socket.socket, kind: str) -> None:
        self._server, self._sock, self.kind = server, sock, kind
        self._head_s = server.limits.tcp_head_s if kind == "tcp" else server.limits.head_s
        self._buffer = bytearray()
        self.waiting_since = time.monotonic()
        """For a request, or for the rest of its head; infinite while one is worked on."""
        self.known = False
        """Whether it ever sent a head that passed."""
        self.evicted = False
        """Its place is another's; it closes as soon as it can."""
        self.busy = False
        """Between the first byte of a request and the last of its answer."""
        if kind == "tcp":
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _set_timeout(sock, socket.SO_RCVTIMEO, min(_POLL_S, self._head_s, server.limits.body_s))
        _set_timeout(sock, socket.SO_SNDTIMEO, server.limits.write_s)

    def run(self) -> None:
        """Answer requests until the client, a time-out or a drain ends it."""
        try:
            while self._answer_one():
                pass
        except OSError:
            pass  # the client went away in the middle: there is nobody to tell
        finally:
            self._sock.close()
            self._server.forget(self)

    def retire(self) -> None:
        """Close if there is no request; else it closes after its answer."""
        try:
            if self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return  # a request arrived this very moment
        except OSError:
            pass  # nothing is there
        if not self.busy:  # asked second: the thread sets it before it takes what could be peeked at
            self._shutdown(socket.SHUT_RD)

    def cut(self) -> None:
        """End in the middle."""
        self._shutdown(socket.SHUT_RDWR)

    def evict(self) -> bool:
        """Give up the place; False if a request is there or may still come soon."""
        try:
            if self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                return False  # it arrived this very moment
        except OSError:
            pass  # nothing is there
        if time.monotonic() - self.waiting_since < self._server.limits.spare_s:  # asked second, as above
            return False
        self.evicted = True
        self._shutdown(socket.SHUT_RD)  # a head that just became whole is still answered
        return True

    def turn_away(self) -> None:
        """Say that the server is full."""
        self._server.farewell.part(self._sock, self.kind, self._refusal(_crowded()))

    def _refusal(self, error: HttpError) -> bytes:
        refusal = self._server.api.refusal(error)
        return b"".join([write_head(refusal, close=True), *refusal.body])

    def _shutdown(self, how: int) -> None:
        with suppress(OSError):  # it may have ended by itself
            self._sock.shutdown(how)

    def _answer_one(self) -> bool:
        """Whether the connection goes on."""
        if not self._buffer and not self._wait_for_request():
            return False
        reserved = 0
        self.waiting_since = time.monotonic()
        self.busy = True
        try:
            head = self._read_head()
            if head is None:
                if self.evicted:
                    raise _crowded()
                return False
            self.waiting_since = math.inf
            if self.kind == "tcp":
                check_tcp(head, self._server.token)
            self.known = True
            if head.length > self._server.limits.body_bytes:
                raise HttpError(413, f"a body has at most {self._server.limits.body_bytes} bytes")
            if not self._server.bodies.reserve(head.length):
                raise HttpError(503, "too many large requests at once", headers=[RETRY])
            reserved = head.length
            body = self._read_body(head)
            if body is None:
                return False
            return self._answer(head, body)
        except HttpError as error:
            self._sock.sendall(self._refusal(error))
            self._server.farewell.part(socket.socket(fileno=self._sock.detach()), self.kind)
            return False
        finally:
            self._server.bodies.release(reserved)
            self.waiting_since = time.monotonic()
            self.busy = False

    def _answer(self, head: Head, body: bytearray) -> bool:
        api = self._server.api
        served = api.serve(head, memoryview(body).toreadonly())
        close = not head.keep_alive or not self._server.accepting or self.evicted
        pieces = [write_head(served.response, close=close), *served.response.body]
        try:
            self._sock.sendall(b"".join(pieces))
        finally:
            if served.answer is not None:
                api.inference.record(served.answer)
        if close:
            self._end_politely()
        return not close

    def _wait_for_request(self) -> bool:
        """Block until a byte is there to be read; False if none will be."""
        give_up = time.monotonic() + self._server.limits.idle_s
        while True:
            try:
                return bool(self._sock.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                if time.monotonic() > give_up:
                    self._shutdown(socket.SHUT_RD)  # what arrived before is still seen, once more round

    def _read_head(self) -> Head | None:
        """None if the client left before its request was whole."""
        give_up = time.monotonic() + self._head_s
        searched = 0
        while True:
            while self._buffer.startswith(b"\r\n"):
                del self._buffer[:2]  # RFC 9112, 2.2: an empty line before a request is ignored
            end = self._buffer.find(b"\r\n\r\n", max(0, searched - 3))
            if 0 <= end <= self._server.limits.head_bytes:
                break
            if end > 0 or len(self._buffer) > self._server.limits.head_bytes:
                raise HttpError(431, f"a head has at most {self._server.limits.head_bytes} bytes")
            searched = len(self._buffer)
            if not self._receive_more(give_up):
                return None
        data = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return parse_head(data)

    def _read_body(self, head: Head) -> bytearray | None:
        """None if the client left before its request was whole."""
        if head.headers.get("expect", "").lower() == "100-continue" and len(self._buffer) < head.length:
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        give_up = time.monotonic() + self._server.limits.body_s
        while len(self._buffer) < head.length:
            if not self._receive_more(give_up):
                return None
        body, self._buffer = self._buffer, self._buffer[head.length :]
        del body[head.length :]
        return body

    def _receive_more(self, give_up: float) -> bool:
        """Read what is there; False if the client ended. Raises `HttpError` when its time is over."""
        chunk: bytes | None
        try:
            chunk = self._sock.recv(_CHUNK)
        except BlockingIOError:
            chunk = None
        if time.monotonic() > give_up:
            raise HttpError(408, "the request took too long to arrive")
        if chunk is None:
            return True
        self._buffer += chunk
        return bool(chunk)

    def _end_politely(self) -> None:
        """Let the client read the answer: a close with unread bytes would reset the connection."""
        self._shutdown(socket.SHUT_WR)
        try:
            for _ in range(64):
                if not self._sock.recv(_CHUNK, socket.MSG_DONTWAIT):
                    break
        except OSError:
            pass  # nothing more is there


class ByteBudget:
    """Bytes that all connections together may hold."""

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._left = most

    def reserve(self, size: int) -> bool:
        """Whether there was room; if so it is taken."""
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
        return True

    def release(self, size: int) -> None:
        """Give back."""
        with self._lock:
            self._left += size


def _crowded() -> HttpError:
    return HttpError(503, "too many connections", headers=[RETRY])


def _set_timeout(sock: socket.socket, option: int, seconds: float) -> None:
    """By the kernel: a time-out of Python's own would cost a poll before every read."""
    sock.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6)))
