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

from skerry_contract.errors import SkerryError

from ..limits import ServeLimits
from .access import check_tcp
from .api import RETRY, Api
from .farewell import Farewell
from .protocol import overflow_is_infinity
from .shared import SharedMemory, wants_shared_memory
from .wire import Head, HttpError, Response, parse_head, write_head

_POLL_S = 5.0
"""A blocked read looks up this often whether its time is over."""
_CHUNK = 65536
_CLOSE_S = 1.0
_ALONE_S = 0.01
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
        self.shared = SharedMemory(api, limits, ByteBudget(limits.shared_bytes))
        self.farewell = Farewell(limits)
        self._places = {"unix": limits.unix_connections, "tcp": limits.tcp_connections}
        self._changed = threading.Condition()
        self._connections: set[Connection] = set()
        self._accepting = False
        self._turns = 0
        """How often accepting changed: a drain is over once it has changed again."""
        self.newest: Connection | None = None
        """Whose the newest request is..."""
        self.turned = 0.0
        """...and since when, on the monotonic clock, no other connection had one."""
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
    def connections(self) -> int:
        """How many are open now."""
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Connections that are between the first byte of a request and the last of its answer."""
        with self._changed:
            return sum(connection.busy for connection in self._connections)

    def turn_to(self, connection: Connection) -> None:
        """A request of another connection than the last one's arrived."""
        self.newest, self.turned = connection, time.monotonic()

    def forget(self, connection: Connection) -> None:
        """A connection ended."""
        with self._changed:
            if self.newest is connection:
                self.newest = None
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
            every = [c for c in self._connections if c.kind == connection.kind]
            same = [c for c in every if not c.evicted]
            places = self._places[connection.kind]
            if len(every) >= 2 * places:
                return False  # the threads of those who gave up their places have not ended yet
            if len(same) >= places:
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
        self._buffer = b""
        """What arrived and belongs to no request yet."""
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
            with overflow_is_infinity():
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

    @property
    def leaving(self) -> bool:
        """Whether it ends after its answer."""
        return self.evicted or not self._server.accepting

    @property
    def alone(self) -> bool:
        """Whether the server's last requests were all of this connection."""
        return self._server.newest is self and self.waiting_since - self._server.turned > _ALONE_S

    def begin_request(self) -> None:
        """A request in shared memory arrived."""
        self.waiting_since = math.inf
        self.busy = True
        if self._server.newest is not self:
            self._server.turn_to(self)

    def end_request(self) -> None:
        """It was answered."""
        self.waiting_since = time.monotonic()
        self.busy = False

    def _refusal(self, error: HttpError) -> bytes:
        return self._closing(self._server.api.refusal(error))

    def _closing(self, response: Response) -> bytes:
        return b"".join([write_head(response, close=True, always=self._server.api.signature), *response.body])

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
            found = self._read_head()
            if found is None:
                if self.evicted:
                    raise _crowded()
                return False
            head, begin = found
            self.waiting_since = math.inf
            if self._server.newest is not self:
                self._server.turn_to(self)
            if self.kind == "tcp":
                check_tcp(head, self._server.token)
            self.known = True
            if head.length > self._server.limits.body_bytes:
                raise HttpError(413, f"a body has at most {self._server.limits.body_bytes} bytes")
            if not self._server.bodies.reserve(head.length):
                raise HttpError(503, "too many large requests at once", headers=[RETRY])
            reserved = head.length
            body = self._read_body(head, begin)
            if body is None:
                return False
            if wants_shared_memory(head):
                return self._share_memory(body)
            return self._answer(head, body)
        except HttpError as error:
            self._sock.sendall(self._refusal(error))
            self._server.farewell.part(socket.socket(fileno=self._sock.detach()), self.kind)
            return False
        finally:
            self._server.bodies.release(reserved)
            self.waiting_since = time.monotonic()
            self.busy = False

    def _answer(self, head: Head, body: memoryview) -> bool:
        api = self._server.api
        served = api.serve(head, body)
        close = not head.keep_alive or self.leaving
        head_bytes = write_head(served.response, close=close, always=api.signature)
        try:
            self._sock.sendall(b"".join([head_bytes, *served.response.body]))
        finally:
            if served.answer is not None:
                api.inference.record(served.answer)
        if close:
            self._end_politely()
        return not close

    def _share_memory(self, body: memoryview) -> bool:
        """Leave HTTP until the connection ends."""
        if self.kind != "unix":
            raise HttpError(400, "memory is shared over a Unix socket only")
        if self._buffer:
            raise HttpError(400, "nothing may follow the request for shared memory")
        try:
            self._server.shared.serve(self._sock, bytes(body), self)
        except SkerryError as error:
            self._sock.sendall(self._closing(self._server.api.failure(error)))
        return False

    def _wait_for_request(self) -> bool:
        """Block until a byte is there to be read; False if none will be."""
        give_up = time.monotonic() + self._server.limits.idle_s
        while True:
            try:
                return bool(self._sock.recv(1, socket.MSG_PEEK))
            except BlockingIOError:
                if time.monotonic() > give_up:
                    self._shutdown(socket.SHUT_RD)  # what arrived before is still seen, once more round

    def _read_head(self) -> tuple[Head, int] | None:
        """The head, and where its body begins in the buffer; None if the client left before it was whole."""
        give_up = time.monotonic() + self._head_s
        searched = 0
        while True:
            if self._buffer.startswith(b"\r\n"):
                self._skip_empty_lines()
            end = self._buffer.find(b"\r\n\r\n", max(0, searched - 3))
            if 0 <= end <= self._server.limits.head_bytes:
                break
            if end > 0 or len(self._buffer) > self._server.limits.head_bytes:
                raise HttpError(431, f"a head has at most {self._server.limits.head_bytes} bytes")
            searched = len(self._buffer)
            chunk = self._receive(_CHUNK, give_up)
            if chunk == b"":
                return None
            self._buffer += chunk or b""
        return parse_head(self._buffer[:end]), end + 4

    def _skip_empty_lines(self) -> None:
        """RFC 9112, 2.2: an empty line before a request is ignored."""
        begin = 0
        while self._buffer.startswith(b"\r\n", begin):
            begin += 2
        self._buffer = self._buffer[begin:]

    def _read_body(self, head: Head, begin: int) -> memoryview | None:
        """None if the client left before its request was whole. Most often it came with its head: no copy."""
        arrived = memoryview(self._buffer)[begin:]
        self._buffer = self._buffer[begin + head.length :]
        if len(arrived) >= head.length:
            return arrived[: head.length]
        if head.headers.get("expect", "").lower() == "100-continue":
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        give_up = time.monotonic() + self._server.limits.body_s
        body = bytearray(arrived)
        while (missing := head.length - len(body)) > 0:
            chunk = self._receive(min(missing, _CHUNK), give_up)
            if chunk == b"":
                return None
            body += chunk or b""
        return memoryview(body).toreadonly()

    def _receive(self, most: int, give_up: float) -> bytes | None:
        """What is there; empty if the client ended, None if nothing came for a while.

        Raises:
            HttpError: its time is over.
        """
        chunk: bytes | None
        try:
            chunk = self._sock.recv(most)
        except BlockingIOError:
            chunk = None
        if time.monotonic() > give_up:
            raise HttpError(408, "the request took too long to arrive")
        return chunk

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
