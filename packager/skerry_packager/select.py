"""Choose for each target the best of *all* variants that pass, and say why every other one lost. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from skerry_contract.errors import BudgetError, MemoryBudgetError, SizeBudgetError
from skerry_contract.limits import MIB

from .results import FP32, Choice, Objective, Target, VariantResult


@dataclass(frozen=True, slots=True)
class _Goal:
    """One objective: its figure, and how to say it."""

    figure: Callable[[VariantResult], float]
    show: Callable[[float], str]
    exact: Callable[[float], str]
    """Where `show` rounds two figures to the same."""
    what: str

    def both(self, one: float, other: float) -> tuple[str, str]:
        """Two different figures, so that they look different."""
        shown = self.show(one), self.show(other)
        return shown if shown[0] != shown[1] or one == other else (self.exact(one), self.exact(other))


def ram_bytes(result: VariantResult) -> int:
    """Peak memory: measured if it was, else predicted."""
    return result.ram_predicted_bytes if result.memory is None else result.memory.peak_rss_bytes


def _ratio(result: VariantResult) -> float:
    return float("inf") if result.latency is None else result.latency.ratio


def _drop(result: VariantResult) -> float:
    judged = result.held_out or result.fidelity
    return 0.0 if judged is None else judged.drop_bound


def _show_bytes(number: float) -> str:
    return f"{number / MIB:.2f} MiB" if number >= MIB / 10 else f"{number:.0f} bytes"


def _exact_bytes(number: float) -> str:
    return f"{number:,.0f} bytes"


_GOALS: Final[Mapping[Objective, _Goal]] = {
    Objective.SIZE: _Goal(lambda result: result.size_bytes, _show_bytes, _exact_bytes, "size"),
    Objective.LATENCY: _Goal(
        _ratio, lambda number: f"{number:.2f} x fp32", lambda number: f"{number:.4f} x fp32", "latency"
    ),
    Objective.RAM: _Goal(ram_bytes, _show_bytes, _exact_bytes, "peak memory"),
}


def choose(results: Sequence[VariantResult], target: Target, objective: Objective) -> Choice:
    """The best passing variant that fits the target, with fp32 behind it as the fallback where that fits.

    Ties go to what keeps more of fp32, then to the smaller file, then to the name.

    Raises:
        BudgetError: nothing that passes fits; its children name the budget that nothing keeps.
    """
    goal = _GOALS[objective]
    fitting = [result for result in results if result.passed and not misfits(result, target)]
    if not fitting:
        raise _nothing_fits(results, target)
    ranked = sorted(
        fitting, key=lambda result: (goal.figure(result), _drop(result), result.size_bytes, result.name)
    )
    best = ranked[0]
    variants = (
        (best.name,) if best.name == FP32 else (best.name, *(r.name for r in fitting if r.name == FP32))
    )
    return Choice(
        target=target.name,
        variants=variants,
        lost={
            result.name: _why_lost(result, best, target, goal)
            for result in results
            if result.name not in variants
        },
        pareto=pareto(fitting),
    )


def misfits(result: VariantResult, target: Target) -> list[str]:
    """Which of the target's budgets a variant breaks, with the numbers; latency is judged on the device."""
    problems = []
    if target.size_bytes and result.size_bytes > target.size_bytes:
        size, budget = _GOALS[Objective.SIZE].both(result.size_bytes, target.size_bytes)
        problems.append(f"size {size}, budget {budget}")
    if target.ram_bytes and ram_bytes(result) > target.ram_bytes:
        peak, budget = _GOALS[Objective.RAM].both(ram_bytes(result), target.ram_bytes)
        problems.append(f"peak memory {peak}, budget {budget}")
    if target.max_opset and result.opset > target.max_opset:
        problems.append(f"opset {result.opset}, engine loads {target.max_opset}")
    if target.max_ir and result.ir > target.max_ir:
        problems.append(f"IR {result.ir}, engine loads {target.max_ir}")
    return problems


def pareto(results: Sequence[VariantResult]) -> tuple[str, ...]:
    """Those that no other one beats in size, memory, latency and fidelity at once."""

    def figures(result: VariantResult) -> tuple[float, ...]:
        return (result.size_bytes, ram_bytes(result), _ratio(result), _drop(result))

    def beaten(result: VariantResult) -> bool:
        mine = figures(result)
        return any(
            figures(other) != mine and all(a <= b for a, b in zip(figures(other), mine, strict=True))
            for other in results
        )

    return tuple(result.name for result in results if not beaten(result))


def _why_lost(result: VariantResult, best: VariantResult, target: Target, goal: _Goal) -> str:
    if not result.passed:
        return f"{result.verdict}: {result.reason}"
    problems = misfits(result, target)
    if problems:
        return "does not fit: " + "; ".join(problems)
    ours, theirs = goal.figure(result), goal.figure(best)
    if ours == theirs:
        return f"the same {goal.what} as {best.name}, which keeps no less of fp32"
    mine, its = goal.both(ours, theirs)
    return f"{goal.what} {mine}; {best.name} has {its}"


def _nothing_fits(results: Sequence[VariantResult], target: Target) -> BudgetError:
    passing = [result for result in results if result.passed]
    lines = [f"{result.name}: {'; '.join(misfits(result, target))}" for result in passing]
    failing = [
        f"{result.name} ({_show_bytes(result.size_bytes)}; {result.verdict}: {result.reason})"
        for result in results
        if not result.passed and result.model and not misfits(result, target)
    ]
    needs = []
    if passing:
        smallest, leanest = min(result.size_bytes for result in passing), min(map(ram_bytes, passing))
        needs.append(
            f"a profile with {_show_bytes(smallest)} for the model and {_show_bytes(leanest)} of memory fits"
        )
    if failing:
        needs.append(f"with a larger --max-drop: {', '.join(failing)}")
    message = f"no variant fits {target.name}: {' | '.join(lines) or 'none passed'}"
    hint = "; ".join(needs) + ". Otherwise train a smaller model."
    if passing and target.size_bytes and all(result.size_bytes > target.size_bytes for result in passing):
        return SizeBudgetError(message, hint=hint)
    if passing and target.ram_bytes and all(ram_bytes(result) > target.ram_bytes for result in passing):
        return MemoryBudgetError(message, hint=hint)
    return BudgetError(message, hint=hint)
