"""What the agent writes to flash, and how long the card may last.

Counted is what the kernel charges to this process for the storage layer (``write_bytes`` of
``/proc/self/io``; of one thread in ``/proc/thread-self/io``): whole pages, journals and checkpoints of SQLite
included, and nothing on a tmpfs. It does not see the file system's own journal nor the card's garbage
collection: the projection assumes an amplification for both, and says so. The ledger is bounded and is stored
in a page of the outbox that every commit writes anyway, so keeping it costs no write; what was written after
the last commit is forgotten at a restart.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry_contract.messages import FINAL_PHASES, Event, encode

DAYS: Final = 31
DEPLOYMENTS: Final = 16
DAY_MS: Final = 86_400_000
_ENDED: Final = frozenset(f"update.{phase}" for phase in FINAL_PHASES) | {"update.idle"}
"""Kinds of events that end a deployment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endurance:
    """What is assumed of the card (``[flash]`` of the configuration): it cannot be measured from here."""

    tbw_bytes: int = 0
    """What the maker says may be written to it in all; 0: card size times cycles."""
    card_bytes: int = 0
    """0: the size of the file system with the data folder."""
    cycles: int = 500
    """Program/erase cycles of each cell; cheap TLC cards stand 300 to 1,000."""
    amplification: float = 4.0
    """Bytes programmed for each byte that the kernel hands over: file system journal, erase blocks."""

    @property
    def bytes_in_all(self) -> float:
        """That the kernel may hand over before the card is worn."""
        return (self.tbw_bytes or self.card_bytes * self.cycles) / self.amplification


class Day(msgspec.Struct, array_like=True):
    """Bytes of one day (UTC, by the clock with its floor)."""

    day: int
    outbox: int = 0
    other: int = 0


class Deployment(msgspec.Struct, array_like=True):
    """Bytes from the first to the last event of an update, those of the outbox left out; of two updates at
    the same time the newer is charged."""

    transaction: str
    model: str
    digest: str
    bytes: int = 0
    ended: bool = False


class Totals(msgspec.Struct):
    """All that is stored."""

    seconds: float = 0.0
    """For how long it was counted."""
    outbox: int = 0
    other: int = 0
    events: int = 0
    windows: int = 0
    payload: int = 0
    """Bytes of events and windows before they were compressed."""
    days: list[Day] = []
    deployments: list[Deployment] = []


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes charged so far; None where the kernel does not tell."""

    outbox: int | None
    process: int | None


def kernel_counts() -> Written:
    """Of the calling thread, which must be the outbox's only one, and of the whole process."""
    return Written(_write_bytes(Path("/proc/thread-self/io")), _write_bytes(Path("/proc/self/io")))


DEFAULT_ENDURANCE: Final = Endurance()
MAKERS_AMPLIFICATION: Final = 2.0
"""The same where the maker's total counts, which has the card's own part in it: the file system's."""


@dataclass(slots=True)
class FlashLedger:
    """Adds up; `sample` often enough that a deployment and a day are told apart."""

    count: Callable[[], Written] = kernel_counts
    totals: Totals = field(default_factory=Totals)
    _last: Written | None = None
    _last_s: float = 0.0
    measured: bool = False
    """Whether the kernel tells."""

    def load(self, note: bytes) -> None:
        """Go on from what was stored; what cannot be read begins anew."""
        try:
            self.totals = msgspec.json.decode(note, type=Totals) if note else Totals()
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.totals = Totals()

    def dump(self) -> bytes:
        """At most some 3 KB."""
        return msgspec.json.encode(self.totals)

    def sample(self, now_s: float, wall_ms: int) -> None:
        """Charge what was written since the last sample; ``now_s`` in seconds since boot."""
        now, before = self.count(), self._last
        self.measured = now.outbox is not None and now.process is not None
        if before is not None:
            self.totals.seconds += max(0.0, now_s - self._last_s)
        self._last, self._last_s = now, now_s
        first = before or Written(None, 0)
        process = _difference(now.process, first.process)
        outbox = min(_difference(now.outbox, first.outbox), process)
        if process:
            self._charge(outbox, process - outbox, wall_ms // DAY_MS)

    def stored(self, events: Iterable[Event]) -> None:
        """Events on their way to the disk; they also say which deployment is under way."""
        for event in events:
            self.totals.events += 1
            self.totals.payload += len(encode(event))
            if event.transaction and event.kind.startswith("update."):
                self._deployment(event)

    def stored_window(self, summary: bytes) -> None:
        self.totals.windows += 1
        self.totals.payload += len(summary)

    def _charge(self, outbox: int, other: int, today: int) -> None:
        totals = self.totals
        totals.outbox += outbox
        totals.other += other
        if not totals.days or totals.days[-1].day != today:
            totals.days = [*totals.days[1 - DAYS :], Day(today)]
        totals.days[-1].outbox += outbox
        totals.days[-1].other += other
        if totals.deployments and not totals.deployments[-1].ended:
            totals.deployments[-1].bytes += other

    def _deployment(self, event: Event) -> None:
        kept = self.totals.deployments
        ended = event.kind in _ENDED
        if not kept or kept[-1].transaction != event.transaction:
            if ended:
                return  # a refusal without any work
            made = Deployment(event.transaction[:32], event.model[:64], event.digest[7:23])
            self.totals.deployments = [*kept[1 - DEPLOYMENTS :], made]
        self.totals.deployments[-1].ended = ended

    def status(self, endurance: Endurance) -> dict[str, Any]:
        """For people, as plain JSON; bytes a day and years are null before an hour was counted."""
        totals = self.totals
        total = totals.outbox + totals.other
        enough = self.measured and totals.seconds >= 3600
        a_day = total / totals.seconds * 86_400 if enough else None
        rows = totals.events + totals.windows
        return {
            "measured": self.measured,
            "counted_s": round(totals.seconds),
            "written_bytes": total,
            "outbox_bytes": totals.outbox,
            "other_bytes": totals.other,
            "events": totals.events,
            "windows": totals.windows,
            "outbox_bytes_per_item": round(totals.outbox / rows) if rows else None,
            "outbox_bytes_per_payload_byte": round(totals.outbox / totals.payload, 3)
            if totals.payload
            else None,
            "bytes_per_day": None if a_day is None else round(a_day),
            "days": [
                {"day": day.day, "outbox_bytes": day.outbox, "other_bytes": day.other} for day in totals.days
            ],
            "deployments": [
                {
                    "transaction": one.transaction,
                    "model": one.model,
                    "digest": one.digest,
                    "bytes": one.bytes,
                    "ended": one.ended,
                }
                for one in totals.deployments
            ],
            "card_years": round(endurance.bytes_in_all / a_day / 365.25, 1) if a_day else None,
            "assumed": {
                "tbw_bytes": endurance.tbw_bytes,
                "card_bytes": endurance.card_bytes,
                "cycles": endurance.cycles,
                "amplification": endurance.amplification,
            },
        }


def with_card_size(endurance: Endurance, folder: Path) -> Endurance:
    """The file system of ``folder`` stands for the card where no size is given."""
    if endurance.card_bytes or endurance.tbw_bytes:
        return endurance
    try:
        found = os.statvfs(folder)
    except OSError:
        return endurance
    return replace(endurance, card_bytes=found.f_blocks * found.f_frsize)


def _difference(now: int | None, before: int | None) -> int:
    return 0 if now is None or before is None else max(0, now - before)


def _write_bytes(file: Path) -> int | None:
    try:
        for line in file.read_text().splitlines():
            name, _, value = line.partition(": ")
            if name == "write_bytes":
                return int(value)
    except (OSError, ValueError):
        pass
    return None
