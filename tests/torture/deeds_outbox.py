"""What children do to the outbox, with notes of every row that was promised and of all that the fleet has."""

from __future__ import annotations

import random
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.runtime.outbox_rows import STAMP, event, numbers_in, window_bytes
from tests.torture.board import Board
from tests.torture.deeds_models import Deed, Order
from tests.torture.patches import patch

from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import Acknowledge, Event, EventBatch, decode
from skerry_contract.topics import Up
from skerry_runtime.agent import outbox as outbox_module
from skerry_runtime.agent import outbox_file, telemetry
from skerry_runtime.agent.outbox import Gap, Kind, Outbox, Priority, Stamp
from skerry_runtime.agent.telemetry import Telemetry

BUDGET: Final = 8 << 20
_PATIENCE: Final = 3
"""How often a disk that fails is tried again, before the deed ends."""
V1: Final = """
CREATE TABLE outbox(first_seq INTEGER PRIMARY KEY, last_seq INT NOT NULL, kind INT NOT NULL,
  prio INT NOT NULL, codec INT NOT NULL, boot_id BLOB NOT NULL, mono_ns INT NOT NULL, wall_ms INT NOT NULL,
  clock_q INT NOT NULL, crc INT NOT NULL, body BLOB NOT NULL);
CREATE TABLE gaps(from_seq INT NOT NULL, to_seq INT NOT NULL, prio INT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE stream(id BLOB NOT NULL, done_seq INT NOT NULL, next_seq INT NOT NULL);
PRAGMA user_version=1;
"""
"""The first schema, as devices in the field may have it."""
V1_ROWS: Final = 12


def _noted(board: Board) -> type[Outbox]:
    """An outbox that notes what it is asked to keep, and when it has promised to."""

    class NotedOutbox(Outbox):
        def __init__(self, path: Path, budget_bytes: int, note: Callable[[], bytes] = lambda: b"") -> None:
            super().__init__(path, budget_bytes, note)
            board.note(is_="opened", stream=self.stream.hex())

        def append_window(self, summary: bytes, stamp: Stamp, *, offer: bool = False) -> int:
            (number,) = numbers_in([summary])
            board.note(may="window", number=number)
            last = super().append_window(summary, stamp, offer=offer)
            board.note(is_="window", number=number, last=last)
            return last

        def append_events(
            self,
            events: Sequence[Event],
            priority: Priority,
            stamp: Stamp,
            *,
            offer: bool = False,
            telling: Sequence[Gap] = (),
        ) -> int:
            numbers = [told.data["number"] for told in events if "number" in told.data]
            for number in numbers:
                board.note(may="event", number=number)
            last = super().append_events(events, priority, stamp, offer=offer, telling=telling)
            for number in numbers:
                board.note(is_="event", number=number, last=last)
            return last

        def acknowledge(self, stream: bytes, seq: int, *, offer_rows: int = 0) -> int:
            board.note(may="acknowledged", seq=seq)
            removed = super().acknowledge(stream, seq, offer_rows=offer_rows)
            board.note(is_="acknowledged", seq=self.done_seq)
            return removed

    return NotedOutbox


class Ledger:
    """The fleet: commits rows in order, each once, and notes them before it says so."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self.done = 0

    def take(self, frame: OutboxFrame) -> None:
        if frame.first > self.done and (frame.prev <= self.done or frame.prev <= frame.acked):
            self.done = frame.last
            self._board.note(is_="committed", **_content(frame))


def _content(frame: OutboxFrame) -> dict[str, Any]:
    """Which windows and events are in a row."""
    windows: dict[int, int] = {}
    events: list[int] = []
    gaps = 0
    if frame.body[:1] == b"{":
        told = decode(frame.body, EventBatch).events
        events = [item.data["number"] for item in told if "number" in item.data]
        gaps = sum(int(item.data["count"]) for item in told if item.kind == "outbox.gap")
    else:
        windows = dict(numbers_in([frame.body]))
    return {
        "first": frame.first,
        "last": frame.last,
        "windows": [[number, count] for number, count in sorted(windows.items())],
        "events": events,
        "gaps": gaps,
        "stream": frame.stream.hex(),
    }


class DrivenTelemetry(Telemetry):
    """The agent's telemetry in this thread: given one thing a turn; ends when a disk goes on failing."""

    def __init__(self, order: Order, board: Board, feed: Iterator[Callable[[Telemetry], None]]) -> None:
        budget = int(order.arguments.get("budget", BUDGET))
        super().__init__(order.folder / "outbox.db", budget, self._to_fleet, lambda: STAMP)
        self.errors: list[str] = []
        self._feed = feed
        self._ledger = Ledger(board)
        self._failures = 0
        self._sampled = False

    def run(self) -> None:
        self._run()

    def _take_inbox(self, outbox: Outbox | None) -> bool:
        if self._status.error:
            self.errors.append(self._status.error)
            self._failures += 1
        else:
            self._failures = 0
        if self._failures > _PATIENCE:
            self._inbox.put(telemetry._Stop())
        elif not self._failures:
            next(self._feed, DrivenTelemetry.end)(self)
        return super()._take_inbox(outbox)

    def _sample(self) -> None:
        """What the kernel counts of the disk is read from /proc: often, and it changes nothing."""
        if not self._sampled:
            self._sampled = True
            super()._sample()

    def end(self) -> None:
        self._inbox.put(telemetry._Stop())

    def _to_fleet(self, channel: Up, payload: bytes) -> bool:
        frame = OutboxFrame.decode(payload)
        self._ledger.take(frame)
        self.acknowledged(Acknowledge(stream=frame.stream.hex(), seq=self._ledger.done))
        return True


def write(order: Order, board: Board) -> Deed:
    """Windows and events, some of them sent, committed by the fleet and acknowledged."""
    begin, count = int(order.arguments.get("begin", 1)), int(order.arguments["count"])
    size = int(order.arguments.get("noise", 0))
    if order.arguments.get("drain"):
        patch(outbox_module, "SHRINK_BYTES", 1 << 16)
    patch(telemetry, "Outbox", _noted(board))
    patch(telemetry, "RETRY_SECONDS", 0.0)

    def feed() -> Iterator[Callable[[Telemetry], None]]:
        for number in range(begin, begin + count):
            if order.arguments.get("acknowledging", True):
                up = number % 4 > 1
                yield lambda of, up=up: of.connected(up)  # type: ignore[misc]
            yield lambda of, number=number: of.add_window(window_bytes(number))  # type: ignore[misc]
            for k in range(3):
                told = event("test", number=3 * number + k, noise=_noise(3 * number + k, size))
                critical = k == number % 4
                yield lambda of, told=told, critical=critical: of.add_event(told, critical=critical)  # type: ignore[misc]
        if order.arguments.get("drain"):
            yield lambda of: of.connected(True)
            for _ in range(count):
                yield lambda of: of.connected(True)

    def run() -> dict[str, Any]:
        driven = DrivenTelemetry(order, board, feed())
        driven.run()
        clear = [message for message in driven.errors if "failed" in message or "newer version" in message]
        return {"errors": ["storage"] * len(clear), "unclear": len(driven.errors) - len(clear), "faults": []}

    return run


def _noise(number: int, size: int) -> str:
    return random.Random(number).randbytes(size).hex()


def first_schema(order: Order, board: Board) -> Deed:
    """A file of version 1 with rows, which the notes promise."""

    def run() -> dict[str, Any]:
        db = sqlite3.connect(order.folder / "outbox.db")
        db.executescript(V1)
        db.execute("INSERT INTO stream VALUES (?, 0, ?)", (b"stream-1", V1_ROWS + 1))
        for number in range(1, V1_ROWS + 1):
            body = window_bytes(number)
            db.execute(
                "INSERT INTO outbox VALUES (?,?,0,1,0,?,1,2,1,?,?)",
                (number, number, bytes(16), zlib.crc32(body), body),
            )
        db.commit()
        db.close()
        return {}

    return run


def promise_first_schema(order: Order, board: Board) -> Deed:
    """Open it, which upgrades it."""
    for number in range(1, V1_ROWS + 1):
        board.note(is_="window", number=number, last=number)
    board.note(is_="opened", stream=b"stream-1".hex())
    return write(order, board)


def live(order: Order, board: Board) -> Deed:
    """The agent's telemetry thread with a fleet behind a broker that loses what it said it had taken."""
    chance = random.Random(order.arguments["seed"])
    patch(telemetry, "Outbox", _noted(board))
    patch(telemetry, "ACK_SECONDS", 0.02)
    patch(telemetry, "RETRY_SECONDS", 0.02)
    ledger = Ledger(board)

    def run() -> dict[str, Any]:
        box: list[Telemetry] = []

        def send(channel: Up, payload: bytes) -> bool:
            if chance.random() < 0.7:
                frame = OutboxFrame.decode(payload)
                ledger.take(frame)
                if chance.random() < 0.8:
                    box[0].acknowledged(Acknowledge(stream=frame.stream.hex(), seq=ledger.done))
            return True

        box.append(Telemetry(order.folder / "outbox.db", BUDGET, send, lambda: STAMP))
        box[0].start()
        box[0].connected(chance.random() < 0.8)
        stored = Stored(box[0], board)
        for number in range(1, int(order.arguments.get("steps", 1 << 20)) + 1):
            box[0].add_window(window_bytes(number))
            if number % 3 == 0:
                box[0].add_event(event("test", number=number), critical=True)
            if number % 16 == 0:
                box[0].connected(chance.random() < 0.8)
            if not stored.wait():
                break
        box[0].stop(10.0)
        return {"errors": [], "faults": []}

    return run


class Stored:
    """Waits until the thread has taken what was handed over, or says that the disk fails."""

    def __init__(self, of: Telemetry, board: Board) -> None:
        self._of = of
        self._board = board

    def wait(self) -> bool:
        for _ in range(1000):
            if self._of.status().error:
                return False
            if self._of._inbox.qsize() < 4:
                return True
            time.sleep(0.001)
        return False


def examine(order: Order, board: Board) -> Deed:
    """What is in the outbox after the next opening; then that it takes a row and gives all back."""

    def run() -> dict[str, Any]:
        path = order.folder / "outbox.db"
        outbox = Outbox(path, int(order.arguments.get("budget", BUDGET)))
        rows = outbox.rows_after(0, 1_000_000)
        found = {
            "stream": outbox.stream.hex(),
            "aside": outbox.set_aside is not None,
            "done": outbox.done_seq,
            "rows": [_content(row.frame) for row in rows],
            "kinds": [Kind(row.kind).name for row in rows],
            "gaps": [[gap.first, gap.last, gap.items, gap.told] for gap in outbox.gaps()],
        }
        found["appended"] = outbox.append_events([event("after")], Priority.AUDIT, STAMP)
        outbox.close()
        outbox = Outbox(path, BUDGET)
        again = len(outbox.rows_after(0, 1_000_000))
        outbox.acknowledge(outbox.stream, outbox.rows_after(0, 1_000_000)[-1].frame.last)
        found["kept"] = again == len(rows) + 1
        found["left"] = outbox.waiting()
        outbox.close()
        extra = {file.name for file in path.parent.glob("outbox.db*")} - {"outbox.db"}
        found["leftovers"] = sorted(name for name in extra if not name.startswith("outbox.db.damaged-"))
        return found

    return run


def rot(order: Order, board: Board) -> Deed:
    """The middle of the file becomes noise."""

    def run() -> dict[str, Any]:
        path = order.folder / "outbox.db"
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(random.Random(1).randbytes(path.stat().st_size - 4096))
        return {}

    return run


def tiny_budget(pages: int) -> int:
    """A budget whose file holds so many pages: pressure without megabytes."""
    budget = (pages + 32 + outbox_file._TRANSACTION_PAGES) * outbox_file.PAGE_BYTES
    patch(outbox_file, "MIN_BUDGET_BYTES", budget)
    return budget


def crowded(order: Order, board: Board) -> Deed:
    """A buffer that is full: windows are merged, the rest is given up and accounted for."""
    order.arguments["budget"] = tiny_budget(int(order.arguments["pages"]))
    return write(order, board)


OUTBOX_DEEDS: Final[dict[str, Callable[[Order, Board], Deed]]] = {
    "outbox_" + deed.__name__: deed
    for deed in (write, first_schema, promise_first_schema, live, examine, rot, crowded)
}
