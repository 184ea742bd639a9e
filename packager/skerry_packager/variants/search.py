"""Search for the largest set of parts that may be made smaller within the allowed loss.

Parts are sorted by their price; a binary search finds how many of the cheapest pass, then the one that failed
is left out and the search goes on behind it. Every trial is recorded. Rows per trial follow from the work of
one inference and not from the clock, so that the same inputs give the same answer unless the time is up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from skerry_contract.digests import digest_of

from ..evaluate import Unsound
from .candidate import Job

MARGIN: Final = 0.8
"""Share of the allowed loss that a search aims at: it picks the best of many on the search rows, which
flatters it, and the held-out rows have the last word."""
_ROUNDS: Final = 3
"""How often the search goes on behind a part that failed."""
_TRIAL_WORK: Final = 2e10
"""Multiplications of one trial, about: some seconds on a small computer."""
_LEAST_ROWS: Final = 24
_GLANCE: Final = 4
"""A first look takes one row of so many."""

Build = Callable[[Sequence[str]], bytes]


@dataclass(slots=True)
class Search:
    """Trials of one variant."""

    job: Job
    work: float
    """Multiplications of one inference."""
    trace: list[dict[str, Any]] = field(default_factory=list)
    out_of_time: bool = False
    _slowest: float = 0.0
    _known: dict[str, bool] = field(default_factory=dict)
    """Digest of a draft -> whether it passed."""
    _saw_all: bool = False
    """Whether the search split has no more rows than a trial takes."""

    @property
    def remark(self) -> str:
        """What a note adds if the time was up."""
        return "; the time was up: another run may find another mixture" if self.out_of_time else ""

    @property
    def failure(self) -> str:
        """Why nothing was found."""
        if self.out_of_time:
            return f"the time was up before a mixture was found ({len(self.trace)} drafts tried)"
        return f"every mixture loses more than allowed ({len(self.trace)} drafts tried)"

    @property
    def rows(self) -> int:
        """Rows of a trial."""
        return max(_LEAST_ROWS, int(_TRIAL_WORK / max(self.work, 1.0)))

    def passes(self, count: int, make: Callable[[], bytes], all_rows: bool = False) -> bool:
        """Whether a draft with `count` parts made smaller keeps enough; False if the time is up."""
        if self.job.seconds_left() < 2 * self._slowest or self.job.seconds_left() <= 0:
            self.out_of_time = True
            return False
        start = time.monotonic()
        data = make()
        key = f"{digest_of(data)} {all_rows}"
        if key in self._known:
            return self._known[key]
        glanced = all_rows or self._try(count, data, max(8, self.rows // _GLANCE), glance=True)
        passed = glanced and self._try(count, data, 0 if all_rows else self.rows, glance=False)
        self._known[key] = passed
        self._slowest = max(self._slowest, time.monotonic() - start)
        return passed

    def _try(self, count: int, data: bytes, rows: int, glance: bool) -> bool:
        allowed = self.job.max_drop * (1.0 if rows == 0 else MARGIN)
        try:
            fidelity = self.job.trial(data, rows)
        except Unsound as unsound:
            self.trace.append({"parts": count, "passed": False, "reason": unsound.verdict.value})
            return False
        self._saw_all = self._saw_all or (not glance and rows > 0 and fidelity.samples < rows)
        # A glance rejects only what is worse than allowed for sure: the lower end of the interval.
        doubt = max(fidelity.drop_bound - fidelity.drop, 0.0)
        lost = fidelity.drop - doubt if glance else fidelity.drop_bound
        passed = lost <= allowed
        if not (glance and passed):
            self.trace.append(
                {
                    "parts": count, "rows": fidelity.samples, "drop": round(fidelity.drop, 6),
                    "bound": round(fidelity.drop_bound, 6), "passed": passed,
                }
            )  # fmt: skip
        return passed

    def largest(
        self, parts: Sequence[str], build: Build, repair: Callable[[str], None] | None = None
    ) -> list[str]:
        """The parts that may be made smaller together, in the order given.

        Args:
            parts: cheapest first.
            build: the model in which those of the given names are smaller.
            repair: changes how `build` treats one part; called before the part that failed is tried once more
                and called again to take the change back if that fails too.
        """
        chosen: list[str] = []
        pending = list(parts)
        for _ in range(_ROUNDS):
            taken = self._prefix(chosen, pending, build)
            chosen += pending[:taken]
            pending = pending[taken:]
            if not pending or self.out_of_time:
                break
            worst, pending = pending[0], pending[1:]
            if repair is not None:
                repair(worst)
                if self._fits([*chosen, worst], build):
                    chosen.append(worst)
                else:
                    repair(worst)
        return self._confirmed(chosen, build)

    def _fits(self, names: Sequence[str], build: Build) -> bool:
        return self.passes(len(names), lambda: build(names))

    def _prefix(self, chosen: Sequence[str], pending: Sequence[str], build: Build) -> int:
        """Largest k such that `chosen` and the first k of `pending` pass: log2 n trials."""
        low, high = 0, len(pending) + 1
        if not chosen and self._fits(pending, build):
            return len(pending)
        while high - low > 1 and not self.out_of_time:
            middle = (low + high) // 2
            if self._fits([*chosen, *pending[:middle]], build):
                low = middle
            else:
                high = middle
        return low

    def _confirmed(self, chosen: list[str], build: Build) -> list[str]:
        """On all rows; while that fails, a quarter of the most expensive goes."""
        while chosen and not self._saw_all:
            draft = tuple(chosen)
            if self.passes(len(draft), lambda: build(draft), all_rows=True) or self.out_of_time:  # noqa: B023
                break  # without time, what passed on fewer rows is the best there is
            chosen = chosen[: min(len(chosen) - 1, len(chosen) * 3 // 4)]
        return chosen
