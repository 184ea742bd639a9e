"""The thread around the outbox: gathers, sends in order and bounded, sends again, never blocks anyone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import pytest
from tests.waiting import wait_until

from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import Acknowledge, Event
from skerry_contract.topics import Up
from skerry_runtime.agent import telemetry as module
from skerry_runtime.agent.outbox import Stamp
from skerry_runtime.agent.telemetry import IN_FLIGHT_ROWS, Telemetry


class Wire:
    """Keeps what is sent; `up` says whether there is a connection."""

    def __init__(self) -> None:
        self.up = True
        self.frames: list[tuple[Up, OutboxFrame]] = []
        self._lock = Lock()

    def send(self, channel: Up, payload: bytes) -> bool:
        with self._lock:
            if self.up:
                self.frames.append((channel, OutboxFrame.decode(payload)))
            return self.up

    def firsts(self) -> list[int]:
        return [frame.first for _, frame in list(self.frames)]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def telemetry(tmp_path: Path, wire: Wire) -> Iterator[Telemetry]:
    running = Telemetry(tmp_path / "outbox.db", 64 << 20, wire.send, stamp)
    running.start()
    yield running
    running.stop(10)


def stamp() -> Stamp:
    return Stamp(boot=bytes(16), mono_ns=1, wall_ms=2, quality=1)


def event(kind: str) -> Event:
    return Event(kind=kind, wall_ms=2, mono_ms=1, boot="")


def acknowledge(telemetry: Telemetry, seq: int) -> None:
    telemetry.acknowledged(Acknowledge(stream=telemetry.status().stream, seq=seq))


def waiting(telemetry: Telemetry, rows: int) -> None:
    wait_until(lambda: telemetry.status().waiting_rows == rows, f"{rows} rows")


def test_windows_and_critical_events_are_stored_at_once_others_gather(telemetry: Telemetry) -> None:
    telemetry.add_event(event("detail"), critical=False)
    telemetry.add_window(b"summary")
    waiting(telemetry, 1)
    telemetry.add_event(event("update.confirmed"), critical=True)
    # What had gathered before goes first, so the order of events is kept.
    waiting(telemetry, 3)


def test_many_details_become_one_row(telemetry: Telemetry, wire: Wire) -> None:
    telemetry.connected(True)
    for _ in range(module.GATHER_EVENTS):
        telemetry.add_event(event("detail"), critical=False)
    waiting(telemetry, 1)
    wait_until(lambda: wire.frames, "the row")
    channel, frame = wire.frames[0]
    assert channel is Up.EVENTS
    assert len(json.loads(frame.body)["events"]) == module.GATHER_EVENTS


def test_at_most_so_many_rows_are_in_flight(telemetry: Telemetry, wire: Wire) -> None:
    for _ in range(2 * IN_FLIGHT_ROWS):
        telemetry.add_window(b"summary")
    telemetry.connected(True)
    wait_until(lambda: len(wire.frames) >= IN_FLIGHT_ROWS, "the first rows")
    waiting(telemetry, 2 * IN_FLIGHT_ROWS)
    assert wire.firsts() == list(range(1, IN_FLIGHT_ROWS + 1))
    acknowledge(telemetry, 10)
    wait_until(lambda: len(wire.frames) >= IN_FLIGHT_ROWS + 10, "the next rows")
    assert wire.firsts() == list(range(1, IN_FLIGHT_ROWS + 11))
    acknowledge(telemetry, IN_FLIGHT_ROWS + 10)
    wait_until(lambda: len(wire.frames) >= 2 * IN_FLIGHT_ROWS, "the rest")
    acknowledge(telemetry, 2 * IN_FLIGHT_ROWS)
    waiting(telemetry, 0)


def test_after_a_reconnect_everything_unacknowledged_is_sent_again(telemetry: Telemetry, wire: Wire) -> None:
    telemetry.connected(True)
    for _ in range(3):
        telemetry.add_window(b"summary")
    wait_until(lambda: len(wire.frames) == 3, "the rows")
    acknowledge(telemetry, 1)
    waiting(telemetry, 2)
    telemetry.connected(False)
    telemetry.connected(True)
    wait_until(lambda: len(wire.frames) == 5, "the rows again")
    assert wire.firsts() == [1, 2, 3, 2, 3]


def test_a_lost_acknowledgement_is_helped_by_sending_again(
    tmp_path: Path, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ACK_SECONDS", 0.1)
    telemetry = Telemetry(tmp_path / "outbox.db", 64 << 20, wire.send, stamp)
    telemetry._ack_seconds = 0.1
    telemetry.start()
    telemetry.connected(True)
    telemetry.add_window(b"summary")
    wait_until(lambda: wire.firsts()[:3] == [1, 1, 1], "the row, again and again")
    acknowledge(telemetry, 1)
    waiting(telemetry, 0)
    telemetry.stop(10)


def test_without_a_connection_nothing_is_sent_and_nothing_is_lost(telemetry: Telemetry, wire: Wire) -> None:
    wire.up = False
    for _ in range(5):
        telemetry.add_window(b"summary")
    waiting(telemetry, 5)
    assert wire.frames == []
    wire.up = True
    telemetry.connected(True)
    wait_until(lambda: len(wire.frames) == 5, "the rows")


def test_a_stop_commits_what_was_gathered(tmp_path: Path, wire: Wire) -> None:
    first = Telemetry(tmp_path / "outbox.db", 64 << 20, wire.send, stamp)
    first.start()
    first.add_event(event("detail"), critical=False)
    first.stop(10)
    second = Telemetry(tmp_path / "outbox.db", 64 << 20, wire.send, stamp)
    second.start()
    waiting(second, 1)
    second.stop(10)


def test_a_disk_that_fails_is_said_and_what_was_handed_over_is_kept(tmp_path: Path, wire: Wire) -> None:
    blocked = tmp_path / "missing" / "outbox.db"
    telemetry = Telemetry(blocked, 64 << 20, wire.send, stamp)
    telemetry.start()
    telemetry.add_window(b"one")
    wait_until(lambda: telemetry.status().error, "the error")
    telemetry.add_window(b"two")
    blocked.parent.mkdir()
    waiting(telemetry, 2)
    assert telemetry.status().error == ""
    assert telemetry.status().lost == 0
    telemetry.stop(10)


def test_what_was_given_up_is_told_by_an_event(tmp_path: Path, wire: Wire) -> None:
    telemetry = Telemetry(tmp_path / "outbox.db", 1 << 20, wire.send, stamp)
    telemetry.start()
    for _ in range(400):
        telemetry.add_window(b"x" * 3000)
    wait_until(lambda: telemetry.status().gaps, "a gap")
    telemetry.connected(True)

    def told() -> bool:
        for channel, frame in list(wire.frames):
            acknowledge(telemetry, frame.last)
            if channel is Up.EVENTS and json.loads(frame.body)["events"][0]["kind"] == "outbox.gap":
                return True
        return False

    wait_until(told, "the event")
    telemetry.stop(10)
