"""The install state machine: every state x every event is in the table or refused, and recovery is total."""

from __future__ import annotations

import itertools

import pytest

from skerry_contract.errors import ConflictError
from skerry_contract.messages import FINAL_PHASES
from skerry_runtime.agent.update import (
    MAX_SELF_TESTS,
    SETTLED,
    TRANSITIONS,
    Action,
    Event,
    UpdateState,
    phase_of,
    recover,
    step,
)

S, E = UpdateState, Event
HAPPY_PATH_FLEET = [
    (E.OFFERED, S.DOWNLOADING),
    (E.DESCRIBED, S.VERIFYING),
    (E.TRUSTED, S.DOWNLOADING),
    (E.BUILT, S.STAGED),
    (E.DUE, S.SELF_TEST),
    (E.PASSED, S.PENDING),
    (E.ACTIVATED, S.PROBATION),
    (E.HEALTHY, S.CONFIRMED),
]
HAPPY_PATH_FILE = [
    (E.OFFERED_FILE, S.VERIFYING),
    (E.BUILT, S.STAGED),
    (E.DUE, S.SELF_TEST),
    (E.PASSED, S.PENDING),
    (E.ACTIVATED, S.PROBATION),
    (E.HEALTHY, S.CONFIRMED),
]


@pytest.mark.parametrize(("state", "event"), list(itertools.product(S, E)))
def test_every_state_and_event_has_an_answer(state: UpdateState, event: Event) -> None:
    if (state, event) in TRANSITIONS:
        assert step(state, event)[0] is TRANSITIONS[state, event]
    else:
        with pytest.raises(ConflictError):
            step(state, event)


@pytest.mark.parametrize("path", [HAPPY_PATH_FLEET, HAPPY_PATH_FILE], ids=["fleet", "file"])
@pytest.mark.parametrize("start", sorted(SETTLED))
def test_an_update_goes_its_way_from_every_settled_state(
    path: list[tuple[Event, UpdateState]], start: UpdateState
) -> None:
    state = start
    for event, expected in path:
        state, _ = step(state, event)
        assert state is expected


def test_every_state_can_be_reached_and_left() -> None:
    assert {to for to in TRANSITIONS.values()} == set(S)
    assert {state for state, _ in TRANSITIONS} == set(S)


def test_every_event_and_every_action_is_used() -> None:
    assert {event for _, event in TRANSITIONS} == set(E)
    used = {action for state, event in TRANSITIONS for action in step(state, event)[1]}
    assert used == set(Action)


@pytest.mark.parametrize("state", sorted(set(S) - SETTLED))
def test_whatever_goes_on_can_fail_and_settles_then(state: UpdateState) -> None:
    for event in (E.REFUSED, E.SUPERSEDED):
        assert step(state, event)[0] in SETTLED


def test_nothing_live_is_touched_before_the_self_test_passed() -> None:
    for (state, event), to in TRANSITIONS.items():
        if Action.ACTIVATE in step(state, event)[1]:
            assert (state, event, to) == (S.SELF_TEST, E.PASSED, S.PENDING)


@pytest.mark.parametrize("state", [S.SELF_TEST, S.PENDING, S.PROBATION])
def test_a_model_that_misbehaves_is_quarantined_and_what_answered_before_answers(state: UpdateState) -> None:
    to, actions = step(state, E.CONDEMNED)
    assert to is (S.REJECTED if state is S.SELF_TEST else S.ROLLED_BACK)
    assert actions[0] is Action.QUARANTINE
    assert (Action.RESTORE in actions) is (state is not S.SELF_TEST)


def test_being_superseded_or_refused_quarantines_nothing() -> None:
    for state, event in TRANSITIONS:
        if event in (E.SUPERSEDED, E.REFUSED):
            assert Action.QUARANTINE not in step(state, event)[1]


def test_confirming_happens_from_probation_only() -> None:
    confirming = [key for key in TRANSITIONS if Action.CONFIRM in step(*key)[1]]
    assert confirming == [(S.PROBATION, E.HEALTHY)]


@pytest.mark.parametrize("state", sorted(S))
def test_final_states_are_final_phases(state: UpdateState) -> None:
    phase = phase_of(state)
    assert (phase in FINAL_PHASES) is (state in SETTLED - {S.IDLE})


# --- recovery ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", sorted(S))
@pytest.mark.parametrize("has_pending", [False, True])
@pytest.mark.parametrize("current", [False, True])
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("self_tests", [0, MAX_SELF_TESTS])
def test_after_a_kill_in_any_state_the_pointers_decide(
    state: UpdateState, has_pending: bool, current: bool, bad: bool, self_tests: int
) -> None:
    if has_pending and current:
        return  # The slots' own recovery has dropped such a pointer.
    found = recover(
        state, has_pending=has_pending, target_is_current=current, target_is_bad=bad, self_tests=self_tests
    )
    assert found in SETTLED | {S.PENDING}
    if current:
        assert found is S.CONFIRMED
    if has_pending:
        assert found is (S.ROLLED_BACK if state is S.ROLLED_BACK else S.PENDING)
    if found is S.CONFIRMED:
        assert current


def test_a_download_that_was_killed_begins_again() -> None:
    found = recover(
        S.DOWNLOADING, has_pending=False, target_is_current=False, target_is_bad=False, self_tests=0
    )
    assert found is S.IDLE


def test_a_self_test_that_takes_the_machine_with_it_is_not_repeated_for_ever() -> None:
    def after(self_tests: int) -> UpdateState:
        return recover(
            S.SELF_TEST,
            has_pending=False,
            target_is_current=False,
            target_is_bad=False,
            self_tests=self_tests,
        )

    assert after(MAX_SELF_TESTS - 1) is S.IDLE
    assert after(MAX_SELF_TESTS) is S.REJECTED
