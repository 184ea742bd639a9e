"""Under load: models that pass every test and then misbehave, and processes that are killed."""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.runtime import bad_models
from tests.runtime.agent_world import QUICK, Broker, Device, Headquarters, Made, make_bundle, running
from tests.runtime.kill_loop import TARGETS, kill_loop
from tests.runtime.model_zoo import ZooModel, digits
from tests.runtime.stubborn_clients import StubbornClients, right_answer
from tests.waiting import wait_until

from skerry_contract.manifest import Budgets
from skerry_contract.messages import Probation
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.health import CRASHES

UNDER_WATCH = Probation(requests=20, seconds=3600.0, max_error_rate=0.05)
"""It is not confirmed while a test looks, and two failures in twenty condemn it."""
ON_X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors do not trap at this")


def old_and_bad(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, bad: ZooModel, **changes: Any
) -> tuple[Made, StubbornClients]:
    """1.0.0 is confirmed and clients ask it for two images at a time; 2.0.0 is what misbehaves then."""
    old = make_bundle(signer)
    new = make_bundle(signer, version="2.0.0", release=2, model=bad, **changes)
    headquarters.publish_bundle(old)
    headquarters.publish_bundle(new)
    headquarters.desire(old, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    path = device.data / "run" / "skerry.sock"
    right = dict.fromkeys(("1.0.0", "2.0.0"), right_answer(digits(), bad_models.ROWS))
    return new, StubbornClients(path, right, rows=bad_models.ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hanging:
    """A device with a model that hangs."""

    device: Device
    headquarters: Headquarters
    new: Made
    clients: StubbornClients


@pytest.fixture(scope="module", autouse=True)
def hanging(tmp_path_factory: pytest.TempPathFactory, signer: EcdsaSigner) -> Iterator[Hanging]:
    """Begun before the other tests: an inference has half a minute before it counts as one that hangs."""
    folder = tmp_path_factory.mktemp("hanging")
    with ExitStack() as stack:
        broker = Broker(folder)
        stack.callback(broker.stop)
        broker.start()
        headquarters = Headquarters(broker)
        stack.callback(headquarters.close)
        device = stack.enter_context(running(Device(folder, signer, broker, headquarters)))
        new, clients = old_and_bad(device, headquarters, signer, bad_models.hangs())
        stack.enter_context(clients)
        clients.wait_answers(version="1.0.0")
        headquarters.desire(new, probation=UNDER_WATCH)
        yield Hanging(device=device, headquarters=headquarters, new=new, clients=clients)


def check_old_is_back(
    device: Device, headquarters: Headquarters, clients: StubbornClients, new: Made, code: str
) -> str:
    """Quarantined, reported, audited; the old one answers everybody. The message of the error."""
    clients.wait_answers(10, "1.0.0")
    assert device.quarantined(new)
    model = device.model()
    assert (model["active"]["version"], model["error"]["code"]) == ("1.0.0", code)
    report = headquarters.wait_report(lambda r: r["phase"] == "rolled_back")
    assert (report["error"]["code"], report["active_version"]) == (code, "1.0.0")
    (event,) = wait_until(
        lambda: [e for e in headquarters.events() if e["kind"] == "update.rolled_back"], "the audit event"
    )
    assert (event["digest"], event["error"]["code"]) == (new.digest, code)
    # No retry loop: the same order again leaves the old one alone.
    pid = model["active"]["pid"]
    headquarters.desire(new)
    wait_until(lambda: device.status()["fleet"]["revision"] == headquarters.revision, "the order")
    assert device.model()["active"]["pid"] == pid
    message: str = model["error"]["message"]
    return message


def check_answers(clients: StubbornClients) -> None:
    """Everybody was answered in the end, and never wrongly."""
    assert clients.wrong == []
    assert clients.unanswered == 0


@pytest.mark.attack
@ON_X86
def test_m15_a_model_that_crashes_under_load_in_probation(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    new, clients = old_and_bad(device, headquarters, signer, bad_models.crashes())
    with clients:
        clients.wait_answers(version="1.0.0")
        headquarters.desire(new, probation=UNDER_WATCH)
        device.wait_state("rolled_back", "2.0.0")
        message = check_old_is_back(device, headquarters, clients, new, "selftest")
    assert signal.SIGFPE.name in message
    check_answers(clients)


@pytest.mark.slow
@pytest.mark.attack
@ON_X86
def test_m15_a_model_that_crashes_under_load_after_it_was_confirmed(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    new, clients = old_and_bad(device, headquarters, signer, bad_models.crashes())
    headquarters.desire(new, probation=QUICK)
    device.wait_state("confirmed", "2.0.0")
    with clients:
        device.wait_state("rolled_back", "2.0.0")
        message = check_old_is_back(device, headquarters, clients, new, "selftest")
    assert "died again and again" in message
    assert device.log.read_text().count("SIGFPE") >= CRASHES
    check_answers(clients)
    assert not clients.answers["2.0.0"]


@pytest.mark.attack
@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bad_models.not_a_number, id="NaN"),
        pytest.param(lambda: bad_models.eats(1 << 18), id="256 GiB", marks=pytest.mark.slow),
    ],
)
def test_m15_a_model_that_fails_under_load(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, bad: Callable[[], ZooModel]
) -> None:
    new, clients = old_and_bad(device, headquarters, signer, bad())
    with clients:
        clients.wait_answers(version="1.0.0")
        headquarters.desire(new, probation=UNDER_WATCH)
        device.wait_state("rolled_back", "2.0.0")
        message = check_old_is_back(device, headquarters, clients, new, "selftest")
    assert "requests failed" in message
    check_answers(clients)
    assert set(clients.failed) <= {"500"}


@pytest.mark.slow
@pytest.mark.attack
def test_m15_a_model_whose_memory_grows_over_its_budget_under_load(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    budgets = Budgets(ram_bytes=200 << 20, latency_p95_us=60_000_000)
    new, clients = old_and_bad(device, headquarters, signer, bad_models.eats(400), budgets=budgets)
    with clients:
        clients.wait_answers(version="1.0.0")
        headquarters.desire(new, probation=UNDER_WATCH)
        device.wait_state("rolled_back", "2.0.0")
        message = check_old_is_back(device, headquarters, clients, new, "budget.memory")
    assert "under load" in message
    check_answers(clients)
    # It still answered while it was judged: nobody noticed.
    assert not clients.failed
    assert clients.answers["2.0.0"]


@pytest.mark.timeout(300)
def test_whoever_is_killed_the_clients_are_answered_and_nothing_stored_is_lost(tmp_path: Path) -> None:
    """kill -9 of agent, zygote and worker in turn, under updates; for longer: ``tests.runtime.kill_loop``."""
    tally = kill_loop(tmp_path, kills=6)
    assert tally.kills == dict.fromkeys(TARGETS, 2)
    assert tally.rows > 0


@pytest.mark.attack
def test_m7_a_model_that_hangs_under_load(hanging: Hanging) -> None:
    device, clients = hanging.device, hanging.clients
    device.wait_state("rolled_back", "2.0.0")
    message = check_old_is_back(device, hanging.headquarters, clients, hanging.new, "engine")
    clients.stop()
    assert "has not returned" in message
    check_answers(clients)
