"""Rounds that take turns, and what they say together: ratios within a round, median, quartiles. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from .gates import Figure


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the rounds."""

    median: float
    low: float
    high: float
    """First and third quartile."""

    def figure(self, detail: str = "") -> Figure:
        return Figure(value=self.median, low=self.low, high=self.high, detail=detail)


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError for no values."""
    if len(values) < 2:
        only = median(values) if values else _nothing()
        return Spread(only, only, only)
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), low, high)


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of each round ours over theirs. Raises ValueError for no rounds, or for another number of them."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def differences(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Of each round ours less theirs."""
    return spread([one - other for one, other in zip(ours, theirs, strict=True)])


def in_turns(rounds: int, sides: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Let every side measure once a round; who begins goes around: nobody is always after the same."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(sides[name]())
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """Nearest rank. Raises ValueError for no values."""
    if not values:
        _nothing()
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _nothing() -> float:
    raise ValueError("nothing was measured")
