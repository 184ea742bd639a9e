"""The server's link: nothing is received before it is dealt with, and every interruption is survived."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.fleet.mqtt_peer import WAIT_S, Peer
from tests.waiting import wait_until

from skerry_contract.errors import UnavailableError
from skerry_contract.topics import Down, Up
from skerry_fleet.broker import Broker, BrokerState, Listen, free_port
from skerry_fleet.mosquitto import SERVER_USER, hash_password
from skerry_fleet.mqtt import Link, Message, Receipt

UP = "skerry/1/acme/d/pi-1/up/tel"
DOWN = "skerry/1/acme/d/pi-1/dn/{}"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    hashed = {"pi-1": hash_password("secret")}
    running = Broker(tmp_path, org="acme", listen=Listen(port=0), credentials=lambda: hashed)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def device(broker: Broker) -> Iterator[Peer]:
    with Peer(broker.port, "pi-1", "secret") as peer:
        peer.subscribe(DOWN.format("+"))
        yield peer


Inbox = queue.Queue[Message]


@contextmanager
def linked(broker: Broker) -> Iterator[tuple[Link, Inbox]]:
    inbox: Inbox = queue.Queue()
    link = Link(
        host="127.0.0.1", port=broker.port, username=SERVER_USER, password=broker.password, org="acme"
    )
    link.start(inbox.put)
    try:
        yield link, inbox
    finally:
        link.stop()


def test_the_sender_is_the_topic(broker: Broker, device: Peer) -> None:
    with linked(broker) as (_, inbox):
        device.publish(UP, b'{"device": "pi-2"}')
        message = inbox.get(timeout=WAIT_S)
    assert (message.device, message.channel, message.payload) == ("pi-1", Up.TELEMETRY, b'{"device": "pi-2"}')


def test_what_was_not_acknowledged_comes_again(broker: Broker, device: Peer) -> None:
    with linked(broker) as (link, inbox):
        device.publish(UP, b"1")
        device.publish(UP, b"2")
        link.acknowledge(inbox.get(timeout=WAIT_S).receipt)
        inbox.get(timeout=WAIT_S)
    device.publish(UP, b"3")
    with linked(broker) as (link, inbox):
        again = [inbox.get(timeout=WAIT_S) for _ in range(2)]
        assert [message.payload for message in again] == [b"2", b"3"]
        for message in again:
            link.acknowledge(message.receipt)
    with linked(broker) as (_, inbox):
        device.publish(UP, b"4")
        assert inbox.get(timeout=WAIT_S).payload == b"4"


def test_a_receipt_of_an_earlier_connection_acknowledges_nothing(broker: Broker, device: Peer) -> None:
    with linked(broker) as (link, inbox):
        device.publish(UP, b"1")
        receipt = inbox.get(timeout=WAIT_S).receipt
        link.acknowledge(Receipt(packet=receipt.packet, connection=receipt.connection - 1, qos=1))
    with linked(broker) as (_, inbox):
        assert inbox.get(timeout=WAIT_S).payload == b"1"


@pytest.mark.attack
def test_a_channel_that_does_not_exist_is_dropped_and_counted(broker: Broker, device: Peer) -> None:
    with linked(broker) as (link, inbox):
        device.publish("skerry/1/acme/d/pi-1/up/nonsense", b"x")
        device.publish(UP, b"1")
        assert inbox.get(timeout=WAIT_S).payload == b"1"
        assert link.strangers == 1


def test_what_is_published_reaches_the_device(broker: Broker, device: Peer) -> None:
    with linked(broker) as (link, _):
        link.publish("pi-1", Down.ACKNOWLEDGE, b"ack", expiry_s=60)
        assert device.next() == (DOWN.format("ack"), b"ack")


def test_what_is_retained_is_confirmed_kept_and_can_be_cleared(broker: Broker, device: Peer) -> None:
    topic = DOWN.format("des")
    with linked(broker) as (link, _):
        assert link.retain([("pi-1", Down.DESIRED, b"old"), ("pi-1", Down.DESIRED, b"new")])
        assert [device.next()[1], device.next()[1]] == [b"old", b"new"]
        device.subscribe(DOWN.format("+"))
        assert device.next() == (topic, b"new")
        assert link.retain([("pi-1", Down.DESIRED, b"")])
        assert device.next() == (topic, b"")
        device.subscribe(DOWN.format("+"))
        link.publish("pi-1", Down.ACKNOWLEDGE, b"nothing came before this")
        assert device.next()[1] == b"nothing came before this"


def test_a_killed_broker_is_found_again(broker: Broker, device: Peer) -> None:
    with linked(broker) as (link, inbox):
        _kill(broker)
        wait_until(lambda: not link.is_connected, "the link notices")
        assert not link.retain([("pi-1", Down.DESIRED, b"x")])
        link.publish("pi-1", Down.ACKNOWLEDGE, b"dropped, and nothing fails")
        wait_until(lambda: link.is_connected, "the link is back")
        with Peer(broker.port, "pi-1", "secret") as again:
            again.publish(UP, b"after")
            assert inbox.get(timeout=WAIT_S).payload == b"after"


def test_a_killed_broker_keeps_messages_until_the_link_is_back(
    broker: Broker, device: Peer, tmp_path: Path
) -> None:
    with linked(broker) as (link, inbox):
        broker.save()
        wait_until((tmp_path / "mosquitto.db").exists, "the sessions are written")
        _kill(broker)
        wait_until(lambda: broker.restarts == 1 and broker.state is BrokerState.RUNNING, "it runs again")
        with Peer(broker.port, "pi-1", "secret") as again:
            assert not link.is_connected
            again.publish("skerry/1/acme/d/pi-1/up/rep", b"sent before the server is back")
        assert inbox.get(timeout=WAIT_S).payload == b"sent before the server is back"


def test_no_broker_is_an_error_with_a_place_to_look(tmp_path: Path) -> None:
    link = Link(host="127.0.0.1", port=free_port("127.0.0.1"), username="x", password="x", org="acme")
    deliver: Callable[[Message], None] = print
    with pytest.raises(UnavailableError, match=r"0 s") as caught:
        link.start(deliver, timeout_s=0.3)
    assert "mosquitto.log" in caught.value.hint


def _kill(broker: Broker) -> None:
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
