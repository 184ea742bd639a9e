"""What must be true of a device's models after a kill, a failing disk or a power cut; pure.

From the notes that a child left: what it had been promised is for good, what it was just doing may be there
or not, and nothing else may. An empty list of faults is a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.torture.board import Note


@dataclass(slots=True, kw_only=True)
class Truth:
    """Which pointers may be found."""

    current: set[int | None]
    previous: int | None
    pending: set[int | None]
    floor: int
    bad: set[str]
    may_be_bad: set[str] = field(default_factory=set)
    first: int | None = None
    """It may be put on trial whenever there is no other."""
    rotten: bool = False
    """A pointer could not be read, again and again: what was on trial may be forgotten."""
    _now: int | None = None
    """The current one by the last promise."""
    going_back: bool = False
    """A rollback was decided: what is on trial may be dropped at the next start."""

    @classmethod
    def of(cls, found: Mapping[str, Any], first: int | None = None) -> Truth:
        """Of a folder in which nothing goes on; an empty mapping is a device without models."""
        return cls(
            current={found.get("current")},
            first=first,
            _now=found.get("current"),
            previous=found.get("previous"),
            pending={found.get("pending")},
            floor=found.get("floor", 0),
            bad=set(found.get("bad", ())),
        )

    def follow(self, notes: Iterable[Note], before_ns: int | None = None) -> None:
        """Take the notes in; what was done after ``before_ns`` may have been lost."""
        for note in notes:
            facts = note.facts
            certain = "is_" in facts and (before_ns is None or note.at_ns < before_ns)
            match facts.get("is_") or facts.get("may"):
                case "current":
                    if certain:
                        if facts.get("back"):
                            self.previous = None
                        elif self._now != facts["release"]:
                            self.previous = self._now
                        self._now = facts["release"]
                        self.current = {facts["release"]}
                        self.floor = max(self.floor, facts["floor"])
                    else:
                        self.current.add(facts["release"])
                case "pending":
                    self.pending = {facts["release"]} if certain else self.pending | {facts["release"]}
                    self.going_back = False
                case "no pending":
                    self.pending = {None} if certain else self.pending | {None}
                case "bad":
                    (self.bad if certain else self.may_be_bad).add(facts["digest"])
                case "not bad":
                    self.bad.discard(facts["digest"])
                    self.may_be_bad.add(facts["digest"])
                case "record":
                    self.going_back = self.going_back or facts["state"] == "rolled_back"

    def faults(self, found: Mapping[str, Any]) -> list[str]:
        """Of what `examine` found after the recovery."""
        allowed = set(self.current)
        if self.bad or self.may_be_bad or self.going_back:
            # A rollback of a confirmed generation may be finished by the recovery.
            allowed.add(self.previous)
        pending = self.pending | {self.first}
        answers = allowed | (pending - {None})
        faults = [f"a traceback: {fault}" for fault in found["faults"]]
        if found["answers"] not in answers:
            faults.append(f"release {found['answers']} answers, allowed are {_named(answers)}")
        if found["current"] not in allowed:
            faults.append(f"the pointer names {found['current']}, allowed are {_named(allowed)}")
        if found["floor"] < self.floor:
            faults.append(f"the security floor fell from {self.floor} to {found['floor']}")
        if lost := self.bad - set(found["bad"]):
            faults.append(f"{len(lost)} quarantined bundles are forgotten")
        if found["pending"] is not None and found["pending"] not in pending:
            faults.append(f"release {found['pending']} is on trial, allowed are {_named(self.pending)}")
        dropped = found["pending"] is None and None not in self.pending
        excused = self.rotten or self.going_back or self.bad or self.may_be_bad or self.pending & self.current
        if dropped and not excused:
            faults.append(f"release {_named(self.pending)} was on trial and is forgotten")
        return faults


def faults_of_next(found: Mapping[str, Any], release: int) -> list[str]:
    """Of what `carry_on` found: the next install works, and nothing is left lying about."""
    faults = [f"a traceback: {fault}" for fault in found["faults"]]
    if (found["answers"], found["current"], found["state"]) != (release, release, "confirmed"):
        state = f"{found['answers']} answers, {found['current']} is current, {found['state']}"
        faults.append(f"the next install failed: {state}, errors {found['errors']}")
    if found["leftovers"]:
        faults.append(f"leftovers: {', '.join(found['leftovers'])}")
    return faults


def _named(releases: Iterable[int | None]) -> str:
    return " or ".join(sorted("none" if release is None else str(release) for release in releases))
