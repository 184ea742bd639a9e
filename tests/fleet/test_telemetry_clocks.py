"""Times of devices whose clocks were not set, or wrong: repaired when the offset of their boot is told.

The device's side is real (clock, journal, outbox); only its clocks are played.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fleet.fleet_harness import START_MS, Fleet
from tests.fleet.outbox_sender import Outbox as Sender
from tests.fleet.outbox_sender import Receiver
from tests.runtime.fake_times import YEAR_MS, FakeTimes

from skerry_contract.digests import Digest, prefix8
from skerry_contract.messages import Event, EventBatch
from skerry_contract.messages import encode as encode_message
from skerry_contract.summary import encode
from skerry_contract.topics import Up
from skerry_fleet.governance.views import EventRow
from skerry_fleet.mqtt import Message, Receipt
from skerry_fleet.telemetry.clocks import RECORDS, read_offset
from skerry_runtime.agent.clock import SystemClock
from skerry_runtime.agent.journal import Journal
from skerry_runtime.agent.outbox import Outbox, Priority
from skerry_runtime.agent.telemetry import _timed

DAY_MS = 86_400_000
BOOT = "c" * 32


class Device:
    """The agent's own clock, journal and outbox over clocks that a test sets."""

    def __init__(self, folder: Path, bundle: Digest, times: FakeTimes, boot: str = BOOT) -> None:
        self.times, self.boot = times, boot
        self._sender = Sender("pi-1", bundle)
        self.outbox = Outbox(folder / "outbox.db", 1 << 20)
        self.clock = SystemClock(folder / "time-floor", boot=boot, times=times)
        self.journal = Journal(self.clock, boot, self._add)
        self._packet = 0

    def _add(self, event: Event, critical: bool) -> None:
        self.outbox.append_events([event], Priority.AUDIT, self.journal.stamp())

    def window(self, minutes: int = 10) -> None:
        """What a worker saw for some minutes, closed now."""
        start = self.times.boot_ms
        self.times.pass_s(minutes * 60)
        summary = self._sender.window(
            boot=bytes.fromhex(self.boot),
            start_mono_ms=start,
            start_utc_ms=max(0, self.times.wall_ms - minutes * 60_000),
            duration_ms=minutes * 60_000,
            clock_quality=0,
            bundle=prefix8(self._sender.bundle),
        )
        stamp = self.journal.stamp()
        self.outbox.append_window(_timed(encode(summary), stamp), stamp)

    def sent(self) -> list[Message]:
        """Everything that waits, as it arrives."""
        messages = []
        for row in self.outbox.rows_to_send(self.outbox.done_seq, 100):
            self._packet += 1
            channel = Up.TELEMETRY if row.kind.channel is Up.TELEMETRY else Up.EVENTS
            receipt = Receipt(packet=self._packet, connection=1, qos=1)
            messages.append(
                Message(device="pi-1", channel=channel, payload=row.frame.encode(), receipt=receipt)
            )
        return messages


@pytest.fixture
def receiver(fleet: Fleet) -> Receiver:
    fleet.enrol("pi-1", online=False)
    return Receiver(fleet)


def device(tmp_path: Path, fleet: Fleet, times: FakeTimes) -> Device:
    return Device(tmp_path, fleet.publish("1.0.0", 1), times)


def windows(fleet: Fleet) -> list[tuple[int, bool]]:
    """Oldest first."""
    found = fleet.services.telemetry.windows(device="pi-1", limit=500).items
    return [(row.at_ms, row.clock_ok) for row in reversed(found)]


def events(fleet: Fleet, kind: str = "slot.test") -> list[EventRow]:
    page = fleet.services.journal.events(device="pi-1", limit=500)
    return [row for row in reversed(page.items) if row.kind == kind]


@pytest.mark.attack
@pytest.mark.parametrize("in_one_batch", [True, False])
def test_l6_t4_what_a_board_of_1970_told_is_repaired_when_its_clock_is_set(
    tmp_path: Path, fleet: Fleet, receiver: Receiver, in_one_batch: bool
) -> None:
    times = FakeTimes(wall_ms=5_000)
    board = device(tmp_path, fleet, times)
    board.journal.event("slot.test", "before")
    board.clock.tell(board.journal.event)
    board.window()
    board.window()
    fleet.clock.ms = START_MS + 3_600_000
    if not in_one_batch:
        receiver.take(*board.sent())
        assert [ok for _, ok in windows(fleet)] == [False, False]
        assert [(row.at_ms, row.clock_ok) for row in events(fleet)] == [(fleet.clock.ms, False)]
    true_boot_ms = START_MS - times.boot_ms
    times.wall_ms, times.ntp = START_MS, True
    board.clock.tell(board.journal.event)
    board.journal.event("slot.test", "after")
    receiver.take(*board.sent())
    assert windows(fleet) == [(true_boot_ms + 5_000, True), (true_boot_ms + 605_000, True)]
    before, after = events(fleet)
    assert (before.at_ms, before.clock_ok) == (true_boot_ms + 5_000, True)
    assert before.wall_ms < START_MS - YEAR_MS / 2  # what its clock had said is still there
    assert (after.at_ms, after.wall_ms, after.clock_ok) == (START_MS, START_MS, True)


@pytest.mark.attack
def test_l6_t4_a_hardware_clock_ten_years_ahead_is_repaired_too(
    tmp_path: Path, fleet: Fleet, receiver: Receiver
) -> None:
    times = FakeTimes(wall_ms=START_MS + 10 * YEAR_MS, rtc=True)
    board = device(tmp_path, fleet, times)
    board.clock.tell(board.journal.event)
    board.journal.event("slot.test", "before")
    board.window()
    receiver.take(*board.sent())
    # Not believed: ahead of the server by more than a day.
    assert [ok for _, ok in windows(fleet)] == [False]
    assert [row.clock_ok for row in events(fleet)] == [False]
    fleet.clock.ms = START_MS + 3_600_000
    times.wall_ms, times.ntp = START_MS, True
    board.clock.tell(board.journal.event)
    receiver.take(*board.sent())
    assert windows(fleet) == [(START_MS - 600_000, True)]
    assert [(row.at_ms, row.clock_ok) for row in events(fleet)] == [(START_MS - 600_000, True)]


def test_what_comes_after_the_offset_from_a_clock_that_is_not_set_is_placed_at_once(
    tmp_path: Path, fleet: Fleet, receiver: Receiver
) -> None:
    times = FakeTimes(wall_ms=START_MS, ntp=True)
    board = device(tmp_path, fleet, times)
    board.clock.tell(board.journal.event)
    receiver.take(*board.sent())
    receiver.restarted()
    times.ntp, times.wall_ms = False, 0  # somebody sets it back
    board.journal.event("slot.test", "later")
    board.window()
    fleet.clock.ms = START_MS + DAY_MS // 2
    receiver.take(*board.sent())
    assert windows(fleet) == [(START_MS, True)]
    assert [(row.at_ms, row.clock_ok) for row in events(fleet)] == [(START_MS, True)]


def test_another_boot_and_another_device_are_left_alone(
    tmp_path: Path, fleet: Fleet, receiver: Receiver
) -> None:
    fleet.enrol("pi-2", online=False)
    unset = {"clock_quality": 0, "start_utc_ms": 0}
    bundle = fleet.publish("2.0.0", 2)
    other_device, other_boot = Sender("pi-2", bundle), Sender("pi-1", bundle, stream=b"stream-2")
    receiver.take(
        other_device.telemetry(other_device.window(boot=bytes.fromhex(BOOT), **unset)),
        other_boot.telemetry(other_boot.window(boot=b"x" * 16, **unset)),
    )
    before = windows(fleet)
    board = device(tmp_path, fleet, FakeTimes(wall_ms=START_MS, ntp=True))
    board.clock.tell(board.journal.event)
    receiver.take(*board.sent())
    assert windows(fleet) == before
    assert receiver.ingest.counts["repaired"] == 0


def test_windows_of_older_days_are_repaired_also_after_a_kill_between_the_databases(
    tmp_path: Path, fleet: Fleet, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = FakeTimes(wall_ms=5_000)
    board = device(tmp_path, fleet, times)
    board.window()
    receiver.take(*board.sent())
    times.pass_s(2 * 86_400)
    fleet.clock.ms += 2 * DAY_MS
    board.window()
    times.wall_ms, times.ntp = fleet.clock.ms, True
    board.clock.tell(board.journal.event)
    messages = board.sent()
    with monkeypatch.context() as patch:
        patch.setattr(receiver.ingest, "_commit_day", lambda batch: None)
        receiver.ingest.process(messages)  # killed before the second commit
    assert [ok for _, ok in windows(fleet)] == [False]
    receiver.restarted()
    receiver.take(*messages)
    boot_ms = times.wall_ms - times.boot_ms
    assert windows(fleet) == [(boot_ms + 5_000, True), (boot_ms + 5_000 + 600_000 + 2 * DAY_MS, True)]
    assert len(events(fleet, "clock.offset")) == 1


@pytest.mark.attack
@pytest.mark.parametrize("told", [None, "1", True, 1.5, -1, START_MS + 2 * DAY_MS, 2**62])
def test_t4_an_offset_that_cannot_be_is_not_taken(told: object) -> None:
    event = Event(kind="clock.offset", wall_ms=0, mono_ms=0, boot=BOOT, data={"offset_ms": told})
    assert read_offset(event, START_MS) is None


@pytest.mark.attack
def test_t4_a_device_cannot_keep_the_server_busy_with_offsets(fleet: Fleet, receiver: Receiver) -> None:
    sender = Sender("pi-1", fleet.publish("1.0.0", 1))
    receiver.take(sender.telemetry(sender.window(boot=bytes.fromhex(BOOT), clock_quality=0)))
    counted = []
    for number in range(3 * RECORDS):
        data = {"offset_ms": START_MS - 10**9 + number * 10_000}
        told = Event(kind="clock.offset", wall_ms=0, mono_ms=10**8, boot=BOOT, data=data)
        receiver.take(sender.frame(Up.EVENTS, encode_message(EventBatch(events=(told,)))))
        counted.append(receiver.ingest.counts["repaired"])
    assert counted[0] > 0
    assert counted[RECORDS - 1] == counted[-1]
    (placed,) = windows(fleet)
    assert placed[0] == START_MS - 10**9 + (RECORDS - 1) * 10_000 + 3_600_000
