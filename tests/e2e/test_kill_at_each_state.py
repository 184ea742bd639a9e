"""kill -9 of the daemon in each state of an update: the old or the new model answers then, never neither."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from tests.e2e.conftest import Packed
from tests.e2e.stage import Device, Stage
from tests.waiting import wait_until

STATES = ("downloading", "verifying", "staged", "self_test", "pending", "probation", "confirmed")


class KillAt(threading.Thread):
    """Kills the daemon as soon as its log says that the update of a version entered a state."""

    def __init__(self, device: Device, state: str, version: str) -> None:
        super().__init__(daemon=True)
        self.device, self.seen = device, False
        self._line = re.compile(rf'"message": "digits {re.escape(version)}: {state}"')

    def run(self) -> None:
        process = self.device.processes.running[self.device.name]
        with (self.device.processes.folder / f"{self.device.name}.log").open() as log:
            while process.poll() is None:
                if self._line.search(log.readline()):
                    process.kill()
                    process.wait()
                    self.seen = True


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_the_old_or_the_new_model_answers_after_a_kill(state: str, packed: Packed, stage: Stage) -> None:
    image = packed.images[:4]
    device = stage.device("pi")
    for bundle in (packed.v1, packed.v2):
        stage.ok("publish", str(bundle))
    device.start()
    wait_until(lambda: stage.client().device("pi")["device"]["presence"] == "online", "the device is online")
    _roll_out(stage, "1.0.0")
    wait_until(lambda: _runs(stage, device, image, "1.0.0"), "1.0.0 is confirmed")

    killer = KillAt(device, state, "2.0.0")
    killer.start()
    _roll_out(stage, "2.0.0")
    wait_until(lambda: device.answering(image) is not None and not killer.is_alive(), f"killed at {state}")
    assert killer.seen, Path(stage.folder / "pi.log").read_text()
    stage.processes.end("pi")

    device.start()
    first = wait_until(lambda: device.answering(image), "somebody answers again")
    assert first in ("1.0.0", "2.0.0")
    if state == "confirmed":
        assert first == "2.0.0"
    elif state in ("downloading", "verifying", "staged", "self_test"):
        assert first == "1.0.0", "nothing live was touched yet"
    # The desired state is level-triggered: the update goes on where it can, and ends well.
    wait_until(lambda: _runs(stage, device, image, "2.0.0"), "2.0.0 is confirmed in the end")


def _roll_out(stage: Stage, version: str) -> None:
    probation = ("--probation-requests", "3", "--probation-seconds", "1")
    stage.ok("rollout", "start", "digits", version, "--wave", "100%", *probation)


def _runs(stage: Stage, device: Device, image: object, version: str) -> bool:
    """Ask for an answer, so that probation sees requests, and whether the fleet knows it as confirmed."""
    report = stage.reported("pi")
    device.answering(image)  # type: ignore[arg-type]
    return report.get("active_version") == version and report.get("phase") == "confirmed"
