"""Time without a battery: a floor that is never poisoned, a quality that is earned, offsets told once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.fake_times import BUILD_MS, NOW_MS, YEAR_MS, FakeTimes

from skerry_contract.errors import StorageError
from skerry_runtime.agent import clock as module
from skerry_runtime.agent.clock import SAVE_EVERY_MS, KernelTimes, SystemClock

HOUR_S = 3600


class Told:
    """Stands for `Journal.event`."""

    def __init__(self) -> None:
        self.offsets: list[tuple[int, int]] = []

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        assert kind == "clock.offset"
        assert message
        self.offsets.append((data["offset_ms"], data["step_ms"]))


def started(folder: Path, times: FakeTimes, boot: str = "a" * 32) -> SystemClock:
    return SystemClock(folder / "time-floor", boot=boot, times=times)


# --- the floor ---


@pytest.mark.attack
def test_l6_in_1970_time_is_the_floor_and_goes_on(tmp_path: Path) -> None:
    times = FakeTimes(wall_ms=1_000)
    clock = started(tmp_path, times)
    assert (clock.now_ms(), clock.quality()) == (BUILD_MS, 0)
    times.pass_s(HOUR_S)
    assert clock.now_ms() == BUILD_MS + HOUR_S * 1000


@pytest.mark.attack
def test_l6_a_reboot_into_1970_begins_at_what_was_saved(tmp_path: Path) -> None:
    times = FakeTimes(ntp=True)
    clock = started(tmp_path, times)
    clock.tick()
    assert clock.quality() == 1
    times.reboot(wall_ms=0)
    clock = started(tmp_path, times, boot="b" * 32)
    assert (clock.now_ms(), clock.quality()) == (NOW_MS, 0)


@pytest.mark.attack
def test_l6_ten_years_ahead_leave_no_trace_in_the_floor(tmp_path: Path) -> None:
    times = FakeTimes(ntp=True)
    clock = started(tmp_path, times)
    clock.tick()
    times.ntp = False
    times.wall_ms += 10 * YEAR_MS
    for _ in range(10):
        times.pass_s(HOUR_S)
        clock.tick()
    assert clock.now_ms() > NOW_MS + 9 * YEAR_MS  # what has expired by then is refused meanwhile
    times.wall_ms -= 10 * YEAR_MS
    assert clock.now_ms() == NOW_MS + 10 * HOUR_S * 1000
    again = started(tmp_path, times)
    assert NOW_MS <= again.now_ms() < NOW_MS + YEAR_MS


def test_a_signed_statement_raises_the_floor_and_an_older_one_does_not_lower_it(tmp_path: Path) -> None:
    times = FakeTimes(wall_ms=0)
    clock = started(tmp_path, times)
    clock.raise_floor(NOW_MS)
    clock.raise_floor(NOW_MS - YEAR_MS)
    assert clock.now_ms() == NOW_MS
    clock.tick()
    times.reboot(0)
    assert started(tmp_path, times).now_ms() == NOW_MS


def test_the_floor_is_saved_at_most_every_six_hours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(module, "write_durably", lambda path, data: written.append(path.name))
    times = FakeTimes(ntp=True)
    clock = started(tmp_path, times)
    for _ in range(24 * 60):
        times.pass_s(60)
        clock.tick()
        clock.tell(Told())
    assert written.count("time-floor") in (4, 5)
    assert written.count("clock-offset") == 1
    assert SAVE_EVERY_MS == 6 * 3_600_000


def test_a_disk_that_fails_costs_nothing_but_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path, data: bytes) -> None:
        raise StorageError("full")

    clock = started(tmp_path, FakeTimes(ntp=True))
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_durably", fails)
        with pytest.raises(StorageError):
            clock.tick()
    clock.tick()
    assert (tmp_path / "time-floor").read_text() == str(NOW_MS)


@pytest.mark.attack
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"-5", b"9" * 40, b"soon"])
def test_l4_a_damaged_floor_is_the_build(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "time-floor").write_bytes(content)
    (tmp_path / "clock-offset").write_bytes(content)
    assert started(tmp_path, FakeTimes(wall_ms=0)).now_ms() == BUILD_MS


# --- quality and offsets ---


@pytest.mark.parametrize(("ntp", "rtc", "quality"), [(False, False, 0), (True, False, 1), (False, True, 1)])
def test_a_clock_is_believed_for_a_reason(tmp_path: Path, ntp: bool, rtc: bool, quality: int) -> None:
    assert started(tmp_path, FakeTimes(ntp=ntp, rtc=rtc)).quality() == quality


def test_a_clock_that_somebody_sets_is_believed_and_told(tmp_path: Path) -> None:
    times, told = FakeTimes(wall_ms=7_000), Told()
    clock = started(tmp_path, times)
    clock.tell(told)
    assert (clock.quality(), told.offsets) == (0, [])
    times.wall_ms = NOW_MS
    assert clock.quality() == 1
    clock.tell(told)
    assert told.offsets == [(NOW_MS - 5_000, 0)]


def test_a_synchronisation_that_ends_is_believed_until_the_next_step(tmp_path: Path) -> None:
    times = FakeTimes(ntp=True)
    clock = started(tmp_path, times)
    assert clock.quality() == 1
    times.ntp = False
    times.pass_s(30 * 24 * HOUR_S)
    assert clock.quality() == 1
    times.wall_ms = 0
    assert clock.quality() == 0


def test_the_offset_is_told_once_a_boot_and_at_every_step(tmp_path: Path) -> None:
    times, told = FakeTimes(ntp=True), Told()
    clock = started(tmp_path, times)
    for _ in range(3):
        clock.tell(told)
        times.pass_s(5)
        times.wall_ms += 20  # slewing
        clock.tick()
    assert told.offsets == [(NOW_MS - 5_000, 0)]
    clock = started(tmp_path, times)  # the daemon restarts, the machine does not
    clock.tell(told)
    assert len(told.offsets) == 1
    times.wall_ms += 60_000
    clock.tell(told)
    assert [step for _, step in told.offsets] == [0, 60_060]
    times.reboot(NOW_MS + YEAR_MS)
    times.ntp = True
    clock = started(tmp_path, times, boot="b" * 32)
    clock.tell(told)
    assert told.offsets[2:] == [(NOW_MS + YEAR_MS - 5_000, 0)]


def test_an_offset_that_may_not_have_been_stored_is_told_again(tmp_path: Path) -> None:
    times, told = FakeTimes(ntp=True), Told()
    started(tmp_path, times).tell(told)  # killed before the next tick
    started(tmp_path, times).tell(told)
    assert len(told.offsets) == 2


def test_the_kernel_answers() -> None:
    times = KernelTimes()
    assert abs(times.wall_ns() - time.time_ns()) < 60 * 10**9
    first = times.boot_ns()
    assert times.boot_ns() >= first > 0
    assert times.synchronised() in (True, False)
    assert times.hardware_clock() in (True, False)
