"""A device of a fleet: a daemon of its own, real models, a real broker, clients that never stop asking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    LONG,
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    infer,
    make_bundle,
    running,
)
from tests.waiting import wait_until

from skerry_contract.digests import hex_of
from skerry_contract.messages import Command, DeviceSettings, decode, encode
from skerry_contract.messages import CommandResult as Result
from skerry_contract.signing import EcdsaSigner
from skerry_contract.summary import WindowSummary
from skerry_contract.summary import decode as decode_summary
from skerry_contract.topics import Down, Up
from skerry_runtime.agent.clock import WindowNumbers


def test_a_desired_model_is_fetched_verified_tested_activated_and_confirmed(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(first)
    headquarters.publish_bundle(second)
    headquarters.desire(first)
    device.wait_state("probation", "1.0.0")
    for _ in range(4):
        assert device.infer()["model_version"] == "1.0.0"
    device.wait_state("confirmed", "1.0.0")
    with Hammer(device.data / "run" / "skerry.sock") as hammer:
        headquarters.desire(second)
        device.wait_state("confirmed", "2.0.0")
        wait_until(lambda: hammer.answers.get("2.0.0", 0) > 20, "answers of the new version")
    assert hammer.failures == []
    assert hammer.answers["1.0.0"] > 0
    versions_and_phases = headquarters.phases()
    for phase in ("downloading", "verifying", "staged", "self_test", "probation", "confirmed"):
        assert ("2.0.0", phase) in versions_and_phases
    report = headquarters.wait_report(lambda r: r["phase"] == "confirmed" and r["target_version"] == "2.0.0")
    assert report["active"] == second.digest
    assert report["active_variant"] == "fp32"
    assert report["error"] is None
    kinds = wait_until(
        lambda: (
            kinds if "update.confirmed" in (kinds := [e["kind"] for e in headquarters.events()]) else None
        ),
        "the events",
    )
    assert "agent.started" in kinds
    transactions = {e["transaction"] for e in headquarters.events() if e["kind"].startswith("update.")}
    assert len(transactions) == 2


def test_only_the_chosen_variant_is_downloaded_and_space_is_given_back(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made)
    device.wait_state("probation")
    asked = {
        decode_request["digest"]
        for channel, payload, _ in headquarters.messages
        if channel is Up.BLOCK_REQUEST and (decode_request := _json(payload))
    }
    manifest = made.manifest
    needed = {ref.digest for ref in manifest.blobs_for(manifest.variants[0])}
    assert asked == needed | {made.digest, made.desired().signature.digest}
    assert not list((device.data / "store").glob("*.part"))


def test_hello_presence_and_report_say_who_is_there(device: Device, headquarters: Headquarters) -> None:
    def first(channel: Up) -> dict[str, object]:
        found: object = wait_until(
            lambda: next((_json(p) for c, p, _ in headquarters.messages if c is channel), None), str(channel)
        )
        assert isinstance(found, dict)
        return found

    def states() -> list[str]:
        return [
            _json(payload)["state"] for channel, payload, _ in headquarters.messages if channel is Up.STATE
        ]

    hello = first(Up.HELLO)
    assert hello["epoch"] == 1
    engines = device.status()["engines"]
    assert set(engines) == {"onnx", "tflite"}
    assert hello["engines"] == [{"name": name, "version": engines[name]} for name in engines]
    assert first(Up.STATE) == {"state": "online", "epoch": 1, "until": 0}
    assert device.stop() == 0
    wait_until(lambda: states()[-1] == "offline", "the end")
    assert states() == ["online", "offline"]


def test_a_killed_agent_is_told_to_be_lost_and_comes_back_with_a_higher_epoch(
    device: Device, headquarters: Headquarters
) -> None:
    wait_until(lambda: device.status()["fleet"]["state"] == "connected", "the connection")
    device.kill()
    wait_until(
        lambda: any(_json(p)["state"] == "lost" for c, p, _ in headquarters.messages if c is Up.STATE),
        "the will",
    )
    device.start()
    wait_until(lambda: device.status()["fleet"]["state"] == "connected", "the connection")
    assert device.status()["fleet"]["epoch"] == 2


def test_a_model_over_the_devices_memory_budget_is_rolled_back_without_a_failed_request(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    good = make_bundle(signer)
    worse = make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(good)
    headquarters.publish_bundle(worse)
    device = Device(tmp_path, signer, broker, headquarters)
    with running(device), Hammer(device.data / "run" / "skerry.sock", clients=1) as hammer:
        headquarters.desire(good)
        device.wait_state("confirmed", "1.0.0")
        idle = device.model()["health"]["rss_bytes"]
        hammer.failures.clear()  # Before the first model nothing answered.
        device.stop()
        # The budget lies a little above what it takes when nobody asks for much.
        device.extra = f"[budgets]\nram_mb = {idle / (1 << 20) + 6:.2f}\n"
        device.start()
        hammer.failures.clear()
        headquarters.desire(worse, probation=LONG)
        device.wait_state("probation", "2.0.0")
        for _ in range(200):
            infer(device.data / "run" / "skerry.sock", rows=1797)
            if device.model()["state"] != "probation":
                break
        model = device.wait_state("rolled_back", "2.0.0")
        assert model["error"]["code"] == "budget.memory"
        assert device.infer()["model_version"] == "1.0.0"
    assert hammer.failures == []
    report = headquarters.wait_report(lambda r: r["phase"] == "rolled_back")
    assert report["active"] == good.digest
    assert report["error"]["code"] == "budget.memory"


def test_a_model_that_fails_its_self_test_never_answers_and_is_quarantined(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    good, wrong = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2, wrong_golden=True)
    headquarters.publish_bundle(good)
    headquarters.publish_bundle(wrong)
    headquarters.desire(good, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    headquarters.desire(wrong)
    model = device.wait_state("rejected", "2.0.0")
    assert model["error"]["code"] == "selftest"
    assert device.infer()["model_version"] == "1.0.0"
    assert (device.data / "models" / "digits" / "state" / "bad" / hex_of(wrong.digest)).exists()
    # The same order again, and again after a restart, is not tried again.
    tried = device.log.read_text().count("self_test")
    headquarters.desire(wrong)
    wait_until(lambda: device.status()["fleet"]["revision"] == 3, "the order")
    device.stop()
    device.start()
    assert device.wait_state("rejected", "2.0.0")["error"]["code"] == "selftest"
    assert device.log.read_text().count("self_test") == tried


def test_going_back_to_the_version_before_needs_no_download(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    quick = QUICK
    for made in (first, second):
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=quick)
        device.wait_state("confirmed", made.manifest.version)
    headquarters.serving_blocks = False
    headquarters.desire(first, probation=quick)
    device.wait_state("confirmed", "1.0.0")
    assert device.infer()["model_version"] == "1.0.0"


def test_another_order_in_the_middle_of_probation_is_obeyed(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    for made in (first, second):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    headquarters.desire(second, probation=LONG)
    device.wait_state("probation", "2.0.0")
    headquarters.desire(first)
    device.wait_state("confirmed", "1.0.0")
    assert device.infer()["model_version"] == "1.0.0"
    # It was not to blame, so it may come again.
    headquarters.desire(second, probation=QUICK)
    device.wait_state("confirmed", "2.0.0")


def test_windows_reach_the_fleet_and_leave_the_device_only_on_its_word(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.acknowledging = False
    headquarters.desire(made, settings=DeviceSettings(window_seconds=3600.0, window_rows=10))
    device.wait_state("probation")

    def windows() -> list[WindowSummary]:
        by_seq = {frame.first: frame for frame in list(headquarters.frames) if frame.body[:1] != b"{"}
        return [decode_summary(by_seq[seq].body) for seq in sorted(by_seq)]

    asked = 0
    while len(windows()) < 2:
        device.infer()
        asked += 1
    summaries = windows()
    assert all(10 <= summary.rows <= asked for summary in summaries)
    assert summaries[0].boot.hex() == device.status()["boot"]
    assert device.status()["outbox"]["waiting_rows"] >= 2
    # The agent is killed; what the fleet has not acknowledged is sent again, in order.
    device.kill()
    headquarters.acknowledging = True
    device.start()
    wait_until(lambda: device.status()["outbox"]["waiting_rows"] == 0, "the acknowledgement")
    assert device.status()["outbox"]["gaps"] == 0

    def window_of_the_new_process() -> bool:
        device.infer()
        device.ask("close_windows")
        return windows()[-1].seq > summaries[-1].seq + WindowNumbers.BLOCK // 2

    wait_until(window_of_the_new_process, "a window with a higher number")


def test_commands_are_obeyed_and_answered(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made)
    device.wait_state("probation")

    def command(number: int, verb: str, deadline: int = 0) -> Result:
        headquarters.send(Down.COMMAND, encode(Command(id=str(number), verb=verb, deadline=deadline)))

        def answer() -> Result | None:
            for channel, payload, _ in list(headquarters.messages):
                if channel is Up.COMMAND_RESULT and (result := decode(payload, Result)).id == str(number):
                    return result
            return None

        found = wait_until(answer, f"the answer to {verb}")
        assert isinstance(found, Result)
        return found

    assert command(1, "report").ok
    assert command(2, "close_windows").result == {"windows": 1}
    for verb in ("roll_back", "dance"):
        unknown = command(3 if verb == "dance" else 4, verb)
        assert unknown.error is not None, "an unsigned message must not change what runs"
        assert "report, close_windows." in unknown.error.hint
    late = command(5, "report", deadline=1)
    assert late.error is not None
    assert late.error.code == "bundle.expired"


@pytest.mark.attack
def test_q4_a_hostile_desired_state_is_ignored(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, broker: Broker
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    envelope = headquarters.desire(made, probation=QUICK)
    device.wait_state("confirmed")
    for hostile in (b"", b"{}", b"\xff" * 100, envelope.replace(b"a", b"b"), envelope[:-20], b"[" * 100_000):
        headquarters.send(Down.DESIRED, hostile)
    headquarters.send(Down.DESIRED, envelope, retain=True)
    stranger = Headquarters(broker)
    stranger.revision = 10
    stranger.desire(make_bundle(signer, version="9.0.0", release=9))
    wait_until(lambda: "not signed by a trusted key" in device.log.read_text(), "the refusal")
    assert device.status()["fleet"]["revision"] == 1
    assert device.infer()["model_version"] == "1.0.0"
    stranger.close()


@pytest.mark.attack
def test_s9_a_stolen_director_key_cannot_introduce_a_model(
    device: Device, headquarters: Headquarters
) -> None:
    forged = make_bundle(headquarters.director)
    headquarters.publish_bundle(forged)
    headquarters.desire(forged)
    model = device.wait_state("rejected")
    assert model["error"]["code"] == "bundle.signature"
    assert model["active"] is None
    # The content is not to blame: a bundle with that digest may come with a right signature.
    assert not list((device.data / "models" / "digits" / "state" / "bad").iterdir())


def _json(payload: bytes) -> dict[str, str]:
    found: dict[str, str] = json.loads(payload)
    return found
