"""A crowd on one socket: the other socket is served as ever, the idle make room, the refused read why."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from tests.runtime.local_server import LocalServer, local_server
from tests.runtime.model_zoo import digit_images, digits
from tests.runtime.worker_harness import TIMEOUT, ask, connect, json_request, read_all
from tests.waiting import wait_until

from skerry_contract.limits import KIB, MIB
from skerry_runtime.worker.limits import DEFAULT_SERVE_LIMITS, ServeLimits

INFER = "/v2/models/digits/infer"
TOKEN = "s3cret"
HALF = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n"
LIVE = HALF + b"Connection: close\r\n\r\n"
SMALL = ServeLimits(
    unix_connections=2,
    tcp_connections=2,
    spare_s=0.2,
    body_bytes=MIB,
    farewell_s=0.5,
    farewells=2,
    farewell_bytes=16 * MIB,
)


@pytest.fixture
def crowd() -> Iterator[ExitStack]:
    with ExitStack() as clients:
        yield clients


def join(crowd: ExitStack, listener: socket.socket, data: bytes = b"") -> socket.socket:
    sock = crowd.enter_context(socket.socket(listener.family))
    sock.settimeout(TIMEOUT)
    sock.connect(listener.getsockname())
    if data:
        sock.sendall(data)
    return sock


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def whole(answer: bytes) -> bool:
    """Whether head and body are complete."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"


def read_to_the_end(sock: socket.socket) -> bytes:
    """Unlike `read_all`, a reset is a failure."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def post(size: int, body: bytes = b"") -> bytes:
    return f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode() + body


def wait_for_connections(server: LocalServer, wanted: int) -> None:
    wait_until(lambda: len(server.http._connections) == wanted, f"{wanted} connections")


@pytest.mark.attack
def test_a_crowd_of_strangers_on_tcp_costs_a_unix_client_nothing(tmp_path: Path, crowd: ExitStack) -> None:
    """80 idle ones, then 100 half heads, and again, while a client asks on new and on kept connections."""
    failures: list[str] = []
    asked = 0
    stop = threading.Event()
    body = json_request(image=digit_images()[0][:1])
    with local_server(tmp_path, digits(), token=TOKEN) as server:

        def ask_on() -> None:
            nonlocal asked
            kept = connect(server.unix)
            while not stop.is_set():
                fresh = connect(server.unix)
                for client in (kept, fresh):
                    try:
                        status, answer, _ = ask(client, "POST", INFER, body)
                    except OSError as error:
                        failures.append(repr(error))
                        continue
                    asked += 1
                    if status != 200:
                        failures.append(f"{status} {answer}")
                fresh.close()
            kept.close()

        client = threading.Thread(target=ask_on)
        client.start()
        try:
            for data, count in ((b"", 80), (HALF, 100), (b"", 80), (HALF, 100)):
                for _ in range(count):
                    join(crowd, server.tcp, data)
                tcp = [c for c in server.http._connections if c.kind == "tcp" and not c.evicted]
                assert len(tcp) <= DEFAULT_SERVE_LIMITS.tcp_connections
                goal = asked + 200
                wait_until(lambda goal=goal: asked > goal or failures, "200 more answers")  # type: ignore[misc]
        finally:
            stop.set()
            client.join(TIMEOUT)
        assert failures == []


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("data", [b"", HALF], ids=["idle", "half a head"])
def test_who_waits_without_a_request_makes_room(
    tmp_path: Path, crowd: ExitStack, kind: str, data: bytes
) -> None:
    with local_server(tmp_path, digits(), limits=SMALL) as server:
        listener = server.unix if kind == "unix" else server.tcp
        begin = time.monotonic()
        first = join(crowd, listener, data)
        wait_until(lambda: len(server.http._connections) == 1 and server.http.in_flight == bool(data), "one")
        second = join(crowd, listener, data)
        wait_until(
            lambda: len(server.http._connections) == 2 and server.http.in_flight == 2 * bool(data), "two"
        )

        def served() -> bool:
            answer = read_all(join(crowd, listener, LIVE))
            assert status_of(answer) in (200, 503)
            return status_of(answer) == 200

        wait_until(served, "a place")
        assert SMALL.spare_s <= time.monotonic() - begin < 5  # not the idle or the head time-out
        gone = read_to_the_end(first)  # it waited longest
        assert (status_of(gone) == 503 and whole(gone)) if data else gone == b""
        second.sendall(b"\r\n" if data else HALF + b"\r\n")
        assert status_of(second.recv(65536)) == 200  # it kept its place


@pytest.mark.attack
def test_strangers_go_before_a_client_that_asked(tmp_path: Path, crowd: ExitStack) -> None:
    with local_server(tmp_path, digits(), limits=SMALL, token=TOKEN) as server:
        known = connect(server.tcp)
        header = {"Authorization": f"Bearer {TOKEN}"}
        assert ask(known, "GET", "/v2", headers=header)[0] == 200
        stranger = join(crowd, server.tcp)
        wait_for_connections(server, 2)
        wait_until(lambda: status_of(read_all(join(crowd, server.tcp, LIVE))) == 401, "a place")
        assert read_to_the_end(stranger) == b""
        assert ask(known, "GET", "/v2", headers=header)[0] == 200
        known.close()


def test_a_busy_connection_keeps_its_place(tmp_path: Path, crowd: ExitStack) -> None:
    """However long ago it began: its head is whole."""
    with local_server(tmp_path, digits(), limits=SMALL) as server:
        busy = [join(crowd, server.unix, post(10)) for _ in range(2)]
        wait_until(
            lambda: all(c.known for c in server.http._connections) and server.http.in_flight == 2, "busy"
        )
        end = time.monotonic() + 3 * SMALL.spare_s
        while time.monotonic() < end:
            assert status_of(read_to_the_end(join(crowd, server.unix, LIVE))) == 503
        for sock in busy:
            sock.sendall(b"x" * 10)
            assert status_of(sock.recv(65536)) == 400


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_who_is_turned_away_while_sending_reads_the_503(tmp_path: Path, crowd: ExitStack, kind: str) -> None:
    limits = ServeLimits(unix_connections=1, tcp_connections=1, spare_s=TIMEOUT)
    with local_server(tmp_path, digits(), limits=limits) as server:
        listener = server.unix if kind == "unix" else server.tcp
        join(crowd, listener)
        wait_for_connections(server, 1)
        for size in (100, 300 * KIB, 8 * MIB):
            answer = read_to_the_end(join(crowd, listener, post(size, bytes(size))))
            assert (status_of(answer), whole(answer)) == (503, True)
            assert b"Retry-After: 1" in answer


@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        (post(8 * MIB, bytes(8 * MIB)), 413),
        (b"POST  /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(8 * MIB), 400),
        (b"GET /" + b"a" * 8 * MIB, 431),
    ],
    ids=["413", "400", "431"],
)
def test_who_is_refused_while_sending_reads_why(
    tmp_path: Path, crowd: ExitStack, kind: str, request_: bytes, wanted: int
) -> None:
    with local_server(tmp_path, digits(), limits=SMALL) as server:
        answer = read_to_the_end(join(crowd, server.unix if kind == "unix" else server.tcp, request_))
        assert (status_of(answer), whole(answer)) == (wanted, True)


@pytest.mark.attack
def test_what_a_refused_client_may_still_send_is_bounded(tmp_path: Path, crowd: ExitStack) -> None:
    with local_server(tmp_path, digits(), limits=SMALL) as server:
        endless = join(crowd, server.unix, post(10**12))
        sent = 0
        with suppress(BrokenPipeError):
            while sent <= 2 * SMALL.farewell_bytes:
                sent += endless.send(bytes(256 * KIB))
        assert SMALL.farewell_bytes <= sent <= 2 * SMALL.farewell_bytes


@pytest.mark.attack
def test_a_refused_client_that_stays_is_closed_and_takes_no_place(tmp_path: Path, crowd: ExitStack) -> None:
    with local_server(tmp_path, digits(), limits=SMALL) as server:
        begin = time.monotonic()
        staying: list[socket.socket] = []
        for _ in range(3):
            staying.append(join(crowd, server.unix, post(10**12)))
            assert status_of(read_to_the_end(staying[-1])) == 413
            wait_for_connections(server, 0)
        assert status_of(read_to_the_end(join(crowd, server.unix, LIVE))) == 200
        for sock in staying:
            wait_until(lambda sock=sock: closed(sock), "its close")  # type: ignore[misc]
        assert time.monotonic() - begin < SMALL.farewell_s + 5


def closed(sock: socket.socket) -> bool:
    """Whether the peer takes nothing any more."""
    try:
        sock.send(b"x")
    except BrokenPipeError:
        return True
    return False
