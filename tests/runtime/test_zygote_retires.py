"""A zygote with nothing to fork goes; its workers answer on, die with the agent, and come back when they die."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import QUICK, Broker, Device, Hammer, Headquarters, Made, make_bundle, running
from tests.runtime.model_zoo import counting_loop
from tests.runtime.processes import alive, parent_of, zombies_of
from tests.waiting import wait_until

from skerry_contract.signing import EcdsaSigner

SOON = {"workers.RETIRE_SECONDS": 0.5}


@pytest.fixture
def device(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> Iterator[Device]:
    """A device with a confirmed model, whose zygote has retired."""
    with running(Device(tmp_path, signer, broker, headquarters, settings=SOON)) as up:
        confirm(up, headquarters, make_bundle(signer))
        wait_adopted(up)
        yield up


def confirm(device: Device, headquarters: Headquarters, *bundles: Made) -> None:
    for made in bundles:
        headquarters.publish_bundle(made)
    headquarters.desire(*bundles, probation=QUICK)
    for made in bundles:
        device.wait_state("confirmed", made.manifest.version, made.manifest.name)


def wait_adopted(device: Device, name: str = "digits", before: int = 0) -> int:
    """Until the worker is the agent's own child, and the zygote is gone; the worker's process."""

    def adopted() -> int | None:
        status = device.status()
        active = status["models"][name]["active"]
        pid = active["pid"] if active else None
        right = pid not in (None, before) and status["zygote_pid"] is None and parent_of(pid) == status["pid"]
        return pid if right else None

    return wait_until(adopted, "the retirement")


def test_its_worker_goes_on_without_it(device: Device) -> None:
    worker = device.model()["active"]["pid"]
    assert device.infer()["model_version"] == "1.0.0"
    wait_until(lambda: device.model()["health"]["requests"] > 0, "the worker's reports")
    assert device.model()["active"]["pid"] == worker
    assert "the zygote retires" in device.log.read_text()
    assert "the zygote is gone" not in device.log.read_text()


def test_nobody_is_refused_while_it_retires(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running(Device(tmp_path, signer, settings=SOON)) as device:
        device.install(make_bundle(signer).write(tmp_path))
        with Hammer(device.data / "run" / "skerry.sock") as hammer:
            wait_adopted(device)
            seen = sum(hammer.answers.values())
            wait_until(lambda: sum(hammer.answers.values()) > seen + 20, "answers afterwards")
        assert hammer.failures == []


def test_a_worker_that_dies_is_replaced_by_another_zygote_s_and_leaves_no_zombie(device: Device) -> None:
    assert device.process is not None
    for number in (signal.SIGKILL, signal.SIGSEGV):
        worker = device.model()["active"]["pid"]
        os.kill(worker, number)
        wait_adopted(device, before=worker)
        assert device.infer()["model_version"] == "1.0.0"
        assert f"killed by {number.name} while serving" in device.log.read_text()
    wait_until(lambda: not zombies_of(device.process.pid), "the end of the zombies")


def test_a_new_model_gets_a_zygote_and_the_old_one_s_worker_is_not_touched(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    worker = device.model()["active"]["pid"]
    confirm(device, headquarters, make_bundle(signer), make_bundle(signer, model=counting_loop()))
    wait_adopted(device, "counter")
    assert device.model()["active"]["pid"] == worker
    # The death of the next zygote is none of the worker that was adopted from the one before.
    os.kill(device.model("counter")["active"]["pid"], signal.SIGKILL)
    zygote = wait_until(lambda: device.status()["zygote_pid"], "a zygote")
    os.kill(zygote, signal.SIGKILL)
    wait_adopted(device, "counter")
    assert device.model()["active"]["pid"] == worker


def test_an_adopted_worker_dies_with_the_agent_also_when_it_is_stopped(device: Device) -> None:
    worker = device.model()["active"]["pid"]
    os.kill(worker, signal.SIGSTOP)
    device.kill()
    wait_until(lambda: not alive(worker), "the worker's end")


def test_a_clean_stop_ends_an_adopted_worker(device: Device) -> None:
    worker = device.model()["active"]["pid"]
    assert device.stop() == 0
    assert not alive(worker)
    assert "Traceback" not in device.log.read_text()
