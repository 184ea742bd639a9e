"""Which operators are timed, in which sizes and datatypes: the grid of the operator table.

A case is a chain of equal operators. Timing a chain of one and a longer one, and dividing the difference by
the operators between them, leaves the operator alone: the call from Python, the copies in and out and the
engine's change of layout at both ends fall out. Every link has weights of its own, as layers have.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Final

from ..engines import Array
from .work import Work

DENSE: Final = ((32, 32), (16, 8), (64, 16), (128, 8), (32, 64), (64, 56))
"""(channels, side) of convolutions 3 x 3; in the order of importance, as all these."""
NARROW: Final = ((8, 32, 3), (3, 64, 3), (8, 16, 9), (1, 64, 5), (8, 64, 5))
"""(channels, side, kernel) of convolutions with few channels."""
POINTWISE: Final = ((64, 16), (32, 8), (16, 64), (128, 16), (256, 4), (128, 32))
DEPTHWISE: Final = ((64, 16), (32, 8), (16, 64), (256, 8), (64, 56))
MATMUL: Final = ((64, 256), (16, 64), (128, 64), (16, 512), (256, 256))
"""(rows, size of the square matrix)."""
MATVEC: Final = (256, 64, 1024, 512)
COUNTS: Final = (16_384, 1024, 131_072, 524_288)
"""Elements of element-wise operators."""
ROWS: Final = ((64, 256), (8, 128), (512, 64), (256, 1024))
SEQUENCES: Final = ((16, 64), (1, 128), (64, 32), (32, 128))
"""(steps, width) of recurrent operators."""


@dataclass(frozen=True, slots=True)
class Case:
    """One point of the grid."""

    operator: str
    """Name in the engine, for people."""
    size: str
    """For people: ``32 channels, 16 x 16``."""
    work: Work
    """Of one operator of the chain."""
    build: Callable[[int], bytes]
    """The model: a chain of so many operators."""
    feed: Callable[[], Mapping[str, Array]]
    """Its input."""


def cases(engine: str) -> tuple[Case, ...]:
    """All points for an engine, by its name in the manifest."""
    grid = importlib.import_module(f"{__package__}.{engine}_cases")
    return interleave(list(grid.families()))


def interleave(families: Sequence[Sequence[Case]]) -> tuple[Case, ...]:
    """One of each family first, so that a run that is cut short knows something of all."""
    return tuple(case for row in zip_longest(*families) for case in row if case is not None)
