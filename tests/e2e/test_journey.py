"""The journey of a model, in the order of the architecture: from an engineer's file to an alert on drift."""

from __future__ import annotations

import pytest
from tests.e2e.conftest import Packed
from tests.e2e.stage import Stage, program, run
from tests.waiting import wait_until

FRAMES = 60
"""Images in a request: a window of a second then has the 200 rows that drift needs."""


@pytest.mark.slow
def test_the_journey(packed: Packed, stage: Stage) -> None:
    day = packed.images[:FRAMES]
    door = stage.device("door")

    # 1. pack and 2. sign: done by `skerry pack`; anybody can check it, also with OpenSSF's own tool.
    assert stage.ok("verify", str(packed.v1), "--key", str(packed.public_key))["manifest"]["name"] == "digits"
    stage.ok("unpack", str(packed.v1), "unpacked", "--key", str(packed.public_key))
    unpacked = stage.folder / "unpacked"
    foreign = run(
        program("model_signing"), "verify", "key", str(unpacked),
        "--signature", str(unpacked / "manifest.sig"), "--public_key", str(packed.public_key),
    )  # fmt: skip
    assert foreign.code == 0, foreign.err

    # 3. publish: one upload, kept by digest; the same bytes again change nothing.
    published = stage.ok("publish", str(packed.v1))
    assert stage.ok("publish", str(packed.v1))["digest"] == published["digest"]

    # 4. announce: a wave begins, each of its devices gets one signed desired state.
    door.start()
    wait_until(
        lambda: stage.client().device("door")["device"]["presence"] == "online", "the device is online"
    )
    rollout = stage.ok(
        "rollout", "start", "digits", "1.0.0", "--wave", "100%", "--probation-requests", "5",
        "--probation-seconds", "1",
    )  # fmt: skip

    # 5. download, 6. verify, 7. stage, 8. self-test, 9. activate, on probation, confirmed by real requests.
    def confirmed(version: str) -> bool:
        assert door.answering(day) in ("", "1.0.0", "2.0.0")
        return stage.reported("door").get("active_version") == version and (
            stage.reported("door").get("phase") == "confirmed"
        )

    wait_until(lambda: confirmed("1.0.0"), "1.0.0 is confirmed")
    assert door.phases() == [
        "downloading", "verifying", "downloading", "staged", "self_test", "pending", "probation", "confirmed",
    ]  # fmt: skip
    assert stage.client().rollout(rollout["id"])["state"] == "completed"
    assert stage.client().placements("digits", "1.0.0")[0]["device"] == "door"

    # 10. infer: right answers on images that nobody trained with.
    version, digits = door.infer(packed.images)
    assert version == "1.0.0"
    assert (digits == packed.labels).mean() > 0.8

    # 11. sketch and buffer: with the fleet gone the device answers, and its windows wait in the outbox.
    stage.stop_fleet()

    def waiting() -> int:
        assert door.answering(day) == "1.0.0"
        return int(door.status()["outbox"]["waiting_rows"])

    wait_until(lambda: waiting() >= 4, "windows wait in the outbox")

    # 12. upload and 13. ingest: the fleet is back, commits, acknowledges; only then the device deletes.
    stage.start_fleet()
    wait_until(lambda: waiting() <= 1, "the outbox is empty")
    assert door.status()["outbox"]["lost"] == 0
    sequence = sorted(window["seq"] for window in stage.client().windows("door"))
    assert sequence == list(range(1, len(sequence) + 1)), "a window is missing or there twice"
    assert not stage.client().alerts()

    # 14. drift: the camera goes dark; an alert names the device and the features.
    def alerts() -> list[object]:
        assert door.answering(day * 0.2) == "1.0.0"
        return [alert for alert in stage.client().alerts() if alert["kind"] == "drift"]

    alert = wait_until(alerts, "a drift alert")[0]
    assert isinstance(alert, dict)
    assert alert["device"] == "door"
    assert "image.brightness" in {feature["name"] for feature in alert["data"]["features"]}

    # And again: a second version takes over, and both were answered by the device without a gap.
    stage.ok("publish", str(packed.v2))
    stage.ok("rollout", "start", "digits", "2.0.0", "--probation-requests", "5", "--probation-seconds", "1")
    wait_until(lambda: confirmed("2.0.0"), "2.0.0 is confirmed")
    assert door.answering(day) == "2.0.0"
