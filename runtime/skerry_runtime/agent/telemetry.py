"""The thread that owns the outbox: makes durable what happened, sends it, forgets it on the fleet's word.

Nobody ever waits for it. What is handed over goes through a bounded queue; if the disk fails it stays in RAM
up to a bound, beyond which it is counted as lost and said so. Non-critical events gather for up to 30 s: that
is the window a power cut can take; critical ones and window summaries are committed at once.
"""

from __future__ import annotations

import collections
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from skerry_contract.errors import SkerryError, StorageError
from skerry_contract.messages import Acknowledge, Event
from skerry_contract.topics import Up

from .log import get_logger
from .outbox import Outbox, Priority, Stamp

GATHER_EVENTS: Final = 200
GATHER_SECONDS: Final = 30.0
IN_FLIGHT_ROWS: Final = 32
ACK_SECONDS: Final = 30.0
"""Without progress for so long, the oldest rows are sent again; doubles up to `ACK_SECONDS_MOST`."""
ACK_SECONDS_MOST: Final = 600.0
MAX_HELD: Final = 4096
"""Items held in RAM while the disk fails."""
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
    lost: int = 0
    """Items lost because the disk failed for too long."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Item:
    """A window's bytes or an event, on its way to the disk."""

    content: bytes | Event
    critical: bool
    stamp: Stamp


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

    def __init__(self, path: Path, budget_bytes: int, send: Send, stamp: Callable[[], Stamp]) -> None:
        self._path = path
        self._budget = budget_bytes
        self._send = send
        self._stamp = stamp
        self._inbox: queue.SimpleQueue[_Item | _Acknowledged | _Connected | _Stop] = queue.SimpleQueue()
        self._held: collections.deque[_Item] = collections.deque()
        self._gathered: list[_Item] = []
        self._gathered_since = 0.0
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
        self._inbox.put(_Item(summary, True, self._stamp()))

    def add_event(self, event: Event, *, critical: bool) -> None:
        self._inbox.put(_Item(event, critical, self._stamp()))

    def acknowledged(self, message: Acknowledge) -> None:
        self._inbox.put(_Acknowledged(message))

    def connected(self, up: bool) -> None:
        self._inbox.put(_Connected(up))

    def status(self) -> OutboxStatus:
        return self._status

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
            try:
                if outbox is None:
                    outbox = self._open()
                self._store(outbox, flush=stopping)
                if self._connected:
                    self._transmit(outbox)
                self._status = _status_of(outbox, self._status.lost)
            except StorageError as error:
                if error.message != self._status.error:
                    _log.error("telemetry cannot be stored; serving goes on", extra={"error": error})
                self._status = replace(self._status, error=error.message)
        if outbox is not None:
            outbox.close()

    def _open(self) -> Outbox:
        outbox = Outbox(self._path, self._budget)
        if outbox.set_aside is not None:
            _log.error(
                "the outbox was damaged and set aside; a new stream begins", extra={"file": outbox.set_aside}
            )
        self._sent_seq = outbox.done_seq
        return outbox

    def _take_inbox(self, outbox: Outbox | None) -> bool:
        """Wait for something to do, then take all of it; True when it is time to end."""
        wait = self._seconds_left()
        if outbox is None or self._held:
            # At the start at once; after a failure of the disk, again and again.
            wait = 1.0 if self._status.error else 0.0
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
        if len(self._held) >= MAX_HELD:
            self._held.popleft()
            self._status = replace(self._status, lost=self._status.lost + 1)
        self._held.append(item)

    def _store(self, outbox: Outbox, *, flush: bool) -> None:
        """Commit windows and critical events; gather the others."""
        while self._held:
            item = self._held[0]
            if isinstance(item.content, bytes):
                outbox.append_window(item.content, item.stamp)
            elif item.critical:
                # In order: what was gathered before goes first.
                self._commit_gathered(outbox)
                outbox.append_events([item.content], Priority.AUDIT, item.stamp)
            else:
                if not self._gathered:
                    self._gathered_since = time.monotonic()
                self._gathered.append(item)
            self._held.popleft()
            self._account_gaps(outbox)
        old = self._gathered and time.monotonic() - self._gathered_since >= GATHER_SECONDS
        if flush or old or len(self._gathered) >= GATHER_EVENTS:
            self._commit_gathered(outbox)

    def _commit_gathered(self, outbox: Outbox) -> None:
        if self._gathered:
            events = [item.content for item in self._gathered if isinstance(item.content, Event)]
            outbox.append_events(events, Priority.DETAIL, self._gathered[0].stamp)
            self._gathered.clear()

    def _account_gaps(self, outbox: Outbox) -> None:
        """Loss is said, never silent: an event names what was given up."""
        gaps = outbox.take_new_gaps()
        if not gaps:
            return
        stamp = self._stamp()
        event = Event(
            kind="outbox.gap",
            wall_ms=stamp.wall_ms,
            mono_ms=stamp.mono_ns // 1_000_000,
            boot=stamp.boot.hex(),
            clock_quality=stamp.quality,
            data={
                "gaps": [[gap.first, gap.last, gap.priority.name.lower(), gap.reason] for gap in gaps[-64:]]
            },
        )
        outbox.append_events([event], Priority.AUDIT, stamp)
        _log.warning("telemetry was given up: the buffer is full", extra={"gaps": len(gaps)})

    # --- sending ----------------------------------------------------------------------------------

    def _on_acknowledge(self, outbox: Outbox, message: Acknowledge) -> None:
        try:
            if outbox.acknowledge(bytes.fromhex(message.stream), message.seq):
                self._ack_seconds = ACK_SECONDS
                self._ack_due = time.monotonic() + self._ack_seconds
        except ValueError:
            _log.warning("an acknowledgement names no stream", extra={"stream": message.stream[:40]})
        except SkerryError as error:
            _log.error("an acknowledgement could not be stored", extra={"error": error})

    def _transmit(self, outbox: Outbox) -> None:
        """Send in order, at most `IN_FLIGHT_ROWS` ahead of the fleet's acknowledgement."""
        now = time.monotonic()
        if self._ack_due and now >= self._ack_due and self._sent_seq > outbox.done_seq:
            self._sent_seq = outbox.done_seq
            self._ack_seconds = min(self._ack_seconds * 2, ACK_SECONDS_MOST)
        in_flight = outbox.rows_between(outbox.done_seq, self._sent_seq)
        for row in outbox.rows_after(self._sent_seq, IN_FLIGHT_ROWS - in_flight):
            if not self._send(row.kind.channel, row.frame.encode()):
                self._ack_due = now + 1.0
                break
            if self._ack_due <= now:
                # Jitter, so that a thousand devices do not answer a lost acknowledgement at once.
                self._ack_due = now + self._ack_seconds * random.uniform(0.75, 1.25)  # noqa: S311
            self._sent_seq = row.frame.last
        if not outbox.waiting():
            self._ack_due = 0.0


def _status_of(outbox: Outbox, lost: int) -> OutboxStatus:
    return OutboxStatus(
        stream=outbox.stream.hex(),
        waiting_rows=outbox.waiting(),
        used_bytes=outbox.used_bytes(),
        acknowledged=outbox.done_seq,
        gaps=len(outbox.gaps()),
        lost=lost,
    )
