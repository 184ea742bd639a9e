"""Rollouts as they enter and leave the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skerry_contract.messages import ErrorReport, Probation

from .policy import Gate
from .states import State, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """What an operator asks for."""

    model: str
    version: str
    waves: Sequence[int | float] = (0.1, 0.5, 1.0)
    """How much each wave reaches in all: fractions, or whole numbers of devices."""
    selector: Mapping[str, str] | None = None
    """Only devices that carry all of these labels."""
    probation: Probation = field(default_factory=Probation)
    jitter_s: float = 0.0
    """Each device waits a random time up to this before it downloads."""
    deadline_s: float = 3600.0
    """Silence of a device for longer than this is a failure. A device on probation may take its time while it
    is online; away from the fleet for longer than this, it has failed too."""
    max_failures: int = 0
    """Devices that may fail, in all waves together."""
    start: bool = True
    """False leaves it a draft."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """One device within a rollout."""

    device: str
    phase: Step
    unknown: bool
    """It was offline before the offer, and still is."""
    previous: str | None
    """What it goes back to."""
    offered_ms: int | None
    finished_ms: int | None
    error: ErrorReport | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictView:
    """What the gate of a wave decided; it holds before the wave has begun."""

    decision: Gate
    reasons: list[str]
    """Whole sentences. Of a wave that passed they tell what is true now, also if a device failed later."""
    at_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveView:
    number: int
    reaches: str
    begun_ms: int | None
    verdict: VerdictView
    devices: list[MemberView]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutView:
    """One rollout of a list."""

    id: str
    model: str
    version: str
    digest: str
    state: State
    final: bool
    """Nothing more happens by itself."""
    reason: str
    """Why it is in this state; of a completed one, how its devices are now."""
    wave: int
    """The current one, from 1."""
    wave_count: int
    devices: int
    phases: Mapping[str, int]
    """Devices by phase."""
    selector: Mapping[str, str]
    probation: Probation
    jitter_s: float
    deadline_s: float
    max_failures: int
    created_ms: int
    finished_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutDetail(RolloutView):
    """One rollout with its waves and their devices."""

    waves: list[WaveView]
