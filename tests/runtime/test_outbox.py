"""The outbox: durable, in order, deleted only on the fleet's word, every loss accounted."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry_contract.errors import StorageError
from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import Event
from skerry_contract.topics import Up
from skerry_runtime.agent.outbox import MIN_BUDGET_BYTES, Kind, Outbox, Priority, Stamp

STAMP = Stamp(boot=bytes(16), mono_ns=1, wall_ms=2, quality=1)
BIG = 64 << 20


def event(kind: str = "test") -> Event:
    return Event(kind=kind, wall_ms=2, mono_ms=1, boot="00" * 16)


def opened(folder: Path, budget: int = BIG) -> Outbox:
    return Outbox(folder / "outbox.db", budget)


def everything(outbox: Outbox) -> list[OutboxFrame]:
    return [row.frame for row in outbox.rows_after(0, 100_000)]


class Server:
    """Accepts rows as the fleet does: in order, or where the device says that nothing is missing."""

    def __init__(self) -> None:
        self.done = 0
        self.taken: list[tuple[int, int]] = []

    def take(self, frame: OutboxFrame) -> bool:
        if frame.first > self.done and (frame.prev <= self.done or frame.prev <= frame.acked):
            self.done = frame.last
            self.taken.append((frame.first, frame.last))
            return True
        return False


def test_rows_are_numbered_in_order_and_come_as_frames(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    assert outbox.append_window(b"summary", STAMP) == 1
    assert outbox.append_events([event(), event(), event()], Priority.AUDIT, STAMP) == 4
    assert outbox.append_window(b"next", STAMP) == 5
    rows = outbox.rows_after(0, 10)
    assert [(row.kind, row.frame.first, row.frame.last, row.frame.prev, row.frame.acked) for row in rows] == [
        (Kind.WINDOW, 1, 1, 0, 0),
        (Kind.EVENTS, 2, 4, 1, 0),
        (Kind.WINDOW, 5, 5, 4, 0),
    ]
    assert [row.kind.channel for row in rows] == [Up.TELEMETRY, Up.EVENTS, Up.TELEMETRY]
    assert OutboxFrame.decode(rows[0].frame.encode()).body == b"summary"
    assert len(json.loads(rows[1].frame.body)["events"]) == 3


def test_only_an_acknowledgement_deletes_and_it_is_cumulative(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(5):
        outbox.append_window(b"%d" % number, STAMP)
    assert outbox.waiting() == 5
    assert outbox.acknowledge(outbox.stream, 3) == 3
    assert [(frame.first, frame.prev, frame.acked) for frame in everything(outbox)] == [(4, 3, 3), (5, 4, 3)]
    assert outbox.acknowledge(outbox.stream, 2) == 0
    assert outbox.acknowledge(b"another!", 5) == 0
    assert outbox.waiting() == 2
    # A fleet that acknowledges what it never got takes nothing that comes later.
    assert outbox.acknowledge(outbox.stream, 999) == 2
    assert outbox.append_window(b"later", STAMP) == 6
    assert outbox.waiting() == 1


def test_numbers_go_on_after_everything_was_acknowledged_and_the_daemon_restarted(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append_window(b"1", STAMP)
    outbox.acknowledge(outbox.stream, 1)
    stream = outbox.stream
    outbox.close()
    again = opened(tmp_path)
    assert again.stream == stream
    assert again.append_window(b"2", STAMP) == 2
    assert [(frame.first, frame.prev, frame.acked) for frame in everything(again)] == [(2, 1, 1)]


def test_many_events_become_rows_that_fit_the_packet_limit(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    noisy = [
        Event(kind="noise", wall_ms=2, mono_ms=1, boot="00" * 16, data={"noise": os.urandom(1000).hex()})
        for _ in range(200)
    ]
    outbox.append_events(noisy, Priority.DETAIL, STAMP)
    frames = everything(outbox)
    assert len(frames) > 1
    assert all(len(frame.encode()) < 128 * 1024 for frame in frames)
    assert sum(len(json.loads(frame.body)["events"]) for frame in frames) == 200
    assert frames[-1].last == 200


def test_a_full_buffer_gives_up_the_lowest_priority_and_accounts_for_it(tmp_path: Path) -> None:
    outbox = opened(tmp_path, MIN_BUDGET_BYTES)
    outbox.append_events([event("update.confirmed")], Priority.AUDIT, STAMP)
    for _ in range(10):
        outbox.append_events([event()], Priority.DETAIL, STAMP)
    for _ in range(600):
        outbox.append_window(os.urandom(3000), STAMP)
    assert outbox.used_bytes() <= MIN_BUDGET_BYTES
    gaps = outbox.gaps()
    assert [gap.priority for gap in gaps] == [Priority.DETAIL, Priority.WINDOW]
    assert (gaps[0].first, gaps[0].last) == (2, 11)
    kept = everything(outbox)
    assert (kept[0].first, kept[0].last) == (1, 1)
    held = {number for frame in kept for number in range(frame.first, frame.last + 1)}
    lost = {number for gap in gaps for number in range(gap.first, gap.last + 1)}
    assert held | lost == set(range(1, 612))
    assert not held & lost
    assert not any(gap.told for gap in gaps)
    outbox.append_events([event("outbox.gap")] * 2, Priority.AUDIT, STAMP, telling=gaps)
    assert all(gap.told for gap in outbox.gaps())
    server = Server()
    assert all(server.take(frame) for frame in everything(outbox))
    outbox.acknowledge(outbox.stream, server.done)
    assert outbox.gaps() == []


def test_install_events_are_never_given_up(tmp_path: Path) -> None:
    outbox = opened(tmp_path, MIN_BUDGET_BYTES)

    def fill() -> None:
        while True:
            noise = Event(kind="update.x", wall_ms=0, mono_ms=0, boot="", data={"x": os.urandom(4000).hex()})
            outbox.append_events([noise], Priority.AUDIT, STAMP)

    with pytest.raises(StorageError):
        fill()
    assert outbox.gaps() == []
    # There is room again as soon as the fleet has taken them.
    outbox.acknowledge(outbox.stream, everything(outbox)[-1].last)
    outbox.append_events([event()], Priority.AUDIT, STAMP)


def test_a_row_that_rotted_is_given_up_alone(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    for number in range(3):
        outbox.append_window(b"window %d" % number, STAMP)
    outbox.close()
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("UPDATE outbox SET body = ? WHERE first_seq = 2", (b"wind0w 1",))
    db.close()
    outbox = opened(tmp_path)
    frames = everything(outbox)
    assert [(frame.first, frame.prev) for frame in frames] == [(1, 0), (3, 1)]
    assert [(gap.first, gap.reason) for gap in outbox.gaps()] == [(2, "damaged")]
    server = Server()
    assert all(server.take(frame) for frame in everything(outbox))


@pytest.mark.parametrize("damage", ["header", "middle", "no database", "empty"])
def test_a_damaged_file_is_set_aside_and_a_new_stream_begins(tmp_path: Path, damage: str) -> None:
    outbox = opened(tmp_path)
    for _ in range(300):
        outbox.append_window(os.urandom(600), STAMP)
    stream = outbox.stream
    outbox.close()
    path = tmp_path / "outbox.db"
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[:100] = bytes(100)
    elif damage == "middle":
        data[8192:-4096] = os.urandom(len(data) - 8192 - 4096)
    elif damage == "no database":
        data = bytearray(b"hello, this is a text file\n" * 100)
    else:
        data = bytearray()
    path.write_bytes(bytes(data))
    again = opened(tmp_path)
    assert again.stream != stream
    assert again.append_window(b"first of the new stream", STAMP) == 1
    if damage != "empty":
        assert again.set_aside is not None
        assert again.set_aside.read_bytes() == bytes(data)


@pytest.mark.attack
def test_l10_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / "outbox.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = (tmp_path / "outbox.db").read_bytes()
    with pytest.raises(StorageError, match="newer version"):
        opened(tmp_path)
    assert (tmp_path / "outbox.db").read_bytes() == before


def test_the_file_is_private_and_durable(tmp_path: Path) -> None:
    outbox = opened(tmp_path)
    outbox.append_window(b"x", STAMP)
    for path in tmp_path.glob("outbox.db*"):
        assert path.stat().st_mode & 0o077 == 0
    pragma = {name: outbox._file.select(f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous")}
    assert pragma == {"journal_mode": "wal", "synchronous": 2}


WRITER = """
import sys
from pathlib import Path
from skerry_runtime.agent.outbox import Outbox, Stamp
outbox = Outbox(Path(sys.argv[1]), 64 << 20)
while True:
    seq = outbox.append_window(b"x" * 500, Stamp(boot=bytes(16), mono_ns=0, wall_ms=0, quality=0))
    print(seq, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "outbox.db")], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        for _ in range(50):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        last = int((writer.stdout.read().split() or [str(last)])[-1])
        writer.wait()
        writer.stdout.close()
        outbox = opened(tmp_path)
        held = [frame.first for frame in everything(outbox)]
        assert held[:last] == list(range(1, last + 1))
        outbox.close()


@settings(max_examples=25)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("window"), st.integers(1, 20_000)),
            st.tuples(st.just("events"), st.integers(1, 5)),
            st.tuples(st.just("send"), st.integers(1, 40)),
            st.tuples(st.just("acknowledge"), st.just(0)),
            st.tuples(st.just("restart"), st.just(0)),
        ),
        max_size=60,
    )
)
def test_whatever_happens_every_number_is_taken_held_or_accounted(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("outbox")
    outbox = opened(folder, MIN_BUDGET_BYTES)
    server, last = Server(), 0
    lost: set[int] = set()
    for step, amount in steps:
        if step == "window":
            last = outbox.append_window(os.urandom(amount), STAMP)
        elif step == "events":
            last = outbox.append_events([event()] * amount, Priority.DETAIL, STAMP)
        elif step == "send":
            for row in outbox.rows_after(outbox.done_seq, amount):
                server.take(row.frame)
        elif step == "acknowledge":
            outbox.acknowledge(outbox.stream, server.done)
        else:
            outbox.close()
            outbox = opened(folder, MIN_BUDGET_BYTES)
        lost |= {number for gap in outbox.gaps() for number in range(gap.first, gap.last + 1)}
    held = {n for frame in everything(outbox) for n in range(frame.first, frame.last + 1)}
    taken = {n for first, end in server.taken for n in range(first, end + 1)}
    assert held | taken | lost == set(range(1, last + 1))
    assert len(server.taken) == len(set(server.taken))
    outbox.close()
