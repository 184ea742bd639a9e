"""A confirmed model that dies again and again gives way to the last good one; a bad disk is no such model."""

from __future__ import annotations

import os
import signal
from itertools import cycle, islice
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    Made,
    make_bundle,
    other_digits,
    running,
)
from tests.waiting import wait_until

from skerry_contract.digests import hex_of
from skerry_contract.errors import SlotError
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.health import CRASHES

HURRY = {"preparation.RETRY_SECONDS": 0.2}


def confirm(device: Device, headquarters: Headquarters, *bundles: Made) -> None:
    """One after the other."""
    for made in bundles:
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)


def next_worker(device: Device, before: int) -> int:
    """The process that answers, if it is another one than ``before``."""

    def other() -> int | None:
        active = device.model()["active"]
        return active["pid"] if active and active["pid"] not in (None, before) else None

    return wait_until(other, "the next worker")


def crash_again_and_again(device: Device) -> int:
    """As often as is too often; the worker is up again in between. The last one that was killed."""
    pid = 0
    for number in islice(cycle((signal.SIGSEGV, signal.SIGKILL)), CRASHES):
        pid = next_worker(device, pid)
        os.kill(pid, number)
    return pid


def bad_blob(device: Device, made: Made) -> Path:
    """Flip a bit of its model, wherever the file is linked."""
    path = device.data / "store" / hex_of(made.manifest.variants[0].model.digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.attack
def test_m15_a_confirmed_model_that_crashes_again_and_again_gives_way_to_the_last_good_one(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    confirm(device, headquarters, first, second)
    with Hammer(device.data / "run" / "skerry.sock") as hammer:
        wait_until(lambda: hammer.answers.get("2.0.0", 0) > 5, "answers")
        crash_again_and_again(device)
        model = device.wait_state("rolled_back", "2.0.0")
        wait_until(lambda: hammer.answers.get("1.0.0", 0) > 20, "answers of the last good one")
        # Only who was being answered at a crash noticed it; nobody was refused.
        assert len(hammer.failures) <= 2 * CRASHES
        assert not [failure for failure in hammer.failures if "Refused" in failure or "503" in failure]
        assert set(hammer.answers) == {"1.0.0", "2.0.0"}
    assert model["error"]["code"] == "selftest"
    assert "died again and again" in model["error"]["message"]
    assert device.quarantined(second)
    report = headquarters.wait_report(lambda r: r["phase"] == "rolled_back")
    assert (report["error"]["code"], report["active"]) == ("selftest", first.digest)
    # No loop: the worker of the good one stays, and the same order again is not obeyed.
    good = next_worker(device, 0)
    headquarters.desire(second)
    wait_until(lambda: device.status()["fleet"]["revision"] == 3, "the order")
    assert device.model()["active"]["pid"] == good
    device.stop()
    device.start()
    assert device.infer()["model_version"] == "1.0.0"
    assert device.model()["error"]["code"] == "selftest"


@pytest.mark.attack
def test_m15_the_only_model_goes_on_although_it_crashes(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    only = make_bundle(signer)
    confirm(device, headquarters, only)
    # Who is being answered by a worker as it dies loses his answer: the next one is asked.
    next_worker(device, crash_again_and_again(device))
    assert device.infer()["model_version"] == "1.0.0"
    assert device.model()["state"] == "confirmed"
    assert not device.quarantined(only)
    wait_until(lambda: "slot.degraded" in device.log.read_text(), "the warning")


def test_below_the_security_floor_nobody_goes_back(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    hole, fixed = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2, security_floor=2)
    confirm(device, headquarters, hole, fixed)
    with pytest.raises(SlotError, match="below the security floor 2"):
        device.ask("rollback")
    assert device.model()["state"] == "confirmed"
    assert not device.quarantined(fixed)
    next_worker(device, crash_again_and_again(device))
    assert device.infer()["model_version"] == "2.0.0"
    assert device.model()["state"] == "confirmed"
    assert not device.quarantined(fixed)


@pytest.mark.attack
@pytest.mark.parametrize("alone", [False, True], ids=["with a last good one", "alone"])
def test_l3_a_model_that_rots_while_it_serves_is_fetched_again_and_not_blamed(
    tmp_path: Path,
    signer: EcdsaSigner,
    broker: Broker,
    headquarters: Headquarters,
    alone: bool,
) -> None:
    first = make_bundle(signer, model=other_digits())
    second = make_bundle(signer, version="2.0.0", release=2)
    with running(Device(tmp_path, signer, broker, headquarters, settings=HURRY)) as device:
        confirm(device, headquarters, *([second] if alone else [first, second]))
        headquarters.serving_blocks = False
        bad_blob(device, second)
        os.kill(device.model()["active"]["pid"], signal.SIGKILL)
        wait_until(lambda: device.model()["state"] == "downloading", "the new download")
        assert "slot.damaged" in device.log.read_text()
        if alone:
            with pytest.raises(ConnectionRefusedError):
                device.infer()
        else:
            assert device.infer()["model_version"] == "1.0.0"
        headquarters.serving_blocks = True
        device.wait_state("confirmed", "2.0.0")
        assert device.infer()["model_version"] == "2.0.0"
        assert not device.quarantined(second)
