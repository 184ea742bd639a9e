"""The real daemon under clocks that lie (attack L6): it starts, installs, serves, and says what it believes.

libfaketime stands between the processes and the wall clock; the time since boot stays the machine's.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.runtime.agent_world import QUICK, Broker, Device, Hammer, Headquarters, make_bundle, running
from tests.runtime.fake_times import BUILD_MS, YEAR_MS
from tests.runtime.ledger import settle
from tests.waiting import wait_until

from skerry_contract import summary
from skerry_contract.messages import DeviceSettings
from skerry_contract.signing import EcdsaSigner
from skerry_contract.summary import CLOCK_NONE, WindowSummary
from skerry_contract.topics import Up

pytestmark = pytest.mark.attack
PACKAGE = find_spec("libfaketime")
LIBRARY = PACKAGE and PACKAGE.origin and next(Path(PACKAGE.origin).parent.rglob("libfaketime.so.1"), None)
_LOOKS = 250
SMALL_WINDOWS = DeviceSettings(window_seconds=3600.0, window_rows=5)


DAY_S = 86_400
TEN_YEARS_S = 3650 * DAY_S


class WrongClock:
    """The wall clock of one daemon and of all that it starts."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def tracer(self) -> tuple[str, ...]:
        return (
            "env",
            f"LD_PRELOAD={LIBRARY}",
            f"FAKETIME_TIMESTAMP_FILE={self._file}",
            # Its reader is made for one thread: only one of them reads, once a second.
            "FAKETIME_CACHE_DURATION=0",
            "FAKETIME_DONT_FAKE_MONOTONIC=1",
            "NO_FAKE_STAT=1",  # or Python takes every compiled module for an old one
        )

    def set(self, offset_s: int) -> None:
        """By so many seconds wrong, about; before the daemon starts."""
        # Renamed, so that nobody reads half of it.
        new = self._file.with_name("faketime.new")
        new.write_text(f"{offset_s:+d}s\n")
        new.rename(self._file)

    def jump(self, offset_s: int, board: Device) -> None:
        """The same while it runs; until it is so."""
        asked = itertools.count()

        def arrived() -> bool:
            if (number := next(asked)) % _LOOKS == 0:
                self.set(offset_s + number // _LOOKS)  # another text: what was misread is read again
            return abs(wall_ms(board) / 1000 - time.time() - offset_s) < DAY_S

        wait_until(arrived, f"a clock that is wrong by {offset_s} s")


@pytest.fixture
def clock(tmp_path: Path) -> WrongClock:
    if LIBRARY is None:
        pytest.skip("libfaketime has no library for this machine")
    return WrongClock(tmp_path / "faketime")


@pytest.fixture
def board(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters, clock: WrongClock
) -> Iterator[Device]:
    """Not started; stopped at the end."""
    board = Device(tmp_path, signer, broker, headquarters, tracer=clock.tracer)
    yield board
    if board.process is not None and board.process.poll() is None:
        board.process.kill()
        board.process.wait()


def in_1970() -> int:
    return 100 - int(time.time())


def wall_ms(device: Device) -> int:
    result: int = device.status()["clock"]["wall_ms"]
    return result


def windows(headquarters: Headquarters) -> list[WindowSummary]:
    rows = {frame.first: frame.body for frame in list(headquarters.frames)}
    return [summary.decode(body) for body in rows.values() if body[:4] == summary.MAGIC]


def refusals(headquarters: Headquarters) -> list[str]:
    """Codes of the errors for which orders were refused."""
    return [e["error"]["code"] for e in headquarters.events() if e["kind"] == "desired.refused"]


def test_l6_a_board_that_boots_in_1970_installs_serves_and_marks_what_it_measures(
    board: Device, headquarters: Headquarters, signer: EcdsaSigner, clock: WrongClock
) -> None:
    made, old_order = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    for bundle in (made, old_order):
        headquarters.publish_bundle(bundle)
    clock.set(in_1970())
    with running(board):
        assert wall_ms(board) < YEAR_MS
        state = board.status()["clock"]
        assert (state["quality"], state["offset_told"]) == (CLOCK_NONE, False)
        assert state["floor_ms"] >= BUILD_MS
        headquarters.desire(made, probation=QUICK, settings=SMALL_WINDOWS)
        board.wait_state("confirmed", "1.0.0")
        for _ in range(12):
            assert board.infer()["model_version"] == "1.0.0"
        found = wait_until(lambda: windows(headquarters), "a window")
        assert {window.clock_quality for window in found} == {CLOCK_NONE}
        assert all(window.start_utc_ms >= BUILD_MS - YEAR_MS for window in found)
        # What expired before this version was built is not obeyed, whatever the wall clock says.
        headquarters.desire(old_order, expires_in_s=BUILD_MS / 1000 - time.time() - 86_400)
        wait_refusal(board, headquarters)
        assert board.infer()["model_version"] == "1.0.0"
        # A restart in 1970 changes nothing.
        board.kill()
        board.start()
        assert board.infer()["model_version"] == "1.0.0"
        settle(board, headquarters)


def test_l6_ten_years_ahead_the_model_answers_and_only_the_order_waits(
    board: Device, headquarters: Headquarters, signer: EcdsaSigner, clock: WrongClock
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    for bundle in (first, second):
        headquarters.publish_bundle(bundle)
    clock.set(0)
    with running(board):
        headquarters.desire(first, probation=QUICK)
        board.wait_state("confirmed", "1.0.0")
        clock.jump(TEN_YEARS_S, board)
        headquarters.desire(second, probation=QUICK)
        wait_refusal(board, headquarters)
        assert board.infer()["model_version"] == "1.0.0"
        board.stop()
        board.start()
        assert board.infer()["model_version"] == "1.0.0"
        # The right time again: nothing of the ten years is left, and the same order is obeyed.
        clock.jump(0, board)
        headquarters.desire(second, probation=QUICK)
        board.wait_state("confirmed", "2.0.0")


def test_l6_a_clock_that_jumps_while_it_serves_stops_nobody_and_burns_nothing(
    board: Device, headquarters: Headquarters, signer: EcdsaSigner, clock: WrongClock
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    clock.set(0)
    with running(board):
        headquarters.desire(made, probation=QUICK, settings=SMALL_WINDOWS)
        board.wait_state("confirmed", "1.0.0")
        pids = {board.model()["active"]["pid"]}
        with Hammer(board.data / "run" / "skerry.sock") as hammer:
            for offset_s in (TEN_YEARS_S, in_1970(), -10 * DAY_S, 0):
                clock.jump(offset_s, board)
                wait_more(hammer, 10)
                pids.add(board.model()["active"]["pid"])
        assert hammer.failures == []
        assert len(pids) == 1
        assert board.model()["state"] == "confirmed"
        assert_rests(board)
        # Each jump was told to the fleet or is none that it may believe; nothing waits for ever.
        board.ask("close_windows")
        settle(board, headquarters)
        assert [w.duration_ms for w in windows(headquarters) if w.duration_ms > 600_000] == []
        assert not [r for r in headquarters.messages if r[0] is Up.REPORT and b"rolled_back" in r[1]]


def wait_refusal(board: Device, headquarters: Headquarters) -> None:
    try:
        wait_until(lambda: "bundle.expired" in refusals(headquarters), "the refusal")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{board.status()}\n{board.log.read_text()}") from error


def wait_more(hammer: Hammer, number: int) -> None:
    enough = hammer.answers.get("1.0.0", 0) + number
    wait_until(lambda: hammer.answers.get("1.0.0", 0) >= enough, f"{number} answers more")


def assert_rests(device: Device) -> None:
    """The agent's threads wait instead of turning: it uses less than a fifth of the time that passes."""
    assert device.process is not None
    stat = Path(f"/proc/{device.process.pid}/stat")

    def ticks() -> int:
        return sum(map(int, stat.read_text().rpartition(")")[2].split()[11:13]))

    def idle() -> bool:
        # A stall of the machine makes it use less, never more.
        began, used = time.monotonic(), ticks()
        wait_until(lambda: time.monotonic() > began + 1.0, "a second")
        return ticks() - used < 20 * (time.monotonic() - began)

    wait_until(idle, "a quiet second")
