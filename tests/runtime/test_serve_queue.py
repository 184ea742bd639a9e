"""The queue before the engine is bounded in number and in time, and so is what a crowd costs."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.local_server import LocalServer, local_server, slow_server
from tests.runtime.model_zoo import digit_images, digits, lay_out
from tests.runtime.worker_harness import (
    TIMEOUT,
    ZygoteHarness,
    ask,
    connect,
    json_request,
    listen_unix,
    process_threads,
)
from tests.waiting import wait_until

from skerry_contract.limits import MIB
from skerry_runtime.ipc import Accept, Ready
from skerry_runtime.worker.limits import DEFAULT_SERVE_LIMITS, ServeLimits

INFER = "/v2/models/digits/infer"
CROWD = 500


def request(**parameters: Any) -> dict[str, Any]:
    return {**json_request(image=digit_images()[0][:1]), "parameters": parameters}


def infer(server: LocalServer, **parameters: Any) -> tuple[int, dict[str, Any], Any]:
    """One request on a connection of its own."""
    client = connect(server.unix)
    try:
        return ask(client, "POST", INFER, request(**parameters))
    finally:
        client.close()


def test_a_full_queue_is_a_503_with_retry_after(tmp_path: Path) -> None:
    """One request runs, three wait, all others are turned away at once; who waited is answered."""
    limits = ServeLimits(waiting=3, wait_s=TIMEOUT)
    with slow_server(tmp_path, digits(), limits) as (server, held), ThreadPoolExecutor(4) as clients:
        patient = [clients.submit(infer, server)]
        assert held.began.acquire(timeout=TIMEOUT)
        patient += [clients.submit(infer, server) for _ in range(3)]
        wait_until(lambda: server.inference.gate.waiting == 3, "three that wait")
        for _ in range(20):
            status, answer, headers = infer(server)
            assert (status, answer["code"], headers["Retry-After"]) == (503, "overloaded", "1")
            assert "full" in answer["error"]
            assert headers["X-Skerry-Digest"]
        assert server.inference.gate.waiting == 3
        client = connect(server.unix)
        assert ask(client, "GET", "/v2/health/live")[0] == 200  # only inference waits
        client.close()
        held.go.set()
        assert [future.result(TIMEOUT)[0] for future in patient] == [200] * 4
        assert infer(server)[0] == 200


def test_the_server_bounds_the_wait(tmp_path: Path) -> None:
    with (
        slow_server(tmp_path, digits(), ServeLimits(wait_s=0.1)) as (server, held),
        ThreadPoolExecutor(1) as clients,
    ):
        first = clients.submit(infer, server)
        assert held.began.acquire(timeout=TIMEOUT)
        status, answer, headers = infer(server)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "waited too long" in answer["error"]
        assert server.inference.gate.waiting == 0
        held.go.set()
        assert first.result(TIMEOUT)[0] == 200


def test_the_client_may_bound_its_wait_further(tmp_path: Path) -> None:
    """By Triton's parameter ``timeout``, in microseconds."""
    with (
        slow_server(tmp_path, digits(), ServeLimits(wait_s=TIMEOUT)) as (server, held),
        ThreadPoolExecutor(2) as clients,
    ):
        patient = [clients.submit(infer, server)]
        assert held.began.acquire(timeout=TIMEOUT)
        status, answer, _ = infer(server, timeout=50_000)
        assert (status, answer["code"]) == (503, "overloaded")
        assert "waited too long" in answer["error"]
        patient.append(clients.submit(infer, server, timeout=0))  # none of its own
        wait_until(lambda: server.inference.gate.waiting == 1, "one that waits")
        held.go.set()
        assert [future.result(TIMEOUT)[0] for future in patient] == [200] * 2


@pytest.mark.parametrize("timeout", [-1, 0.5, "soon", True, [1]])
def test_a_timeout_is_a_number_of_microseconds(tmp_path: Path, timeout: Any) -> None:
    with local_server(tmp_path, digits()) as server:
        status, answer, _ = infer(server, timeout=timeout)
        assert (status, "'timeout'" in answer["error"]) == (400, True)


@pytest.mark.attack
def test_five_hundred_clients_cost_a_bounded_number_of_threads_and_bytes(tmp_path: Path) -> None:
    """Each is answered, or told to come again; nobody is left without a word."""
    body = np.ascontiguousarray(digit_images()[0][:1]).tobytes()
    head = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: 0\r\n"
    data = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    places = DEFAULT_SERVE_LIMITS.unix_connections
    with ZygoteHarness() as zygote, listen_unix(tmp_path / "s") as listener, ExitStack() as crowd:
        worker = zygote.spawn("serve", lay_out(tmp_path / "g", digits()), [listener])
        worker.expect(Ready)
        worker.send(Accept())
        threads, resident = process_threads(worker.pid), peak_bytes(worker.pid)
        clients = []
        for _ in range(CROWD):
            client = crowd.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(listener.getsockname())  # waits for room in the kernel's queue
            client.settimeout(TIMEOUT)
            with suppress(BrokenPipeError):  # refused before it asked: the answer is there all the same
                client.sendall(data)
            clients.append(client)
            assert process_threads(worker.pid) <= threads + 2 * places  # half of them may be about to end
        answers = [answer_of(client) for client in clients]
        served = [answer for answer in answers if answer.startswith(b"HTTP/1.1 200 ")]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503 ")]
        assert len(served) + len(refused) == CROWD
        assert len(served) >= places
        assert all(b"\r\nRetry-After: 1\r\n" in answer for answer in refused)
        assert peak_bytes(worker.pid) - resident < 32 * MIB
        crowd.close()
        last = connect(listener)
        wait_until(lambda: ask(last, "GET", "/v2/health/live")[0] == 200, "service after the crowd")
        last.close()


def answer_of(client: socket.socket) -> bytes:
    """Head and body of one answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(65536)
        assert piece, f"closed after {data!r}"
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        piece = client.recv(65536)
        assert piece, f"closed after {data!r}"
        body += piece
    return head + b"\r\n\r\n" + body


def peak_bytes(pid: int) -> int:
    """Resident memory; the highest that it ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} tells no VmHWM")
