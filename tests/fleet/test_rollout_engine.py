"""Rollouts from the start to every end, with devices that install, fail, fall silent or are away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.fleet.fleet_harness import Device, Fleet, running_fleet

from skerry_contract.digests import Digest
from skerry_contract.messages import ErrorReport, Phase
from skerry_contract.signing import EcdsaSigner

NAMES = ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5")
WAVES = [0.2, 0.6, 1.0]


def wave(state: dict[str, Any], number: int) -> dict[str, Any]:
    found: dict[str, Any] = state["waves"][number - 1]
    return found


def phases(state: dict[str, Any]) -> dict[str, str]:
    return {item["device"]: item["phase"] for stage in state["waves"] for item in stage["devices"]}


def why(state: dict[str, Any], number: int) -> str:
    return " ".join(wave(state, number)["verdict"]["reasons"])


@pytest.fixture
def digests(fleet: Fleet) -> dict[str, Digest]:
    """Three published versions."""
    return {f"{n}.0.0": fleet.publish(f"{n}.0.0", n) for n in (1, 2, 3)}


@pytest.fixture
def on_1(fleet: Fleet, digests: dict[str, Digest]) -> list[Device]:
    """Five devices that run 1.0.0."""
    devices = fleet.enrol(*NAMES)
    assert fleet.settle(fleet.roll_out("1.0.0", waves=[1.0]))["state"] == "completed"
    assert {device.active for device in devices} == {digests["1.0.0"]}
    return devices


def test_wave_follows_wave_until_all_devices_confirmed(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    for number, offered in ((1, 1), (2, 3), (3, 5)):
        state = fleet.rollout(rollout)
        assert (state["state"], state["wave"]) == ("running", number)
        assert sum(phase != "pending" for phase in phases(state).values()) == offered
        assert wave(state, number)["verdict"]["decision"] == "hold"
        for device in fleet.members(rollout, number):
            device.install()
        assert wave(fleet.rollout(rollout), number)["verdict"]["decision"] == "pass"
    state = fleet.rollout(rollout)
    assert (state["state"], state["final"]) == ("completed", True)
    assert state["phases"] == {"confirmed": 5}
    assert "0 failures in 5 devices: with 95% confidence, fewer than 45% of devices fail." in why(state, 3)
    assert {device.active_version for device in on_1} == {"2.0.0"}


def test_a_desired_state_is_signed_for_this_device_and_points_to_signed_things(
    fleet: Fleet, digests: dict[str, Digest]
) -> None:
    (device,) = fleet.enrol("pi-1")
    probation = {"requests": 7, "seconds": 3.0}
    rollout = fleet.roll_out("1.0.0", waves=[1], probation=probation, jitter_s=1.5)
    state = device.desired()
    wish = state.models["digits"]
    assert (state.device, state.revision, state.rollout) == ("pi-1", 1, rollout)
    assert state.expires == fleet.clock.ms + 7 * 86_400_000
    assert (wish.version, wish.release, wish.manifest.digest) == ("1.0.0", 1, digests["1.0.0"])
    assert (wish.probation.requests, wish.probation.seconds, wish.jitter_s) == (7, 3.0, 1.5)
    for blob in (wish.manifest, wish.signature):
        assert len(fleet.services.models.read_block(blob.digest, 0, 1 << 20)) == blob.size


def test_a_failing_version_is_halted_at_the_first_wave_and_everybody_set_back(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    (guinea_pig,) = fleet.members(rollout, 1)
    guinea_pig.fail()
    state = fleet.rollout(rollout)
    assert state["state"] == "reverted"
    assert state["phases"] == {"rolled_back": 1, "pending": 4}
    assert wave(state, 1)["verdict"]["decision"] == "fail"
    assert f"{guinea_pig.id} rolled back (budget.memory: 412 MB" in why(state, 1)
    assert wave(state, 1)["devices"][0]["error"]["code"] == "budget.memory"
    assert guinea_pig.desired().models["digits"].manifest.digest == digests["1.0.0"]
    untouched = [device for device in on_1 if device is not guinea_pig]
    assert all(device.desired().models["digits"].version == "1.0.0" for device in untouched)
    (alert,) = fleet.client.get("/v1/alerts").json()["items"]
    assert (alert["kind"], alert["model"]) == ("rollout.halted", "digits")


def test_a_digest_that_failed_is_quarantined(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    fleet.members(rollout, 1)[0].fail()
    fleet.rollout(rollout)
    versions = {row["version"]: row for row in fleet.client.get("/v1/models/digits/versions").json()["items"]}
    assert rollout in versions["2.0.0"]["quarantine_reason"]
    assert versions["1.0.0"]["quarantined_ms"] is None
    answer = fleet.client.post("/v1/rollouts", json={"model": "digits", "version": "2.0.0"})
    assert answer.status_code == 409
    assert "quarantined" in answer.json()["detail"]
    assert "new release" in answer.json()["hint"]


def test_on_fail_each_device_goes_back_to_its_own_previous_healthy_version(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    """Two devices run 2.0.0, three 1.0.0, when 3.0.0 fails in its second wave."""
    fleet.settle(fleet.roll_out("2.0.0", waves=[2]))
    before = {device.id: device.active for device in on_1}
    assert list(before.values()).count(digests["2.0.0"]) == 2
    rollout = fleet.roll_out("3.0.0", waves=[2, 5])
    for device in fleet.members(rollout, 1):
        device.install()
    last = fleet.members(rollout, 2)
    last[0].install()
    last[1].fail("selftest", "the golden outputs are off by 0.4")
    state = fleet.rollout(rollout)
    assert state["state"] == "reverting"
    for device in on_1:
        assert device.take().models["digits"].manifest.digest == before[device.id]
    for device in on_1:
        device.install()
    assert fleet.rollout(rollout)["state"] == "reverted"
    assert {device.id: device.active for device in on_1} == before


def test_failures_that_are_allowed_do_not_halt(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=[3, 5], max_failures=1)
    first, *others = fleet.members(rollout, 1)
    first.fail()
    for device in others:
        device.install()
    state = fleet.settle(rollout)
    assert state["state"] == "completed"
    assert state["phases"] == {"confirmed": 4, "rolled_back": 1}
    # It is not asked again for what it gave up.
    assert first.desired().models["digits"].manifest.digest == digests["1.0.0"]


def test_silence_past_the_deadline_is_a_failure(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=600)
    (device,) = fleet.members(rollout, 1)
    device.take()
    fleet.clock.sleep(599)
    assert fleet.rollout(rollout)["state"] == "running"
    fleet.clock.sleep(2)
    state = fleet.rollout(rollout)
    assert phases(state)[device.id] == "timed_out"
    assert state["state"] == "reverted"
    assert "silent past the deadline" in why(state, 1)


def test_a_device_that_is_online_on_probation_is_waited_for(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    """Nobody sends it requests; the deadline is much shorter than that lasts."""
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=15)
    (device,) = fleet.members(rollout, 1)
    device.take()
    device.say(Phase.PROBATION, digests["2.0.0"], "2.0.0")
    fleet.clock.sleep(10_000)
    state = fleet.rollout(rollout)
    assert (state["state"], phases(state)[device.id]) == ("running", "probation")
    assert f"{device.id} is on probation: it waits for requests or for its time." in why(state, 1)
    device.vanish()
    fleet.clock.sleep(15)
    assert phases(fleet.rollout(rollout))[device.id] == "probation"
    device.connect()
    fleet.clock.sleep(100)
    assert fleet.rollout(rollout)["state"] == "running"
    device.vanish()
    fleet.clock.sleep(16)
    state = fleet.rollout(rollout)
    assert phases(state)[device.id] == "timed_out"
    assert "timeout: away for more than 15 s while on probation" in why(state, 1)


def test_a_slow_download_is_not_silence(fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=600)
    (device,) = fleet.members(rollout, 1)
    device.take()
    for done in range(100, 1000, 100):
        fleet.clock.sleep(500)
        device.say(Phase.DOWNLOADING, digests["2.0.0"], "2.0.0", bytes_done=done)
        assert fleet.rollout(rollout)["state"] == "running"
    fleet.clock.sleep(500)
    device.say(Phase.DOWNLOADING, digests["2.0.0"], "2.0.0", bytes_done=900)
    fleet.clock.sleep(101)
    assert phases(fleet.rollout(rollout))[device.id] == "timed_out"


def test_a_device_that_vanishes_after_the_offer_is_a_failure(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=600)
    (device,) = fleet.members(rollout, 1)
    device.vanish()
    fleet.clock.sleep(601)
    assert fleet.rollout(rollout)["state"] == "reverted"


def test_who_is_offline_does_not_block_and_comes_late(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    away = on_1[2]
    away.vanish()
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=600)
    for number in (1, 2, 3):
        for device in fleet.members(rollout, number):
            if device is not away:
                device.install()
    fleet.clock.sleep(5000)
    state = fleet.rollout(rollout)
    assert state["state"] == "completed"
    assert state["phases"] == {"confirmed": 4, "offered": 1}
    assert [item["unknown"] for item in wave(state, 3)["devices"] if item["device"] == away.id] == [True]
    assert f"unknown: {away.id}" in why(state, 3)
    away.connect()
    away.install()
    assert fleet.rollout(rollout)["phases"] == {"confirmed": 5}
    assert away.active == digests["2.0.0"]


def test_a_device_that_is_online_stands_in_for_one_that_is_not(fleet: Fleet, on_1: list[Device]) -> None:
    """Whoever is away, the first wave is a device that can prove something."""
    for away in on_1:
        away.vanish()
        rollout = fleet.roll_out("2.0.0", waves=WAVES)
        (first,) = fleet.members(rollout, 1)
        assert first is not away
        state = fleet.rollout(rollout)
        assert [len(stage["devices"]) for stage in state["waves"]] == [1, 2, 2]
        fleet.client.post(f"/v1/rollouts/{rollout}/abort")
        away.connect()


def test_a_fleet_that_is_all_away_is_waited_for(fleet: Fleet, on_1: list[Device]) -> None:
    for device in on_1:
        device.vanish()
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=600)
    fleet.clock.sleep(100_000)
    state = fleet.rollout(rollout)
    assert (state["state"], state["wave"]) == ("running", 1)
    assert "proves nothing" in why(state, 1)
    for device in on_1:
        device.connect()
    assert fleet.settle(rollout)["state"] == "completed"


def test_who_came_late_and_then_fell_silent_is_a_failure(fleet: Fleet, on_1: list[Device]) -> None:
    for device in on_1:
        device.vanish()
    rollout = fleet.roll_out("2.0.0", waves=WAVES, deadline_s=600)
    (device,) = fleet.members(rollout, 1)
    fleet.clock.sleep(10_000)
    device.connect()
    device.take()
    fleet.clock.sleep(599)
    assert fleet.rollout(rollout)["state"] == "running"
    fleet.clock.sleep(2)
    assert phases(fleet.rollout(rollout))[device.id] == "timed_out"


def test_an_offer_that_a_device_never_saw_is_taken_back_to_what_was_desired_before(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    """pi-1 is away for two rollouts: 2.0.0 completes without it, 3.0.0 fails. It comes back to 2.0.0."""
    away, *others = on_1
    away.vanish()
    second = fleet.roll_out("2.0.0", waves=[5])
    for device in others:
        device.install()
    assert fleet.rollout(second)["state"] == "completed"
    third = fleet.roll_out("3.0.0", waves=[5])
    others[0].fail()
    for device in others[1:]:
        device.take()
    assert fleet.rollout(third)["state"] == "reverted"
    away.connect()
    assert away.desired().models["digits"].manifest.digest == digests["2.0.0"]
    away.install()
    assert fleet.rollout(second)["phases"] == {"confirmed": 5}


def test_a_device_may_fail_after_it_confirmed(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    (device,) = fleet.members(rollout, 1)
    device.install()
    assert fleet.rollout(rollout)["wave"] == 2
    device.active, device.active_version = digests["1.0.0"], "1.0.0"
    error = ErrorReport(code="engine", message="the worker crashed 3 times")
    device.say(Phase.ROLLED_BACK, digests["2.0.0"], "2.0.0", error=error)
    state = fleet.rollout(rollout)
    assert wave(state, 2)["verdict"]["decision"] == "fail"
    assert state["state"] in ("reverting", "reverted")


CRASHED = ErrorReport(code="engine", message="the worker crashed 3 times")


def leave(device: Device, phase: Phase, left: Digest, back_to: Digest) -> None:
    """The device gives up what it had confirmed."""
    device.active, device.active_version = back_to, "1.0.0"
    device.say(phase, left, "2.0.0", error=CRASHED)


@pytest.mark.parametrize(
    ("phase", "did"),
    [(Phase.ROLLED_BACK, "rolled digits 2.0.0 back"), (Phase.REJECTED, "rejected digits 2.0.0")],
)
def test_a_device_that_leaves_after_its_rollout_completed_is_an_alert_until_it_confirms_again(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest], phase: Phase, did: str
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=[5])
    assert fleet.settle(rollout)["state"] == "completed"
    door = on_1[0]
    leave(door, phase, digests["2.0.0"], digests["1.0.0"])
    (alert,) = fleet.client.get("/v1/alerts?open=true").json()["items"]
    assert (alert["kind"], alert["severity"]) == ("device.left", "major")
    assert (alert["device"], alert["model"]) == (door.id, "digits")
    assert alert["title"] == f"{door.id} {did} after its rollout had completed"
    assert alert["detail"] == "engine: the worker crashed 3 times"
    assert (alert["data"]["rollout"], alert["data"]["digest"]) == (rollout, digests["2.0.0"])
    # To run the version before, as it is asked to now, is no return; nor is the same report again.
    door.install()
    leave(door, phase, digests["2.0.0"], digests["1.0.0"])
    (alert,) = fleet.client.get("/v1/alerts").json()["items"]
    assert (alert["resolved_ms"], alert["times"]) == (None, 1)
    fleet.settle(fleet.roll_out("2.0.0", waves=[5]))
    assert door.active == digests["2.0.0"]
    assert fleet.client.get("/v1/alerts?open=true").json()["items"] == []


def test_a_rollout_that_a_device_left_later_says_what_is_true_now(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=[1, 5])
    fleet.settle(rollout)
    (door,) = fleet.members(rollout, 1)
    leave(door, Phase.ROLLED_BACK, digests["2.0.0"], digests["1.0.0"])
    state = fleet.rollout(rollout)
    assert (state["state"], state["phases"]) == ("completed", {"confirmed": 4, "rolled_back": 1})
    assert state["reason"].startswith("4 of 5 devices confirmed, 1 rolled back. 1 failure in 5 devices:")
    (listed, *_) = fleet.client.get("/v1/rollouts").json()["items"]
    assert listed["reason"] == state["reason"]
    assert wave(state, 1)["verdict"]["decision"] == "pass"
    assert "0 of 1 device confirmed" in why(state, 1)
    assert f"{door.id} rolled back (engine: the worker crashed 3 times)." in why(state, 1)
    assert "It had passed its gate before that." in why(state, 1)
    assert "4 of 4 devices confirmed" in why(state, 2)


def test_a_device_that_comes_late_is_counted_in_the_wave_that_had_passed(
    fleet: Fleet, on_1: list[Device]
) -> None:
    away = on_1[0]
    away.vanish()
    rollout = fleet.roll_out("2.0.0", waves=[5])
    for device in on_1[1:]:
        device.install()
    assert f"unknown: {away.id}" in why(fleet.rollout(rollout), 1)
    away.connect()
    away.install()
    state = fleet.rollout(rollout)
    assert "5 of 5 devices confirmed" in why(state, 1)
    assert "unknown" not in why(state, 1)
    assert state["reason"].startswith("5 of 5 devices confirmed. 0 failures in 5 devices")


def test_a_report_about_an_older_desired_state_is_not_counted(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    """2.0.0 failed on one device and was allowed to; its old report says nothing on the next try."""
    first = fleet.roll_out("2.0.0", waves=[5], max_failures=1)
    for device in on_1[1:]:
        device.install()
    on_1[0].fail()
    assert fleet.rollout(first)["state"] == "completed"
    again = fleet.roll_out("2.0.0", waves=[5])
    error = ErrorReport(code="budget.memory", message="as before")
    on_1[0].say(Phase.ROLLED_BACK, digests["2.0.0"], "2.0.0", error=error)
    state = fleet.rollout(again)
    assert state["state"] == "running"
    assert phases(state)["pi-1"] == "offered"
    assert phases(state)["pi-2"] == "confirmed"  # it had it already
    on_1[0].install()
    assert fleet.rollout(again)["state"] == "completed"


def test_pause_holds_the_next_wave_and_resume_lets_it_go(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    assert fleet.client.post(f"/v1/rollouts/{rollout}/pause").json()["state"] == "paused"
    fleet.members(rollout, 1)[0].install()
    state = fleet.rollout(rollout)
    assert (state["state"], state["wave"]) == ("paused", 1)
    assert wave(state, 1)["verdict"]["decision"] == "pass"
    assert fleet.client.post(f"/v1/rollouts/{rollout}/resume").json()["state"] == "running"
    assert fleet.rollout(rollout)["wave"] == 2


def test_a_paused_rollout_is_still_halted_by_a_failure(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    fleet.client.post(f"/v1/rollouts/{rollout}/pause")
    fleet.members(rollout, 1)[0].fail()
    assert fleet.rollout(rollout)["state"] == "reverted"


def test_abort_takes_back_what_is_not_confirmed(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=[2, 5])
    done, busy = fleet.members(rollout, 1)
    done.install()
    busy.take()
    busy.say(Phase.DOWNLOADING, digests["2.0.0"], "2.0.0")
    state = fleet.client.post(f"/v1/rollouts/{rollout}/abort").json()
    assert (state["state"], state["final"]) == ("aborted", True)
    assert phases(state)[busy.id] == "withdrawn"
    assert busy.desired().models["digits"].manifest.digest == digests["1.0.0"]
    assert done.desired().models["digits"].manifest.digest == digests["2.0.0"]
    # No quarantine: nothing was proved against it.
    assert fleet.roll_out("2.0.0", waves=[5])


def test_revert_sets_back_a_completed_rollout(
    fleet: Fleet, on_1: list[Device], digests: dict[str, Digest]
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=[5])
    fleet.settle(rollout)
    assert fleet.client.post(f"/v1/rollouts/{rollout}/revert").json()["state"] == "reverting"
    fleet.services.engine.tick()
    for device in on_1:
        device.install()
    assert fleet.rollout(rollout)["state"] == "reverted"
    assert {device.active for device in on_1} == {digests["1.0.0"]}


def test_a_draft_waits_for_its_start(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", start=False)
    assert fleet.rollout(rollout)["state"] == "draft"
    assert set(phases(fleet.rollout(rollout)).values()) == {"pending"}
    fleet.client.post(f"/v1/rollouts/{rollout}/start")
    assert fleet.settle(rollout)["state"] == "completed"


def test_an_act_that_does_not_fit_is_refused_with_what_is_possible(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0")
    answer = fleet.client.post(f"/v1/rollouts/{rollout}/resume")
    assert answer.status_code == 409
    assert "pause" in answer.json()["hint"]
    assert fleet.client.post(f"/v1/rollouts/{rollout}/explode").status_code == 422


def test_a_selector_picks_by_labels(fleet: Fleet, digests: dict[str, Digest]) -> None:
    fleet.enrol("gate-1", "gate-2", site="gate")
    fleet.enrol("yard-1", site="yard")
    state = fleet.rollout(fleet.roll_out("1.0.0", waves=[1.0], selector={"site": "gate"}))
    assert set(phases(state)) == {"gate-1", "gate-2"}
    answer = fleet.client.post(
        "/v1/rollouts", json={"model": "digits", "version": "1.0.0", "selector": {"site": "roof"}}
    )
    assert (answer.status_code, answer.json()["code"]) == (422, "input")


def test_a_device_takes_part_in_one_rollout_of_a_model_at_a_time(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0")
    answer = fleet.client.post("/v1/rollouts", json={"model": "digits", "version": "3.0.0"})
    assert answer.status_code == 409
    assert rollout in answer.json()["detail"]


def test_two_models_roll_out_side_by_side(fleet: Fleet, digests: dict[str, Digest]) -> None:
    (device,) = fleet.enrol("pi-1")
    fleet.publish("1.0.0", 1, name="voices")
    fleet.roll_out("1.0.0", waves=[1])
    fleet.roll_out("1.0.0", waves=[1], model="voices")
    assert set(device.desired().models) == {"digits", "voices"}


@pytest.mark.parametrize(
    "change",
    [
        {"waves": [0.5, 0.2]},
        {"waves": []},
        {"waves": [2.0]},
        {"deadline_s": -1},
        {"deadline_s": 1, "jitter_s": 60},
        {"max_failures": -1},
        {"probation": {"max_error_rate": 2}},
        {"version": 3},
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    fleet: Fleet, on_1: list[Device], change: dict[str, Any]
) -> None:
    answer = fleet.client.post("/v1/rollouts", json={"model": "digits", "version": "2.0.0", **change})
    assert (answer.status_code, answer.json()["code"]) == (422, "input")


def test_unknown_things_are_named(fleet: Fleet, on_1: list[Device]) -> None:
    for body in ({"model": "digits", "version": "9.9.9"}, {"model": "nothing", "version": "1.0.0"}):
        answer = fleet.client.post("/v1/rollouts", json=body)
        assert answer.status_code == 404
    assert fleet.client.get("/v1/rollouts/r0").status_code == 404
    assert fleet.client.post("/v1/rollouts/r0/pause").status_code == 404


def test_a_removed_device_holds_nobody_up(fleet: Fleet, on_1: list[Device]) -> None:
    rollout = fleet.roll_out("2.0.0", waves=[5])
    fleet.client.delete(f"/v1/devices/{on_1[0].id}")
    for device in on_1[1:]:
        device.install()
    assert fleet.rollout(rollout)["state"] == "completed"


def test_a_server_that_is_killed_goes_on_where_it_was(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running_fleet(tmp_path, signer) as fleet:
        fleet.publish("1.0.0", 1)
        fleet.enrol(*NAMES)
        rollout = fleet.roll_out("1.0.0", waves=WAVES)
        fleet.members(rollout, 1)[0].install()
        devices = fleet.devices
    with running_fleet(tmp_path, signer) as fleet:
        fleet.devices = devices
        for device in devices.values():
            device.services = fleet.services
        assert fleet.settle(rollout)["state"] == "completed"


def test_many_devices_are_offered_in_batches(fleet: Fleet, digests: dict[str, Digest]) -> None:
    fleet.enrol(*[f"pi-{n}" for n in range(130)])
    state = fleet.rollout(fleet.roll_out("1.0.0", waves=[1.0]))
    assert state["phases"] == {"offered": 130}


def test_a_halted_models_alert_is_over_when_another_version_completed(
    fleet: Fleet, on_1: list[Device]
) -> None:
    bad = fleet.roll_out("2.0.0", waves=WAVES)
    fleet.members(bad, 1)[0].fail()
    fleet.rollout(bad)
    assert len(fleet.client.get("/v1/alerts?open=true").json()["items"]) == 1
    for device in on_1:
        device.take()
    fleet.settle(fleet.roll_out("3.0.0", waves=[5]))
    assert fleet.client.get("/v1/alerts?open=true").json()["items"] == []


@pytest.mark.parametrize("code", ["storage", "bundle.signature"])
def test_a_failure_of_the_device_halts_and_does_not_condemn_the_version(
    fleet: Fleet, on_1: list[Device], code: str
) -> None:
    rollout = fleet.roll_out("2.0.0", waves=WAVES)
    fleet.members(rollout, 1)[0].fail(code, "it is the device's own fault")
    assert fleet.rollout(rollout)["state"] == "reverted"
    versions = {row["version"]: row for row in fleet.client.get("/v1/models/digits/versions").json()["items"]}
    assert versions["2.0.0"]["quarantined_ms"] is None
    again = fleet.client.post("/v1/rollouts", json={"model": "digits", "version": "2.0.0"})
    assert again.status_code == 201, again.text


def test_a_device_that_fails_at_what_it_is_set_back_to_is_left_in_peace(
    fleet: Fleet, on_1: list[Device]
) -> None:
    fleet.settle(fleet.roll_out("2.0.0", waves=[5]))
    device = on_1[0]
    device.fail("bundle.signature", "it trusts other keys")
    set_back = device.take().revision
    for _ in range(3):
        device.fail("bundle.signature", "it trusts other keys")
    assert device.take().revision == set_back, "the fleet and the device go in circles"
    kinds = [alert["kind"] for alert in fleet.client.get("/v1/alerts").json()["items"]]
    assert "device.stuck" in kinds
