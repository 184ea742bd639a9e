"""A plain MQTT client for tests: what a device, or somebody who pretends to be one, can do."""

from __future__ import annotations

import queue
import socket
import threading
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

WAIT_S = 10.0


class Peer:
    """Connects at once; ``refused`` tells how that went. Use it as a context manager."""

    def __init__(
        self,
        port: int,
        username: str | None,
        password: str | None,
        *,
        client_id: str = "",
        will: str | None = None,
        reconnect: bool = False,
    ) -> None:
        self.messages: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self.refused: str | None = None
        self.disconnected = threading.Event()
        self._answered = threading.Event()
        self._subscribed = threading.Event()
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=reconnect,
        )
        if username is not None:
            client.username_pw_set(username, password)
        if will is not None:
            client.will_set(will, b"will", qos=1)
        client.on_connect = self._on_connect
        client.on_disconnect = lambda *_: self.disconnected.set()
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = lambda _c, _d, m: self.messages.put((m.topic, bytes(m.payload)))
        client.connect("127.0.0.1", port, keepalive=20)
        client.loop_start()
        self.client = client
        assert self._answered.wait(WAIT_S), "the broker did not answer"

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        # Without the cycle through the callbacks, paho closes its sockets as soon as it is forgotten.
        client = self.client
        client.on_connect = client.on_disconnect = client.on_subscribe = client.on_message = None

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.refused = str(reason) if reason.is_failure else None
        self._answered.set()

    def subscribe(self, topic: str) -> None:
        """Returns when the broker has answered, which says nothing about what will be delivered."""
        self._subscribed.clear()
        self.client.subscribe(topic, qos=1)
        assert self._subscribed.wait(WAIT_S)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Returns when the broker has it (QoS 1)."""
        info = self.client.publish(topic, payload, qos=qos, retain=retain)
        info.wait_for_publish(WAIT_S)
        assert info.is_published()

    def next(self, timeout_s: float = WAIT_S) -> tuple[str, bytes]:
        return self.messages.get(timeout=timeout_s)

    def drop(self) -> None:
        """End the connection without saying so, as a power cut does: the will is sent."""
        connection = self.client.socket()
        assert isinstance(connection, socket.socket)
        connection.shutdown(socket.SHUT_RDWR)
