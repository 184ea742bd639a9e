"""Time on a board that may boot in 1970: durations by CLOCK_BOOTTIME, wall time with a floor.

Time floor = max(build, last saved, newest verified metadata), and it goes on with the time since boot: signed
statements expire by `SystemClock.now_ms`, which never runs below it, so a board without a battery does not
accept old orders (attack L6). Only a clock that the kernel calls synchronised moves the floor beyond that: a
clock that is ten years ahead passes by without a trace. Nothing here ever stops the running model.

What was stamped before the clock was set is repaired by the fleet: when the clock is first trusted in a boot,
and whenever it was stepped after that, an event ``clock.offset`` tells wall time minus time since boot.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from skerry_contract.errors import StorageError
from skerry_contract.summary import CLOCK_NONE, CLOCK_NTP

from .files import storage_errors, write_durably

BUILD_MS: Final = 1_767_225_600_000
"""2026-01-01: no device of this version lives before it."""
SAVE_EVERY_MS: Final = 6 * 3600 * 1000
"""Of the floor; each save costs the flash some pages."""
STEP_MS: Final = 2_000
"""Wall time that moves against the time since boot by more than this was set by somebody."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FROM_RTC: Final = Path("/sys/class/rtc/rtc0/hctosys")
_STA_UNSYNC: Final = 0x40
_TIME_ERROR: Final = 5


class Clock(Protocol):
    """What the agent knows of time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, never below the floor."""

    def monotonic(self) -> float:
        """Seconds since boot, suspension included."""


class Times(Protocol):
    """The machine's clocks; tests play them."""

    def wall_ns(self) -> int:
        """Since 1970, as it is set now."""

    def boot_ns(self) -> int:
        """Since boot, suspension included; never steps."""

    def synchronised(self) -> bool:
        """The kernel's clock is kept by a time source (NTP, PTP, GPS)."""

    def hardware_clock(self) -> bool:
        """The kernel took its time from a battery-backed clock at boot."""


class _Timex(ctypes.Structure):
    """``struct timex`` of adjtimex(2), as far as it is read."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    )


class KernelTimes:
    """Implements `Times`."""

    def __init__(self) -> None:
        self._adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
        try:
            self._from_rtc = _FROM_RTC.read_text().strip() == "1"
        except OSError:
            self._from_rtc = False

    def wall_ns(self) -> int:
        return time.time_ns()

    def boot_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def synchronised(self) -> bool:
        if self._adjtimex is None:
            return False
        state = _Timex()
        answer = int(self._adjtimex(ctypes.byref(state)))
        return 0 <= answer < _TIME_ERROR and not state.status & _STA_UNSYNC

    def hardware_clock(self) -> bool:
        return self._from_rtc


class SystemClock:
    """The machine's clocks and the persisted floor. Any thread."""

    def __init__(self, floor_file: Path, *, boot: str | None = None, times: Times | None = None) -> None:
        """``boot`` is this boot's identifier; files lie beside ``floor_file``."""
        self._file = floor_file
        self._told_file = floor_file.with_name("clock-offset")
        self._boot = boot_id() if boot is None else boot
        self._times = times or KernelTimes()
        self._lock = threading.Lock()
        self._floor_ms = self._saved_ms = max(BUILD_MS, read_number(floor_file))
        self._floor_at_ns = self._times.boot_ns()
        self._seen_ms = self._offset_ms()
        """Wall time minus time since boot when it was last looked at."""
        self._trusted_ms: int | None = None
        """The same when there was last a reason to believe it."""
        self._told_ms = self._read_told()
        """The same as the fleet knows it."""
        self._told_saved = True

    def now_ms(self) -> int:
        return max(self._wall_ms(), self._reckoned_ms())

    def monotonic(self) -> float:
        return self._times.boot_ns() / 1e9

    def quality(self) -> int:
        """0 none; 1 the wall clock was set by a time source, a hardware clock or somebody, and not since
        pushed below the floor."""
        with self._lock:
            self._look()
            believed = self._trusted_ms is not None and abs(self._seen_ms - self._trusted_ms) <= STEP_MS
        return CLOCK_NTP if believed and self._wall_ms() >= self._reckoned_ms() else CLOCK_NONE

    def raise_floor(self, verified_ms: int) -> None:
        """A signed statement was made at this time: it is at least that late now. `tick` saves it."""
        with self._lock:
            if verified_ms > self._reckoned_ms():
                self._floor_ms, self._floor_at_ns = verified_ms, self._times.boot_ns()

    def tick(self) -> None:
        """Save the floor now and then, so that the next boot does not begin before it.

        Raises:
            StorageError: it could not be saved; the next call tries again.
        """
        with self._lock:
            self._look()
            known = self._reckoned_ms()
            if self._times.synchronised():
                known = max(known, self._wall_ms())
            due = known > self._saved_ms + SAVE_EVERY_MS
            if due:
                self._floor_ms, self._floor_at_ns = known, self._times.boot_ns()
        if due:
            self.save()
        if not self._told_saved:
            # By now the event is in the outbox.
            write_durably(self._told_file, f"{self._boot} {self._told_ms}".encode())
            self._told_saved = True

    def save(self) -> None:
        """Raises `StorageError`."""
        write_durably(self._file, b"%d" % self._floor_ms)
        self._saved_ms = self._floor_ms

    def tell(self, event: Callable[..., Any]) -> None:
        """Report the clock's offset once a boot, and after every step; ``event`` is `Journal.event`."""
        with self._lock:
            self._look()
            offset, before = self._trusted_ms, self._told_ms
            if offset is None or (before is not None and abs(offset - before) <= STEP_MS):
                return
            self._told_ms, self._told_saved = offset, False
        why = "the clock can be believed" if before is None else f"the clock stepped by {offset - before} ms"
        event("clock.offset", why, offset_ms=offset, step_ms=0 if before is None else offset - before)

    def status(self) -> dict[str, Any]:
        """For people, as plain JSON."""
        return {
            "wall_ms": self._wall_ms(),
            "quality": self.quality(),
            "synchronised": self._times.synchronised(),
            "hardware_clock": self._times.hardware_clock(),
            "floor_ms": self._reckoned_ms(),
            "offset_told": self._told_ms is not None,
        }

    def _look(self) -> None:
        """Is there a reason to believe the wall clock as it is now?"""
        offset = self._offset_ms()
        stepped = abs(offset - self._seen_ms) > STEP_MS
        plausible = self._wall_ms() >= self._reckoned_ms()
        reason = self._times.synchronised() or (plausible and (stepped or self._times.hardware_clock()))
        # Within a step it is the same clock, only read again.
        if reason and (self._trusted_ms is None or abs(offset - self._trusted_ms) > STEP_MS):
            self._trusted_ms = offset
        self._seen_ms = offset

    def _wall_ms(self) -> int:
        return self._times.wall_ns() // 1_000_000

    def _offset_ms(self) -> int:
        return (self._times.wall_ns() - self._times.boot_ns()) // 1_000_000

    def _reckoned_ms(self) -> int:
        """The floor, and the time since it was known."""
        return self._floor_ms + (self._times.boot_ns() - self._floor_at_ns) // 1_000_000

    def _read_told(self) -> int | None:
        boot, _, offset = _read_text(self._told_file).partition(" ")
        return int(offset) if boot == self._boot and offset.isdigit() and len(offset) < 16 else None


def boot_id() -> str:
    """32 hexadecimal digits, new at every boot of the machine."""
    with storage_errors("reading the boot's identifier"):
        return _BOOT_ID.read_text().strip().replace("-", "")


class WindowNumbers:
    """First window numbers for workers, unique within a boot even across restarts of the daemon.

    Every worker gets a block of `BLOCK` numbers of its own, so that an old and a new worker close windows
    side by side and numbers of later workers are higher.
    """

    BLOCK: Final = 1 << 20

    def __init__(self, file: Path, boot: str) -> None:
        self._file = file
        self._boot = boot
        saved_boot, _, used = _read_text(file).partition(" ")
        self._used = int(used) if saved_boot == boot and used.isdigit() else 0

    def take(self) -> int:
        """The first number of a new block; it stays taken if the daemon is killed."""
        self._used += 1
        # Serving goes first: a disk that cannot take this number cannot take the windows either, so a later
        # worker that gets the same number again repeats none that left the device.
        with contextlib.suppress(StorageError):
            write_durably(self._file, f"{self._boot} {self._used}".encode())
        return (self._used - 1) * self.BLOCK + 1


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def read_number(path: Path) -> int:
    """A number in a file; 0 if there is none that is plausible."""
    text = _read_text(path)
    return int(text) if text.isdigit() and len(text) < 16 else 0
