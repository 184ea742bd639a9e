"""Is the new model good here? Pure: reports of the worker in, a verdict with an error code out.

A model is confirmed after enough requests *and* enough time, and condemned at the first proof against it. The
golden samples that run beside the traffic count as requests: a device that nobody asks confirms too, later.
Memory is exact, so one report over the budget is proof; latency and errors are noisy, so they need several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from skerry_contract.errors import LatencyBudgetError, MemoryBudgetError, SelfTestError, SkerryError
from skerry_contract.limits import MIB
from skerry_contract.messages import Probation

from ..ipc import Health, Ready
from .slots import EffectiveBudgets

SLOW_REPORTS: Final = 3
"""Reports over the latency budget, one after the other, that condemn."""
CRASHES: Final = 5
CRASH_SECONDS: Final = 600.0
"""A confirmed model that crashes `CRASHES` times within this time gives way to the last good one."""


class Verdict(Enum):
    HOLD = "hold"
    """Not enough is known yet."""
    HEALTHY = "healthy"
    CONDEMNED = "condemned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is known of a model in probation."""

    probation: Probation
    budgets: EffectiveBudgets
    began: float
    """Seconds since boot."""
    requests: int = 0
    canaries: int = 0
    failures: int = 0
    slow_reports: int = 0
    peak_rss_bytes: int = 0
    error: SkerryError | None = None
    """The first proof against it."""

    def observe(self, health: Health) -> Trial:
        """The trial after one more report of the worker."""
        slow = self.budgets.latency_p95_us and health.latency_p95_us > self.budgets.latency_p95_us
        grown = replace(
            self,
            requests=health.requests,
            canaries=health.canaries,
            failures=health.failures,
            slow_reports=self.slow_reports + 1 if slow else 0,
            peak_rss_bytes=max(self.peak_rss_bytes, health.rss_bytes),
        )
        return replace(grown, error=self.error or _proof(grown, health))

    def verdict(self, now: float) -> Verdict:
        """``now`` in seconds since boot."""
        if self.error is not None:
            return Verdict.CONDEMNED
        answered = self.requests + self.canaries
        if answered >= self.probation.requests and now - self.began >= self.probation.seconds:
            return Verdict.HEALTHY
        return Verdict.HOLD

    def progress(self, now: float) -> dict[str, float]:
        """What it has of what it needs, as plain JSON; ``now`` in seconds since boot."""
        return {
            "answered": self.requests + self.canaries,
            "answered_wanted": self.probation.requests,
            "seconds": round(now - self.began, 1),
            "seconds_wanted": self.probation.seconds,
        }


def _proof(trial: Trial, health: Health) -> SkerryError | None:
    if trial.budgets.ram_bytes and health.rss_bytes > trial.budgets.ram_bytes:
        return _over_memory(health.rss_bytes, trial.budgets.ram_bytes, "under load")
    if trial.slow_reports >= SLOW_REPORTS:
        return _over_latency(health.latency_p95_us, trial.budgets.latency_p95_us, "under load")
    if not health.canary_ok:
        return SelfTestError(
            "a golden sample that ran beside the traffic came out wrong",
            hint="Compare the engine's version and the processor with those that the bundle was proved on.",
        )
    # Even if all the requests still missing succeed, the share of errors stays over the limit.
    allowed = trial.probation.max_error_rate * max(trial.requests, trial.probation.requests)
    if trial.failures > allowed:
        return SelfTestError(
            f"{trial.failures} of {trial.requests} requests failed"
            f" (allowed: {trial.probation.max_error_rate:.0%})",
            hint="Look at the worker's log for the engine's errors.",
        )
    return None


def check_self_test(ready: Ready, budgets: EffectiveBudgets) -> None:
    """Judge what a preflight measured.

    Raises:
        MemoryBudgetError: its peak is over the RAM budget.
        LatencyBudgetError: an inference or the loading takes longer than allowed.
    """
    if budgets.ram_bytes and ready.rss_bytes > budgets.ram_bytes:
        raise _over_memory(ready.rss_bytes, budgets.ram_bytes, "in the self-test")
    if budgets.latency_p95_us and ready.latency_p95_us > budgets.latency_p95_us:
        raise _over_latency(ready.latency_p95_us, budgets.latency_p95_us, "in the self-test")
    if budgets.load_ms and ready.load_ms > budgets.load_ms:
        raise LatencyBudgetError(
            f"loading takes {ready.load_ms:.0f} ms; the budget is {budgets.load_ms} ms",
            hint="Pack a smaller variant, or raise the load budget.",
        )


def crashes_too_often(times: Sequence[float], now: float) -> bool:
    """``times`` of crashes and ``now`` in seconds since boot."""
    return sum(now - time <= CRASH_SECONDS for time in times) >= CRASHES


def _over_memory(used: int, budget: int, when: str) -> MemoryBudgetError:
    return MemoryBudgetError(
        f"the model's process took {used / MIB:.1f} MiB {when}; the budget is {budget / MIB:.1f} MiB",
        hint="Pack a smaller variant, send smaller batches, or raise budgets.ram_mb.",
    )


def _over_latency(p95_us: float, budget_us: int, when: str) -> LatencyBudgetError:
    return LatencyBudgetError(
        f"95% of the inferences took up to {p95_us / 1000:.2f} ms {when};"
        f" the budget is {budget_us / 1000:.2f} ms",
        hint="Pack a faster variant, or raise budgets.latency_p95_ms.",
    )
