"""Devices: enrolment, presence, reports, desired state and placements."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from tests.fleet.fleet_harness import Fleet, running_fleet

from skerry_contract.errors import NotFoundError
from skerry_contract.messages import (
    ErrorReport,
    ModelReport,
    Phase,
    Presence,
    PresenceMessage,
    UpdateReport,
)
from skerry_contract.signing import EcdsaSigner


def enrol(fleet: Fleet, **body: object) -> dict[str, object]:
    answer = fleet.client.post("/v1/devices", json=body)
    assert answer.status_code == 201, answer.text
    told: dict[str, object] = answer.json()
    return told


# --- enrolment ---


def test_enrolment_answers_with_a_complete_configuration(fleet: Fleet) -> None:
    told = enrol(fleet, id="pi-7", labels={"site": "gate"}, device_class="raspberry-pi-4")
    assert (told["id"], told["labels"], told["device_class"]) == ("pi-7", {"site": "gate"}, "raspberry-pi-4")
    config = tomllib.loads(str(told["config_toml"]))
    trust = fleet.client.get("/v1/trust").json()
    assert (config["device"], config["org"], config["device_class"]) == ("pi-7", "acme", "raspberry-pi-4")
    assert config["data_dir"] == "/var/lib/skerry"
    assert (config["fleet"]["host"], config["fleet"]["port"]) == ("127.0.0.1", 1883)
    assert config["fleet"]["username"] == "pi-7"
    assert len(config["fleet"]["password"]) >= 40
    assert config["trust"] == {"engineers": trust["engineer_keys"], "director": trust["director_key"]}
    assert config["trust"]["engineers"] == [fleet.signer.verifier.pem.decode()]
    assert set(config) >= {"serve", "budgets", "windows", "telemetry"}


def test_a_device_may_keep_its_data_elsewhere(fleet: Fleet) -> None:
    folder = '/srv/Messger\u00e4te/edge "1"'
    config = tomllib.loads(str(enrol(fleet, id="pi-7", data_dir=folder)["config_toml"]))
    assert config["data_dir"] == folder


@pytest.mark.parametrize(
    "folder", ["", "var/lib", "~/skerry", "/a\nb", "/a\x00", "/a\x7f", "/a\u2028b", "/" + "x" * 1000]
)
def test_a_data_folder_that_cannot_be_used_is_refused(fleet: Fleet, folder: str) -> None:
    answer = fleet.client.post("/v1/devices", json={"id": "pi-7", "data_dir": folder})
    assert (answer.status_code, answer.json()["code"]) == (422, "input")
    assert fleet.client.get("/v1/devices/pi-7").status_code == 404


def test_of_a_password_only_a_hash_is_kept(fleet: Fleet) -> None:
    password = tomllib.loads(str(enrol(fleet, id="pi-7")["config_toml"]))["fleet"]["password"]
    hashed = fleet.services.devices.credentials()["pi-7"]
    assert re.fullmatch(r"\$7\$\d+\$[^$]+\$[^$]+", hashed)
    for path in fleet.services.settings.data.rglob("*"):
        if path.is_file():
            assert password.encode() not in path.read_bytes(), path


def test_the_broker_hears_of_new_and_removed_credentials(fleet: Fleet) -> None:
    seen: list[set[str]] = []
    fleet.services.devices.credential_observers.append(
        lambda: seen.append(set(fleet.services.devices.credentials()))
    )
    enrol(fleet, id="pi-1")
    enrol(fleet, id="pi-2")
    fleet.client.delete("/v1/devices/pi-1")
    assert seen == [{"pi-1"}, {"pi-1", "pi-2"}, {"pi-2"}]


def test_a_device_cannot_be_enrolled_twice(fleet: Fleet) -> None:
    enrol(fleet, id="pi-7")
    before = fleet.services.devices.credentials()
    answer = fleet.client.post("/v1/devices", json={"id": "pi-7"})
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert fleet.services.devices.credentials() == before


@pytest.mark.parametrize(
    "name", ["", "a/b", "+", "#", "_server", "../x", "a" * 65, "pi 7", "pi\n7", "<script>"]
)
def test_identifiers_that_could_leave_their_topic_are_refused(fleet: Fleet, name: str) -> None:
    answer = fleet.client.post("/v1/devices", json={"id": name})
    assert (answer.status_code, answer.json()["code"]) == (422, "input")


@pytest.mark.parametrize("labels", [{"": "x"}, {"site": ""}, {"a b": "x"}, {"site": "x" * 129}, {"site": 3}])
def test_labels_that_cannot_be_used_are_refused(fleet: Fleet, labels: dict[str, object]) -> None:
    assert fleet.client.post("/v1/devices", json={"id": "pi-7", "labels": labels}).status_code == 422


def test_a_server_that_trusts_nobody_enrols_nobody(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running_fleet(tmp_path, signer) as fleet:
        fleet.services.site.engineers.clear()  # type: ignore[attr-defined]
        answer = fleet.client.post("/v1/devices", json={"id": "pi-7"})
        assert answer.status_code == 409
        assert "--trust" in answer.json()["hint"]


# --- what is known ---


def test_devices_are_listed_by_id_in_pages_and_by_label(fleet: Fleet) -> None:
    for n in range(5):
        enrol(fleet, id=f"pi-{n}", labels={"site": "gate" if n % 2 else "yard", "floor": "1"})
    first = fleet.client.get("/v1/devices?limit=3").json()
    rest = fleet.client.get("/v1/devices", params={"limit": 3, "cursor": first["next"]}).json()
    assert [item["id"] for item in first["items"] + rest["items"]] == [f"pi-{n}" for n in range(5)]
    assert rest["next"] is None
    picked = fleet.client.get("/v1/devices", params={"label": ["site=gate", "floor=1"]}).json()["items"]
    assert [item["id"] for item in picked] == ["pi-1", "pi-3"]
    assert fleet.client.get("/v1/devices", params={"label": "site=gate' OR 1=1"}).json()["items"] == []


@pytest.mark.parametrize(
    "query", ["cursor=!!", "cursor=MTIz", "limit=0", "limit=501", "limit=x", "label=site"]
)
def test_a_query_that_makes_no_sense_is_refused(fleet: Fleet, query: str) -> None:
    answer = fleet.client.get(f"/v1/devices?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "input")


def test_a_device_is_shown_with_what_it_said_of_itself(fleet: Fleet) -> None:
    (device,) = fleet.enrol("pi-7", site="gate")
    told = fleet.client.get("/v1/devices/pi-7").json()
    assert told["device"]["presence"] == "online"
    assert told["device"]["labels"] == {"site": "gate"}
    assert told["device"]["last_seen_ms"] == fleet.clock.ms
    assert (told["hardware"]["arch"], told["engines"][0]["name"]) == ("aarch64", "onnx")
    device.vanish()
    assert fleet.client.get("/v1/devices/pi-7").json()["device"]["presence"] == "lost"
    assert fleet.client.get("/v1/devices/pi-8").status_code == 404


# --- presence ---


def test_a_will_of_an_older_connection_is_ignored(fleet: Fleet) -> None:
    """The broker finds out late that the old connection is dead; the device is back already."""
    (device,) = fleet.enrol("pi-7")
    device.connect()
    fleet.services.devices.record_presence("pi-7", PresenceMessage(state=Presence.LOST, epoch=1))
    assert fleet.client.get("/v1/devices/pi-7").json()["device"]["presence"] == "online"
    device.vanish()
    assert fleet.client.get("/v1/devices/pi-7").json()["device"]["presence"] == "lost"


def test_a_report_of_an_older_connection_is_ignored(fleet: Fleet) -> None:
    (device,) = fleet.enrol("pi-7")
    device.connect()
    report = UpdateReport(revision=99, epoch=1, models={"digits": ModelReport(active=None)})
    fleet.services.devices.record_report("pi-7", report)
    assert fleet.client.get("/v1/devices/pi-7").json()["device"]["reported"] == {}


def test_who_is_not_enrolled_is_not_heard(fleet: Fleet) -> None:
    fleet.enrol("pi-7")
    fleet.client.delete("/v1/devices/pi-7")
    for device in ("pi-7", "pi-8"):
        with pytest.raises(NotFoundError):
            fleet.services.devices.record_presence(device, PresenceMessage(state=Presence.ONLINE, epoch=9))
        with pytest.raises(NotFoundError):
            fleet.services.devices.record_report(device, UpdateReport(revision=0, epoch=9, models={}))
    assert fleet.client.get("/v1/devices").json()["items"] == []


# --- desired state ---


def drain(fleet: Fleet) -> list[tuple[str, int]]:
    """Publish everything that waits, as the outbox thread does."""
    rows = fleet.services.devices.outbox()
    fleet.services.devices.outbox_done([row.seq for row in rows])
    return [(row.device, row.revision) for row in rows]


def test_only_the_newest_desired_state_waits_to_be_published(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    fleet.publish("1.1.0", 2, name="voices")
    fleet.enrol("pi-7")
    fleet.roll_out("1.0.0", waves=[1])
    fleet.roll_out("1.1.0", waves=[1], model="voices")
    assert drain(fleet) == [("pi-7", 2)]


def test_a_device_with_an_older_revision_is_sent_the_newest_again(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-7")
    fleet.roll_out("1.0.0", waves=[1])
    device.take()
    drain(fleet)
    device.connect()
    assert drain(fleet) == []
    device.revision = 0
    device.connect()
    assert drain(fleet) == [("pi-7", 1)]
    device.say(None, None)
    assert drain(fleet) == [("pi-7", 1)]


def test_a_restored_database_goes_on_above_what_devices_have_seen(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-7")
    fleet.roll_out("1.0.0", waves=[1])
    drain(fleet)
    device.revision = 40
    device.connect()
    assert drain(fleet) == [("pi-7", 41)]


@pytest.mark.attack
def test_an_absurd_revision_does_no_harm(fleet: Fleet) -> None:
    (device,) = fleet.enrol("pi-7")
    for revision in (-5, 1 << 62, (1 << 63) - 1, 1 << 70):
        device.revision = revision
        device.connect()
        device.say(None, None)
    assert fleet.client.get("/v1/devices/pi-7").json()["device"]["reported_revision"] == 0


def test_a_removed_device_clears_its_retained_message(fleet: Fleet) -> None:
    fleet.enrol("pi-7")
    fleet.client.delete("/v1/devices/pi-7")
    assert [(row.device, row.payload) for row in fleet.services.devices.outbox()] == [("pi-7", b"")]


def test_a_device_that_is_enrolled_anew_goes_on_with_its_revisions(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-7")
    fleet.settle(fleet.roll_out("1.0.0", waves=[1]))
    fleet.client.delete("/v1/devices/pi-7")
    (device,) = fleet.enrol("pi-7")
    fleet.roll_out("1.0.0", waves=[1])
    assert device.desired().revision == 2


def test_desired_states_are_signed_again_before_they_expire(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-7")
    fleet.settle(fleet.roll_out("1.0.0", waves=[1]))
    first = device.desired()
    fleet.clock.sleep(3 * 86_400)
    fleet.services.engine.tick()
    assert device.desired() == first
    fleet.clock.sleep(86_400)
    fleet.services.engine.tick()
    second = device.desired()
    assert second.revision == first.revision + 1
    assert second.expires == fleet.clock.ms + 7 * 86_400_000
    assert second.models == first.models


def test_what_a_device_gave_up_is_not_desired_of_it_any_more(fleet: Fleet) -> None:
    """Long after its rollout has ended, too."""
    one, two = fleet.publish("1.0.0", 1), fleet.publish("2.0.0", 2)
    (device,) = fleet.enrol("pi-7")
    for version in ("1.0.0", "2.0.0"):
        fleet.settle(fleet.roll_out(version, waves=[1]))
    device.active, device.active_version = one, "1.0.0"
    device.say(
        Phase.ROLLED_BACK, two, "2.0.0", error=ErrorReport(code="engine", message="it crashed 3 times")
    )
    assert device.desired().models["digits"].manifest.digest == one
    events = fleet.client.get("/v1/events?device=pi-7").json()["items"]
    (rolled_back,) = [event for event in events if event["kind"] == "update.rolled_back"]
    assert (rolled_back["digest"], rolled_back["error_code"]) == (two, "engine")


def test_a_device_without_anything_to_go_back_to_is_left_alone(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-7")
    fleet.roll_out("1.0.0", waves=[1])
    device.fail()
    assert device.desired().models == {}


# --- placements ---


def test_placements_tell_what_ran_where_from_when_to_when(fleet: Fleet) -> None:
    one, two = fleet.publish("1.0.0", 1), fleet.publish("2.0.0", 2)
    (device,) = fleet.enrol("pi-7")
    rollout = fleet.roll_out("1.0.0", waves=[1])
    begun = fleet.clock.ms
    fleet.settle(rollout)
    fleet.clock.sleep(3600)
    fleet.roll_out("2.0.0", waves=[1])
    device.fail()
    ran = fleet.client.get("/v1/placements?device=pi-7").json()["items"]
    assert [(row["digest"], row["health"]) for row in ran] == [(one, "good"), (two, "bad"), (one, "good")]
    assert [row["to_ms"] is None for row in ran] == [True, False, False]
    assert (ran[2]["from_ms"], ran[2]["to_ms"], ran[2]["rollout"]) == (begun, begun + 3_600_000, rollout)
    then = fleet.client.get("/v1/placements", params={"model": "digits", "at_ms": begun + 1000}).json()[
        "items"
    ]
    assert [(row["device"], row["version"]) for row in then] == [("pi-7", "1.0.0")]
    of_2 = fleet.client.get("/v1/placements?model=digits&version=2.0.0").json()["items"]
    assert [row["device"] for row in of_2] == ["pi-7"]
