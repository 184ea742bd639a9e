"""Probation: what confirms a model and what condemns it."""

from __future__ import annotations

import pytest

from skerry_contract.errors import LatencyBudgetError, MemoryBudgetError, SelfTestError
from skerry_contract.limits import MIB
from skerry_contract.messages import Probation
from skerry_runtime.agent.health import (
    CRASH_SECONDS,
    CRASHES,
    Trial,
    Verdict,
    check_self_test,
    crashes_too_often,
)
from skerry_runtime.agent.slots import EffectiveBudgets
from skerry_runtime.ipc import Health, Ready

BUDGETS = EffectiveBudgets(ram_bytes=100 * MIB, latency_p95_us=10_000, load_ms=500)
TRIAL = Trial(
    probation=Probation(requests=20, seconds=60.0, max_error_rate=0.1), budgets=BUDGETS, began=1000.0
)


def health(**changes: object) -> Health:
    fine = {
        "requests": 20, "failures": 0, "latency_p95_us": 500.0, "rss_bytes": 50 * MIB, "in_flight": 0,
        "canary_ok": True,
    }  # fmt: skip
    return Health(**{**fine, **changes})  # type: ignore[arg-type]


def test_enough_requests_and_enough_time_confirm() -> None:
    assert TRIAL.observe(health()).verdict(1060.0) is Verdict.HEALTHY


@pytest.mark.parametrize(("requests", "now"), [(19, 5000.0), (10_000, 1059.0), (0, 1000.0)])
def test_one_of_the_two_is_not_enough(requests: int, now: float) -> None:
    assert TRIAL.observe(health(requests=requests)).verdict(now) is Verdict.HOLD


def test_a_device_that_nobody_asks_confirms_by_its_golden_samples() -> None:
    idle = TRIAL.observe(health(requests=0, canaries=19))
    assert idle.verdict(5000.0) is Verdict.HOLD
    assert TRIAL.observe(health(requests=2, canaries=18)).verdict(5000.0) is Verdict.HEALTHY


def test_one_report_over_the_memory_budget_condemns() -> None:
    trial = TRIAL.observe(health(rss_bytes=101 * MIB))
    assert trial.verdict(1001.0) is Verdict.CONDEMNED
    assert isinstance(trial.error, MemoryBudgetError)
    assert "101.0 MiB" in trial.error.message
    assert "100.0 MiB" in trial.error.message


def test_latency_must_be_over_the_budget_three_times_in_a_row() -> None:
    slow, quick = health(latency_p95_us=11_000.0), health()
    trial = TRIAL.observe(slow).observe(slow).observe(quick).observe(slow).observe(slow)
    assert trial.verdict(1001.0) is Verdict.HOLD
    trial = trial.observe(slow)
    assert trial.verdict(1001.0) is Verdict.CONDEMNED
    assert isinstance(trial.error, LatencyBudgetError)


def test_a_wrong_canary_condemns() -> None:
    assert isinstance(TRIAL.observe(health(canary_ok=False)).error, SelfTestError)


@pytest.mark.parametrize(
    ("requests", "failures", "condemned"),
    [
        (1, 1, False),
        (3, 2, False),
        (3, 3, True),
        (20, 2, False),
        (20, 3, True),
        (1000, 100, False),
        (1000, 101, True),
    ],
)
def test_failures_condemn_once_they_cannot_be_made_good(
    requests: int, failures: int, condemned: bool
) -> None:
    trial = TRIAL.observe(health(requests=requests, failures=failures))
    assert (trial.error is not None) is condemned


def test_the_first_proof_is_the_one_that_is_told() -> None:
    trial = TRIAL.observe(health(rss_bytes=101 * MIB)).observe(health(canary_ok=False))
    assert isinstance(trial.error, MemoryBudgetError)


def test_no_budget_condemns_nothing() -> None:
    free = Trial(probation=TRIAL.probation, budgets=EffectiveBudgets(), began=1000.0)
    for _ in range(5):
        free = free.observe(health(rss_bytes=1 << 40, latency_p95_us=1e9))
    assert free.verdict(1060.0) is Verdict.HEALTHY


def ready(**changes: float) -> Ready:
    fine = {"load_ms": 20.0, "latency_p50_us": 300.0, "latency_p95_us": 400.0, "rss_bytes": 50 * MIB}
    return Ready(engine_version="1.23.2", **{**fine, **changes})  # type: ignore[arg-type]


def test_a_self_test_within_the_budgets_passes() -> None:
    check_self_test(ready(), BUDGETS)
    check_self_test(ready(load_ms=1e9, latency_p95_us=1e9, rss_bytes=1 << 40), EffectiveBudgets())


@pytest.mark.parametrize(
    ("measured", "error"),
    [
        ({"rss_bytes": 101 * MIB}, MemoryBudgetError),
        ({"latency_p95_us": 10_001.0}, LatencyBudgetError),
        ({"load_ms": 501.0}, LatencyBudgetError),
    ],
)
def test_a_self_test_over_a_budget_says_which(measured: dict[str, float], error: type[Exception]) -> None:
    with pytest.raises(error):
        check_self_test(ready(**measured), BUDGETS)


def test_a_confirmed_model_may_crash_now_and_then() -> None:
    assert not crashes_too_often([0.0, 1.0, 2.0, 3.0], 4.0)
    assert crashes_too_often([float(second) for second in range(CRASHES)], 5.0)
    assert not crashes_too_often([0.0] * CRASHES, CRASH_SECONDS + 1.0)
