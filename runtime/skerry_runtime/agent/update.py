"""The install state machine, all of it: what may follow what, and what is to be done then.

Pure. `step` gives the next state and the actions; the caller makes the new state durable *before* it acts,
so a kill at any point finds on disk either the old state or the new one, and `recover` says where to go on.
The truth is in the pointers (``pending``, ``current``, ``bad``); the recorded state only remembers what to
report.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from skerry_contract.errors import ConflictError
from skerry_contract.messages import Phase


class UpdateState(StrEnum):
    """How far the newest bundle of one model is."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    SELF_TEST = "self_test"
    PENDING = "pending"
    """The pointer ``pending`` is written; the new worker is being started."""
    PROBATION = "probation"
    """It answers; the previous one is warm."""
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    REJECTED = "rejected"


class Event(StrEnum):
    """What can happen to an update."""

    OFFERED = "offered"
    """The fleet desires a bundle that is neither active nor quarantined."""
    OFFERED_FILE = "offered_file"
    """A person gave a bundle file."""
    ALREADY_ACTIVE = "already_active"
    """The desired bundle is the confirmed one."""
    QUARANTINED = "quarantined"
    """The desired bundle failed here before."""
    DESCRIBED = "described"
    """Manifest and signature are in the store."""
    TRUSTED = "trusted"
    """The signature is right, the release is allowed, a variant was chosen."""
    BUILT = "built"
    """Every blob was hashed and the generation's folder is complete."""
    DUE = "due"
    """It is time to test what is staged."""
    PASSED = "passed"
    """The self-test passed in a disposable process."""
    ACTIVATED = "activated"
    """The new worker answers."""
    HEALTHY = "healthy"
    """Probation is over and nothing was wrong."""
    INTERRUPTED = "interrupted"
    """The network failed, or the disk lost what had arrived; trying again is sensible."""
    REFUSED = "refused"
    """It cannot be installed here and now; the content is not to blame."""
    CONDEMNED = "condemned"
    """The model misbehaves on this device."""
    SUPERSEDED = "superseded"
    """Another bundle is desired now."""
    REVERTED = "reverted"
    """A person or the fleet asked for the last good one."""


class Action(StrEnum):
    """What the agent does after a step, in this order."""

    DESCRIBE = "describe"
    """Download manifest and signature."""
    VERIFY = "verify"
    """Check them in the trust process, choose the variant."""
    IMPORT = "import"
    """The same from a file; its blobs go into the store on the way."""
    FETCH = "fetch"
    """Download the missing blobs, build the generation."""
    SCHEDULE = "schedule"
    """Wait until a self-test may run."""
    TEST = "test"
    """Run the self-test."""
    ACTIVATE = "activate"
    """WRITE ``pending``, start the new worker."""
    WATCH = "watch"
    """Judge its health until probation ends."""
    CONFIRM = "confirm"
    """WRITE ``current``, unlink ``pending``, stop the previous worker."""
    QUARANTINE = "quarantine"
    """WRITE ``bad/<digest>``."""
    RESTORE = "restore"
    """Unlink ``pending``, let the previous worker answer."""
    FALL_BACK = "fall_back"
    """WRITE ``current`` to the last good generation, start its worker."""
    ABANDON = "abandon"
    """Stop whatever still runs for this update."""
    RETRY = "retry"
    """Try the download again after a pause."""
    COLLECT = "collect"
    """Remove what no generation needs."""


_S, _E, _A = UpdateState, Event, Action
SETTLED: Final = frozenset({_S.IDLE, _S.CONFIRMED, _S.ROLLED_BACK, _S.REJECTED})
"""Nothing is going on."""
_PREPARING: Final = (_S.DOWNLOADING, _S.VERIFYING, _S.STAGED, _S.SELF_TEST)
"""Going on, and nothing live was touched yet."""
_LIVE: Final = (_S.PENDING, _S.PROBATION)
"""The pointer is written; undoing means rolling back."""


def _table() -> dict[tuple[UpdateState, Event], tuple[UpdateState, tuple[Action, ...]]]:
    table: dict[tuple[UpdateState, Event], tuple[UpdateState, tuple[Action, ...]]] = {
        (_S.DOWNLOADING, _E.DESCRIBED): (_S.VERIFYING, (_A.VERIFY,)),
        (_S.VERIFYING, _E.TRUSTED): (_S.DOWNLOADING, (_A.FETCH,)),
        (_S.DOWNLOADING, _E.BUILT): (_S.STAGED, (_A.SCHEDULE,)),
        (_S.VERIFYING, _E.BUILT): (_S.STAGED, (_A.SCHEDULE,)),
        (_S.STAGED, _E.DUE): (_S.SELF_TEST, (_A.TEST,)),
        (_S.SELF_TEST, _E.PASSED): (_S.PENDING, (_A.ACTIVATE,)),
        (_S.PENDING, _E.ACTIVATED): (_S.PROBATION, (_A.WATCH,)),
        (_S.PROBATION, _E.HEALTHY): (_S.CONFIRMED, (_A.CONFIRM, _A.COLLECT)),
        (_S.DOWNLOADING, _E.INTERRUPTED): (_S.DOWNLOADING, (_A.RETRY,)),
        (_S.VERIFYING, _E.INTERRUPTED): (_S.DOWNLOADING, (_A.RETRY,)),
        (_S.SELF_TEST, _E.CONDEMNED): (_S.REJECTED, (_A.QUARANTINE, _A.ABANDON, _A.COLLECT)),
    }
    for state in SETTLED:
        table[state, _E.OFFERED] = (_S.DOWNLOADING, (_A.DESCRIBE,))
        table[state, _E.OFFERED_FILE] = (_S.VERIFYING, (_A.IMPORT,))
        table[state, _E.ALREADY_ACTIVE] = (_S.CONFIRMED, ())
        table[state, _E.QUARANTINED] = (_S.REJECTED, ())
        table[state, _E.REVERTED] = (_S.ROLLED_BACK, (_A.QUARANTINE, _A.FALL_BACK, _A.COLLECT))
    for state in _PREPARING:
        table[state, _E.REFUSED] = (_S.REJECTED, (_A.ABANDON, _A.COLLECT))
        table[state, _E.SUPERSEDED] = (_S.IDLE, (_A.ABANDON,))
    for state in _LIVE:
        table[state, _E.REFUSED] = (_S.ROLLED_BACK, (_A.RESTORE, _A.COLLECT))
        table[state, _E.CONDEMNED] = (_S.ROLLED_BACK, (_A.QUARANTINE, _A.RESTORE, _A.COLLECT))
        table[state, _E.REVERTED] = (_S.ROLLED_BACK, (_A.QUARANTINE, _A.RESTORE, _A.COLLECT))
        table[state, _E.SUPERSEDED] = (_S.ROLLED_BACK, (_A.RESTORE, _A.COLLECT))
    return table


_TABLE: Final = _table()
TRANSITIONS: Final[Mapping[tuple[UpdateState, Event], UpdateState]] = {
    key: to for key, (to, _) in _TABLE.items()
}
"""The whole machine. Documentation and tests are made from it."""


def step(state: UpdateState, event: Event) -> tuple[UpdateState, tuple[Action, ...]]:
    """The next state and what to do there.

    Raises:
        ConflictError: the state does not allow the event; nothing changes.
    """
    try:
        return _TABLE[state, event]
    except KeyError:
        raise ConflictError(
            f"an update that is {state} cannot be {event}", hint="Wait until it is finished, then try again."
        ) from None


MAX_SELF_TESTS: Final = 3
"""Self-tests of one bundle that may end with the whole agent or machine before it is quarantined."""


def recover(
    state: UpdateState, *, has_pending: bool, target_is_current: bool, target_is_bad: bool, self_tests: int
) -> UpdateState:
    """Where an update stands after a kill: the pointers decide, the recorded state only names the end.

    Args:
        state: as recorded before the kill.
        has_pending: the pointer ``pending`` is there (recovery of the slots has finished half-done steps).
        target_is_current: ``current`` points to the bundle of this update.
        target_is_bad: it is quarantined.
        self_tests: how many self-tests of it were begun and not finished.
    """
    if has_pending:
        # A rollback that was decided is finished; everything else goes through probation again.
        return _S.ROLLED_BACK if state is _S.ROLLED_BACK else _S.PENDING
    if target_is_current:
        return _S.CONFIRMED
    if state in (*_LIVE, _S.CONFIRMED):
        return _S.ROLLED_BACK if target_is_bad else _S.IDLE
    if state is _S.SELF_TEST and (target_is_bad or self_tests >= MAX_SELF_TESTS):
        return _S.REJECTED
    if state in _PREPARING:
        return _S.IDLE
    return state


_PHASES: Final[Mapping[UpdateState, Phase | None]] = {
    _S.IDLE: None,
    _S.DOWNLOADING: Phase.DOWNLOADING,
    _S.VERIFYING: Phase.VERIFYING,
    _S.STAGED: Phase.STAGED,
    _S.SELF_TEST: Phase.SELF_TEST,
    _S.PENDING: Phase.SELF_TEST,
    _S.PROBATION: Phase.PROBATION,
    _S.CONFIRMED: Phase.CONFIRMED,
    _S.ROLLED_BACK: Phase.ROLLED_BACK,
    _S.REJECTED: Phase.REJECTED,
}


def phase_of(state: UpdateState) -> Phase | None:
    """What the fleet is told; ``pending`` is still before the first answered request."""
    return _PHASES[state]
