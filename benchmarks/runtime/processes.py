"""Memory and processor time of process trees, as the kernel accounts for them.

*Unevictable* is what the kernel cannot drop and read again: anonymous pages (``Pss_Anon``; of pages that a
fork shares, each process bears its part, so that a sum over the tree counts each page once) and pages of
memfds (``Pss_Shmem``). There is no swap on the boards that this is about.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of one process or of several together."""

    rss: int
    pss: int
    unevictable: int
    private_dirty: int

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            rss=self.rss + other.rss,
            pss=self.pss + other.pss,
            unevictable=self.unevictable + other.unevictable,
            private_dirty=self.private_dirty + other.private_dirty,
        )


NONE = Memory(rss=0, pss=0, unevictable=0, private_dirty=0)


def parse_smaps(text: str) -> Memory:
    """The text of ``smaps_rollup``. Raises KeyError where the kernel is too old for ``Pss_Anon``."""
    fields: dict[str, int] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        words = rest.split()
        if colon and len(words) == 2 and words[1] == "kB":
            fields[name] = int(words[0]) * 1024
    return Memory(
        rss=fields["Rss"],
        pss=fields["Pss"],
        unevictable=fields["Pss_Anon"] + fields["Pss_Shmem"],
        private_dirty=fields["Private_Dirty"],
    )


def memory_of(pid: int) -> Memory:
    """Raises OSError if there is no such process."""
    return parse_smaps(Path(f"/proc/{pid}/smaps_rollup").read_text())


def memory_of_all(pids: Iterable[int]) -> Memory:
    total = NONE
    for pid in pids:
        total += memory_of(pid)
    return total


def family(parents: Mapping[int, int], root: int) -> list[int]:
    """The process and all below it, parents first; ``parents`` maps a process to its parent. Pure."""
    found = [root]
    for pid in found:
        found += sorted(child for child, parent in parents.items() if parent == pid)
    return found


def tree(root: int) -> list[int]:
    """The process and all below it that live now."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name, in parentheses, may hold anything.
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] != "Z":
                parents[int(entry.name)] = int(fields[1])
    return family(parents, root)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far, to the nanosecond. Raises OSError."""
    # The clock of another process, as clock_getcpuclockid(3) would name it.
    return time.clock_gettime((~pid << 3) | 2)


def reaped_seconds(pid: int) -> float:
    """Processor time of the children that a process has waited for, in steps of 10 ms. Raises OSError."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def tree_seconds(root: int) -> float:
    """Processor time of a process and all below it so far, of those that have ended too."""
    total = 0.0
    for pid in tree(root):
        with suppress(OSError):
            total += cpu_seconds(pid) + reaped_seconds(pid)
    return total


def written_bytes(pid: int) -> int:
    """What the kernel charged to a process for storage so far: nothing on a tmpfs."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "write_bytes":
            return int(value)
    raise ValueError(f"/proc/{pid}/io does not tell write_bytes")
