"""Everything that decides in which state a rollout, or one device within it, may be next: two tables of data.

A rollout::

    draft -> running <-> paused
    running, paused -> halted -> reverting -> reverted      the gate failed, or an operator asked for it
    running -> completed                                     the last wave passed
    draft, running, paused -> aborted
    completed, aborted -> reverting
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from skerry_contract.errors import ConflictError
from skerry_contract.messages import Phase


class State(StrEnum):
    """Of a rollout."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    """No new wave begins; what runs is still watched."""
    HALTED = "halted"
    """The gate failed: nothing more is offered, and going back begins at once."""
    REVERTING = "reverting"
    """Every device that got it is being set back to its own previous healthy digest."""
    REVERTED = "reverted"
    COMPLETED = "completed"
    ABORTED = "aborted"


class Event(StrEnum):
    """What may happen to a rollout."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"
    REVERT = "revert"
    GATE_FAILED = "gate_failed"
    LAST_WAVE_PASSED = "last_wave_passed"
    SET_BACK_BEGUN = "set_back_begun"
    ALL_BACK = "all_back"


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = MappingProxyType(
    {
        (State.DRAFT, Event.START): State.RUNNING,
        (State.DRAFT, Event.ABORT): State.ABORTED,
        (State.RUNNING, Event.PAUSE): State.PAUSED,
        (State.RUNNING, Event.ABORT): State.ABORTED,
        (State.RUNNING, Event.REVERT): State.REVERTING,
        (State.RUNNING, Event.GATE_FAILED): State.HALTED,
        (State.RUNNING, Event.LAST_WAVE_PASSED): State.COMPLETED,
        (State.PAUSED, Event.RESUME): State.RUNNING,
        (State.PAUSED, Event.ABORT): State.ABORTED,
        (State.PAUSED, Event.REVERT): State.REVERTING,
        (State.PAUSED, Event.GATE_FAILED): State.HALTED,
        (State.HALTED, Event.SET_BACK_BEGUN): State.REVERTING,
        (State.REVERTING, Event.ALL_BACK): State.REVERTED,
        (State.COMPLETED, Event.REVERT): State.REVERTING,
        (State.ABORTED, Event.REVERT): State.REVERTING,
    }
)

ACTIVE: Final = frozenset({State.RUNNING, State.PAUSED, State.HALTED, State.REVERTING})
"""The engine looks after these."""
FINAL: Final = frozenset({State.REVERTED, State.COMPLETED, State.ABORTED})
WATCHED: Final = frozenset({State.RUNNING, State.PAUSED, State.COMPLETED})
"""In these, what a device reports counts; a device that was offline may come late."""


def next_state(state: State, event: Event) -> State:
    """Raises `ConflictError`: the event does not fit the state.

    >>> next_state(State.RUNNING, Event.PAUSE)
    <State.PAUSED: 'paused'>
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        possible = ", ".join(other.value for known, other in TRANSITIONS if known is state) or "nothing"
        raise ConflictError(
            f"a rollout that is {state} cannot {event}", hint=f"Possible now: {possible}."
        ) from None


class Step(StrEnum):
    """How far one device is within a rollout: a `Phase`, or what only the fleet knows."""

    PENDING = "pending"
    """Its wave has not begun."""
    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    SELF_TEST = "self_test"
    PROBATION = "probation"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"
    """Silent past the deadline; on probation: away past the deadline."""
    WITHDRAWN = "withdrawn"
    """The offer was taken back before it came to an end, or the device was removed."""


IN_FLIGHT: Final = frozenset(
    {Step.OFFERED, Step.DOWNLOADING, Step.VERIFYING, Step.STAGED, Step.SELF_TEST, Step.PROBATION}
)
FAILED: Final = frozenset({Step.ROLLED_BACK, Step.REJECTED, Step.TIMED_OUT})

FOLLOWS: Final[Mapping[Step, frozenset[Step]]] = MappingProxyType(
    {
        **dict.fromkeys(IN_FLIGHT, (IN_FLIGHT - {Step.OFFERED}) | {Step.CONFIRMED} | FAILED),
        # A device may fail after it was confirmed, and one given up as silent may still tell its end.
        Step.CONFIRMED: frozenset({Step.ROLLED_BACK, Step.REJECTED}),
        Step.TIMED_OUT: frozenset({Step.CONFIRMED, Step.ROLLED_BACK, Step.REJECTED}),
    }
)
"""Which steps a report may lead to; from any other step no report leads away."""


def step_after(step: Step, phase: Phase) -> Step:
    """The step of a device that reports a phase.

    >>> step_after(Step.OFFERED, Phase.DOWNLOADING)
    <Step.DOWNLOADING: 'downloading'>
    >>> step_after(Step.ROLLED_BACK, Phase.CONFIRMED)
    <Step.ROLLED_BACK: 'rolled_back'>
    """
    reported = Step(phase)
    return reported if reported in FOLLOWS.get(step, frozenset()) else step
