"""What came of the cases, as tables for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from skerry_packager import console

_TITLES: Final = {
    "kill": "killed at a system call",
    "fault": "a system call fails",
    "full": "disk full, without inodes, read-only",
    "order": "order of system calls",
    "cut": "power cut",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one case; ``faults`` are what was wrong."""

    name: str
    faults: tuple[str, ...]
    seconds: float

    @property
    def group(self) -> str:
        """The row of the table that it counts in."""
        parts = self.name.split("/")
        return "/".join(parts[:3]) if parts[0] == "cut" else parts[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Whether a planted mistake was caught, by each means that was tried: after how many cases, or none."""

    mistake: str
    tried: dict[str, int]
    caught: dict[str, int]
    example: str = ""

    @property
    def told(self) -> str:
        if not self.caught:
            return "NOT CAUGHT"
        return ", ".join(f"{title_of(means)} after {cases}" for means, cases in self.caught.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run."""

    seed: int
    machine: dict[str, Any]
    results: tuple[Result, ...]
    proofs: tuple[Proof, ...]
    skipped: str = ""
    """Why something could not be done here."""

    @property
    def bad(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.faults)

    @property
    def uncaught(self) -> tuple[Proof, ...]:
        return tuple(proof for proof in self.proofs if not proof.caught)

    def rows(self) -> list[tuple[str, int, int]]:
        """Means, cases, bad ones."""
        groups = list(dict.fromkeys(result.group for result in self.results))
        return [
            (title_of(group), len(members), sum(bool(result.faults) for result in members))
            for group in groups
            for members in [[result for result in self.results if result.group == group]]
        ]

    def as_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "machine": self.machine,
            "skipped": self.skipped,
            "means": [{"means": means, "cases": cases, "bad": bad} for means, cases, bad in self.rows()],
            "bad": [asdict(result) for result in self.bad],
            "mistakes": [asdict(proof) for proof in self.proofs],
        }

    def show(self) -> None:
        if self.results:
            console.table(("means", "cases", "bad"), self.rows(), right=("cases", "bad"), whole=("means",))
        if self.proofs:
            console.table(
                ("planted mistake", "caught by"),
                [(proof.mistake, proof.told) for proof in self.proofs],
                whole=("planted mistake",),
            )
            print(f"{len(self.proofs) - len(self.uncaught)}/{len(self.proofs)} planted mistakes caught")
        for result in self.bad[:20]:
            print(f"\nBAD {result.name}", *(_indented(fault) for fault in result.faults), sep="\n")
        if self.skipped:
            print(f"skipped: {self.skipped}")


def title_of(group: str) -> str:
    means, *rest = group.split("/")
    return ", ".join([_TITLES.get(means, means), *rest])


def merge(results: Iterable[Result]) -> Sequence[Result]:
    """In the order of their names, so that two runs can be compared."""
    return sorted(results, key=lambda result: result.name)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines()[-12:])
