"""The audit log: nobody acts without a row, and no row is changed, added in between or taken away unseen."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.fleet.fleet_harness import Fleet, running_fleet

from skerry_contract.signing import EcdsaSigner


def log(fleet: Fleet) -> list[tuple[str, str, str]]:
    rows = fleet.client.get("/v1/audit").json()["items"]
    return [(row["actor"], row["action"], row["subject"]) for row in reversed(rows)]


def test_every_act_leaves_a_row_with_who_did_it(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-7")
    rollout = fleet.roll_out("1.0.0", waves=[1])
    device.fail()
    fleet.services.engine.tick()
    fleet.client.delete("/v1/devices/pi-7")
    assert log(fleet) == [
        ("admin", "model.published", "model/digits"),
        ("admin", "device.enrolled", "device/pi-7"),
        ("admin", "rollout.created", f"rollout/{rollout}"),
        ("admin", "rollout.start", f"rollout/{rollout}"),
        ("fleet", "device.set_back", "device/pi-7"),
        ("fleet", "rollout.gate_failed", f"rollout/{rollout}"),
        ("fleet", "model.quarantined", "model/digits"),
        ("fleet", "rollout.set_back_begun", f"rollout/{rollout}"),
        ("fleet", "rollout.all_back", f"rollout/{rollout}"),
        ("admin", "device.removed", "device/pi-7"),
    ]
    assert fleet.client.get("/v1/audit/check").json() == {"intact": True, "first_broken": None}


def test_what_is_refused_leaves_no_row(fleet: Fleet) -> None:
    fleet.enrol("pi-7")
    before = log(fleet)
    fleet.client.post("/v1/devices", json={"id": "pi-7"})
    fleet.client.post("/v1/rollouts", json={"model": "digits", "version": "1.0.0"})
    assert log(fleet) == before


@pytest.mark.parametrize("statement", ["UPDATE audit SET actor = 'nobody'", "DELETE FROM audit"])
def test_the_database_itself_refuses_to_change_the_log(fleet: Fleet, statement: str) -> None:
    fleet.enrol("pi-7")
    with pytest.raises(sa.exc.DatabaseError, match="append-only"), fleet.services.db.write() as db:
        db.execute(sa.text(statement))
    assert len(log(fleet)) == 1


@pytest.mark.attack
@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE audit SET actor = 'somebody' WHERE seq = 2",
        "UPDATE audit SET data = '{}' WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 1",
        "UPDATE audit SET at_ms = at_ms + 1 WHERE seq = 2",
    ],
)
def test_a_forgery_in_the_file_is_found(tmp_path: Path, signer: EcdsaSigner, forgery: str) -> None:
    with running_fleet(tmp_path, signer) as fleet:
        fleet.enrol("pi-1", "pi-2", "pi-3")
        path = fleet.services.settings.data / "fleet.db"
    db = sqlite3.connect(path)
    for verb in ("UPDATE", "DELETE"):
        db.execute(f"DROP TRIGGER audit_no_{verb}")
    db.execute(forgery)
    db.commit()
    db.close()
    with running_fleet(tmp_path, signer) as fleet:
        check = fleet.client.get("/v1/audit/check").json()
    assert check["intact"] is False
    assert check["first_broken"] in (1, 2)


def test_the_chain_goes_on_after_a_restart(tmp_path: Path, signer: EcdsaSigner) -> None:
    for name in ("pi-1", "pi-2"):
        with running_fleet(tmp_path, signer) as fleet:
            fleet.enrol(name)
            check = fleet.client.get("/v1/audit/check").json()
            rows = fleet.client.get("/v1/audit").json()["items"]
    assert check["intact"] is True
    assert [row["seq"] for row in rows] == [2, 1]
    assert rows[0]["previous"] == rows[1]["hash"]


def test_events_are_paged_newest_first(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    fleet.publish("2.0.0", 2)
    fleet.enrol("pi-1", "pi-2")
    for version in ("1.0.0", "2.0.0"):
        fleet.settle(fleet.roll_out(version, waves=[2]))
    mine = fleet.client.get("/v1/events?device=pi-1").json()["items"]
    assert [event["kind"] for event in mine] == ["desired.changed", "desired.changed"]
    assert mine[0]["id"] > mine[1]["id"]
    page = fleet.client.get("/v1/events?limit=3").json()
    rest = fleet.client.get("/v1/events", params={"limit": 3, "cursor": page["next"]}).json()
    assert len(page["items"] + rest["items"]) == 4
    assert rest["next"] is None
