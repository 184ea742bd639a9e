"""Does every variant of a bundle answer the same on every engine version and processor that it meets?

Each cell of the matrix is one variant in one environment: an engine at one version, on this machine or on an
emulated Arm core. A process of that environment loads the variant and answers the bundle's golden samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a cell showed, best first."""

    IDENTICAL = "identical"
    """Every output equals the recorded one, bit for bit."""
    WITHIN = "within tolerance"
    DIFFERS = "differs"
    """An output is outside of its tolerance: a device like this would refuse the variant."""
    FAILS = "fails"
    """The engine does not load or run the variant."""
    CRASHES = "crashes"
    """The process died, or did not end in time."""
    UNAVAILABLE = "unavailable"
    """The environment could not be made here: nothing is known."""

    @property
    def good(self) -> bool:
        return self in (Outcome.IDENTICAL, Outcome.WITHIN)


@dataclass(frozen=True, slots=True, order=True)
class Environment:
    """An inference library at one version, on this machine or on an emulated core."""

    library: str
    """As it is called where packages come from, such as ``onnxruntime``."""
    version: str
    cpu: str = ""
    """Name of an emulated Arm core, such as ``cortex-a53``; empty for this machine."""

    def __str__(self) -> str:
        return f"{self.library} {self.version}" + (f" on {self.cpu}" if self.cpu else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One variant in one environment."""

    variant: str
    environment: Environment
    outcome: Outcome
    detail: str = ""
    """What was wrong, in words."""
    max_abs_error: float | None = None
    """Largest difference from the recorded outputs; None where there is no answer."""
    seconds: float = 0.0
