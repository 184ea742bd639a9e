"""What devices send, into the databases: each thing once, whatever is repeated, reordered, forged or killed.

A message is received (PUBACK) and an outbox row acknowledged (``dn/ack``) only after the commit. A row is
taken if the row before it is committed, or if the device says that it needs nothing before it; a row that is
no telemetry is kept as refused and acknowledged all the same, so that its device does not send it for ever.
One thread writes, in batches: what arrives meanwhile is the next batch.
"""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import sqlalchemy as sa

from skerry_contract.errors import MessageError, NotFoundError, SkerryError, StorageError
from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import (
    Acknowledge,
    Event,
    EventBatch,
    Hello,
    PresenceMessage,
    UpdateReport,
    decode,
    encode,
)
from skerry_contract.summary import CLOCK_NONE, check
from skerry_contract.summary import decode as decode_summary
from skerry_contract.topics import Down, Up

from ..clock import Clock
from ..db import Database
from ..devices import repository as devices_repository
from ..governance.service import Journal
from ..mqtt import Message, Receipt
from . import clocks, repository
from .clocks import Offset, placed_at
from .days import DAY_MS, DayFiles, day_of
from .repository import NewWindow, Refused
from .specs import References
from .tables import event_mark

log = logging.getLogger(__name__)

BATCH: Final = 500
WAITING: Final = 5000
"""Messages in memory; QoS 1 is held back by the broker long before, so only a flood of QoS 0 meets this."""
ACK_EXPIRY_S: Final = 300
_RETRY_S: Final = 2.0
_COMPLAIN_MS: Final = 60_000
_MARKS_KEPT: Final = 200_000

_Stream = tuple[str, bytes]
"""Device and stream."""


class Devices(Protocol):
    """What ingest needs of `skerry_fleet.devices.service.DeviceService`."""

    def record_hello(self, device_id: str, hello: Hello) -> None: ...
    def record_presence(self, device_id: str, message: PresenceMessage) -> None: ...
    def record_report(self, device_id: str, report: UpdateReport) -> None: ...


class Transport(Protocol):
    """What ingest needs of `skerry_fleet.mqtt.Link`."""

    def acknowledge(self, receipt: Receipt) -> None: ...
    def publish(
        self, device: str, channel: Down, payload: bytes, *, qos: int = 1, expiry_s: int = 0
    ) -> None: ...


@dataclass(slots=True)
class _Batch:
    """What one batch of messages comes to, before anything is written."""

    windows: list[NewWindow] = field(default_factory=list)
    events: list[tuple[_Stream, int, tuple[Event, ...]]] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    replaced: list[tuple[_Stream, int, int]] = field(default_factory=list)
    marks: dict[_Stream, int] = field(default_factory=dict)
    touched: dict[_Stream, None] = field(default_factory=dict)
    """Streams to be acknowledged, moved or not, in the order of arrival."""
    repairs: dict[tuple[str, str], Offset] = field(default_factory=dict)
    """By device and boot: windows of that boot are to be placed anew."""
    counts: Counter[str] = field(default_factory=Counter)


class Ingest:
    """``deliver`` takes messages from the link; a thread commits them. ``committed`` is called after new
    windows; ``seen`` with the devices that sent telemetry, after its commit: it must not block."""

    def __init__(
        self,
        *,
        db: Database,
        days: DayFiles,
        clock: Clock,
        devices: Devices,
        journal: Journal,
        references: References,
        blocks: Callable[[str, bytes], None],
        committed: Callable[[], None],
        seen: Callable[[Iterable[str]], None],
    ) -> None:
        self._db = db
        self._days = days
        self._clock = clock
        self._devices = devices
        self._journal = journal
        self._references = references
        self._blocks = blocks
        self._committed = committed
        self._seen = seen
        self._waiting: queue.Queue[Message | None] = queue.Queue()
        self._stop = threading.Event()
        self._marks: dict[_Stream, int] = {}
        self._offsets: dict[tuple[str, str], int | None] = {}
        """By device and boot, of clocks that were not set."""
        self._complained: dict[str, int] = {}
        """When each device's refusals were last logged."""
        self._thread: threading.Thread | None = None
        self.counts: Counter[str] = Counter()
        """Since the start: windows, events, duplicate, gap, refused, dropped, repaired."""

    def deliver(self, message: Message) -> None:
        """Never blocks, never raises."""
        if message.channel is Up.BLOCK_REQUEST:
            self._blocks(message.device, message.payload)
            if message.receipt.qos == 0:
                return
        if message.receipt.qos == 0 and self._waiting.qsize() >= WAITING:
            self.counts["dropped"] += 1
        else:
            self._waiting.put(message)

    def start(self, transport: Transport) -> None:
        self._thread = threading.Thread(target=self._run, args=(transport,), name="ingest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends after the batch at hand; what waits was not acknowledged and comes again."""
        self._stop.set()
        self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self, transport: Transport) -> None:
        while not self._stop.is_set():
            self._work(transport, self._take())

    def _work(self, transport: Transport, batch: Sequence[Message]) -> None:
        """Commit and answer; while the disk refuses, wait and try again."""
        while batch and not self._stop.is_set():
            try:
                streams = self.process(batch)
            except StorageError as error:
                # Nothing was acknowledged, so nothing is lost: the devices and the broker keep it.
                log.error("telemetry waits: %s", error)
                self._stop.wait(_RETRY_S)
            except Exception:
                # The boundary of this thread: no message may end it. Halve until the one is found.
                if len(batch) > 1:
                    self._work(transport, batch[: len(batch) // 2])
                    self._work(transport, batch[len(batch) // 2 :])
                    return
                log.exception("dropped a message of %s on %s", batch[0].device, batch[0].channel)
                self.counts["dropped"] += 1
                transport.acknowledge(batch[0].receipt)
                return
            else:
                self.answer(transport, batch, streams)
                return

    def _take(self) -> list[Message]:
        first = self._waiting.get()
        batch = [] if first is None else [first]
        while batch and len(batch) < BATCH:
            try:
                message = self._waiting.get_nowait()
            except queue.Empty:
                break
            if message is None:
                break
            batch.append(message)
        return batch

    def process(self, messages: Sequence[Message]) -> list[_Stream]:
        """Commit a batch. Returns the streams whose devices wait for an answer.

        Raises:
            StorageError: a database could not be written; the batch may be processed again.
        """
        batch = _Batch()
        known = self._known({message.device for message in messages})
        for message in messages:
            try:
                if message.device not in known:
                    raise NotFoundError(f"there is no device {message.device}")
                self._sort(message, batch)
            except StorageError:
                raise
            except SkerryError as error:
                batch.counts["dropped"] += 1
                log.info("dropped a message of %s on %s: %s", message.device, message.channel, error)
        if batch.events:
            self._commit_events(batch)
        if batch.marks:
            self._commit_day(batch)
        for kept in (self._marks, self._offsets):
            if len(kept) > _MARKS_KEPT:
                kept.clear()
        self._marks.update(batch.marks)
        self.counts.update(batch.counts)
        if batch.windows:
            self._committed()
        self._seen({device for device, _ in batch.touched})
        return list(batch.touched)

    def answer(self, transport: Transport, messages: Sequence[Message], streams: Sequence[_Stream]) -> None:
        """After the commit: to the devices what they may delete, to the broker what it may forget."""
        for device, stream in streams:
            reply = Acknowledge(stream=stream.hex(), seq=self._mark((device, stream)))
            transport.publish(device, Down.ACKNOWLEDGE, encode(reply), expiry_s=ACK_EXPIRY_S)
        for message in messages:
            transport.acknowledge(message.receipt)

    def _known(self, devices: set[str]) -> set[str]:
        with self._db.read() as db:
            return {device for device in devices if devices_repository.exists(db, device)}

    def _sort(self, message: Message, batch: _Batch) -> None:
        match message.channel:
            case Up.HELLO:
                self._devices.record_hello(message.device, decode(message.payload, Hello))
            case Up.STATE:
                # An empty one clears a retained message: nothing is said.
                if message.payload:
                    self._devices.record_presence(message.device, decode(message.payload, PresenceMessage))
            case Up.REPORT:
                self._devices.record_report(message.device, decode(message.payload, UpdateReport))
            case Up.TELEMETRY | Up.EVENTS:
                self._sort_frame(message, OutboxFrame.decode(message.payload), batch)
            case Up.BLOCK_REQUEST:
                pass  # answered when it came; what is left is to acknowledge it
            case _:
                raise MessageError(f"nothing is expected on {message.channel}")

    def _sort_frame(self, message: Message, frame: OutboxFrame, batch: _Batch) -> None:
        stream = (message.device, frame.stream)
        mark = batch.marks.get(stream, self._mark(stream))
        batch.touched[stream] = None
        if frame.last <= mark:
            batch.counts["duplicate"] += 1
            return
        if frame.prev > max(mark, frame.acked):
            # A row before this one is missing; the acknowledgement tells the device from where to send again.
            batch.counts["gap"] += 1
            return
        if frame.first <= mark:
            # The device merged rows that were committed, because it never heard so.
            batch.replaced.append((stream, frame.first, frame.last))
            batch.windows = [
                window
                for window in batch.windows
                if (window.device, window.stream) != stream or not frame.first <= window.first <= frame.last
            ]
        try:
            if message.channel is Up.EVENTS:
                events = decode(frame.body, EventBatch, max_bytes=len(frame.body)).events
                batch.events.append((stream, frame.last, events))
                batch.counts["events"] += len(events)
            else:
                batch.windows.append(self._window(message.device, frame))
                batch.counts["windows"] += 1
        except (MessageError, NotFoundError) as error:
            batch.refused.append(self._refusal(message.device, frame, error))
            batch.counts["refused"] += 1
            self._complain(message.device, error)
        batch.marks[stream] = frame.last

    def _complain(self, device: str, error: SkerryError) -> None:
        """At most once a minute for a device, so that none can fill the log; every row is in ``refused``."""
        now = self._clock.now_ms()
        if now - self._complained.get(device, -_COMPLAIN_MS) >= _COMPLAIN_MS:
            self._complained[device] = now
            log.warning("refused a row of %s: %s", device, error)

    def _window(self, device: str, frame: OutboxFrame) -> NewWindow:
        """Raises `MessageError` or `NotFoundError`: no summary, or not of a published bundle's spec."""
        summary = decode_summary(frame.body)
        reference = self._references.find(summary.bundle)
        check(summary, reference.spec, reference.spec_hash)
        now = self._clock.now_ms()
        boot = summary.boot.hex()
        offset = self._offset(device, boot) if summary.clock_quality == CLOCK_NONE else None
        at_ms, clock_ok = placed_at(summary, now, offset)
        return NewWindow(
            device=device,
            stream=frame.stream,
            first=frame.first,
            last=frame.last,
            model=reference.model,
            version=reference.version,
            digest=reference.digest,
            boot=boot,
            seq=summary.seq,
            at_ms=at_ms,
            clock_ok=clock_ok,
            duration_ms=summary.duration_ms,
            flags=summary.flags,
            rows=summary.rows,
            errors=summary.errors,
            received_ms=now,
            body=frame.body,
        )

    def _refusal(self, device: str, frame: OutboxFrame, error: SkerryError) -> Refused:
        return Refused(
            device=device,
            stream=frame.stream,
            first=frame.first,
            last=frame.last,
            code=error.code,
            reason=error.message[:500],
            received_ms=self._clock.now_ms(),
            body=frame.body,
        )

    def _offset(self, device: str, boot: str) -> int | None:
        if (device, boot) not in self._offsets:
            with self._db.read() as db:
                found = clocks.offset_of(db, device, boot)
            self._offsets[device, boot] = found.offset_ms if found else None
        return self._offsets[device, boot]

    def _mark(self, stream: _Stream) -> int:
        if stream not in self._marks:
            with self._days.write() as db:
                self._marks[stream] = repository.mark_of(db, *stream)
        return self._marks[stream]

    def _commit_events(self, batch: _Batch) -> None:
        """The control database has a mark of its own, moved with the events: between the two commits lies no
        loss and no double."""
        with self._db.write() as db:
            for (device, stream), last, events in batch.events:
                key = (event_mark.c.device == device) & (event_mark.c.stream == stream.hex())
                done = db.execute(sa.select(event_mark.c.seq).where(key)).scalar()
                if done is None:
                    db.execute(event_mark.insert().values(device=device, stream=stream.hex(), seq=last))
                elif done < last:
                    db.execute(event_mark.update().where(key).values(seq=last))
                is_new = done is None or done < last
                if is_new:
                    self._add_events(db, device, events)
                self._note_offsets(db, device, events, batch, is_new=is_new)

    def _add_events(self, db: sa.Connection, device: str, events: Iterable[Event]) -> None:
        now = self._clock.now_ms()
        unset = {event.boot for event in events if event.clock_quality == CLOCK_NONE}
        offsets = {boot: clocks.offset_of(db, device, boot) for boot in unset}

        def placed(event: Event) -> tuple[int, bool]:
            offset = offsets.get(event.boot)
            return clocks.event_at(event, now, offset.offset_ms if offset else None)

        self._journal.device_events(db, device, events, placed)

    def _note_offsets(
        self, db: sa.Connection, device: str, events: Iterable[Event], batch: _Batch, *, is_new: bool
    ) -> None:
        """A clock was set: its events move at once, its windows with the next commit (again, after a kill
        between the two)."""
        now = self._clock.now_ms()
        for event in events:
            offset = clocks.read_offset(event, now)
            if offset is None:
                continue
            if is_new and clocks.save_offset(db, device, offset, now):
                batch.counts["repaired"] += self._journal.repair_times(
                    db, device, offset.boot, upto_mono_ms=offset.mono_ms, offset_ms=offset.offset_ms
                )
            if clocks.offset_of(db, device, offset.boot) == offset:
                batch.repairs[device, offset.boot] = offset

    def _commit_day(self, batch: _Batch) -> None:
        today = self._days.today()
        for day in self._days.days() if batch.replaced else ():
            # First in older files: if that is all that happens, the device sends the merged row again.
            if day != today:
                with self._days.write(day) as db:
                    _remove(db, batch)
        for (device, boot), offset in batch.repairs.items():
            self._offsets[device, boot] = offset.offset_ms
            # No window of a boot can have come before the boot.
            since = day_of(max(0, min(offset.offset_ms, self._clock.now_ms()) - DAY_MS))
            for day in self._days.days():
                if since <= day != today:
                    with self._days.write(day) as db:
                        batch.counts["repaired"] += clocks.repair_windows(db, device, offset)
        with self._days.write() as db:
            _remove(db, batch)
            repository.add_windows(db, batch.windows)
            for (device, _), offset in batch.repairs.items():
                batch.counts["repaired"] += clocks.repair_windows(db, device, offset)
            repository.add_refused(db, batch.refused)
            repository.move_marks(db, batch.marks, self._clock.now_ms())


def _remove(db: sqlite3.Connection, batch: _Batch) -> None:
    for (device, stream), first, last in batch.replaced:
        repository.remove_within(db, device, stream, first, last)
