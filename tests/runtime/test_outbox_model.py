"""The outbox against a model: whatever comes in whatever order, nothing is lost that is not accounted.

Windows carry marks by which they are recognised after merging, so the model counts contents, not rows.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.runtime.outbox_rows import STAMP, event, window_bytes

from skerry_contract.frames import OutboxFrame
from skerry_contract.summary import decode
from skerry_runtime.agent import outbox_file
from skerry_runtime.agent.outbox import Kind, Outbox, Priority, Row

PAGES = 14
BUDGET = (PAGES + 32 + outbox_file._TRANSACTION_PAGES) * outbox_file.PAGE_BYTES
FASTER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 a folder of its own is made there
"""A crash is a copy of the files here; what a power cut does is tested on real disks."""


class Fleet:
    """Takes rows by the rules of the protocol and remembers what was in them."""

    def __init__(self) -> None:
        self.mark = 0
        self.items: Counter[str] = Counter()
        self.told: list[tuple[int, int, int]] = []
        self.rows: dict[tuple[int, int], int] = {}
        """Items of each row that was taken."""

    def take(self, row: Row) -> None:
        frame = OutboxFrame.decode(row.frame.encode())
        if frame.last <= self.mark or frame.prev > max(self.mark, frame.acked):
            return
        assert frame.first > self.mark, "a row that was merged after it had been committed"
        self.mark = frame.last
        items = items_of(row.kind, frame.body)
        self.items += items
        self.rows[frame.first, frame.last] = sum(items.values())
        if row.kind is Kind.EVENTS:
            for told in json.loads(frame.body)["events"]:
                if told["kind"] == "outbox.gap":
                    self.told.append((told["data"]["first"], told["data"]["last"], told["data"]["count"]))

    def had(self, gaps: Iterable[tuple[int, int, int]]) -> int:
        """Items that the device gave up because it never heard that they had arrived."""
        return sum(
            items
            for (first, last), items in self.rows.items()
            if any(begin <= first and last <= end for begin, end, _ in gaps)
        )


def items_of(kind: Kind, body: bytes) -> Counter[str]:
    if kind is Kind.WINDOW:
        marks: Counter[str] = Counter()
        for label in decode(body).labels:
            marks[f"w{label.window}"] += label.count
        return marks
    return Counter(
        f"e{told['data']['number']}" for told in json.loads(body)["events"] if "number" in told["data"]
    )


class OutboxMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.folders = [Path(tempfile.mkdtemp(prefix="outbox-", dir=FASTER))]
        self.least = patch.object(outbox_file, "MIN_BUDGET_BYTES", BUDGET)
        self.least.start()
        self.outbox = self.opened()
        self.fleet = Fleet()
        self.numbers = itertools.count(1)
        self.appended: Counter[str] = Counter()
        self.audits: set[str] = set()
        self.sent = 0
        self.last = 0
        self.acknowledgements = [0]

    def opened(self) -> Outbox:
        return Outbox(self.folders[-1] / "outbox.db", BUDGET)

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            self.drain()
            self.outbox.close()
            self.least.stop()
            for folder in self.folders:
                shutil.rmtree(folder)

    def numbered(self, last: int, count: int) -> None:
        assert last == self.last + count, "a number was used twice, or left out"
        self.last = last

    # --- what may happen ---

    @rule(count=st.integers(1, 40), models=st.integers(1, 2), offer=st.booleans())
    def windows(self, count: int, models: int, offer: bool) -> None:
        for _ in range(count):
            number = next(self.numbers)
            body = window_bytes(number, bundle=bytes([number % models] * 8))
            self.numbered(self.outbox.append_window(body, STAMP, offer=offer), 1)
            self.appended[f"w{number}"] += 1

    @rule(
        count=st.integers(1, 5), size=st.sampled_from([10, 3000]),
        priority=st.sampled_from([Priority.DETAIL, Priority.DETAIL, Priority.AUDIT]),
    )  # fmt: skip
    def events(self, count: int, size: int, priority: Priority) -> None:
        if priority is Priority.AUDIT:
            size = 10  # without bound they would fill the disk, by design
        events = []
        for _ in range(count):
            number = next(self.numbers)
            events.append(event(number=number, noise=os.urandom(size).hex()))
            self.appended[f"e{number}"] += 1
            if priority is Priority.AUDIT:
                self.audits.add(f"e{number}")
        self.numbered(self.outbox.append_events(events, priority, STAMP), count)

    @rule(count=st.integers(1, 9))
    def the_disk_took_nothing(self, count: int) -> None:
        for _ in range(count):
            self.appended[f"w{next(self.numbers)}"] += 1
        self.numbered(self.outbox.give_up_unstored({Priority.WINDOW: count}, "disk"), count)

    @rule()
    def gaps_are_told(self) -> None:
        untold = [gap for gap in self.outbox.gaps() if not gap.told]
        if untold:
            told = [event("outbox.gap", first=g.first, last=g.last, count=g.items) for g in untold]
            self.numbered(self.outbox.append_events(told, Priority.AUDIT, STAMP, telling=untold), len(told))

    @rule(count=st.integers(1, 40), arrive=st.lists(st.booleans(), min_size=40, max_size=40))
    def rows_are_sent(self, count: int, arrive: list[bool]) -> None:
        for row, arrives in zip(self.outbox.rows_to_send(self.sent, count), arrive, strict=False):
            self.sent = row.frame.last
            if arrives:
                self.fleet.take(row)
        self.acknowledgements.append(self.fleet.mark)

    @rule()
    def the_link_comes_back(self) -> None:
        self.sent = self.outbox.done_seq

    @rule(data=st.data(), ahead=st.sampled_from([0, 8]))
    def an_acknowledgement_old_or_new_comes_twice(self, data: st.DataObject, ahead: int) -> None:
        seq = data.draw(st.sampled_from(self.acknowledgements))
        self.outbox.acknowledge(self.outbox.stream, seq, offer_rows=ahead)
        assert self.outbox.acknowledge(self.outbox.stream, seq) == 0

    @rule(seq=st.integers(0, 2**62))
    def an_acknowledgement_of_another_stream_comes(self, seq: int) -> None:
        assert self.outbox.acknowledge(b"another!", seq) == 0

    @rule(clean=st.booleans())
    def the_agent_is_killed(self, clean: bool) -> None:
        stream = self.outbox.stream
        if clean:
            self.outbox.close()
        else:
            self.folders.append(Path(tempfile.mkdtemp(prefix="outbox-", dir=FASTER)))
            for name in ("outbox.db", "outbox.db-wal"):
                shutil.copy(self.folders[-2] / name, self.folders[-1] / name)
            self.outbox.close()
        self.outbox = self.opened()
        assert (self.outbox.stream, self.outbox.set_aside) == (stream, None)
        self.sent = self.outbox.done_seq

    @precondition(lambda self: self.outbox.waiting() == 0)
    @rule()
    def nothing_waits(self) -> None:
        assert self.outbox.rows_to_send(0, 1) == []

    # --- what always holds ---

    @invariant()
    def each_item_is_held_taken_or_accounted(self) -> None:
        if not hasattr(self, "outbox"):
            return
        rows = self.outbox.rows_after(0, 100_000)
        held: Counter[str] = Counter()
        for row in rows:
            assert row.frame.first > self.outbox.done_seq
            if row.frame.last > self.fleet.mark:
                held += items_of(row.kind, row.frame.body)
        assert max(held.values(), default=0) <= 1
        assert not held & self.fleet.items
        missing = self.appended - held - self.fleet.items
        assert not missing.keys() & self.audits
        for gap in self.outbox.gaps():
            for row in rows:
                assert row.frame.last < gap.first or row.frame.first > gap.last
        # By count: told gaps that the fleet has, and all that are still in the file.
        told = set(self.fleet.told) | {(gap.first, gap.last, gap.items) for gap in self.outbox.gaps()}
        assert sum(items for _, _, items in told) == sum(missing.values()) + self.fleet.had(told)
        assert self.outbox.waiting() == len(rows)

    def drain(self) -> None:
        """In the end the fleet has everything, or knows what it has not."""
        for _ in range(1000):
            self.gaps_are_told()
            for row in self.outbox.rows_to_send(self.outbox.done_seq, 32):
                self.fleet.take(row)
            self.outbox.acknowledge(self.outbox.stream, self.fleet.mark)
            if not self.outbox.waiting() and not self.outbox.gaps():
                break
        assert (self.outbox.waiting(), self.outbox.gaps()) == (0, [])
        missing = self.appended - self.fleet.items
        told = self.fleet.told
        assert sum(count for _, _, count in told) == sum(missing.values()) + self.fleet.had(told)
        assert max(self.fleet.items.values(), default=0) <= 1
        ranges = sorted(told)
        assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))


TestOutboxMachine = OutboxMachine.TestCase
TestOutboxMachine.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes
)
