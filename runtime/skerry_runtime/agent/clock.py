"""Time on a board that may boot in 1970: durations by CLOCK_BOOTTIME, wall time with a floor.

Time floor = max(build, last saved, newest verified metadata): signed statements expire by `Clock.now_ms`,
which never runs below the floor, so a board without a battery does not accept old orders (attack L6).
Unauthenticated time never moves the floor beyond what was seen; nothing here ever stops the running model.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final, Protocol

from skerry_contract.errors import StorageError

from .files import write_durably

BUILD_MS: Final = 1_767_225_600_000
"""2026-01-01: no device of this version lives before it."""
SAVE_EVERY_MS: Final = 6 * 3600 * 1000
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Clock(Protocol):
    """What the agent knows of time."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, never below the floor."""

    def monotonic(self) -> float:
        """Seconds since boot, suspension included."""


class SystemClock:
    """The machine's clocks and the persisted floor."""

    def __init__(self, floor_file: Path) -> None:
        self._file = floor_file
        self._floor_ms = max(BUILD_MS, read_number(floor_file))
        self._saved_ms = self._floor_ms

    def now_ms(self) -> int:
        wall = time.time_ns() // 1_000_000
        return max(wall, self._floor_ms)

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def quality(self) -> int:
        """0 none, 1 a wall clock that is plausible (after the floor)."""
        return int(time.time_ns() // 1_000_000 >= self._floor_ms)

    def raise_floor(self, verified_ms: int) -> None:
        """A signed statement was made at this time: it is at least that late now."""
        if verified_ms > self._floor_ms:
            self._floor_ms = verified_ms
            self.save()

    def tick(self) -> None:
        """Save the wall clock now and then, so that the next boot does not begin before it."""
        wall = time.time_ns() // 1_000_000
        if wall > self._saved_ms + SAVE_EVERY_MS:
            self._floor_ms = max(self._floor_ms, wall)
            self.save()

    def save(self) -> None:
        """Raises `StorageError`."""
        write_durably(self._file, b"%d" % self._floor_ms)
        self._saved_ms = self._floor_ms


def boot_id() -> str:
    """32 hexadecimal digits, new at every boot of the machine."""
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
