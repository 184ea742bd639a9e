"""The thread that owns the outbox: makes durable what happened, sends it, forgets it on the fleet's word.

Nobody ever waits for it. What is handed over goes through a bounded queue; if the disk fails it stays in RAM
up to a bound, beyond which the least important goes, and a gap accounts for it once the disk works again.
Non-critical events gather until there are 200, for up to 30 s, or until a critical one comes: that is what a
power cut or a kill can take. Critical ones and window summaries are committed at once. The fleet hears of
gaps when there is a connection, not before: until then the file keeps account of them.
"""

from __future__ import annotations

import collections
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from skerry_contract import summary as window_summary
from skerry_contract.errors import MessageError, SkerryError, StorageError
from skerry_contract.messages import Acknowledge, Event
from skerry_contract.topics import Up

from .flash import DEFAULT_ENDURANCE, Endurance, FlashLedger, with_card_size
from .log import get_logger
from .outbox import Gap, Outbox, Priority, Stamp

GATHER_EVENTS: Final = 200
GATHER_SECONDS: Final = 30.0
IN_FLIGHT_ROWS: Final = 32
ACK_SECONDS: Final = 30.0
"""Without progress for so long, the oldest rows are sent again; doubles up to `ACK_SECONDS_MOST`."""
ACK_SECONDS_MOST: Final = 600.0
MAX_HELD: Final = 4096
"""Items held in RAM while the disk fails."""
MAX_QUEUED: Final = 4096
"""Items that wait in the queue while the disk hangs."""
RETRY_SECONDS: Final = 1.0
"""Until a disk that failed is tried again."""
GAP_SECONDS: Final = 600.0
"""Between two reports of what was given up."""
_GAPS_AT_ONCE: Final = 64
_log = get_logger("telemetry")

Send = Callable[[Up, bytes], bool]
"""Publishes at least once; False if there is no connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxStatus:
    """For ``skerry-runtime status``."""

    stream: str = ""
    waiting_rows: int = 0
    used_bytes: int = 0
    acknowledged: int = 0
    gaps: int = 0
    """Ranges of rows that were given up and of which the fleet has not acknowledged to know."""
    merged: int = 0
    """Windows that were merged into others, of this file in all its life."""
    lost: int = 0
    """Items lost since the start because the disk failed for too long; each is in a gap, too."""
    budget_bytes: int = 0
    disk_bytes: int = 0
    """The file and its journal."""
    error: str = ""
    flash: Mapping[str, Any] = field(default_factory=dict)
    """See `FlashLedger.status`."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A window's bytes or an event, on its way to the disk."""

    content: bytes | Event
    critical: bool
    stamp: Stamp

    @property
    def priority(self) -> Priority:
        if isinstance(self.content, bytes):
            return Priority.WINDOW
        return Priority.AUDIT if self.critical else Priority.DETAIL


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A commit that was begun. If the disk fails in its midst it may be done all the same."""

    stream: bytes
    next_seq: int
    settle: Callable[[], None]
    """What follows from the commit."""


@dataclass(frozen=True, slots=True)
class _Acknowledged:
    message: Acknowledge


@dataclass(frozen=True, slots=True)
class _Connected:
    up: bool


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


class Telemetry:
    """Hand over from any thread; see the module's text."""

    def __init__(
        self,
        path: Path,
        budget_bytes: int,
        send: Send,
        stamp: Callable[[], Stamp],
        endurance: Endurance = DEFAULT_ENDURANCE,
    ) -> None:
        self._path = path
        self._budget = budget_bytes
        self._send = send
        self._stamp = stamp
        self._endurance = with_card_size(endurance, path.parent)
        self._flash = FlashLedger()
        self._flash_loaded = False
        self._inbox: queue.SimpleQueue[_Item | _Acknowledged | _Connected | _Stop] = queue.SimpleQueue()
        self._held: collections.deque[_Item] = collections.deque()
        self._lost: Counter[Priority] = Counter()
        """What the disk never saw and no gap accounts for yet."""
        self._overflow: collections.deque[Priority] = collections.deque()
        """The same, noted by other threads."""
        self._gaps_due = 0.0
        self._gathered: list[_Item] = []
        self._gathered_since = 0.0
        self._attempt: _Attempt | None = None
        self._connected = False
        self._sent_seq = 0
        self._ack_due = 0.0
        self._ack_seconds = ACK_SECONDS
        self._status = OutboxStatus()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    # --- any thread -------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def add_window(self, summary: bytes) -> None:
        self._hand_over(_Item(summary, True, self._stamp()))

    def add_event(self, event: Event, *, critical: bool) -> None:
        self._hand_over(_Item(event, critical, self._stamp()))

    def acknowledged(self, message: Acknowledge) -> None:
        self._inbox.put(_Acknowledged(message))

    def connected(self, up: bool) -> None:
        self._inbox.put(_Connected(up))

    def status(self) -> OutboxStatus:
        return self._status

    def _hand_over(self, item: _Item) -> None:
        if self._inbox.qsize() < MAX_QUEUED:
            self._inbox.put(item)
        else:
            self._overflow.append(item.priority)

    def stop(self, timeout: float) -> None:
        """Commit what is gathered and end."""
        self._inbox.put(_Stop())
        self._thread.join(timeout)

    # --- its own thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        outbox: Outbox | None = None
        stopping = False
        while not stopping:
            stopping = self._take_inbox(outbox)
            while self._overflow:
                self._note_lost(self._overflow.popleft())
            try:
                if outbox is not None and outbox.broken:
                    outbox.close()
                    outbox = None
                if outbox is None:
                    outbox = self._open()
                self._store(outbox, flush=stopping)
                if self._connected:
                    self._transmit(outbox)
                self._sample()
                self._status = self._status_of(outbox)
            except StorageError as error:
                if outbox is not None and not outbox.broken:
                    self._attempt = None  # It was rolled back.
                if error.message != self._status.error:
                    _log.error("telemetry cannot be stored; serving goes on", extra={"error": error})
                self._status = replace(self._status, error=error.message)
        if outbox is not None:
            outbox.close()

    def _open(self) -> Outbox:
        outbox = Outbox(self._path, self._budget, self._flash.dump)
        attempt, self._attempt = self._attempt, None
        if attempt is not None and attempt.stream == outbox.stream and attempt.next_seq < outbox.next_seq:
            # The disk said that it failed, and has it: a second time would be counted twice.
            attempt.settle()
        if not self._flash_loaded:
            self._flash.load(outbox.note)
            self._flash_loaded = True
        self._sent_seq = outbox.done_seq
        if outbox.set_aside is not None:
            _log.error(
                "the outbox was damaged and set aside; a new stream begins", extra={"file": outbox.set_aside}
            )
            # First of all rows of the new stream, so the fleet knows that the old one has no end.
            self._held.appendleft(
                self._own_event(
                    "outbox.damaged",
                    message="the outbox was damaged; what it held and was not acknowledged is lost",
                    set_aside=outbox.set_aside.name,
                    stream=outbox.stream.hex(),
                )
            )
        return outbox

    def _sample(self) -> None:
        now = self._stamp()
        self._flash.sample(now.mono_ns / 1e9, now.wall_ms)

    def _take_inbox(self, outbox: Outbox | None) -> bool:
        """Wait for something to do, then take all of it; True when it is time to end."""
        wait = self._seconds_left()
        if self._status.error:
            # The disk failed: again and again.
            wait = RETRY_SECONDS
        elif outbox is None or self._held:
            wait = 0.0
        while True:
            try:
                item = self._inbox.get(timeout=wait)
            except queue.Empty:
                return False
            wait = 0.0
            match item:
                case _Stop():
                    return True
                case _Item():
                    self._hold(item)
                case _Connected(up):
                    self._connected = up
                    # Whatever was in flight may be lost: begin again at the oldest row.
                    self._sent_seq = outbox.done_seq if outbox else 0
                    self._ack_seconds = ACK_SECONDS
                    self._gaps_due = 0.0
                case _Acknowledged(message) if outbox is not None:
                    self._on_acknowledge(outbox, message)
                case _Acknowledged():
                    pass

    def _seconds_left(self) -> float | None:
        """Until something is due; None if nothing is."""
        now = time.monotonic()
        due = []
        if self._gathered:
            due.append(self._gathered_since + GATHER_SECONDS)
        if self._connected and self._ack_due:
            due.append(self._ack_due)
        return max(0.05, min(due) - now) if due else None

    def _hold(self, item: _Item) -> None:
        """Keep what the disk has not taken; of too much, the oldest of the lowest priority goes."""
        self._held.append(item)
        if len(self._held) > MAX_HELD:
            index = max(range(len(self._held)), key=lambda i: (self._held[i].priority, -i))
            self._note_lost(self._held[index].priority)
            del self._held[index]

    def _note_lost(self, priority: Priority) -> None:
        self._lost[priority] += 1
        self._status = replace(self._status, lost=self._status.lost + 1)

    def _store(self, outbox: Outbox, *, flush: bool) -> None:
        """Commit windows and critical events; gather the others."""
        if self._lost:
            self._account_lost(outbox)
        while self._held:
            item = self._held[0]
            if isinstance(item.content, bytes):
                self._commit_window(outbox, item, item.content)
            elif item.critical:
                # In order: what was gathered before goes first.
                self._commit_gathered(outbox)
                self._commit_event(outbox, item, item.content)
            else:
                if not self._gathered:
                    self._gathered_since = time.monotonic()
                self._gathered.append(self._held.popleft())
            if len(self._gathered) >= GATHER_EVENTS:
                self._commit_gathered(outbox)
        if self._gathered and (flush or time.monotonic() - self._gathered_since >= GATHER_SECONDS):
            self._commit_gathered(outbox)

    def _account_lost(self, outbox: Outbox) -> None:
        counts = Counter(self._lost)

        def settle() -> None:
            self._lost -= counts

        self._once(outbox, lambda: outbox.give_up_unstored(dict(counts), "disk"), settle)

    def _commit_window(self, outbox: Outbox, item: _Item, summary: bytes) -> None:
        def settle() -> None:
            self._stored(item)
            self._flash.stored_window(summary)

        offer = self._sends_at_once(outbox)
        body = _timed(summary, item.stamp)
        self._once(outbox, lambda: outbox.append_window(body, item.stamp, offer=offer), settle)

    def _commit_event(self, outbox: Outbox, item: _Item, event: Event) -> None:
        def settle() -> None:
            self._stored(item)
            self._flash.stored([event])

        offer = self._sends_at_once(outbox)
        self._once(
            outbox, lambda: outbox.append_events([event], Priority.AUDIT, item.stamp, offer=offer), settle
        )

    def _commit_gathered(self, outbox: Outbox) -> None:
        events = [item.content for item in self._gathered if isinstance(item.content, Event)]
        if not events:
            return
        stamp, offer = self._gathered[0].stamp, self._sends_at_once(outbox)

        def settle() -> None:
            del self._gathered[: len(events)]
            self._flash.stored(events)

        self._once(outbox, lambda: outbox.append_events(events, Priority.DETAIL, stamp, offer=offer), settle)

    def _stored(self, item: _Item) -> None:
        """It need not be held any longer; if it had to make room meanwhile, it is not lost after all."""
        if item in self._held:
            self._held.remove(item)
        else:
            self._lost -= Counter([item.priority])

    def _once(self, outbox: Outbox, commit: Callable[[], int], settle: Callable[[], None]) -> None:
        """Commit, then settle: also if the disk fails in between, and then only one time."""
        self._attempt = _Attempt(outbox.stream, outbox.next_seq, settle)
        commit()
        self._attempt = None
        settle()

    def _sends_at_once(self, outbox: Outbox) -> bool:
        """A row that is appended now is sent in the same turn, so it is noted as sent in the same commit."""
        return self._connected and outbox.waiting() < IN_FLIGHT_ROWS

    def _tell_gaps(self, outbox: Outbox) -> None:
        """Loss is said, never silent: an event for each range that was given up."""
        untold = [gap for gap in outbox.gaps() if not gap.told][:_GAPS_AT_ONCE]
        if not untold:
            return
        items = [self._gap_event(gap) for gap in untold]
        events = [item.content for item in items if isinstance(item.content, Event)]
        offer = self._sends_at_once(outbox)
        outbox.append_events(events, Priority.AUDIT, items[0].stamp, offer=offer, telling=untold)
        _log.warning("telemetry was given up", extra={"gaps": len(untold)})

    def _gap_event(self, gap: Gap) -> _Item:
        return self._own_event(
            "outbox.gap",
            first=gap.first,
            last=gap.last,
            count=gap.items,
            priority=gap.priority.name.lower(),
            reason=gap.reason,
        )

    def _own_event(self, kind: str, **data: Any) -> _Item:
        stamp = self._stamp()
        event = Event(
            kind=kind,
            wall_ms=stamp.wall_ms,
            mono_ms=stamp.mono_ns // 1_000_000,
            boot=stamp.boot.hex(),
            clock_quality=stamp.quality,
            data=data,
        )
        return _Item(event, True, stamp)

    # --- sending ----------------------------------------------------------------------------------

    def _on_acknowledge(self, outbox: Outbox, message: Acknowledge) -> None:
        try:
            stream = bytes.fromhex(message.stream)
            if outbox.acknowledge(stream, message.seq, offer_rows=IN_FLIGHT_ROWS if self._connected else 0):
                self._ack_seconds = ACK_SECONDS
                self._ack_due = time.monotonic() + self._ack_seconds
        except ValueError:
            _log.warning("an acknowledgement names no stream", extra={"stream": message.stream[:40]})
        except SkerryError as error:
            _log.error("an acknowledgement could not be stored", extra={"error": error})

    def _transmit(self, outbox: Outbox) -> None:
        """Send in order, at most `IN_FLIGHT_ROWS` ahead of the fleet's acknowledgement."""
        now = time.monotonic()
        if now >= self._gaps_due:
            self._tell_gaps(outbox)
            self._gaps_due = now + GAP_SECONDS
        if self._ack_due and now >= self._ack_due and self._sent_seq > outbox.done_seq:
            self._sent_seq = outbox.done_seq
            self._ack_seconds = min(self._ack_seconds * 2, ACK_SECONDS_MOST)
        in_flight = outbox.rows_between(outbox.done_seq, self._sent_seq)
        for row in outbox.rows_to_send(self._sent_seq, IN_FLIGHT_ROWS - in_flight):
            if not self._send(row.kind.channel, row.frame.encode()):
                self._ack_due = now + 1.0
                break
            if self._ack_due <= now:
                # Jitter, so that a thousand devices do not answer a lost acknowledgement at once.
                self._ack_due = now + self._ack_seconds * random.uniform(0.75, 1.25)  # noqa: S311
            self._sent_seq = row.frame.last
        if not outbox.waiting():
            self._ack_due = 0.0

    def _status_of(self, outbox: Outbox) -> OutboxStatus:
        return OutboxStatus(
            stream=outbox.stream.hex(),
            waiting_rows=outbox.waiting(),
            used_bytes=outbox.used_bytes(),
            acknowledged=outbox.done_seq,
            gaps=len(outbox.gaps()),
            merged=outbox.merged,
            lost=self._status.lost,
            budget_bytes=self._budget,
            disk_bytes=outbox.disk_bytes(),
            flash=self._flash.status(self._endurance),
        )


def _timed(body: bytes, stamp: Stamp) -> bytes:
    """A window of this boot, placed in time by the agent's clock, which knows better than its worker's.

    Its start follows from the time since boot, so it holds even if the clock was set in between.
    """
    try:
        window = window_summary.decode(body)
        if window.boot != stamp.boot:
            return body
        ago = max(0, stamp.mono_ns // 1_000_000 - window.start_mono_ms)
        start = max(0, stamp.wall_ms - ago)
        return window_summary.encode(replace(window, start_utc_ms=start, clock_quality=stamp.quality))
    except MessageError:
        return body  # the fleet says what is wrong with it
