"""Hot swap between two workers on one listening socket: no request is lost, none is refused."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.runtime.local_server import local_server, slow_server
from tests.runtime.model_zoo import digit_images, digits, lay_out
from tests.runtime.worker_harness import (
    TIMEOUT,
    Worker,
    ZygoteHarness,
    ask,
    connect,
    json_request,
    listen_tcp,
    listen_unix,
)
from tests.waiting import wait_until

from skerry_runtime.ipc import Accept, Drain, Drained, Health, Ready, Window
from skerry_runtime.worker.limits import ServeLimits

INFER = "/v2/models/digits/infer"


@pytest.fixture
def zygote() -> Iterator[ZygoteHarness]:
    with ZygoteHarness() as running:
        yield running


@pytest.fixture(params=["unix", "tcp"])
def listener(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with listen_unix(tmp_path / "s") if request.param == "unix" else listen_tcp() as sock:
        yield sock


def warm(zygote: ZygoteHarness, folder: Path, listener: socket.socket) -> Worker:
    worker = zygote.spawn("serve", folder, [listener])
    worker.expect(Ready)
    return worker


@dataclass
class Hammer:
    """Clients that ask without a pause: half of them keep their connection, half open one for every request.

    Every failure is kept.
    """

    listener: socket.socket
    clients: int = 4
    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Hammer:
        self._threads = [threading.Thread(target=self._run, args=(k,)) for k in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self, offset: int) -> None:
        images, _ = digit_images()
        bodies = [json_request(image=images[offset + k : offset + k + 1]) for k in range(20)]
        client = connect(self.listener)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            try:
                status, answer, _ = ask(client, "POST", INFER, bodies[turn % 20])
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                client.close()
                continue
            if status != 200:
                self.failures.append(f"{status} {answer}")
            self.versions[str(answer.get("model_version"))] += 1
            if offset % 2:
                client.close()  # the next request opens another
        client.close()

    def wait_for(self, version: str, more: int = 200) -> None:
        """Until so many more answers came from a version."""
        wanted = self.versions[version] + more
        wait_until(
            lambda: self.versions[version] >= wanted, f"{more} answers of {version}; {self.failures[:3]}"
        )


def test_no_request_is_lost_across_swaps_and_back(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    one = warm(zygote, lay_out(tmp_path / "one", digits()), listener)
    two = warm(zygote, lay_out(tmp_path / "two", replace(digits(), version="2.0.0")), listener)
    counted = 0
    one.send(Accept())
    with Hammer(listener) as hammer:
        hammer.wait_for("1.0.0")
        for old, new, version in ((one, two, "2.0.0"), (two, one, "1.0.0"), (one, two, "2.0.0")):
            new.send(Accept())
            old.send(Drain(deadline_s=5.0))
            hammer.wait_for(version)
            old.expect(Drained)
            window = next(message for message in reversed(old.seen) if isinstance(message, Window))
            counted += window.rows
            hammer.wait_for(version)
    assert hammer.failures == []
    two.send(Drain(deadline_s=1.0))
    two.expect(Drained)
    counted += next(message for message in reversed(two.seen) if isinstance(message, Window)).rows
    assert counted == sum(hammer.versions.values())  # every answered row is in exactly one window


def test_a_drained_worker_stays_warm_and_comes_back(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    worker = warm(zygote, lay_out(tmp_path / "g", digits()), listener)
    for _ in range(3):
        worker.send(Accept())
        client = connect(listener)
        assert ask(client, "GET", "/v2/health/ready")[0] == 200
        client.close()
        worker.send(Drain(deadline_s=1.0))
        worker.expect(Drained)
        assert worker.expect(Health).canary_ok


def test_accept_takes_back_a_drain_that_still_runs(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    worker = warm(zygote, lay_out(tmp_path / "g", digits()), listener)
    worker.send(Accept())
    idle, probe, other = connect(listener), connect(listener), connect(listener)
    for client in (idle, probe):
        assert ask(client, "GET", "/v2/health/live")[0] == 200
    worker.send(Drain(deadline_s=TIMEOUT))  # waits for the idle connection
    wait_until(lambda: _closing(probe), "the drain has begun")
    worker.send(Accept())
    assert ask(other, "GET", "/v2/health/live")[0] == 200
    status, _, headers = ask(idle, "GET", "/v2/health/live")
    assert (status, headers["Connection"]) == (200, None)
    worker.expect(Health)
    worker.expect(Health)
    assert not any(isinstance(message, Drained) for message in worker.seen)
    idle.close()
    probe.close()
    other.close()


def test_a_request_on_an_idle_connection_is_answered_during_a_drain(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    worker = warm(zygote, lay_out(tmp_path / "g", digits()), listener)
    worker.send(Accept())
    idle, late = connect(listener), connect(listener)
    assert ask(idle, "GET", "/v2/health/live")[0] == 200
    worker.send(Drain(deadline_s=TIMEOUT))
    wait_until(lambda: _closing(idle), "the drain has begun")
    late.request("GET", "/v2/health/live")  # stays in the kernel's queue: no worker accepts
    worker.expect(Drained)  # long before the deadline: nothing is open any more
    worker.send(Accept())
    assert late.getresponse().status == 200
    idle.close()
    late.close()


def _closing(client: http.client.HTTPConnection) -> bool:
    status, _, headers = ask(client, "GET", "/v2/health/live")
    assert status == 200
    return headers["Connection"] == "close"


def test_an_idle_connection_is_closed_at_the_deadline(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    worker = warm(zygote, lay_out(tmp_path / "g", digits()), listener)
    worker.send(Accept())
    idle = connect(listener)
    assert ask(idle, "GET", "/v2/health/live")[0] == 200
    begin = time.monotonic()
    worker.send(Drain(deadline_s=0.5))
    worker.expect(Drained)
    assert time.monotonic() - begin >= 0.5
    assert idle.sock is not None
    assert idle.sock.recv(1) == b""
    idle.close()


def test_on_a_unix_socket_a_closed_connection_refuses_what_is_sent(tmp_path: Path) -> None:
    """So a client knows that its request was not seen, and may send it again."""
    with local_server(tmp_path, digits()) as server:
        idle = connect(server.unix)
        assert ask(idle, "GET", "/v2/health/live")[0] == 200
        assert server.http.end_drain(server.http.begin_drain(), 0.05)
        assert idle.sock is not None
        with pytest.raises(BrokenPipeError):
            idle.sock.sendall(b"GET /v2 HTTP/1.1\r\n")
        idle.close()


def test_what_is_in_flight_at_the_deadline_is_still_answered(tmp_path: Path) -> None:
    limits = ServeLimits(linger_s=TIMEOUT)
    with (
        slow_server(tmp_path, digits(), limits) as (server, held),
        ThreadPoolExecutor(2) as others,
        closing(connect(server.unix)) as idle,
        closing(connect(server.unix)) as busy,
    ):
        assert ask(idle, "GET", "/v2/health/live")[0] == 200
        answer = others.submit(ask, busy, "POST", INFER, json_request(image=digit_images()[0][:1]))
        assert held.began.acquire(timeout=TIMEOUT)
        ended = others.submit(server.http.end_drain, server.http.begin_drain(), 0.01)
        assert idle.sock is not None
        assert idle.sock.recv(1) == b""  # the deadline is over
        assert not answer.done()
        held.go.set()
        assert answer.result(TIMEOUT)[0] == 200
        assert ended.result(TIMEOUT)


def test_a_client_that_never_ends_its_request_cannot_hold_a_drain(tmp_path: Path) -> None:
    limits = ServeLimits(linger_s=0.2, head_s=TIMEOUT)
    with local_server(tmp_path, digits(), limits=limits) as server:
        client = connect(server.unix)
        client.connect()
        assert client.sock is not None
        client.sock.sendall(b"GET /v2")
        wait_until(lambda: server.http.in_flight == 1, "the half request")
        assert server.http.end_drain(server.http.begin_drain(), 0.01)
        wait_until(lambda: server.http.in_flight == 0, "the cut")
        client.close()
