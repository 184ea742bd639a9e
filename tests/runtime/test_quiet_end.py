"""However the agent ends, nothing of its tree is left, and no process prints a traceback at its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    TIMEOUT,
    Broker,
    Device,
    Hammer,
    Headquarters,
    endless,
    make_bundle,
    running,
)
from tests.runtime.processes import alive, descendants
from tests.waiting import wait_until

from skerry_contract.signing import EcdsaSigner

SESSION = ("setsid",)
"""As on a terminal of its own: a signal to its foreground group is none to the tests."""


@pytest.fixture
def device(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> Iterator[Device]:
    """A device that serves."""
    with running(Device(tmp_path, signer, broker, headquarters, tracer=SESSION)) as up:
        up.install(make_bundle(signer).write(tmp_path))
        up.infer()
        yield up


def tree(device: Device) -> set[int]:
    """The daemon's processes below the agent: zygote and worker at least."""
    assert device.process is not None
    return descendants(device.process.pid)


def wait_for_nothing(pids: set[int]) -> None:
    wait_until(lambda: not any(map(alive, pids)), "the end of all")


def assert_quiet(device: Device) -> None:
    text = device.log.read_text()
    assert "Traceback" not in text, text


def test_kill_9_of_the_agent_leaves_nobody(device: Device) -> None:
    below = tree(device)
    assert len(below) == 2
    with Hammer(device.data / "run" / "skerry.sock"):
        device.kill()
        wait_for_nothing(below)
    assert_quiet(device)


def test_kill_9_in_the_middle_of_a_self_test_that_hangs_leaves_nobody(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    hanging = endless(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(hanging)
    headquarters.desire(hanging)
    probe = wait_until(lambda: device.workers("preflight"), "the self-test")[0]
    below = tree(device)
    assert probe in below
    device.kill()
    wait_for_nothing(below)
    assert_quiet(device)


def test_kill_9_reaches_a_worker_that_is_stopped(device: Device) -> None:
    below = tree(device)
    os.kill(device.model()["active"]["pid"], signal.SIGSTOP)
    device.kill()
    wait_for_nothing(below)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_ends_all_of_it_with_code_0(device: Device, number: signal.Signals) -> None:
    assert device.process is not None
    below = tree(device)
    group = os.getpgid(device.process.pid)
    assert group != os.getpgid(0)
    if number is signal.SIGINT:
        os.killpg(group, number)  # a terminal sends it to all of the group
    else:
        os.kill(device.process.pid, number)
    assert device.process.wait(TIMEOUT) == 0
    wait_for_nothing(below)
    assert_quiet(device)


def test_a_killed_zygote_says_nothing_either(device: Device) -> None:
    zygote = device.status()["zygote_pid"]
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: device.status()["zygote_pid"] not in (zygote, None), "the next zygote")
    wait_until(lambda: (device.model()["active"] or {}).get("pid"), "the next worker")
    device.infer()
    assert_quiet(device)
