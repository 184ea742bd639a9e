"""The word to the service manager: ready, alive only with proof, stopping. Over real datagram sockets."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import Device, make_bundle, running
from tests.waiting import wait_until

from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.notify import Notifier, Watchdog, take_environment


class Manager:
    """systemd's end of the socket, which is always read: its queue holds ten datagrams."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._heard: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """Everything that was said until now."""
        return list(self._heard)

    def count(self, line: str) -> int:
        return self.lines().count(line)

    def wait(self, *lines: str) -> None:
        wait_until(lambda: set(lines) <= set(self.lines()), f"{lines}")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _listen(self) -> None:
        while datagram := self._socket.recv(4096):
            self._heard += datagram.decode().splitlines()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify"))
    yield found
    found.close()


# --- the socket ------------------------------------------------------------------------------------------


def test_lines_arrive_at_a_path(manager: Manager) -> None:
    notifier = Notifier(manager.path)
    assert notifier.send("READY=1", "STATUS=digits answers")
    manager.wait("READY=1", "STATUS=digits answers")
    notifier.close()


def test_lines_arrive_at_an_abstract_name() -> None:
    manager = Manager(f"@skerry-test-{os.getpid()}-{os.urandom(4).hex()}")
    notifier = Notifier(manager.path)
    assert notifier.send("READY=1")
    manager.wait("READY=1")
    notifier.close()
    manager.close()


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    assert not Notifier("").enabled
    assert not Notifier("").send("READY=1")
    gone = Notifier(str(tmp_path / "nobody"))
    assert not gone.send("READY=1")
    gone.close()
    # What is neither a path nor an abstract name (a vsock address, say) is nobody's here.
    assert not Notifier("vsock:2:1234").enabled


def test_a_full_queue_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        notifier = Notifier(str(tmp_path / "deaf"))
        sent = 0
        while notifier.send("STATUS=busy"):
            sent += 1
            assert sent < 100_000
        assert sent > 0
        notifier.close()


def test_the_variables_are_taken_out_of_the_environment() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    notifier, seconds = take_environment(environment)
    assert (notifier.enabled, seconds, environment) == (True, 3.0, {})
    notifier.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_of_others_is_none(environment: dict[str, str]) -> None:
    assert take_environment(environment)[1] == 0.0


# --- the decision ----------------------------------------------------------------------------------------


def test_a_ping_is_due_at_half_the_interval_and_needs_every_mark_to_move() -> None:
    dog = Watchdog(10.0, now=0.0, evidence={"outbox": 0})
    assert not dog.look(4.9, {"outbox": 1, "worker 1": 1}), "not due yet"
    assert dog.look(5.0, {"outbox": 1, "worker 1": 1})
    assert not dog.look(10.0, {"outbox": 1, "worker 1": 2})
    assert dog.missing == ("outbox",)
    assert not dog.look(10.5, {"outbox": 2, "worker 1": 1})
    assert dog.missing == ("worker 1",)
    assert dog.withheld == 2
    assert dog.look(10.6, {"outbox": 2, "worker 1": 2})
    assert (dog.withheld, dog.pings) == (0, 2)


def test_a_new_worker_has_proved_itself_and_one_that_is_gone_is_not_asked() -> None:
    dog = Watchdog(2.0, now=0.0, evidence={"worker 1": 7})
    assert dog.look(1.0, {"worker 2": 0})
    assert not dog.look(2.0, {"worker 2": 0})
    assert dog.look(2.1, {})


# --- the daemon ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_whole_life_of_a_watched_daemon(
    tmp_path: Path, signer: EcdsaSigner, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    # Looks every 25 ms; half the interval is far below the five seconds between two golden samples.
    monkeypatch.setenv("WATCHDOG_USEC", "400000")
    # The agent itself must not find the hung worker: here the watchdog is on trial.
    device = Device(tmp_path, signer, settings={"worker.SILENT_SECONDS": 3600})
    with running(device):
        wait_until(lambda: manager.count("READY=1") == 1, "READY=1")
        # Without a model the loop and the outbox are all there is to prove.
        wait_until(lambda: manager.count("WATCHDOG=1") >= 3, "pings without a model")
        assert any(line.startswith("STATUS=no model yet") for line in manager.lines())

        device.install(make_bundle(signer).write(tmp_path))
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.lines()), "while verifying"
        manager.wait("STATUS=digits 1.0.0 answers; fleet off")
        before = manager.count("WATCHDOG=1")
        wait_until(lambda: manager.count("WATCHDOG=1") >= before + 2, "pings by golden samples")

        (worker,) = device.workers("serve")
        os.kill(worker, signal.SIGSTOP)
        try:
            service = wait_until(lambda: _withheld(device, 50), "the watchdog's doubt")
            assert "model digits" in [name.partition(",")[0] for name in service["missing"]]
            pings = manager.count("WATCHDOG=1")
            wait_until(lambda: _withheld(device, 250), "200 more looks")
            assert manager.count("WATCHDOG=1") == pings, "a hung worker was vouched for"
        finally:
            os.kill(worker, signal.SIGCONT)
        wait_until(lambda: manager.count("WATCHDOG=1") > pings, "a ping of the worker that goes on")
        assert device.stop() == 0
    manager.wait("STOPPING=1")
    assert manager.count("READY=1") == 1


def test_a_start_waits_for_the_installed_model(
    tmp_path: Path, signer: EcdsaSigner, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, signer)
    with running(device):
        device.install(make_bundle(signer).write(tmp_path))
    monkeypatch.setenv("NOTIFY_SOCKET", manager.path)
    with running(device):
        wait_until(lambda: manager.count("READY=1") == 1, "READY=1")
        wait_until(lambda: device.infer()["model_version"] == "1.0.0", "an answer")
    assert manager.count("WATCHDOG=1") == 0, "nobody asked for it"


def _withheld(device: Device, looks: int) -> dict[str, list[str]] | None:
    service: dict[str, list[str]] = device.status()["service"]
    return service if int(str(service["withheld"])) >= looks else None
