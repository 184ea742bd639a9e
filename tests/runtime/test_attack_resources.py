"""No more memory, no more descriptors (attack L7): what is killed is replaced, nothing stored is lost."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime import bad_models
from tests.runtime.agent_world import (
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    UnixConnection,
    image_request,
    make_bundle,
    running,
)
from tests.runtime.ledger import check_ledger, settle
from tests.runtime.model_zoo import digits
from tests.runtime.stubborn_clients import StubbornClients, right_answer
from tests.waiting import wait_until

from skerry_contract.manifest import Budgets
from skerry_contract.messages import DeviceSettings
from skerry_contract.signing import EcdsaSigner

pytestmark = pytest.mark.attack
SMALL_WINDOWS = DeviceSettings(window_seconds=3600.0, window_rows=5)
CGROUPS = Path("/sys/fs/cgroup/memory")


@contextlib.contextmanager
def starved(pid: int, spare: int = 0) -> Iterator[None]:
    """The process may open ``spare`` descriptors more, and then none."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [number for number in range(max(used) + spare + 2) if number not in used]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[spare], before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def memory_cgroup(mebibytes: int) -> Iterator[Path]:
    """A control group with so much memory and no swap."""
    folder = CGROUPS / f"skerry-test-{os.urandom(6).hex()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(mebibytes << 20))
    except OSError:
        pytest.skip("this machine does not let tests make a memory cgroup (version 1)")
    try:
        yield folder
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the end of its processes")
        folder.rmdir()


def confirm(device: Device, headquarters: Headquarters, signer: EcdsaSigner) -> StubbornClients:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=QUICK, settings=SMALL_WINDOWS)
    device.wait_state("confirmed", "1.0.0")
    versions = dict.fromkeys(("1.0.0", "2.0.0"), right_answer(digits(), 1))
    return StubbornClients(device.data / "run" / "skerry.sock", versions)


def worker_of(device: Device) -> int:
    result: int = wait_until(lambda: (device.model()["active"] or {}).get("pid"), "the worker")
    return result


def wait_next_worker(device: Device, before: int) -> None:
    wait_until(lambda: worker_of(device) != before, "the next worker")


def wait_failure(device: Device, known: int) -> None:
    """One more than ``known`` in the log."""
    wait_until(lambda: device.log.read_text().count("Too many open files") > known, "the failure")


def check_nothing_lost(device: Device, headquarters: Headquarters) -> None:
    device.ask("close_windows")
    settle(device, headquarters)
    outbox = device.status()["outbox"]
    assert (outbox["gaps"], outbox["lost"], outbox["error"]) == (0, 0, "")
    check_ledger(headquarters, outbox["stream"])


def test_l7_an_agent_without_descriptors_replaces_its_worker_as_soon_as_it_has_some(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    clients = confirm(device, headquarters, signer)
    assert device.process is not None
    with clients:
        for spare in (0, 3):
            worker = worker_of(device)
            failures = device.log.read_text().count("Too many open files")
            with starved(device.process.pid, spare):
                clients.wait_answers()
                os.kill(worker, signal.SIGKILL)
                if not spare:
                    wait_failure(device, failures)
            clients.wait_answers()
    assert clients.wrong == []
    assert device.model()["state"] == "confirmed"
    check_nothing_lost(device, headquarters)


def test_l7_an_order_to_an_agent_without_descriptors_does_no_harm(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    clients = confirm(device, headquarters, signer)
    second = make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(second)
    assert device.process is not None
    with clients, Hammer(device.data / "run" / "skerry.sock") as hammer:
        with starved(device.process.pid):
            headquarters.desire(second, probation=QUICK)
            wait_until(lambda: "Too many open files" in device.log.read_text(), "the failure")
            clients.wait_answers(version="1.0.0")
        headquarters.desire(second, probation=QUICK)
        device.wait_state("confirmed", "2.0.0")
        clients.wait_answers(version="2.0.0")
    assert hammer.failures == []
    assert not device.quarantined(second)
    check_nothing_lost(device, headquarters)


def test_l7_a_worker_without_descriptors_goes_on_with_who_is_connected_and_takes_the_others_later(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    clients = confirm(device, headquarters, signer)
    worker = worker_of(device)
    connection = UnixConnection(device.data / "run" / "skerry.sock")
    connection.request("GET", "/v2/health/ready")
    assert connection.getresponse().read() is not None
    asked = device.model()["health"]["requests"]
    with contextlib.ExitStack() as late:
        with contextlib.closing(connection), starved(worker):
            late.enter_context(clients)
            for _ in range(12):
                connection.request("POST", "/v2/models/digits/infer", image_request())
                answer = connection.getresponse()
                assert (answer.status, bool(answer.read())) == (200, True)
            # Its heart goes on beating, so nobody takes it for one that hangs.
            wait_until(lambda: device.model()["health"]["requests"] >= asked + 12, "a report")
        clients.wait_answers()
    assert clients.wrong == []
    assert not clients.failed
    assert worker_of(device) == worker
    check_nothing_lost(device, headquarters)


def test_l7_when_memory_runs_out_the_worker_is_killed_and_replaced_and_the_agent_stays(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    # The model's own limit is far away: the machine has no more.
    made = make_bundle(signer, model=bad_models.eats(1024), budgets=Budgets(ram_bytes=4096 << 20))
    headquarters.publish_bundle(made)
    with memory_cgroup(300) as group:
        join = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
        device = Device(tmp_path, signer, broker, headquarters, tracer=join)
        with running(device):
            headquarters.desire(made, probation=QUICK, settings=SMALL_WINDOWS)
            device.wait_state("confirmed", "1.0.0")
            assert device.process is not None
            versions = {"1.0.0": right_answer(digits(), 1)}
            with StubbornClients(device.data / "run" / "skerry.sock", versions) as clients:
                for _ in range(2):
                    clients.wait_answers()
                    worker = worker_of(device)
                    with contextlib.suppress(OSError, AssertionError):
                        device.infer(rows=bad_models.ROWS)
                    wait_next_worker(device, worker)
                clients.wait_answers()
            assert clients.wrong == []
            assert device.process.poll() is None
            assert device.log.read_text().count("killed by SIGKILL") >= 2
            assert device.model()["state"] == "confirmed"
            check_nothing_lost(device, headquarters)
