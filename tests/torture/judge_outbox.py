"""What must be true of the outbox after a kill, a failing disk or a power cut; pure.

Every window and event that was promised is in the fleet's ledger or in the outbox, once, or a gap accounts
for it. An empty list of faults is a pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.torture.board import Note


def faults_of_outbox(
    notes: Sequence[Note], found: Mapping[str, Any], before_ns: int | None = None, *, rotten: bool = False
) -> list[str]:
    """Judge what `examine` found by the notes.

    Args:
        before_ns: promises made later may have been lost.
        rotten: the file was damaged: what it held may be lost, and a new stream must have begun.
    """
    facts = [(note.facts, before_ns is None or note.at_ns < before_ns) for note in notes]
    streams = {entry["stream"] for entry, certain in facts if entry.get("is_") == "opened" and certain}
    faults = []
    if rotten:
        return [] if found["aside"] or len(streams) <= 1 else ["the damaged file is still in use"]
    if found["aside"]:
        faults.append("the outbox was set aside as damaged")
    if streams - {found["stream"]}:
        faults.append("another stream was begun")
    fleet = [entry for entry, _ in facts if entry.get("is_") == "committed"]
    committed = max((entry["last"] for entry in fleet), default=0)
    acknowledged = [
        entry["seq"] for entry, certain in facts if entry.get("is_") == "acknowledged" and certain
    ]
    if acknowledged and found["done"] < acknowledged[-1]:
        faults.append(f"acknowledged up to {acknowledged[-1]}, the device knows {found['done']}")
    if found["done"] > committed and _asked(facts, found["done"]) is False:
        faults.append("the device forgot rows that nobody acknowledged")
    rows = [*fleet, *(row for row in found["rows"] if row["first"] > committed)]
    gaps = sum(entry["gaps"] for entry in fleet) + sum(gap[2] for gap in found["gaps"] if not gap[3])
    faults += _ledger("window", facts, _windows(rows), gaps)
    faults += _ledger("event", facts, Counter(number for row in rows for number in row["events"]), gaps)
    highest = max((entry["last"] for entry, _ in facts if entry.get("is_") in ("window", "event")), default=0)
    certain_highest = max(
        (entry["last"] for entry, certain in facts if entry.get("is_") in ("window", "event") and certain),
        default=0,
    )
    if found["appended"] <= max(certain_highest, committed):
        faults.append(f"number {found['appended']} was used again; {max(highest, committed)} was given out")
    if not found["kept"] or found["left"]:
        faults.append("it does not keep a new row, or does not give rows back")
    if found["leftovers"]:
        faults.append(f"leftovers: {', '.join(found['leftovers'])}")
    return faults


def _asked(facts: Iterable[tuple[Mapping[str, Any], bool]], done: int) -> bool:
    """Whether somebody asked to forget so much; the fleet is judged by the ledger."""
    return any(entry.get("may") == "acknowledged" and entry["seq"] >= done for entry, _ in facts)


def _ledger(
    kind: str, facts: Sequence[tuple[Mapping[str, Any], bool]], seen: Counter[int], gaps: int
) -> list[str]:
    promised = {entry["number"] for entry, certain in facts if entry.get("is_") == kind and certain}
    begun = {entry["number"] for entry, _ in facts if kind in (entry.get("is_"), entry.get("may"))}
    faults = []
    missing = sorted(promised - set(seen))
    if len(missing) > gaps:
        faults.append(f"{len(missing)} promised {kind}s are lost ({_some(missing)}), gaps account for {gaps}")
    if twice := sorted(number for number, count in seen.items() if count > 1):
        faults.append(f"{kind}s are there twice: {_some(twice)}")
    if strange := sorted(set(seen) - begun):
        faults.append(f"{kind}s that nobody wrote: {_some(strange)}")
    return faults


def _windows(rows: Iterable[Mapping[str, Any]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for row in rows:
        for number, count in row["windows"]:
            found[number] += count
    return found


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (" ..." if len(numbers) > 5 else "")
