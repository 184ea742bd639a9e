"""The telemetry thread keeps account: of gaps, of damaged files, of time, of flash; and waits for nobody."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.outbox_rows import event, window, window_bytes
from tests.waiting import wait_until

from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import Acknowledge
from skerry_contract.summary import CLOCK_NONE, CLOCK_NTP, decode, encode
from skerry_contract.topics import Up
from skerry_runtime.agent import telemetry as module
from skerry_runtime.agent.outbox import Outbox, Stamp
from skerry_runtime.agent.telemetry import Telemetry

BOOT = bytes(range(16))
MIB = 1 << 20


class Fleet:
    """Takes rows in order and acknowledges what it has."""

    def __init__(self) -> None:
        self.frames: list[tuple[Up, OutboxFrame]] = []
        self.telemetry: Telemetry | None = None
        self.answers = True

    def send(self, channel: Up, payload: bytes) -> bool:
        frame = OutboxFrame.decode(payload)
        self.frames.append((channel, frame))
        if self.telemetry is not None and self.answers:
            self.telemetry.acknowledged(Acknowledge(stream=frame.stream.hex(), seq=frame.last))
        return True

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [
            told["data"]
            for channel, frame in list(self.frames)
            if channel is Up.EVENTS
            for told in json.loads(frame.body)["events"]
            if told["kind"] == kind
        ]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def stamp() -> Stamp:
    return Stamp(boot=BOOT, mono_ns=10**13, wall_ms=1_800_000_000_000, quality=CLOCK_NTP)


@pytest.fixture
def telemetry(tmp_path: Path, fleet: Fleet) -> Iterator[Telemetry]:
    running = Telemetry(tmp_path / "outbox.db", MIB, fleet.send, stamp)
    fleet.telemetry = running
    running.start()
    yield running
    running.stop(10)


def fill(telemetry: Telemetry) -> None:
    """Windows of which no two can be merged, until some are given up."""
    for number in range(150):
        telemetry.add_window(os.urandom(6000) + bytes([number]))
    wait_until(lambda: telemetry.status().gaps, "a gap")


def test_gaps_are_told_when_there_is_a_connection_and_exactly_once(
    telemetry: Telemetry, fleet: Fleet
) -> None:
    fill(telemetry)
    waiting = telemetry.status().waiting_rows
    telemetry.connected(True)
    wait_until(lambda: telemetry.status().waiting_rows == 0 and not telemetry.status().gaps, "all is told")
    gaps = fleet.events("outbox.gap")
    windows = [frame.first for channel, frame in fleet.frames if channel is Up.TELEMETRY]
    lost = [n for gap in gaps for n in range(gap["first"], gap["last"] + 1)]
    assert sorted(lost + windows) == list(range(1, 151))
    assert sum(gap["count"] for gap in gaps) == len(lost) == 150 - waiting
    assert {gap["reason"] for gap in gaps} == {"budget"}
    assert {gap["priority"] for gap in gaps} == {"window"}


def test_an_offline_device_spends_no_row_on_its_gaps(telemetry: Telemetry) -> None:
    fill(telemetry)
    before = telemetry.status()
    fill(telemetry)
    wait_until(lambda: telemetry.status().acknowledged == 0, "nothing was sent")
    assert telemetry.status().waiting_rows <= before.waiting_rows + 16
    assert telemetry.status().disk_bytes <= MIB


def test_what_ram_could_not_hold_while_the_disk_failed_is_a_gap(
    tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 20)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.02)
    telemetry = Telemetry(tmp_path / "missing" / "outbox.db", MIB, fleet.send, stamp)
    fleet.telemetry = telemetry
    telemetry.start()
    for _ in range(10):
        telemetry.add_event(event("detail"), critical=False)
    for number in range(10):
        telemetry.add_window(window_bytes(number))
    wait_until(lambda: telemetry.status().error, "the disk's error")
    for _ in range(15):
        telemetry.add_event(event("update.staged"), critical=True)
    wait_until(lambda: telemetry.status().lost == 15, "what was too much is gone")
    (tmp_path / "missing").mkdir()
    wait_until(
        lambda: telemetry.status().gaps and telemetry.status().waiting_rows == 20, "the rest is stored"
    )
    telemetry.connected(True)
    wait_until(lambda: telemetry.status().waiting_rows == 0 and not telemetry.status().gaps, "all is told")
    told = {gap["priority"]: (gap["count"], gap["reason"]) for gap in fleet.events("outbox.gap")}
    # The least important went first; installs stayed.
    assert told == {"detail": (10, "disk"), "window": (5, "disk")}
    assert len(fleet.events("update.staged")) == 15
    telemetry.stop(10)


def test_a_disk_that_hangs_blocks_nobody_and_fills_no_memory(
    tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_QUEUED", 10)
    hangs, entered = threading.Event(), threading.Event()
    append = Outbox.append_window

    def hanging(outbox: Outbox, *arguments: Any, **named: Any) -> int:
        entered.set()
        assert hangs.wait(60)
        return append(outbox, *arguments, **named)

    monkeypatch.setattr(Outbox, "append_window", hanging)
    telemetry = Telemetry(tmp_path / "outbox.db", MIB, fleet.send, stamp)
    telemetry.start()
    telemetry.add_window(window_bytes(1))
    assert entered.wait(60)
    for number in range(50):
        telemetry.add_window(window_bytes(number))
    hangs.set()
    wait_until(lambda: telemetry.status().waiting_rows == 11, "what fitted is stored")
    wait_until(lambda: telemetry.status().gaps == 1, "the rest is accounted")
    assert telemetry.status().lost == 40
    telemetry.stop(10)


def test_a_damaged_file_is_reported_as_the_first_row_of_the_new_stream(tmp_path: Path, fleet: Fleet) -> None:
    (tmp_path / "outbox.db").write_bytes(b"this was a database once " * 500)
    telemetry = Telemetry(tmp_path / "outbox.db", MIB, fleet.send, stamp)
    telemetry.start()
    telemetry.connected(True)
    wait_until(lambda: fleet.events("outbox.damaged"), "the report")
    (told,) = fleet.events("outbox.damaged")
    assert (tmp_path / told["set_aside"]).exists()
    assert told["stream"] == telemetry.status().stream
    assert fleet.frames[0][1].first == 1
    telemetry.stop(10)


def test_a_window_is_placed_by_the_agents_clock(telemetry: Telemetry, fleet: Fleet) -> None:
    an_hour_ago = 10**13 // 1_000_000 - 3_600_000
    mine = window(1, boot=BOOT, start_mono_ms=an_hour_ago, start_utc_ms=1000, clock_quality=CLOCK_NONE)
    other = window(2, boot=b"o" * 16, start_utc_ms=1000, clock_quality=CLOCK_NONE)
    telemetry.connected(True)
    for summary in (mine, other):
        telemetry.add_window(encode(summary))
    telemetry.add_window(b"no summary")
    wait_until(lambda: len(fleet.frames) == 3, "the rows")
    first, second, third = (frame.body for _, frame in fleet.frames)
    placed = decode(first)
    assert (placed.start_utc_ms, placed.clock_quality) == (1_800_000_000_000 - 3_600_000, CLOCK_NTP)
    assert (second, third) == (encode(other), b"no summary")


def test_status_tells_what_a_person_needs_and_is_json(telemetry: Telemetry) -> None:
    telemetry.add_window(window_bytes(1))
    wait_until(lambda: telemetry.status().waiting_rows == 1, "the row")
    told = json.loads(json.dumps(asdict(telemetry.status())))
    assert told["budget_bytes"] == MIB
    assert 0 < told["used_bytes"] <= told["disk_bytes"] <= MIB
    assert told["flash"]["windows"] == 1
    assert told["flash"]["assumed"]["card_bytes"] > MIB


def test_the_flash_ledger_goes_on_after_a_restart(tmp_path: Path, fleet: Fleet) -> None:
    for turn in (1, 2):
        telemetry = Telemetry(tmp_path / "outbox.db", MIB, fleet.send, stamp)
        telemetry.start()
        telemetry.add_window(window_bytes(turn))
        telemetry.add_window(window_bytes(turn))
        wait_until(lambda rows=2 * turn: telemetry.status().waiting_rows == rows, "the rows")  # type: ignore[misc]  # noqa: B023
        windows = telemetry.status().flash["windows"]
        telemetry.stop(10)
    # The last commit of the first run was not yet in its own note.
    assert windows in (3, 4)
