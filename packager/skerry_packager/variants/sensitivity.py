"""How much noise each operator adds to the outputs when it alone is made smaller: the order of every search.

Deterministic: how many inputs are run depends on the work that one takes, never on the clock, unless the time
is up; what was not measured by then is sorted last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from skerry_contract.errors import ModelError

from ..engine import ENGINE, Feed, Session

MOST_INPUTS: Final = 8
MOST_PARTS: Final = 40
"""Sessions that are made; more operators than this are measured in blocks of neighbours."""
_WORK: Final = 5e10
"""Multiplications that all measurements together may take, about: some 5 seconds on a small computer."""
UNKNOWN: Final = math.inf
"""Noise of what crashes, gives NaN, or was not measured."""


@dataclass(frozen=True, slots=True)
class Part:
    """Something that can be made smaller by itself."""

    name: str
    gain: float
    """What that is worth, in any unit: the noise is divided by it."""


@dataclass(frozen=True, slots=True)
class Noise:
    """A part with the noise that it adds alone."""

    part: Part
    noise: float
    """Noise power over the signal's variance, of the output that suffers most; `UNKNOWN` if not measured."""

    @property
    def price(self) -> float:
        """Noise per gain."""
        return self.noise / self.part.gain if self.part.gain > 0 else UNKNOWN


def pick_inputs(feeds: Sequence[Feed], parts: int, work: float) -> list[Feed]:
    """At most `MOST_INPUTS` of them, evenly spread; fewer where one takes much work, but two if there are.

    Args:
        work: multiplications of one inference.
    """
    allowed = _WORK / max(work * max(min(parts, MOST_PARTS), 1), 1.0)
    count = min(len(feeds), MOST_INPUTS, max(2, int(allowed)))
    return [feeds[index * len(feeds) // count] for index in range(count)]


def rank(
    parts: Sequence[Part],
    reference: bytes,
    build: Callable[[Sequence[str]], bytes],
    feeds: Sequence[Feed],
    seconds_left: Callable[[], float],
    engine: str = ENGINE.name,
) -> tuple[list[Noise], bool]:
    """The parts, least noise per gain first, and whether all were measured.

    Args:
        reference: the model in which no part is smaller.
        build: makes the model in which those of the given names are.
        feeds: as from `pick_inputs`.

    Raises:
        ModelError: the reference does not run on the feeds.
    """
    session = Session(reference, engine)
    wanted = [session.run(feed) for feed in feeds]
    found: list[Noise] = []
    complete = True
    for block in _blocks(parts):
        noise = UNKNOWN
        if seconds_left() > 0:
            noise = _noise_of(build([part.name for part in block]), wanted, feeds, engine)
        else:
            complete = False
        total = sum(part.gain for part in block)
        found.extend(Noise(part, noise * part.gain / total if total else noise) for part in block)
    position = {part.name: index for index, part in enumerate(parts)}
    return sorted(found, key=lambda noise: (noise.price, position[noise.part.name])), complete


def _blocks(parts: Sequence[Part]) -> list[Sequence[Part]]:
    size = max(1, -(-len(parts) // MOST_PARTS))
    return [parts[start : start + size] for start in range(0, len(parts), size)]


def _noise_of(
    model: bytes, wanted: Sequence[Sequence[np.ndarray]], feeds: Sequence[Feed], engine: str
) -> float:
    try:
        session = Session(model, engine)
        got = [session.run(feed) for feed in feeds]
    except ModelError:
        return UNKNOWN
    outputs = range(len(session.output_names))
    return max(
        (relative_noise([row[index] for row in wanted], [row[index] for row in got]) for index in outputs),
        default=0.0,
    )


def relative_noise(wanted: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> float:
    """Power of the difference over the variance of the signal; share of changed numbers where they are
    whole; `UNKNOWN` if a shape differs or a number is not finite where it was."""
    noise = total = squares = 0.0
    count = 0
    for one, other in zip(wanted, got, strict=True):
        if one.shape != other.shape:
            return UNKNOWN
        if one.dtype.kind != "f":
            noise += float(np.count_nonzero(one != other))
            squares += one.size
            continue
        finite = np.isfinite(one)
        a, b = one[finite].astype(np.float64), other[finite].astype(np.float64)
        if not np.isfinite(b).all():
            return UNKNOWN
        noise += float(np.square(b - a).sum())
        total, squares, count = total + float(a.sum()), squares + float(a @ a), count + a.size
    power = squares - total**2 / count if count else squares
    if power <= 1e-12 * squares:
        power = squares
    if not power:
        return 0.0 if not noise else UNKNOWN
    return noise / power
