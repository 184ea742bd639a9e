"""What decides a rollout: cohorts and gates, as pure functions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_contract.errors import ConflictError, InputError
from skerry_contract.messages import Phase
from skerry_fleet.rollouts.policy import (
    Gate,
    Member,
    bucket,
    failure_rate_bound,
    judge,
    overdue,
    plan_waves,
    tell_counts,
    tell_passed,
)
from skerry_fleet.rollouts.states import (
    FAILED,
    FINAL,
    FOLLOWS,
    IN_FLIGHT,
    TRANSITIONS,
    Event,
    State,
    Step,
    next_state,
    step_after,
)

DEVICES = [f"pi-{number}" for number in range(10)]


def member(
    device: str, step: Step, *, reachable: bool = True, online: bool = True, error: str = ""
) -> Member:
    return Member(device=device, step=step, reachable=reachable, online=reachable and online, error=error)


def verdict(*wave: Member, earlier: tuple[Member, ...] = (), max_failures: int = 0) -> tuple[Gate, str]:
    found = judge(number=1, waves=3, wave=wave, earlier=earlier, max_failures=max_failures)
    assert all(reason.endswith(".") and not reason.endswith("..") for reason in found.reasons), found.reasons
    return found.gate, " ".join(found.reasons)


# --- waves ---


def test_waves_reach_as_far_as_asked_and_add_up() -> None:
    waves = plan_waves("r1", DEVICES, [0.2, 0.5, 1.0])
    assert [len(wave.devices) for wave in waves] == [2, 3, 5]
    assert [wave.reaches for wave in waves] == ["20%", "50%", "100%"]
    assert sorted(name for wave in waves for name in wave.devices) == DEVICES


def test_whole_numbers_count_devices() -> None:
    waves = plan_waves("r1", DEVICES, [1, 4])
    assert [len(wave.devices) for wave in waves] == [1, 3]
    assert [wave.reaches for wave in waves] == ["1", "4"]


def test_cohorts_are_deterministic_and_differ_between_rollouts() -> None:
    first = plan_waves("r1", DEVICES, [0.5, 1.0])
    assert plan_waves("r1", DEVICES[::-1], [0.5, 1.0]) == first
    assert plan_waves("r2", DEVICES, [0.5, 1.0]) != first


def test_a_wave_is_the_devices_of_the_lowest_buckets() -> None:
    first, second = plan_waves("r1", DEVICES, [0.3, 1.0])
    assert max(bucket("r1", name) for name in first.devices) < min(
        bucket("r1", name) for name in second.devices
    )


def test_the_first_wave_always_reaches_somebody() -> None:
    assert [len(wave.devices) for wave in plan_waves("r1", ["pi-1"], [0.01, 1.0])] == [1, 0]


@pytest.mark.parametrize(
    "reach",
    [[], [0.0, 1.0], [0.5, 0.2], [0.5, 0.5], [0.5, 1.5], [-1], [1, 2.5], [float("nan")], [float("inf")]],
)
def test_impossible_waves_are_refused(reach: list[float]) -> None:
    with pytest.raises(InputError):
        plan_waves("r1", DEVICES, reach)


@given(
    st.lists(st.integers(0, 10_000), unique=True, min_size=1, max_size=60),
    st.lists(st.floats(0.001, 0.999), unique=True, max_size=6),
)
def test_every_device_is_in_exactly_one_wave(numbers: list[int], reach: list[float]) -> None:
    names = [str(number) for number in numbers]
    waves = plan_waves("r", names, [*sorted(reach), 1.0])
    assert sorted(name for wave in waves for name in wave.devices) == sorted(names)


# --- gates ---


def test_a_gate_passes_when_everybody_confirmed_and_says_what_that_proves() -> None:
    gate, why = verdict(*[member(f"pi-{n}", Step.CONFIRMED) for n in range(5)])
    assert gate is Gate.PASS
    assert "5 of 5 devices confirmed" in why
    assert "0 failures in 5 devices: with 95% confidence, fewer than 45% of devices fail." in why


@pytest.mark.parametrize("step", [*sorted(IN_FLIGHT), Step.PENDING])
def test_a_gate_holds_while_somebody_is_on_the_way(step: Step) -> None:
    gate, why = verdict(member("pi-1", Step.CONFIRMED), member("pi-2", step))
    assert gate is Gate.HOLD
    assert "pi-2" in why


@pytest.mark.parametrize("step", sorted(FAILED))
def test_one_failure_too_many_fails_the_gate_at_once_and_names_the_device(step: Step) -> None:
    gate, why = verdict(
        member("pi-1", Step.PROBATION), member("pi-2", step, error="budget.memory: 412 MB"), max_failures=0
    )
    assert gate is Gate.FAIL
    assert "pi-2" in why
    assert "budget.memory: 412 MB" in why
    assert "more than the 0 allowed" in why


def test_allowed_failures_let_a_gate_pass_with_a_wider_bound() -> None:
    wave = [member("pi-0", Step.ROLLED_BACK), *[member(f"pi-{n}", Step.CONFIRMED) for n in range(1, 30)]]
    gate, why = verdict(*wave, max_failures=1)
    assert gate is Gate.PASS
    assert "1 failure in 30 devices: with 95% confidence, fewer than 15% of devices fail." in why


def test_a_late_failure_in_an_earlier_wave_counts() -> None:
    gate, _ = verdict(member("pi-2", Step.PROBATION), earlier=(member("pi-1", Step.ROLLED_BACK),))
    assert gate is Gate.FAIL


def test_who_was_offline_before_the_offer_is_unknown_and_nobody_waits_for_it() -> None:
    gate, why = verdict(member("pi-1", Step.CONFIRMED), member("pi-2", Step.OFFERED, reachable=False))
    assert gate is Gate.PASS
    assert "unknown: pi-2" in why
    assert "0 failures in 1 device: with 95% confidence, fewer than 95% of devices fail." in why


def test_a_wave_of_unknowns_proves_nothing() -> None:
    gate, why = verdict(member("pi-1", Step.OFFERED, reachable=False))
    assert gate is Gate.HOLD
    assert "proves nothing" in why


def test_who_is_online_on_probation_waits_and_the_reason_says_for_what() -> None:
    gate, why = verdict(member("door-1", Step.PROBATION))
    assert gate is Gate.HOLD
    assert "door-1 is on probation: it waits for requests or for its time." in why
    gate, why = verdict(member("pi-1", Step.PROBATION), member("pi-2", Step.PROBATION))
    assert "pi-1, pi-2 are on probation: they wait for requests or for their time." in why
    gate, why = verdict(member("pi-1", Step.PROBATION, online=False), member("pi-2", Step.VERIFYING))
    assert (gate, "on probation" in why) == (Gate.HOLD, False)
    assert "Still at it: pi-1 (probation), pi-2 (verifying)." in why


def test_a_wave_in_which_nobody_succeeded_does_not_pass() -> None:
    assert verdict(member("pi-1", Step.ROLLED_BACK), max_failures=5)[0] is Gate.FAIL


def test_a_wave_without_devices_passes() -> None:
    assert verdict(earlier=(member("pi-1", Step.CONFIRMED),))[0] is Gate.PASS


def test_long_lists_are_counted_not_told() -> None:
    _, why = verdict(*[member(f"pi-{n}", Step.DOWNLOADING) for n in range(9)])
    assert "and 4 more" in why


@pytest.mark.parametrize(
    ("failures", "n", "percent"), [(0, 5, 45.1), (0, 30, 9.5), (0, 100, 3.0), (1, 30, 14.9), (3, 100, 7.6)]
)
def test_the_bound_is_clopper_and_pearsons(failures: int, n: int, percent: float) -> None:
    assert round(100 * failure_rate_bound(failures, n), 1) == percent


@given(st.integers(1, 400), st.data())
def test_the_bound_lies_above_what_was_seen_and_falls_with_evidence(n: int, data: st.DataObject) -> None:
    failures = data.draw(st.integers(0, n))
    bound = failure_rate_bound(failures, n)
    assert failures / n <= bound <= 1.0
    assert failure_rate_bound(failures, n + 50) <= bound


# --- after the gate ---


def told(*wave: Member) -> str:
    return " ".join(tell_passed(number=1, waves=1, wave=wave, earlier=(), max_failures=0))


def test_a_passed_wave_is_told_as_it_is_now() -> None:
    assert told(member("door-1", Step.CONFIRMED)).startswith(
        "Wave 1 of 1: 1 of 1 device confirmed. 0 failures"
    )
    left = told(member("door-1", Step.ROLLED_BACK, error="engine: it crashed"))
    assert left == (
        "Wave 1 of 1: 0 of 1 device confirmed. door-1 rolled back (engine: it crashed). "
        "1 failure: more than the 0 allowed. It had passed its gate before that."
    )


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        (
            {"confirmed": 4, "rolled_back": 1},
            "4 of 5 devices confirmed, 1 rolled back. 1 failure in 5 devices:",
        ),
        ({"confirmed": 1, "offered": 2}, "1 of 3 devices confirmed, 2 offered. 0 failures in 1 device:"),
        ({"rolled_back": 1}, "0 of 1 device confirmed, 1 rolled back."),
    ],
)
def test_a_rollout_is_counted_in_words(counts: dict[str, int], sentence: str) -> None:
    assert tell_counts(counts).startswith(sentence)


# --- silence ---


@pytest.mark.parametrize(
    ("was_online", "online", "progress", "since", "late"),
    [
        (True, True, 0, 0, True),
        (True, False, 0, 0, True),  # it went away after the offer
        (False, False, 0, 0, False),  # it was away before the offer
        (False, True, 0, 95, False),  # it has just come back
        (False, True, 0, 5, True),
        (True, True, 95, 0, False),  # it said something lately
    ],
)
def test_silence(was_online: bool, online: bool, progress: int, since: int, late: bool) -> None:
    assert late is overdue(
        step=Step.DOWNLOADING,
        was_online=was_online,
        online=online,
        progress_ms=progress,
        presence_ms=since,
        deadline_ms=50,
        now_ms=101,
    )


@pytest.mark.parametrize(
    ("was_online", "online", "since", "late"),
    [
        (True, True, 0, False),  # it waits, however long
        (False, True, 5, False),
        (True, False, 5, True),  # it went away and stays away
        (True, False, 95, False),  # it has just gone away
        (False, False, 5, False),  # it was away before the offer
    ],
)
def test_probation_is_silence_only_without_a_connection(
    was_online: bool, online: bool, since: int, late: bool
) -> None:
    assert late is overdue(
        step=Step.PROBATION,
        was_online=was_online,
        online=online,
        progress_ms=0,
        presence_ms=since,
        deadline_ms=50,
        now_ms=101,
    )


# --- state machines ---


def test_whatever_is_not_in_the_table_is_refused() -> None:
    for state in State:
        for event in Event:
            if (state, event) in TRANSITIONS:
                assert next_state(state, event) is TRANSITIONS[state, event]
            else:
                with pytest.raises(ConflictError):
                    next_state(state, event)


def test_every_state_is_reached_and_can_end() -> None:
    reached = {State.DRAFT} | set(TRANSITIONS.values())
    assert reached == set(State)
    for state in set(State) - FINAL:
        ends = {state}
        for _ in State:
            ends |= {after for (before, _), after in TRANSITIONS.items() if before in ends}
        assert ends & FINAL


def test_the_newest_phase_counts_and_an_end_is_an_end() -> None:
    assert step_after(Step.DOWNLOADING, Phase.CONFIRMED) is Step.CONFIRMED
    # A device that starts its download again is not confirmed by it.
    assert step_after(Step.PROBATION, Phase.DOWNLOADING) is Step.DOWNLOADING
    assert step_after(Step.TIMED_OUT, Phase.CONFIRMED) is Step.CONFIRMED
    for failure in (Phase.ROLLED_BACK, Phase.REJECTED):
        assert step_after(Step.CONFIRMED, failure) is Step(failure)
    assert step_after(Step.CONFIRMED, Phase.PROBATION) is Step.CONFIRMED
    for end in (Step.ROLLED_BACK, Step.REJECTED, Step.WITHDRAWN, Step.PENDING):
        assert end not in FOLLOWS
        assert step_after(end, Phase.CONFIRMED) is end
