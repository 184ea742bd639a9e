"""The memory that the models of this device share: who may start in it, and who must wait.

``budgets.ram_mb`` is for all models together. A model takes what its process alone holds, and what it held
more at its peak; pages that several workers share count once. A new model is admitted by what its self-test
took; while it is swapped with the old one of the same name both are there, as in the self-test itself, so
that overlap is proved before anything live is touched and does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from skerry_contract.errors import MemoryBudgetError
from skerry_contract.limits import MIB

_HINT: Final = "Remove a model, pack smaller variants, or raise budgets.ram_mb."


@dataclass(frozen=True, slots=True)
class Resident:
    """Of one process, in bytes."""

    rss: int
    pss: int
    """Each page divided by the number of processes that share it."""


class Taken(NamedTuple):
    """What one model takes, in bytes."""

    size: int
    in_memory: bool
    """It is there already; else its process is being started, and the kernel counts it as free."""


class Room:
    """Used in the loop's thread only."""

    def __init__(
        self,
        total_bytes: int = 0,
        taken: Callable[[], Mapping[str, Taken]] = dict,
        available: Callable[[], int] | None = None,
    ) -> None:
        """
        Args:
            total_bytes: for all models together; 0 sets no limit.
            taken: what each model that answers takes, by name.
            available: of the machine now; None reads it from the kernel.
        """
        self._total = total_bytes
        self._taken = taken
        self._available = available or available_bytes

    def taken(self) -> Mapping[str, int]:
        """What each model that answers takes, by name, in bytes."""
        return {name: taken.size for name, taken in self._taken().items()}

    def left_for(self, name: str) -> int:
        """What a model of this name may take beside the others; at least 1, for 0 would set no limit."""
        if not self._total:
            return 0
        return max(1, self._total - sum(self._others(name).values()))

    def check(self, name: str, wanted_bytes: int) -> None:
        """Raises `MemoryBudgetError` if a model that takes so much does not fit beside the others."""
        others = self._others(name)
        if self._total and wanted_bytes + sum(others.values()) > self._total:
            raise MemoryBudgetError(
                f"{name} takes {wanted_bytes / MIB:.1f} MiB, and {_listed(others)} of the"
                f" {self._total / MIB:.1f} MiB of budgets.ram_mb",
                hint=_HINT,
            )

    def check_start(self, name: str, wanted_bytes: int) -> None:
        """The same for a model that ran here before, which must also fit into the memory that is free now.

        The first model always fits: an answer with little memory is better than none. Raises as `check`.
        """
        others = {other: taken for other, taken in self._taken().items() if other != name}
        if not others:
            return
        self.check(name, wanted_bytes)
        free = max(0, self._available() - sum(taken.size for taken in others.values() if not taken.in_memory))
        if wanted_bytes > free:
            raise MemoryBudgetError(
                f"{name} took {wanted_bytes / MIB:.1f} MiB when it ran, and {free / MIB:.1f} MiB are free",
                hint="Remove a model, pack smaller variants, or give the machine more memory.",
            )

    def _others(self, name: str) -> dict[str, int]:
        return {other: size for other, size in self.taken().items() if other != name}


def _listed(taken: Mapping[str, int]) -> str:
    if not taken:
        return "it alone may take all"
    parts = [f"{name} {size / MIB:.1f}" for name, size in sorted(taken.items())]
    return f"the others take {sum(taken.values()) / MIB:.1f} ({', '.join(parts)})"


def resident(pid: int) -> Resident:
    """What a process holds now; zeros if it is gone. Where the kernel does not divide, nothing is divided."""
    found = _fields(Path(f"/proc/{pid}/smaps_rollup"))
    if "Pss" in found:
        return Resident(found["Rss"] * 1024, found["Pss"] * 1024)
    rss = _fields(Path(f"/proc/{pid}/status")).get("VmRSS", 0) * 1024
    return Resident(rss, rss)


def available_bytes() -> int:
    """What can be taken without swapping: of the machine, or of this process' group if that has less."""
    free = _fields(Path("/proc/meminfo")).get("MemAvailable", 0) * 1024
    group = group_free_bytes(Path("/"))
    return free if group is None else min(free, group)


def group_free_bytes(root: Path) -> int | None:
    """What this control group may still take, its file cache counted as free; None without a limit."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            group, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "file"
        elif "memory" in controllers.split(","):
            group = root / "sys/fs/cgroup/memory"
            limit, used, cache = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"
        else:
            continue
        for folder in (group / path.lstrip("/"), group):  # in a container the path may be the host's
            most, taken = _text(folder / limit).strip(), _text(folder / used).strip()
            if most.isdecimal() and taken.isdecimal():
                return max(0, int(most) - int(taken) + _fields(folder / "memory.stat").get(cache, 0))
    return None


def _fields(path: Path) -> dict[str, int]:
    """Names and first numbers of a file of the kernel; empty if it cannot be read."""
    words = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) > 1 and pair[1].isdecimal()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
