"""From figures to positions: linear and logarithmic axes with round ticks, and labels that never overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_LOG_FROM: Final = 4.0
"""Figures that differ by more than this factor are drawn on a logarithmic axis."""
_PAD: Final = 0.09
"""Share of an axis that is left free at both ends."""


@dataclass(frozen=True, slots=True)
class Axis:
    """From a figure to a share of the axis, 0 to 1."""

    low: float
    high: float
    log: bool

    def at(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int, unit: float = 1.0) -> list[float]:
        """About so many round figures (in `unit`) inside of the axis."""
        low, high = self.low / unit, self.high / unit
        found = _round_in_decades(low, high) if self.log else []
        if len(found) > count + 2:
            found = [tick for tick in found if _leading(tick) == 1]
        while len(found) > 2 * count:
            found = found[::2]
        if len(found) < 2:
            found = _round_steps(low, high, count)
        return [tick * unit for tick in found]


def axis_of(values: Sequence[float]) -> Axis:
    """An axis that has room for positive figures; logarithmic where they differ much.

    >>> axis_of([1.0, 100.0]).log, axis_of([2.0, 3.0]).log, axis_of([5.0]).at(5.0)
    (True, False, 0.5)
    """
    low, high = min(values), max(values)
    if low > 0 and high / low > _LOG_FROM:
        room = (high / low) ** _PAD
        return Axis(low / room, high * room, True)
    room = (high - low) * _PAD * 1.5 or abs(high) * 0.2 or 1.0
    return Axis(low - room, high + room, False)


def _round_in_decades(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [step * 10.0**decade for decade in range(first, last + 1) for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def _round_steps(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / max(count, 1)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [index * step for index in range(first, last + 1)]


def _leading(value: float) -> int:
    return int(f"{value:e}"[0])


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; `x` and `y` are its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.x < other.x + other.width
            and other.x < self.x + self.width
            and self.y < other.y + other.height
            and other.y < self.y + self.height
        )

    def inside(self, other: Box) -> bool:
        return (
            other.x <= self.x
            and other.y <= self.y
            and self.x + self.width <= other.x + other.width
            and self.y + self.height <= other.y + other.height
        )


_DISTANCES: Final = (11, 15, 20, 28, 38, 50, 64, 80, 98, 118, 140, 165, 195, 230, 270, 320, 380, 450)
_DIRECTIONS: Final = 16


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    point_radius: float = 10.0,
) -> list[Box | None]:
    """A place for each point's label, as near as there is room, overlapping neither labels nor points.

    Greedy and deterministic. None only where the area has no room left at all.
    """
    taken = [Box(x - point_radius, y - point_radius, 2 * point_radius, 2 * point_radius) for x, y in points]
    placed: list[Box | None] = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        box = next(
            (
                box
                for box in _around(x, y, width, height)
                if box.inside(area) and not any(box.overlaps(other) for other in taken)
            ),
            None,
        )
        placed.append(box)
        if box is not None:
            taken.append(box)
    return placed


def _around(x: float, y: float, width: float, height: float) -> list[Box]:
    """Boxes around a point, the nearest first; at each distance right and left come first."""
    order = sorted(range(_DIRECTIONS), key=lambda step: min(step % 8, 8 - step % 8))
    boxes = []
    for distance in _DISTANCES:
        for step in order:
            angle = 2 * math.pi * step / _DIRECTIONS
            dx, dy = math.cos(angle), math.sin(angle)
            boxes.append(
                Box(
                    x + distance * dx - width * (1 - dx) / 2,
                    y + distance * dy - height * (1 - dy) / 2,
                    width,
                    height,
                )
            )
    return boxes
