"""What hangs is noticed, killed and replaced or rolled back; whatever is good goes on answering."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    LONG,
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    endless,
    make_bundle,
    running,
)
from tests.waiting import wait_until

from skerry_contract.errors import SelfTestError
from skerry_contract.signing import EcdsaSigner

PATIENCE = {"worker.READY_SECONDS": 6.0, "worker.SILENT_SECONDS": 4.0}


@pytest.fixture
def device(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> Iterator[Device]:
    """A running device that loses its patience soon."""
    with running(Device(tmp_path, signer, broker, headquarters, settings=PATIENCE)) as up:
        yield up


@pytest.fixture
def confirmed(device: Device, headquarters: Headquarters, signer: EcdsaSigner) -> Device:
    """A device where 1.0.0 is confirmed."""
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    return device


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


class Asked(threading.Thread):
    """One request that waits for its answer."""

    def __init__(self, device: Device) -> None:
        super().__init__(daemon=True)
        self.version = ""
        self._device = device
        self.start()

    def run(self) -> None:
        self.version = self._device.infer()["model_version"]


# --- the self-test -----------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("stopped", [False, True], ids=["spins", "stopped"])
def test_m7_a_self_test_that_never_ends_is_killed_and_the_bundle_quarantined(
    confirmed: Device, headquarters: Headquarters, signer: EcdsaSigner, stopped: bool
) -> None:
    hanging = endless(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(hanging)
    with Hammer(confirmed.data / "run" / "skerry.sock", clients=1) as hammer:
        headquarters.desire(hanging, probation=QUICK)
        probe = wait_until(lambda: confirmed.workers("preflight"), "the self-test")[0]
        if stopped:
            os.kill(probe, signal.SIGSTOP)
        model = confirmed.wait_state("rejected", "2.0.0")
        assert is_gone(probe)
    assert hammer.failures == []
    assert set(hammer.answers) == {"1.0.0"}
    assert model["error"]["code"] == "selftest"
    assert "did not finish within 6 s" in model["error"]["message"]
    assert confirmed.quarantined(hanging)
    report = headquarters.wait_report(lambda r: r["phase"] == "rejected")
    assert (report["error"]["code"], report["active_version"]) == ("selftest", "1.0.0")
    # Nobody tries it again, and the next good one is not in its way.
    good = make_bundle(signer, version="3.0.0", release=3)
    headquarters.publish_bundle(good)
    headquarters.desire(good, probation=QUICK)
    confirmed.wait_state("confirmed", "3.0.0")
    assert confirmed.log.read_text().count("digits 2.0.0: self_test") == 1


@pytest.mark.attack
def test_m7_an_import_from_a_file_that_hangs_ends_with_its_error(
    device: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    with pytest.raises(SelfTestError, match="did not finish"):
        device.install(endless(signer).write(tmp_path))
    with pytest.raises(ConnectionRefusedError):
        device.infer()


def test_a_self_test_that_was_given_up_before_its_process_was_there_leaves_none(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    hanging, good = endless(signer), make_bundle(signer, version="2.0.0", release=2)
    for made in (hanging, good):
        headquarters.publish_bundle(made)
    # The agent forgets a worker at once that ended before it was forked.
    device = Device(tmp_path, signer, broker, headquarters, settings={"workers._EXIT_SECONDS": 0.0})
    with running(device):
        zygote = device.status()["zygote_pid"]
        os.kill(zygote, signal.SIGSTOP)
        headquarters.desire(hanging)
        device.wait_state("self_test", "1.0.0")
        headquarters.desire(good, probation=QUICK)
        device.wait_state("self_test", "2.0.0")
        os.kill(zygote, signal.SIGCONT)
        device.wait_state("confirmed", "2.0.0")
        wait_until(lambda: not device.workers("preflight"), "the end of the orphan")
        assert not device.quarantined(hanging)


# --- the worker --------------------------------------------------------------------------------------


def test_a_worker_that_hangs_in_probation_is_killed_and_rolled_back(
    confirmed: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    second = make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(second)
    headquarters.desire(second, probation=LONG)
    hanging = confirmed.wait_state("probation", "2.0.0")["active"]["pid"]
    os.kill(hanging, signal.SIGSTOP)
    asked = Asked(confirmed)
    model = confirmed.wait_state("rolled_back", "2.0.0")
    assert model["error"]["code"] == "engine"
    assert "said nothing for 4 s" in model["error"]["message"]
    assert is_gone(hanging)
    wait_until(lambda: asked.version, "the answer to who asked while it hung")
    assert asked.version == "1.0.0"
    assert confirmed.quarantined(second)


def test_a_confirmed_worker_that_hangs_is_killed_and_replaced(confirmed: Device) -> None:
    hanging = confirmed.model()["active"]["pid"]
    os.kill(hanging, signal.SIGSTOP)
    asked = Asked(confirmed)
    wait_until(lambda: asked.version, "the answer to who asked while it hung")
    assert asked.version == "1.0.0"
    assert is_gone(hanging)
    assert confirmed.model()["active"]["pid"] != hanging
    assert confirmed.model()["state"] == "confirmed"


def test_the_warm_worker_that_hangs_during_a_probation_is_replaced_and_there_when_needed(
    confirmed: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    warm = confirmed.model()["active"]["pid"]
    second = make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(second)
    headquarters.desire(second, probation=LONG)
    trial = confirmed.wait_state("probation", "2.0.0")["active"]["pid"]
    os.kill(warm, signal.SIGSTOP)
    wait_until(lambda: warm not in confirmed.workers("serve"), "the end of the one that hangs")
    assert confirmed.infer()["model_version"] == "2.0.0"
    assert confirmed.model()["state"] == "probation"
    os.kill(trial, signal.SIGKILL)
    confirmed.wait_state("rolled_back", "2.0.0")
    assert confirmed.infer()["model_version"] == "1.0.0"


def test_a_zygote_that_hangs_is_replaced_and_no_model_is_blamed(
    confirmed: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    second = make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(second)
    headquarters.desire(second, probation=QUICK)
    worker = confirmed.wait_state("confirmed", "2.0.0")["active"]["pid"]
    zygote = confirmed.status()["zygote_pid"]
    os.kill(zygote, signal.SIGSTOP)
    os.kill(worker, signal.SIGKILL)
    asked = Asked(confirmed)
    wait_until(lambda: confirmed.status()["zygote_pid"] not in (zygote, None), "the next zygote")
    wait_until(lambda: asked.version, "the answer")
    assert asked.version == "2.0.0"
    assert confirmed.model()["state"] == "confirmed"
    assert not confirmed.quarantined(second)
