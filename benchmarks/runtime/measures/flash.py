"""What an event costs the flash from its first byte to its deletion.

Three lives of a daemon, each from start to clean stop, with all processes and the last checkpoint: one in
which nothing happens, one with commands of the fleet (each is an event), one in which windows are closed. The
kernel counts what a process handed to the storage layer (``ru_oublock``); the difference to the first life is
the price. The payload is what arrives at the fleet, before compression. The daemon's own ledger, which cannot
see the last checkpoint, is shown beside it.
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import Acknowledge, Command, encode
from skerry_contract.topics import DeviceDown, DeviceUp, Down, Up, parse_topic
from skerry_runtime.agent.telemetry import GATHER_EVENTS

from ..children import Child
from ..device import DEVICE, ORG, Broker, CommandError, Device
from ..gates import Figure
from ..processes import written_bytes
from ..servers import oip_json
from ..world import World

_AT_ONCE = 500
_WAIT_S = 120.0
_BLOCK = 512
"""Unit of ``ru_oublock``."""
_ROWS_A_WINDOW = 20


class Headquarters:
    """The fleet's side: commands, and an acknowledgement for every row at once."""

    def __init__(self, port: int) -> None:
        self.payload = {Up.EVENTS: 0, Up.TELEMETRY: 0}
        self.rows = {Up.EVENTS: 0, Up.TELEMETRY: 0}
        self.items = 0
        """Numbers that were acknowledged: events and windows."""
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="headquarters")
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(f"skerry/1/{ORG}/d/+/up/+", qos=1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def command(self, verb: str, number: int) -> None:
        self._send(Down.COMMAND, encode(Command(id=f"{verb}-{number}", verb=verb)))

    def wait(self, done: Callable[[Headquarters], bool], what: str) -> None:
        """Raises `CommandError`."""
        with self._changed:
            if not self._changed.wait_for(lambda: done(self), _WAIT_S):
                raise CommandError(f"waited in vain for {what}: {self.items} items came")

    def _send(self, channel: Down, payload: bytes) -> None:
        self._client.publish(str(DeviceDown(ORG, DEVICE, channel)), payload, qos=1)

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        topic = parse_topic(message.topic)
        if not isinstance(topic, DeviceUp):
            return
        with self._changed:
            if topic.channel in (Up.EVENTS, Up.TELEMETRY):
                frame = OutboxFrame.decode(bytes(message.payload))
                self.payload[topic.channel] += len(frame.body)
                self.rows[topic.channel] += 1
                self.items = max(self.items, frame.last)
                self._send(Down.ACKNOWLEDGE, encode(Acknowledge(stream=frame.stream.hex(), seq=frame.last)))
            self._changed.notify_all()


@dataclass(frozen=True, slots=True)
class Life:
    """Of one daemon, in bytes."""

    written: int
    payload: int
    ledger: int
    """What the daemon itself counted, a moment before its end."""
    agent: int
    """What the kernel charged to the agent until the same moment."""


def measure(world: World) -> dict[str, Figure]:
    bundle, events, windows = world.bundle("digits"), world.pick(4000, 20_000), world.pick(20, 60)
    nothing = _life(world, bundle, Up.EVENTS, lambda *_: None)
    one = _life(world, bundle, Up.EVENTS, lambda hq, _device: _send_events(hq, events))
    other = _life(world, bundle, Up.TELEMETRY, lambda hq, device: _close_windows(world, hq, device, windows))
    return {
        "flash": _figure(one, nothing, events, "events"),
        "flash-window": _figure(other, nothing, windows, "windows"),
    }


def _figure(life: Life, nothing: Life, count: int, what: str) -> Figure:
    written = life.written - nothing.written
    payload = life.payload if what == "windows" else life.payload - nothing.payload
    if written <= 0:
        return Figure(value=None, detail="the kernel charges nothing here: is the folder on a tmpfs?")
    detail = (
        f"{count} {what}: {written / count:.0f} against {payload / count:.0f} bytes;"
        f" before the last checkpoint {(life.agent - nothing.agent) / count:.0f}, by the daemon's own ledger"
        f" {(life.ledger - nothing.ledger) / count:.0f}"
    )
    return Figure(value=written / payload, detail=detail)


def _life(world: World, bundle: Path, kind: Up, happen: Callable[[Headquarters, Device], None]) -> Life:
    """Start, let something happen, wait until all of it was acknowledged and deleted, stop."""
    with Broker(world.folder) as broker, world.device(bundle, broker=broker.port) as device:
        hq = Headquarters(broker.port)
        try:
            device.start()
            hq.wait(lambda hq: hq.items >= 1, "the first event")
            happen(hq, device)
            ledger = _settled(device)["flash"]["written_bytes"]
            agent = written_bytes(device.pid)
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock
            device.stop()
            written = resource.getrusage(resource.RUSAGE_CHILDREN).ru_oublock - before
        finally:
            hq.close()
    return Life(written * _BLOCK, hq.payload[kind], ledger, agent)


def _send_events(hq: Headquarters, count: int) -> None:
    sent = 1
    while sent <= count:
        for _ in range(min(_AT_ONCE, count + 1 - sent)):
            hq.command("report", sent)
            sent += 1
        # Up to so many gather in RAM for half a minute.
        hq.wait(lambda hq, sent=sent: hq.items > sent - GATHER_EVENTS, "events")  # type: ignore[misc]
    hq.wait(lambda hq: hq.items > count, "the last events")


def _close_windows(world: World, hq: Headquarters, device: Device, count: int) -> None:
    request = oip_json("digits", "pixels", world.model("digits").rows[:1])
    with Child("client", "unix", device.socket_of("digits")) as client:
        for number in range(1, count + 1):
            client.ask(do="latency", request=request, count=_ROWS_A_WINDOW)
            hq.command("close_windows", number)
            hq.wait(lambda hq, number=number: hq.rows[Up.TELEMETRY] >= number, "a window")  # type: ignore[misc]


def _settled(device: Device) -> dict[str, Any]:
    """The outbox' status once nothing waits in it."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        outbox: dict[str, Any] = device.status()["outbox"]
        if outbox["waiting_rows"] == 0:
            return outbox
        if time.monotonic() > deadline:
            raise CommandError(f"the outbox does not become empty: {outbox}")
        time.sleep(0.2)
