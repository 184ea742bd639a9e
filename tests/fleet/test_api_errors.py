"""Whatever is sent, the answer is a problem that says what to do, and the server goes on."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tests.fleet.fleet_harness import BASE, Fleet, running_fleet

from skerry_contract.errors import ConfigError
from skerry_contract.signing import EcdsaSigner
from skerry_fleet import migrations, schema
from skerry_fleet.app import create_app
from skerry_fleet.cursors import encode
from skerry_fleet.db import metadata
from skerry_fleet.settings import load_settings
from skerry_fleet.wiring import build_services

PROBLEM = {"type", "title", "status", "detail", "hint", "code"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/devices/nobody", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("PUT", "/v1/devices", 405, "input"),
        ("POST", "/v1/devices", 422, "input"),
        ("POST", "/v1/rollouts", 422, "input"),
        ("POST", "/v1/bundles", 422, "bundle.format"),
        ("GET", "/v1/audit?cursor=zzz", 422, "input"),
        ("GET", f"/v1/audit?cursor={encode(1 << 70)}", 422, "input"),
        ("GET", f"/v1/audit?cursor={encode('1')}", 422, "input"),
        ("GET", "/v1/devices/%00", 404, "not_found"),
        ("GET", "/v1/devices/%ff", 404, "not_found"),
        ("GET", "/v1/events?limit=99999", 422, "input"),
        ("GET", "/v1/placements?at_ms=-1", 422, "input"),
    ],
)
def test_every_error_is_a_problem_document(
    fleet: Fleet, method: str, path: str, status: int, code: str
) -> None:
    answer = fleet.client.request(method, path)
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert set(told) == PROBLEM
    assert (answer.status_code, told["status"], told["code"]) == (status, status, code)
    assert told["type"] == f"urn:skerry:error:{code}"
    assert told["detail"]


def test_hints_name_the_command_and_the_call(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)

    def hint(method: str, path: str, **options: Any) -> str:
        return str(fleet.client.request(method, path, **options).json()["hint"])

    rollout = {"model": "digits", "version": "1.0.0"}
    assert "'skerry devices add'" in hint("POST", "/v1/rollouts", json=rollout)
    fleet.enrol("pi-1")
    assert "'skerry devices list'" in hint("GET", "/v1/devices/pi-9")
    assert "'skerry devices remove pi-1'" in hint("POST", "/v1/devices", json={"id": "pi-1"})
    nothing = hint("POST", "/v1/rollouts", json={"model": "cats", "version": "1.0.0"})
    assert ("'skerry models list'" in nothing, "GET /v1/models" in nothing) == (True, True)
    unknown = hint("POST", "/v1/rollouts", json={"model": "digits", "version": "9.0.0"})
    assert ("'skerry models list'" in unknown, "/v1/models/digits/versions" in unknown) == (True, True)
    started = fleet.client.post("/v1/rollouts", json=rollout).json()["id"]
    assert f"'skerry rollout abort {started}'" in hint("POST", "/v1/rollouts", json=rollout)
    assert "'skerry rollout status'" in hint("GET", "/v1/rollouts/r0")
    assert "'skerry alerts list'" in hint("POST", "/v1/alerts/99/acknowledge")
    unsigned = hint("GET", "/v1/devices", headers={"Authorization": ""})
    assert ("--token-file" in unsigned, "Authorization: Bearer" in unsigned) == (True, True)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"id": NaN}',
        b'{"id": 1e999}',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"id": {}}',
    ],
)
def test_a_body_that_is_no_request_is_refused(fleet: Fleet, body: bytes) -> None:
    answer = fleet.client.post("/v1/devices", content=body, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500
    assert answer.json()["code"] == "input"


@pytest.mark.parametrize(
    "labels", [b'{"a": "\\ud800"}', b'{"\\ud800": "x"}', b'{"\\ud800": 1}', b'{"a": 99999999999999999999999}']
)
def test_text_that_is_no_unicode_is_refused(fleet: Fleet, labels: bytes) -> None:
    body = b'{"id": "pi-7", "labels": ' + labels + b"}"
    answer = fleet.client.post("/v1/devices", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (422, "input")


@pytest.mark.attack
@pytest.mark.parametrize("length", ["-1", "x", "1e3", "²", "9" * 5000])
def test_h4_a_lying_length_is_refused(fleet: Fleet, length: str) -> None:
    lying = {b"Content-Length": length.encode()}
    answer = fleet.client.post("/v1/devices", content=b"{}", headers=lying)
    assert answer.status_code in (400, 413)


@pytest.mark.attack
def test_h4_a_body_over_the_limit_is_refused(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running_fleet(tmp_path, signer, max_body_bytes=1000) as fleet:
        body = {"id": "pi-7", "labels": {"site": "x" * 2000}}
        answer = fleet.client.post("/v1/devices", json=body)
        assert (answer.status_code, answer.json()["code"]) == (413, "input")


@pytest.mark.attack
@pytest.mark.parametrize("name", ["..%2f..%2fadmin.token", "%2e%2e/admin.token", "..\\admin.token", "%00"])
def test_h3_no_path_leads_to_a_file(fleet: Fleet, name: str) -> None:
    for prefix in ("/v1/models", "/v1/devices", "/v1/rollouts", ""):
        answer = fleet.client.get(f"{prefix}/{name}")
        assert answer.status_code in (404, 405, 422)
        assert fleet.token not in answer.text


def test_a_failure_of_the_server_itself_tells_no_details(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> object:
        raise ZeroDivisionError("with a secret in it")

    monkeypatch.setattr(fleet.services.devices, "devices", broken)
    app = create_app(fleet.services, broker_state=lambda: "running")
    client = TestClient(app, base_url=BASE, raise_server_exceptions=False)
    answer = client.get("/v1/devices", headers={"Authorization": f"Bearer {fleet.token}"})
    assert (answer.status_code, answer.json()["code"]) == (500, "error")
    assert "secret" not in answer.text


def test_a_full_disk_is_a_507_and_changes_nothing(fleet: Fleet) -> None:
    with fleet.services.db.write() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
        db.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    answers = [fleet.client.post("/v1/devices", json={"id": f"pi-{n}"}) for n in range(200)]
    refused = [answer for answer in answers if answer.status_code != 201]
    assert refused
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(507, "storage")}
    assert "full" in refused[0].json()["detail"]
    with fleet.services.db.write() as db:
        db.exec_driver_sql("PRAGMA max_page_count = 100000")
    listed = len(fleet.client.get("/v1/devices?limit=500").json()["items"])
    assert listed == len(answers) - len(refused) == len(fleet.services.devices.credentials())
    assert fleet.client.post("/v1/devices", json={"id": "pi-after"}).status_code == 201


def test_the_schema_document_is_complete_and_behind_the_token(fleet: Fleet) -> None:
    document = fleet.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    paths = {
        "/healthz", "/v1/trust", "/v1/bundles", "/v1/models", "/v1/models/{name}/versions", "/v1/devices",
        "/v1/devices/{device_id}", "/v1/devices/{device_id}/windows", "/v1/rollouts",
        "/v1/rollouts/{rollout_id}", "/v1/rollouts/{rollout_id}/{act}", "/v1/placements", "/v1/drift",
        "/v1/alerts",
        "/v1/alerts/{alert_id}/acknowledge", "/v1/events", "/v1/audit", "/v1/audit/check",
    }  # fmt: skip
    assert set(document["paths"]) == paths


# --- storage and settings ---


def test_the_migrations_make_exactly_the_declared_tables(fleet: Fleet) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    assert schema.__all__
    with fleet.services.db.read() as db:
        assert compare_metadata(MigrationContext.configure(db), metadata) == []


@pytest.mark.attack
def test_l10_a_database_of_a_newer_version_is_refused_unharmed(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running_fleet(tmp_path, signer) as fleet:
        fleet.enrol("pi-7")
        path = fleet.services.settings.data / "fleet.db"
    db = sqlite3.connect(path)
    db.execute("UPDATE alembic_version SET version_num = '9999'")
    db.commit()
    with pytest.raises(ConfigError, match="does not know") as caught:
        build_services(load_settings(data=path.parent))
    assert "newer version" in caught.value.hint
    db.execute("UPDATE alembic_version SET version_num = ?", (migrations.revisions()[0],))
    db.commit()
    db.close()
    with running_fleet(tmp_path, signer) as fleet:
        assert [item["id"] for item in fleet.client.get("/v1/devices").json()["items"]] == ["pi-7"]


def test_transactions_do_not_nest(fleet: Fleet) -> None:
    with (
        fleet.services.db.write(),
        pytest.raises(RuntimeError, match="do not nest"),
        fleet.services.db.write(),
    ):
        pass


def test_what_reads_cannot_write(fleet: Fleet) -> None:
    from skerry_fleet.models.tables import model

    with pytest.raises(Exception, match="readonly"), fleet.services.db.read() as db:
        db.execute(model.insert().values(name="x", task="other", created_ms=0))


@pytest.mark.parametrize("options", [{"port": 70_000}, {"org": "a/b"}, {"desired_ttl_s": 1}, {"nonsense": 1}])
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        load_settings(**options)


def test_settings_come_from_variables_and_options_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKERRY_FLEET_ORG", "from-variable")
    monkeypatch.setenv("SKERRY_FLEET_ALLOWED_HOSTS", "fleet.example:backup.example")
    assert load_settings().org == "from-variable"
    assert load_settings(org="from-option", port=None).org == "from-option"
    assert load_settings(host="0.0.0.0").hosts == (  # noqa: S104 no socket is bound
        "127.0.0.1", "localhost", "::1", "fleet.example", "backup.example",
    )  # fmt: skip


def test_a_missing_engineer_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engineer\.pub"):
        build_services(load_settings(data=tmp_path / "fleet", trust=(tmp_path / "engineer.pub",)))
