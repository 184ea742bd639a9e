"""Who may ask what: deny by default, on every route there is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import Route
from starlette.testclient import TestClient
from tests.fleet.fleet_harness import BASE, Fleet, running_fleet

from skerry_contract.errors import BY_CODE
from skerry_contract.signing import EcdsaSigner
from skerry_fleet.app import create_app
from skerry_fleet.auth import COOKIE, OPEN_PATHS, SESSION_S
from skerry_fleet.errors_http import STATUS, status_of


def application(fleet: Fleet) -> FastAPI:
    return create_app(fleet.services, broker_state=lambda: "running")


def routes(fleet: Fleet) -> list[tuple[str, str]]:
    """Every method and path, its parameters filled in."""
    return [
        (method, re.sub(r"\{[^}]*\}", "1", route.path))
        for route in plain_routes(application(fleet).routes)
        for method in route.methods or ()
    ]


def plain_routes(items: Iterable[Any]) -> Iterator[Route | APIRoute]:
    for item in items:
        if isinstance(item, Route | APIRoute):
            yield item
        elif hasattr(item, "original_router"):  # a router that FastAPI includes lazily
            yield from plain_routes(item.original_router.routes)
        else:
            raise AssertionError(f"a route that this test does not understand: {item}")


@pytest.fixture
def stranger(fleet: Fleet) -> TestClient:
    """Somebody without a token."""
    return TestClient(application(fleet), base_url=BASE, follow_redirects=False)


@pytest.mark.attack
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic YWRtaW46YWRtaW4="},
        {"Cookie": f"{COOKIE}=1.0"},
        {"Cookie": f"{COOKIE}=99999999999.{'0' * 64}"},
        {"Cookie": f"{COOKIE}=é"},
    ],
)
def test_h1_every_route_denies_strangers(fleet: Fleet, stranger: TestClient, headers: dict[str, str]) -> None:
    seen = routes(fleet)
    assert len(seen) >= 20
    encoded = {name: value.encode() for name, value in headers.items()}
    for method, path in seen:
        if path not in OPEN_PATHS:
            answer = stranger.request(method, path, headers=encoded)
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert method == "HEAD" or answer.json()["code"] == "access"


def test_the_open_paths_are_exactly_these(fleet: Fleet) -> None:
    assert {"/healthz", "/login"} == OPEN_PATHS
    assert {path for _, path in routes(fleet)} >= OPEN_PATHS


def test_paths_that_do_not_exist_say_nothing_to_strangers(fleet: Fleet, stranger: TestClient) -> None:
    for path in ("/docs", "/redoc", "/v1/", "/v1/nothing", "//healthz", "/healthz/", "/login/x", "/static/x"):
        assert stranger.get(path).status_code == 401, path
    for path in ("/docs", "/redoc", "/v1/nothing"):
        answer = fleet.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_health_is_open_and_says_how_the_broker_is(stranger: TestClient) -> None:
    told = stranger.get("/healthz").json()
    assert (told["status"], told["broker"]) == ("ok", {"state": "running"})
    assert told["version"]


@pytest.mark.attack
@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "[::2]", "a:b:c", "localhost:x"]
)
def test_h6_a_foreign_host_name_is_refused(fleet: Fleet, host: str) -> None:
    answer = fleet.client.get("/v1/devices", headers={"Host": host})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8420", "LOCALHOST", "[::1]:8420"])
def test_own_host_names_are_answered(fleet: Fleet, host: str) -> None:
    assert fleet.client.get("/v1/devices", headers={"Host": host}).status_code == 200


@pytest.mark.attack
def test_h8_no_other_site_can_read_or_act(fleet: Fleet, stranger: TestClient) -> None:
    for path in ("/", "/v1/devices", "/login", "/healthz"):
        answer = fleet.client.get(path, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    # A cookie reads and never acts, so a forged form of another site has no effect.
    stranger.post("/login", data={"token": fleet.token})
    assert stranger.get("/v1/devices").status_code == 200
    assert stranger.post("/v1/devices", json={"id": "pi-7"}).status_code == 401
    assert stranger.delete("/v1/devices/pi-7").status_code == 401


def test_a_browser_signs_in_once_for_half_a_day(fleet: Fleet, stranger: TestClient) -> None:
    html = {"Accept": "text/html"}
    page = stranger.get("/", headers=html)
    assert page.status_code == 401
    assert "<form" in page.text
    refused = stranger.post("/login", data={"token": "wrong"})
    assert refused.status_code == 401
    assert "not the token" in refused.text
    answer = stranger.post("/login", data={"token": fleet.token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert fleet.token not in cookie
    assert stranger.get("/", headers=html).status_code == 200
    fleet.clock.sleep(SESSION_S + 1)
    assert stranger.get("/", headers=html).status_code == 401


def test_secrets_are_files_of_their_owner_alone(fleet: Fleet) -> None:
    data: Path = fleet.services.settings.data
    secret = {"admin.token", "director.key", "fleet.db", "fleet.db-wal"}
    assert secret <= {path.name for path in data.iterdir()}
    for name in secret:
        assert (data / name).stat().st_mode & 0o077 == 0, name
    assert len(fleet.token) >= 40


def test_the_token_stays_the_same_over_restarts(tmp_path: Path, signer: EcdsaSigner) -> None:
    tokens = set()
    for _ in range(2):
        with running_fleet(tmp_path, signer) as fleet:
            tokens.add(fleet.token)
            assert fleet.client.get("/v1/devices").status_code == 200
    assert len(tokens) == 1


def test_every_error_code_has_a_status() -> None:
    for code in BY_CODE:
        assert 400 <= status_of(code) <= 599
        assert any(code == known or code.startswith(f"{known}.") for known in STATUS), code
