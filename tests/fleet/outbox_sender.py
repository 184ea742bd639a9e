"""A device's outbox without a device: frames with windows or events, and a transport that remembers
answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tests import builders
from tests.fleet.fleet_harness import START_MS, Fleet

from skerry_contract.digests import Digest, prefix8
from skerry_contract.frames import Codec, OutboxFrame
from skerry_contract.messages import Acknowledge, Event, EventBatch, decode, encode
from skerry_contract.monitoring import MonitoringSpec
from skerry_contract.summary import WindowSummary
from skerry_contract.summary import encode as encode_summary
from skerry_contract.topics import Down, Up
from skerry_fleet.mqtt import Message, Receipt
from skerry_fleet.telemetry.ingest import Ingest
from skerry_fleet.telemetry.specs import References


@dataclass
class Outbox:
    """Numbers its rows as a device does."""

    device: str
    bundle: Digest
    spec: MonitoringSpec = field(default_factory=builders.monitoring_spec)
    stream: bytes = b"stream-1"
    acked: int = 0
    last: int = 0
    packets: int = 0

    def window(self, **changes: Any) -> WindowSummary:
        """A window of the bundle, an hour after the one before."""
        seq = self.last + 1
        at = {"start_utc_ms": START_MS + seq * 3_600_000, "bundle": prefix8(self.bundle)}
        return replace(builders.window(self.spec, seq=seq), **{**at, **changes})

    def telemetry(self, summary: WindowSummary | None = None, **changes: Any) -> Message:
        """The next row: a window."""
        return self.frame(Up.TELEMETRY, encode_summary(summary or self.window()), **changes)

    def events(self, *kinds: str, **changes: Any) -> Message:
        """The next row: events."""
        told = tuple(Event(kind=kind, wall_ms=START_MS, mono_ms=1, boot="b" * 32) for kind in kinds)
        return self.frame(Up.EVENTS, encode(EventBatch(events=told)), **changes)

    def frame(self, channel: Up, body: bytes, **changes: Any) -> Message:
        first = self.last + 1
        row = OutboxFrame(
            stream=self.stream,
            acked=self.acked,
            prev=self.last,
            first=first,
            last=first,
            body=body,
            codec=Codec.ZLIB,
        )
        row = replace(row, **changes)
        self.last = row.last
        return self.message(channel, row.encode())

    def message(self, channel: Up, payload: bytes, *, qos: int = 1) -> Message:
        self.packets += 1
        receipt = Receipt(packet=self.packets, connection=1, qos=qos)
        return Message(device=self.device, channel=channel, payload=payload, receipt=receipt)


@dataclass
class Wire:
    """A link that only remembers."""

    received: list[int] = field(default_factory=list)
    """Packets that the broker may forget."""
    acknowledged: dict[tuple[str, str], int] = field(default_factory=dict)
    """The last answer to each device and stream."""

    def acknowledge(self, receipt: Receipt) -> None:
        self.received.append(receipt.packet)

    def publish(self, device: str, channel: Down, payload: bytes, *, qos: int = 1, expiry_s: int = 0) -> None:
        assert channel is Down.ACKNOWLEDGE
        told = decode(payload, Acknowledge)
        self.acknowledged[device, told.stream] = told.seq


@dataclass
class Receiver:
    """Ingest over a fleet; `take` is what its thread does with a batch."""

    fleet: Fleet
    wire: Wire = field(default_factory=Wire)
    woken: int = 0

    def __post_init__(self) -> None:
        self.ingest = self.restarted()

    def restarted(self) -> Ingest:
        """As after a kill: nothing but what is on the disk."""
        services = self.fleet.services
        self.ingest = Ingest(
            db=services.db,
            days=services.days,
            clock=services.clock,
            devices=services.devices,
            journal=services.journal,
            references=References(services.db, services.models),
            blocks=lambda device, payload: None,
            committed=self._wake,
            seen=services.sightings.note,
        )
        return self.ingest

    def take(self, *messages: Message) -> None:
        self.ingest.answer(self.wire, messages, self.ingest.process(messages))

    def stored(self, device: str | None = None) -> list[int]:
        """First sequence numbers of all windows that people see."""
        found = self.fleet.services.telemetry.windows(device=device, limit=500).items
        return sorted(window.first for window in found)

    def event_kinds(self, device: str) -> list[str]:
        """What the device told, oldest first."""
        page = self.fleet.services.journal.events(device=device, limit=500)
        return [row.kind for row in reversed(page.items) if row.source == "device"]

    def refused(self) -> Sequence[tuple[str, str]]:
        """Code and reason of every refused row."""
        days = self.fleet.services.days
        found: list[tuple[str, str]] = []
        for day in days.days():
            with days.read(day) as db:
                found += [
                    (row["code"], row["reason"]) for row in db.execute("SELECT * FROM refused ORDER BY id")
                ]
        return found

    def _wake(self) -> None:
        self.woken += 1
