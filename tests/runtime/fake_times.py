"""A machine's clocks, set by hand: the only thing that the tests of time do not have for real."""

from __future__ import annotations

from dataclasses import dataclass

BUILD_MS = 1_767_225_600_000
NOW_MS = 1_800_000_000_000
YEAR_MS = 31_557_600_000


@dataclass
class FakeTimes:
    """Implements `skerry_runtime.agent.clock.Times`."""

    wall_ms: int = NOW_MS
    boot_ms: int = 5_000
    ntp: bool = False
    rtc: bool = False

    def wall_ns(self) -> int:
        return self.wall_ms * 1_000_000

    def boot_ns(self) -> int:
        return self.boot_ms * 1_000_000

    def synchronised(self) -> bool:
        return self.ntp

    def hardware_clock(self) -> bool:
        return self.rtc

    def pass_s(self, seconds: float) -> None:
        self.wall_ms += int(seconds * 1000)
        self.boot_ms += int(seconds * 1000)

    def reboot(self, wall_ms: int) -> None:
        """Without a battery the clock begins where the kernel says."""
        self.wall_ms, self.boot_ms, self.ntp = wall_ms, 5_000, False
