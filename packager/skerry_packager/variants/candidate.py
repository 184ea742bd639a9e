"""What a generator gets and what it returns: a candidate, or why there is none. Never a silent no-op."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..engine import Feed
from ..results import Fidelity, Objective, Sensitivity, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One form of the model, not yet judged."""

    name: str
    data: bytes
    """The model file."""
    recipe: Mapping[str, Any]
    """Enough to make it again; JSON values only."""
    note: str = ""
    quantized_compute: bool = False
    """Whether it calculates in integers, so that its outputs may differ between machines."""
    sensitivity: tuple[Sensitivity, ...] = ()
    """Of a mixed-precision variant."""
    ram_bounds: tuple[int, int] | None = None
    """Lower and upper bound of its RAM in bytes, where they do not follow from the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """No candidate, and why."""

    name: str
    reason: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


Outcome = Candidate | Skipped

Trial = Callable[[bytes, int], Fidelity]
"""``trial(model, most rows)``: what a draft keeps on the first rows of the search split; 0 takes them all.

Raises `skerry_packager.evaluate.Unsound` if the draft crashes or gives NaN or other shapes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all generators of one packaging run share."""

    source: bytes
    """The normalized model that every variant is made from."""
    calibration: Sequence[Feed]
    """Complete sets of inputs; of a stateful model those of fp32's own rollouts."""
    targets: Sequence[Target]
    max_drop: float
    objective: Objective = Objective.SIZE
    """What a search prefers among mixtures that keep as much."""
    trial: Trial
    seconds_left: Callable[[], float]
    """Until the time for generating is up; a search stops there with the best that it has."""
