"""The addresses of clients: refused before the first model and after the last, waiting in between."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import free_port

from skerry_contract.errors import StorageError, UnavailableError
from skerry_runtime.agent.listeners import Listeners
from skerry_runtime.config import ServeConfig


@pytest.fixture(params=["chosen", "any"])
def listeners(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listeners]:
    """With a TCP port that the configuration chose, or left to the kernel."""
    port = free_port() if request.param == "chosen" else 0
    made = Listeners(ServeConfig(socket=tmp_path / "front.sock", http=("127.0.0.1", port)), tmp_path)
    yield made
    made.close()


def connect(address: Path | tuple[str, int]) -> None:
    """Raises `ConnectionRefusedError` where nothing listens."""
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as client:
        client.settimeout(5)
        client.connect(str(address) if isinstance(address, Path) else address)


def addresses(listeners: Listeners) -> list[Path | tuple[str, int]]:
    tcp = listeners.tcp_address
    assert tcp is not None
    return [listeners.socket_path("digits", front=True), tcp]


def test_a_socket_that_another_daemon_serves_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skerry_runtime.agent.listeners.BUSY_SECONDS", 0.3)
    path = tmp_path / "front.sock"
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(UnavailableError, match="another process serves"):
            Listeners(ServeConfig(socket=path), foreign)
        connect(path)
    # What a killed process left behind is replaced.
    made = Listeners(ServeConfig(socket=path), own)
    made.close()


def test_nothing_listens_before_the_first_model(listeners: Listeners) -> None:
    for address in addresses(listeners):
        with pytest.raises(ConnectionRefusedError):
            connect(address)


def test_clients_are_refused_although_a_worker_that_drains_holds_the_sockets(listeners: Listeners) -> None:
    before = addresses(listeners)
    held = [os.dup(descriptor) for _, descriptor in listeners.open("digits", front=True)]
    for address in before:
        connect(address)
    listeners.refuse("digits", front=True)
    assert addresses(listeners) == before
    for address in before:
        with pytest.raises(ConnectionRefusedError):
            connect(address)
    # The next model answers on the same addresses, also while the old worker is not gone yet.
    kinds = [kind for kind, _ in listeners.open("digits", front=True)]
    assert kinds == ["unix", "tcp"]
    for address in before:
        connect(address)
    for descriptor in held:
        os.close(descriptor)
    for address in before:
        connect(address)


def test_nobody_else_gets_the_port_meanwhile(listeners: Listeners) -> None:
    listeners.open("digits", front=True)
    listeners.refuse("digits", front=True)
    tcp = listeners.tcp_address
    assert tcp is not None
    with socket.socket() as thief, pytest.raises(OSError, match="in use"):
        thief.bind(tcp)


def test_refusing_twice_or_before_listening_changes_nothing(listeners: Listeners) -> None:
    before = addresses(listeners)
    for _ in range(2):
        listeners.refuse("digits", front=True)
    listeners.open("digits", front=True)
    for _ in range(2):
        listeners.refuse("digits", front=True)
    assert addresses(listeners) == before


def test_a_further_model_has_a_socket_of_its_own_that_goes_with_it(listeners: Listeners) -> None:
    listeners.open("digits", front=True)
    ((kind, _),) = listeners.open("letters", front=False)
    assert kind == "unix"
    path = listeners.socket_path("letters", front=False)
    connect(path)
    listeners.refuse("letters", front=False)
    assert not path.exists()
    for address in addresses(listeners):
        connect(address)
    listeners.open("letters", front=False)
    connect(path)


def test_what_cannot_be_bound_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no socket")
    with pytest.raises(StorageError, match="is not a socket"):
        Listeners(ServeConfig(socket=tmp_path / "file"), tmp_path)
    with pytest.raises(StorageError, match="cannot be created"):
        Listeners(ServeConfig(socket=tmp_path / "none" / "x.sock"), tmp_path)
    with pytest.raises(UnavailableError, match="is no address of this machine"):
        Listeners(ServeConfig(socket=tmp_path / "x.sock", http=("host.invalid", 1)), tmp_path)
