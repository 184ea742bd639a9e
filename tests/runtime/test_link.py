"""The link against a real broker: presence, reconnection, credentials, acknowledgement after the work."""

from __future__ import annotations

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.runtime.agent_world import DEVICE, ORG, Broker, Headquarters
from tests.waiting import wait_until

from skerry_contract.errors import ConfigError, SkerryError
from skerry_contract.topics import Down, Up
from skerry_runtime.agent.link import Done, Identity, MqttLink
from skerry_runtime.config import FleetConfig


@dataclass
class Ear:
    """A listener that keeps everything; `handle` may do more with a message."""

    ups: list[int] = field(default_factory=list)
    downs: list[SkerryError] = field(default_factory=list)
    messages: list[tuple[Down, bytes]] = field(default_factory=list)
    handle: Callable[[Done], None] = lambda done: done()

    def link_up(self, epoch: int) -> None:
        self.ups.append(epoch)

    def link_down(self, error: SkerryError) -> None:
        self.downs.append(error)

    def link_message(self, channel: Down, payload: bytes, done: Done) -> None:
        self.messages.append((channel, payload))
        self.handle(done)


Make = Callable[..., MqttLink]


@pytest.fixture
def make() -> Iterator[Make]:
    """Make links; they are stopped at the end."""
    made: list[MqttLink] = []
    epochs = itertools.count(1)

    def link(port: int, ear: Ear, password: str = "any") -> MqttLink:
        config = FleetConfig(
            host="127.0.0.1", port=port, username=DEVICE, password=password, reconnect_seconds=0.2
        )
        made.append(MqttLink(config, Identity(org=ORG, device=DEVICE), ear, lambda: next(epochs)))
        made[-1].start()
        return made[-1]

    yield link
    for each in made:
        each.stop(2.0)


def states(hq: Headquarters) -> list[tuple[str, int]]:
    found = [json.loads(payload) for channel, payload, _ in list(hq.messages) if channel is Up.STATE]
    return [(state["state"], state["epoch"]) for state in found]


def test_presence_is_retained_and_a_clean_end_says_offline(
    make: Make, broker: Broker, headquarters: Headquarters
) -> None:
    ear = Ear()
    link = make(broker.port, ear)
    wait_until(lambda: ear.ups == [1], "the connection")
    wait_until(lambda: states(headquarters) == [("online", 1)], "presence")
    later = Headquarters(broker)
    wait_until(lambda: states(later) == [("online", 1)], "the retained presence")
    assert later.messages[0][2] is True
    link.stop(5.0)
    wait_until(lambda: states(headquarters)[-1] == ("offline", 1), "the end")
    later.close()


def test_messages_come_and_go(make: Make, broker: Broker, headquarters: Headquarters) -> None:
    ear = Ear()
    link = make(broker.port, ear)
    wait_until(lambda: ear.ups, "the connection")
    assert link.publish(Up.REPORT, b"report")
    headquarters.send(Down.DESIRED, b"order", retain=True)
    headquarters.send(Down.BLOCK, b"block", qos=0)
    wait_until(lambda: len(ear.messages) == 2, "the messages")
    assert ear.messages == [(Down.DESIRED, b"order"), (Down.BLOCK, b"block")]
    wait_until(lambda: (Up.REPORT, b"report", False) in headquarters.messages, "the report")


def test_a_broker_that_comes_back_finds_a_higher_epoch(make: Make, broker: Broker) -> None:
    ear = Ear()
    link = make(broker.port, ear)
    wait_until(lambda: ear.ups, "the connection")
    broker.stop()
    wait_until(lambda: ear.downs, "the loss")
    assert "was lost" in ear.downs[0].message
    assert not link.publish(Up.REPORT, b"nobody hears it")
    broker.start()
    wait_until(lambda: len(ear.ups) == 2, "the next connection")
    assert ear.ups[1] > ear.ups[0]


def test_no_broker_is_said_once_with_what_to_do_and_tried_for_ever(make: Make, tmp_path: Path) -> None:
    broker, ear = Broker(tmp_path), Ear()
    make(broker.port, ear)
    wait_until(lambda: ear.downs, "the error")
    assert ear.downs[0].code == "unavailable"
    assert f"127.0.0.1:{broker.port}" in ear.downs[0].message
    assert "fleet.host" in ear.downs[0].hint
    broker.start()
    wait_until(lambda: ear.ups, "the connection")
    assert len(ear.downs) == 1
    broker.stop()


def test_wrong_credentials_are_said_and_the_right_ones_work(make: Make, tmp_path: Path) -> None:
    broker, wrong, right = Broker(tmp_path, password="secret"), Ear(), Ear()
    broker.start()
    make(broker.port, wrong, password="guessed")
    wait_until(lambda: wrong.downs, "the error")
    assert wrong.downs[0].code == "access"
    assert "fleet.password" in wrong.downs[0].hint
    make(broker.port, right, password="secret")
    wait_until(lambda: right.ups, "the connection")
    assert wrong.ups == []
    broker.stop()


def test_a_message_that_was_not_worked_off_comes_again(
    make: Make, broker: Broker, headquarters: Headquarters
) -> None:
    kept: list[Done] = []
    forgetful = Ear(handle=kept.append)
    first = make(broker.port, forgetful)
    wait_until(lambda: forgetful.ups, "the connection")
    headquarters.send(Down.COMMAND, b"do it")
    wait_until(lambda: forgetful.messages, "the message")
    # The process dies before it is done: the connection goes, the session stays.
    assert kept
    sock = first._client.socket()
    assert isinstance(sock, socket.socket)
    first._client.reconnect_delay_set(3600, 3600)
    first._client.on_disconnect = None
    sock.shutdown(socket.SHUT_RDWR)
    again = Ear()
    make(broker.port, again)
    wait_until(lambda: again.messages == [(Down.COMMAND, b"do it")], "the message again")


def test_frames_are_not_held_back_by_the_kernel(make: Make, broker: Broker) -> None:
    ear = Ear()
    link = make(broker.port, ear)
    wait_until(lambda: ear.ups, "the connection")
    sock = link._client.socket()
    assert isinstance(sock, socket.socket)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_stopping_does_not_wait_for_a_broker_that_is_not_there(make: Make, tmp_path: Path) -> None:
    link = make(Broker(tmp_path).port, Ear())
    stopping = threading.Thread(target=link.stop, args=(1.0,), daemon=True)
    stopping.start()
    stopping.join(5.0)
    assert not stopping.is_alive()


def test_a_ca_file_that_cannot_be_used_is_a_mistake_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "missing.pem"):
        config = FleetConfig(host="127.0.0.1", port=1, username="x", password="x", tls_ca=str(path))
        with pytest.raises(ConfigError, match="tls_ca"):
            MqttLink(config, Identity(org=ORG, device=DEVICE), Ear(), lambda: 1)
