"""Bad HTTP, bad tensors, bad numbers: refused early, counted, and the server goes on."""

from __future__ import annotations

import http.client
import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.local_server import LocalServer, local_server
from tests.runtime.model_zoo import digit_images, digits, hungry, logarithm, squash
from tests.runtime.worker_harness import ask, connect, json_request, raw_exchange, read_all
from tests.waiting import wait_until

from skerry_contract.limits import KIB
from skerry_runtime.worker.limits import ServeLimits

INFER = "/v2/models/digits/infer"
LIMITS = ServeLimits(
    unix_connections=4,
    tcp_connections=4,
    waiting=1,
    wait_s=20.0,
    head_bytes=2 * KIB,
    body_bytes=64 * KIB,
    bodies_bytes=96 * KIB,
    head_s=0.4,
    tcp_head_s=0.4,
    body_s=0.4,
    idle_s=0.4,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with local_server(tmp_path_factory.mktemp("attack"), digits(), limits=LIMITS) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[http.client.HTTPConnection]:
    wait_until(lambda: not server.http.in_flight, "quiet")
    connection = connect(server.unix)
    yield connection
    connection.close()


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def still_serves(server: LocalServer) -> bool:
    client = connect(server.unix)
    try:
        return ask(client, "POST", INFER, json_request(image=digit_images()[0][:1]))[0] == 200
    finally:
        client.close()


def image(**changes: Any) -> dict[str, Any]:
    body = json_request(image=digit_images()[0][:1])
    body["inputs"][0].update(changes)
    return body


HTTP: list[tuple[bytes, int]] = [
    (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
    (b"GET /v2\r\n\r\n", 400),
    (b"GET  /v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET http://other/v2 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    (b"GET /v2 HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\r\nName : value\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: b\r\n folded\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 1e3\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", 413),
    (b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
    (b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 4096 + b"\r\n\r\n", 431),
    (b"GET /" + b"a" * 4096, 431),
]


@pytest.mark.parametrize(("data", "wanted"), HTTP)
def test_bad_http_is_refused_and_the_connection_closed(server: LocalServer, data: bytes, wanted: int) -> None:
    wait_until(lambda: not server.http.in_flight, "quiet")
    answer = raw_exchange(server.unix, data)
    assert status_of(answer) == wanted
    assert b"Connection: close" in answer
    assert still_serves(server)


@pytest.mark.parametrize("kept", [0, 5, 40, 60])
def test_a_request_that_is_cut_off_gets_no_answer(server: LocalServer, kept: int) -> None:
    whole = b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n" + b"a" * 30
    assert raw_exchange(server.unix, whole[:kept]) == b""
    assert still_serves(server)


def test_a_request_may_come_one_byte_at_a_time(server: LocalServer) -> None:
    request = b"\r\nGET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(server.unix.getsockname())
        for byte in request:
            sock.sendall(bytes([byte]))
        assert status_of(read_all(sock)) == 200


def test_two_requests_in_one_packet_get_two_answers(server: LocalServer) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
    answer = raw_exchange(server.unix, one + b"\r\n" + one + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_waits_for_continue_gets_it(server: LocalServer) -> None:
    body = json.dumps(image()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(server.unix.getsockname())
        sock.sendall(head.encode())
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert status_of(sock.recv(65536)) == 200


@pytest.mark.parametrize("sent", [b"G", b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"])
def test_a_slow_client_is_let_go(server: LocalServer, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(server.unix.getsockname())
        sock.sendall(sent)
        assert status_of(read_all(sock)) == 408


def test_an_idle_connection_is_closed_silently(server: LocalServer) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(server.unix.getsockname())
        assert read_all(sock) == b""


@pytest.mark.attack
@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"datatype": "FP64"},
        {"datatype": "BYTES"},
        {"datatype": ""},
        {"shape": [1, 64]},
        {"shape": [1, 1, 8, 9]},
        {"shape": [0, 1, 8, 8]},
        {"shape": [-1, 1, 8, 8]},
        {"shape": [2**62, 1, 8, 8]},
        {"shape": [2**70, 1, 8, 8]},
        {"shape": [1.5, 1, 8, 8]},
        {"shape": [1] * 5000},
        {"shape": []},
        {"shape": None},
        {"data": []},
        {"data": [0.5] * 63},
        {"data": [0.5] * 65},
        {"data": ["a"] * 64},
        {"data": [True] * 64},
        {"data": [None] * 64},
        {"data": {"0": 1}},
        {"data": 5},
        {"data": None},
        {"data": [[0.5] * 64]},
        {"data": [[[[0.5] * 8] * 4 + [[0.5] * 7] * 4]]},
        {"parameters": {"binary_data_size": 256}},
        {"parameters": {"binary_data_size": -1}, "data": None},
        {"parameters": 3},
    ],
    ids=repr,
)
def test_m14_a_wrong_tensor_is_a_400(
    server: LocalServer, client: http.client.HTTPConnection, changes: dict[str, Any]
) -> None:
    failures = server.observer.totals().failures
    status, answer, _ = ask(client, "POST", INFER, image(**changes))
    assert status == 400, answer
    assert len(answer["error"]) < 1000
    assert server.observer.totals().failures == failures
    assert still_serves(server)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("shape", "size", "sent"),
    [
        ([1, 1, 8, 8], 256, 255),
        ([1, 1, 8, 8], 256, 257),
        ([1, 1, 8, 8], 255, 255),
        ([1, 1, 8, 8], 10**18, 256),
        ([1, 1, 8, 8], True, 256),
        ([1, 1, 8, 8], "256", 256),
        ([2**50, 1, 8, 8], 2**58, 256),
        ([0, 1, 8, 8], 0, 0),
    ],
)
def test_m14_a_wrong_binary_tensor_is_a_400(
    client: http.client.HTTPConnection, shape: list[int], size: Any, sent: int
) -> None:
    tensor = {"name": "image", "shape": shape, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert ask(client, "POST", INFER, head + bytes(sent), headers)[0] == 400


@pytest.mark.attack
@pytest.mark.parametrize("length", ["99999", "-1", "x", ""])
def test_m14_a_wrong_header_length_is_a_400(client: http.client.HTTPConnection, length: str) -> None:
    body = json.dumps(image()).encode()
    assert ask(client, "POST", INFER, body, {"Inference-Header-Content-Length": length})[0] == 400


@pytest.mark.attack
def test_m14_a_huge_body_is_refused_before_it_is_read(server: LocalServer) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n".encode()
    assert status_of(raw_exchange(server.unix, head)) == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 16 * KIB  # in KiB: less than 16 MiB


@pytest.mark.attack
def test_m14_deeply_nested_json_is_a_400(client: http.client.HTTPConnection) -> None:
    depth = 20_000
    body = b'{"inputs": [{"name": "image", "shape": [1,1,8,8], "datatype": "FP32", "data": ' + b"[" * depth
    assert ask(client, "POST", INFER, body)[0] == 400


@pytest.mark.attack
def test_m13_nan_in_a_binary_input_is_a_counted_400(
    server: LocalServer, client: http.client.HTTPConnection
) -> None:
    before = server.observer.totals()
    data = np.full((1, 1, 8, 8), np.nan, np.float32)
    tensor = {
        "name": "image",
        "shape": [1, 1, 8, 8],
        "datatype": "FP32",
        "parameters": {"binary_data_size": data.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    status, answer, _ = ask(client, "POST", INFER, head + data.tobytes(), headers)
    assert (status, "finite" in answer["error"]) == (400, True)
    after = server.observer.totals()
    assert after.nonfinite_inputs == before.nonfinite_inputs + 1
    assert after.failures == before.failures  # the client's fault, not the model's
    server.observer.close_window()
    assert sum(window.errors for window in server.observer.take()) == 1


@pytest.mark.attack
@pytest.mark.parametrize("value", [3.4e38, 1e39, -1e308])
def test_m13_extreme_numbers_get_a_finite_answer_or_an_error(
    client: http.client.HTTPConnection, value: float
) -> None:
    data = [0.5] * 63 + [value]
    status, answer, _ = ask(client, "POST", INFER, image(data=data))
    if status == 200:
        assert np.isfinite(np.array(answer["outputs"][0]["data"], np.float64)).all()
    else:
        assert status in (400, 500)
        assert answer["error"]


@pytest.mark.attack
def test_m13_an_infinite_input_with_a_finite_answer_is_flagged_and_counted(tmp_path: Path) -> None:
    with local_server(tmp_path, squash()) as server:
        client = connect(server.unix)
        path = "/v2/models/squash/infer"
        tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32"}
        for data, flagged in (([1e39, 0.0], True), ([3.4e38, 0.0], False)):
            status, answer, _ = ask(client, "POST", path, {"inputs": [{**tensor, "data": data}]})
            assert (status, answer["outputs"][0]["data"]) == (200, [1.0, 0.5])
            assert answer["parameters"].get("skerry_nonfinite_input", False) is flagged
        assert server.observer.totals().nonfinite_inputs == 1
        client.close()


@pytest.mark.attack
def test_m13_nan_from_a_finite_input_is_the_model_s_failure(tmp_path: Path) -> None:
    with local_server(tmp_path, logarithm()) as server:
        client = connect(server.unix)
        path = "/v2/models/logarithm/infer"
        status, answer, _ = ask(client, "POST", path, json_request(x=np.array([[-1.0, 1.0]], np.float32)))
        assert (status, answer["code"]) == (500, "engine")
        status, answer, _ = ask(client, "POST", path, json_request(x=np.array([[1.0, 1.0]], np.float32)))
        assert (status, answer["outputs"][0]["data"]) == (200, [0, 0])
        assert server.observer.totals().failures == 1
        client.close()


def test_an_engine_that_fails_is_a_500_and_counted(tmp_path: Path) -> None:
    with local_server(tmp_path, hungry()) as server:
        client = connect(server.unix)
        path = "/v2/models/hungry/infer"
        for size, code in ((-4, "engine"), (1 << 36, "budget.memory")):
            status, answer, _ = ask(client, "POST", path, json_request(size=np.array([size], np.int64)))
            assert (status, answer["code"]) == (500, code)
        assert server.observer.totals().failures == 2
        assert ask(client, "POST", path, json_request(size=np.array([4], np.int64)))[0] == 200
        client.close()


def test_too_many_connections_are_turned_away(server: LocalServer) -> None:
    wait_until(lambda: not server.http.in_flight, "quiet")
    kept = [connect(server.unix) for _ in range(LIMITS.unix_connections)]
    for client in kept:
        client.connect()
    answer = raw_exchange(server.unix, b"")
    while not answer:  # a connection of an earlier test may just have ended
        answer = raw_exchange(server.unix, b"")
    assert status_of(answer) == 503
    assert b"Retry-After: 1" in answer
    for client in kept:
        client.close()
    wait_until(lambda: still_serves_quietly(server), "service after the flood")


def still_serves_quietly(server: LocalServer) -> bool:
    client = connect(server.unix)
    try:
        return ask(client, "GET", "/v2/health/live")[0] == 200
    except OSError:
        return False
    finally:
        client.close()


def test_large_bodies_share_a_bound(tmp_path: Path) -> None:
    limits = ServeLimits(body_bytes=64 * KIB, bodies_bytes=96 * KIB)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {60 * KIB}\r\n\r\n".encode()
    with local_server(tmp_path, digits(), limits=limits) as server, socket.socket(socket.AF_UNIX) as first:
        first.connect(server.unix.getsockname())
        first.sendall(head)
        wait_until(lambda: server.http.in_flight == 1, "the first large request")
        wait_until(lambda: not server.http.bodies.reserve(60 * KIB), "its bytes are taken")
        assert status_of(raw_exchange(server.unix, head)) == 503
        first.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.http.bodies.reserve(60 * KIB), "its bytes are free again")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with local_server(tmp_path_factory.mktemp("token"), digits(), token="s3cret") as running:
        yield running


@pytest.mark.attack
@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic s3cret"}])
def test_tcp_without_the_token_is_a_401(guarded: LocalServer, header: dict[str, str]) -> None:
    client = connect(guarded.tcp)
    status, _, headers = ask(client, "GET", "/v2", headers=header)
    assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
    client.close()


def test_tcp_with_the_token_and_the_unix_socket_without_are_served(guarded: LocalServer) -> None:
    client = connect(guarded.tcp)
    assert ask(client, "GET", "/v2", headers={"Authorization": "Bearer s3cret"})[0] == 200
    client.close()
    client = connect(guarded.unix)
    assert ask(client, "GET", "/v2")[0] == 200
    client.close()


@pytest.mark.attack
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "rebound.example"},
        {"Host": "rebound.example:80"},
        {"Origin": "https://page.example"},
        {"Host": "a:b:c"},
    ],
)
def test_a_web_page_cannot_reach_the_loopback_port(server: LocalServer, headers: dict[str, str]) -> None:
    wait_until(lambda: not server.http.in_flight, "quiet")
    client = connect(server.tcp)
    assert ask(client, "GET", "/v2", headers=headers)[0] == 403
    client.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8500", "[::1]:8500", "LOCALHOST:1"])
def test_local_names_are_served(server: LocalServer, host: str) -> None:
    client = connect(server.tcp)
    assert ask(client, "GET", "/v2", headers={"Host": host})[0] == 200
    client.close()
