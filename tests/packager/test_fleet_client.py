"""The client of the fleet's API: whatever answers, the caller gets checked JSON or an error of ours."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from tests.builders import BundleBuilder
from tests.packager.odd_server import Answer, OddServer, odd_server, reply

from skerry_contract import errors
from skerry_packager.fleet_client import FleetClient, find_token, parse_address


def problem(status: int, code: str, **more: Any) -> Answer:
    body = {
        "type": "about:blank",
        "title": "x",
        "status": status,
        "detail": "what was wrong",
        "code": code,
        **more,
    }
    return lambda request: reply(request, status, body, "application/problem+json")


@pytest.fixture
def server() -> Iterator[OddServer]:
    with odd_server() as odd:
        yield odd


def test_requests_carry_the_token_and_json(server: OddServer) -> None:
    FleetClient(server.url, "secret").start_rollout({"model": "digits", "version": "1.0.0"})
    method, path, headers, body = server.asked[0]
    assert (method, path, headers["Authorization"]) == ("POST", "/v1/rollouts", "Bearer secret")
    assert json.loads(body) == {"model": "digits", "version": "1.0.0"}


def test_health_is_a_word(server: OddServer) -> None:
    server.answer = lambda request: reply(request, 200, {"status": "ok"})
    assert FleetClient(server.url).healthy()
    server.answer = lambda request: reply(request, 200, {"status": "starting"})
    assert not FleetClient(server.url).healthy()
    server.answer = lambda request: reply(request, 502, b"", "text/html")
    assert not FleetClient(server.url).healthy()


def test_lists_follow_the_cursors(server: OddServer) -> None:
    pages = {
        "/v1/devices": {"items": [{"id": "a"}], "next": "x&y"},
        "/v1/devices?cursor=x%26y": {"items": [{"id": "b"}], "next": None},
    }
    server.answer = lambda request: reply(request, 200, pages[request.path])
    assert FleetClient(server.url).devices() == [{"id": "a"}, {"id": "b"}]


def test_a_bundle_is_streamed_with_its_size(
    server: OddServer, builder: BundleBuilder, tmp_path: Path
) -> None:
    path = builder.write(tmp_path)
    server.answer = lambda request: reply(request, 201, {"digest": "sha256:x"})
    seen: list[tuple[int, int]] = []
    is_new, answer = FleetClient(server.url).publish(path, lambda done, total: seen.append((done, total)))
    assert (is_new, answer) == (True, {"digest": "sha256:x"})
    assert server.asked[0][3] == path.read_bytes()
    assert seen[-1] == (path.stat().st_size,) * 2
    server.answer = lambda request: reply(request, 200, {})
    assert FleetClient(server.url).publish(path)[0] is False


def test_a_refusal_before_the_upload_ends_is_read(server: OddServer, tmp_path: Path) -> None:
    """A server that refuses by the first bytes and hangs up must not look like a broken network."""
    path = tmp_path / "large.skerry"
    path.write_bytes(bytes(32 << 20))
    listener = socket.create_server(("127.0.0.1", 0))
    answered = threading.Event()

    def refuse() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        body = json.dumps({"code": "bundle.signature", "detail": "not signed", "hint": "sign it"}).encode()
        head = (
            f"HTTP/1.1 422 X\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answered.wait(20)
        connection.close()

    thread = threading.Thread(target=refuse)
    thread.start()
    client = FleetClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.5)
    try:
        with pytest.raises(errors.SignatureError, match="not signed"):
            client.publish(path)
    finally:
        answered.set()
        thread.join()
        listener.close()


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (422, "bundle.signature", errors.SignatureError),
        (409, "conflict", errors.ConflictError),
        (404, "not_found", errors.NotFoundError),
        (403, "access", errors.AccessError),
        (422, "bundle.future_reason", errors.BundleError),
        (500, "error", errors.UnavailableError),
        (507, "storage", errors.StorageError),
    ],
)
def test_a_problem_becomes_the_error_of_its_code(
    server: OddServer, status: int, code: str, kind: type[errors.SkerryError]
) -> None:
    server.answer = problem(status, code, hint="do this")
    with pytest.raises(kind, match="what was wrong") as caught:
        FleetClient(server.url).rollouts()
    assert type(caught.value) is kind
    assert caught.value.hint == "do this"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, errors.AccessError),
        (404, errors.NotFoundError),
        (409, errors.ConflictError),
        (429, errors.OverloadedError),
        (502, errors.UnavailableError),
    ],
)
def test_a_status_without_a_problem_is_understood_too(
    server: OddServer, status: int, kind: type[errors.SkerryError]
) -> None:
    server.answer = lambda request: reply(request, status, b"<html>nginx</html>", "text/html")
    with pytest.raises(kind):
        FleetClient(server.url).rollouts()


@pytest.mark.attack
@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"",
        b"[" * 100_000,
        b"9" * 5000,
        b"null",
        b"[1, 2]",
        b'{"items": [1], "next": null}',
        b'{"items": {}, "next": null}',
        b'{"next": null}',
        b"\xff\xfe",
    ],
)
def test_an_answer_that_is_not_the_apis_is_refused(server: OddServer, body: bytes) -> None:
    server.answer = lambda request: reply(request, 200, body)
    with pytest.raises(errors.UnavailableError):
        FleetClient(server.url).devices()


@pytest.mark.attack
@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"code": 7, "detail": "x"}',
        b'{"code": "conflict", "detail": []}',
    ],
)
def test_a_broken_problem_is_an_error_all_the_same(server: OddServer, body: bytes) -> None:
    server.answer = lambda request: reply(request, 500, body, "application/problem+json")
    with pytest.raises(errors.UnavailableError, match="500"):
        FleetClient(server.url).rollouts()


@pytest.mark.attack
def test_an_endless_answer_ends(server: OddServer) -> None:
    def flood(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.end_headers()
        try:
            for _ in range(1000):
                request.wfile.write(b" " * (1 << 20))
        except OSError:
            pass

    server.answer = flood
    with pytest.raises(errors.UnavailableError, match="16 MiB"):
        FleetClient(server.url).rollouts()


@pytest.mark.attack
def test_endless_pages_end(server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_packager.fleet_client._MAX_PAGES", 5)
    server.answer = lambda request: reply(request, 200, {"items": [], "next": "again"})
    with pytest.raises(errors.UnavailableError, match="does not end"):
        FleetClient(server.url).rollouts()
    assert len(server.asked) == 5


@pytest.mark.attack
def test_a_redirect_does_not_get_the_token(server: OddServer) -> None:
    def redirect(request: BaseHTTPRequestHandler) -> None:
        request.send_response(307)
        request.send_header("Location", f"{server.url}/elsewhere")
        request.send_header("Content-Length", "0")
        request.end_headers()

    server.answer = redirect
    with pytest.raises(errors.UnavailableError, match="redirects"):
        FleetClient(server.url, "secret").rollouts()
    assert len(server.asked) == 1


@pytest.mark.attack
def test_a_token_does_not_cross_the_network_in_the_clear() -> None:
    with pytest.raises(errors.AccessError, match="unencrypted"):
        FleetClient("http://fleet.example.org:8420", "secret")
    FleetClient("http://fleet.example.org:8420", "secret", insecure=True)
    FleetClient("https://fleet.example.org", "secret")
    FleetClient("http://fleet.example.org:8420")
    FleetClient("http://[::1]:8420", "secret")


@pytest.mark.attack
def test_a_name_does_not_climb_out_of_its_path(server: OddServer) -> None:
    client = FleetClient(server.url)
    client.device("a/../b?c#d")
    assert server.asked[0][1] == "/v1/devices/a%2F..%2Fb%3Fc%23d"
    with pytest.raises(errors.InputError):
        client.device("..")


@pytest.mark.attack
def test_a_token_cannot_carry_a_header() -> None:
    with pytest.raises(errors.InputError):
        FleetClient("http://127.0.0.1:8420", "a\r\nX-Evil: 1")


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.UnavailableError, match=str(port)) as caught:
        FleetClient(f"http://127.0.0.1:{port}").rollouts()
    assert "skerry fleet serve" in caught.value.hint
    assert not FleetClient(f"http://127.0.0.1:{port}").healthy()
    with pytest.raises(errors.UnavailableError, match="no-such-host"):
        FleetClient("http://no-such-host.invalid:1").rollouts()


def test_a_server_that_does_not_answer_is_given_up(server: OddServer) -> None:
    waiting = threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        waiting.wait(20)

    server.answer = stall
    try:
        with pytest.raises(errors.TransferError, match="did not answer"):
            FleetClient(server.url, timeout_s=0.2).rollouts()
    finally:
        waiting.set()


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 two hundred\r\n\r\n"])
def test_a_program_that_speaks_no_http_is_told_apart(greeting: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(4096)
        connection.sendall(greeting)
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(errors.UnavailableError, match=r"127\.0\.0\.1"):
        FleetClient(f"http://127.0.0.1:{listener.getsockname()[1]}").rollouts()
    thread.join()
    listener.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:8420",
        "ftp://x",
        "http://",
        "http://x:99999",
        "http://u:p@x",
        "http://x?y=1",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(errors.InputError):
        parse_address(url)


def test_an_address_may_have_a_path_in_front() -> None:
    assert str(parse_address("https://example.org/skerry/")) == "https://example.org:443/skerry"


def test_the_token_is_looked_for_in_order(tmp_path: Path) -> None:
    default, named = tmp_path / "admin.token", tmp_path / "my.token"
    local, remote = "http://127.0.0.1:8420", "https://fleet.example.org"
    assert find_token(local, "", None, default) == ""
    default.write_text("from the default\n")
    named.write_text("named\n")
    assert find_token(local, "", None, default) == "from the default"
    assert find_token(local, "", named, default) == "named"
    assert find_token(local, "given", named, default) == "given"
    with pytest.raises(errors.InputError, match="gone"):
        find_token(local, "", tmp_path / "gone", default)
    # The local server's token is nobody else's business.
    assert find_token(remote, "", None, default) == ""
