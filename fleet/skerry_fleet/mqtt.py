"""The server's link to the broker. The only file of the fleet that knows paho.

Guarantees: the broker hears that a QoS 1 message was received only when its `Receipt` is given, which is
after the database commit (paho's automatic acknowledgement lost 742 of 20,000 messages over four kills, this
way lost none); the sender of a message is its topic; what is no topic of this protocol is dropped and
counted.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from skerry_contract.errors import MessageError, UnavailableError
from skerry_contract.topics import DeviceDown, DeviceUp, Down, Up, ingest_filter, parse_topic

log = logging.getLogger(__name__)

RECEIVE_MAXIMUM: Final = 1000
"""QoS 1 messages that wait for their receipt; the broker holds back the others."""
SESSION_EXPIRY_S: Final = 7 * 86_400
_KEEPALIVE_S: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Proof, for the broker, that a message was dealt with."""

    packet: int
    """Packet identifier; meaningless on another connection than ``connection``."""
    connection: int
    qos: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message of a device."""

    device: str
    """By its topic, which the broker binds to the credential."""
    channel: Up
    payload: bytes
    receipt: Receipt


class Publisher(Protocol):
    """What the services need of the link."""

    def publish(
        self, device: str, channel: Down, payload: bytes, *, qos: int = 1, expiry_s: int = 0
    ) -> None: ...


class Link:
    """A persistent session of the server with the broker."""

    def __init__(
        self,
        *,
        host: str,
        port: int,
        username: str,
        password: str,
        org: str,
        worker_group: str | None = None,
    ) -> None:
        self._address = (host, port)
        self._org = org
        self._deliver: Callable[[Message], None] | None = None
        self._filter = ingest_filter(worker_group)
        self._connection = 0
        self._ready = threading.Event()
        self.strangers = 0
        """Messages dropped because their topic is none of ours."""
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=username, protocol=paho.MQTTv5, manual_ack=True
        )
        client.username_pw_set(username, password)
        client.reconnect_delay_set(min_delay=1, max_delay=5)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_socket_open = _no_delay
        self._client = client

    @property
    def is_connected(self) -> bool:
        """Connected and subscribed."""
        return self._ready.is_set()

    def start(self, deliver: Callable[[Message], None], timeout_s: float = 10.0) -> None:
        """Returns when it is connected and subscribed; from then on it reconnects by itself.

        ``deliver`` is called in the network thread for every message: it must not block.

        Raises:
            UnavailableError: not within the time.
        """
        self._deliver = deliver
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = SESSION_EXPIRY_S
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        host, port = self._address
        self._client.connect_async(host, port, _KEEPALIVE_S, clean_start=False, properties=properties)
        self._client.loop_start()
        if not self._ready.wait(timeout_s):
            self.stop()
            raise UnavailableError(
                f"no connection to the broker at {host}:{port} within {timeout_s:.0f} s",
                hint="See mosquitto.log in the data folder's broker folder.",
            )

    def stop(self) -> None:
        """Disconnect; the session stays at the broker, with what is not received yet."""
        client = self._client
        client.disconnect()
        client.loop_stop()
        self._ready.clear()
        # Without the cycle through the callbacks, paho closes its sockets as soon as it is forgotten.
        client.on_connect = client.on_disconnect = client.on_subscribe = client.on_message = None

    def acknowledge(self, receipt: Receipt) -> None:
        """The message is dealt with: the broker may forget it. After a reconnect it comes again instead."""
        if receipt.qos and receipt.connection == self._connection:
            self._client.ack(receipt.packet, receipt.qos)

    def publish(self, device: str, channel: Down, payload: bytes, *, qos: int = 1, expiry_s: int = 0) -> None:
        """Send to a device, without waiting; dropped while there is no connection."""
        if self._ready.is_set():
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            if expiry_s:
                properties.MessageExpiryInterval = expiry_s
            self._client.publish(self._topic(device, channel), payload, qos=qos, properties=properties)

    def retain(self, items: list[tuple[str, Down, bytes]], timeout_s: float = 10.0) -> bool:
        """Publish retained messages, empty ones clear. True when the broker has confirmed all of them."""
        if not self._ready.is_set():
            return False
        sent = [
            self._client.publish(self._topic(d, c), payload, qos=1, retain=True) for d, c, payload in items
        ]
        deadline = time.monotonic() + timeout_s
        try:
            for info in sent:
                info.wait_for_publish(max(0.0, deadline - time.monotonic()))
        except (RuntimeError, ValueError):  # paho: not connected any more, or its queue is full
            return False
        return all(info.is_published() for info in sent)

    def _topic(self, device: str, channel: Down) -> str:
        return str(DeviceDown(self._org, device, channel))

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._connection += 1
        if reason.is_failure:
            log.warning("the broker refused the server: %s", reason)
            return
        client.subscribe(self._filter, qos=1)

    def _on_subscribe(
        self,
        _client: paho.Client,
        _data: Any,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            log.error("the broker refused the subscription of the server: %s", reasons)
        else:
            self._ready.set()

    def _on_disconnect(
        self,
        _client: paho.Client,
        _data: Any,
        _flags: Any,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._ready.clear()
        if reason.is_failure:
            log.warning("the connection to the broker is lost: %s", reason)

    def _on_message(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        receipt = Receipt(packet=message.mid, connection=self._connection, qos=message.qos)
        try:
            topic = parse_topic(message.topic)
        except (MessageError, UnicodeDecodeError):
            topic = None
        if isinstance(topic, DeviceUp) and topic.org == self._org and self._deliver is not None:
            payload = bytes(message.payload)
            self._deliver(
                Message(device=topic.device, channel=topic.channel, payload=payload, receipt=receipt)
            )
        else:
            self.strangers += 1
            self.acknowledge(receipt)


def _no_delay(_client: paho.Client, _data: Any, connection: Any) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
