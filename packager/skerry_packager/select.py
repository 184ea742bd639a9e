"""Choose for each target the best of *all* variants that pass, and say why every other one lost. Pure."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from skerry_contract.errors import BudgetError, MemoryBudgetError, SizeBudgetError

from .fit import estimate_of, exact_bytes, misfits, ram_bytes, show_bytes, show_ms
from .requirements import computes_in_fp16
from .results import FP32, Choice, Estimate, Objective, Target, VariantResult

HOST_ARCH: Final = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine().lower(), platform.machine())
"""Of the machine that packs, as profiles name it."""


@dataclass(frozen=True, slots=True)
class _Goal:
    """One objective on one target: its figure, and how to say it."""

    figure: Callable[[VariantResult], float]
    show: Callable[[float], str]
    exact: Callable[[float], str]
    """Where `show` rounds two figures to the same."""
    what: str
    last: Callable[[VariantResult], str] = lambda result: ""
    """Why a variant comes behind all others whatever its figure; nothing for most."""

    def both(self, one: float, other: float) -> tuple[str, str]:
        """Two different figures, so that they look different."""
        shown = self.show(one), self.show(other)
        return shown if shown[0] != shown[1] or one == other else (self.exact(one), self.exact(other))


def _ratio(result: VariantResult) -> float:
    return float("inf") if result.latency is None else result.latency.ratio


def _drop(result: VariantResult) -> float:
    judged = result.held_out or result.fidelity
    return 0.0 if judged is None else judged.drop_bound


_SIZE: Final = _Goal(lambda result: result.size_bytes, show_bytes, exact_bytes, "size")
_RAM: Final = _Goal(ram_bytes, show_bytes, exact_bytes, "peak memory")


def _goal(objective: Objective, target: Target, results: Sequence[VariantResult]) -> _Goal:
    if objective is Objective.SIZE:
        return _SIZE
    return _RAM if objective is Objective.RAM else _latency_goal(target, results)


def _latency_goal(target: Target, results: Sequence[VariantResult]) -> _Goal:
    """By what is known of the target; by this host's ratios only if it is of the target's architecture."""

    def last(result: VariantResult) -> str:
        if target.arch and "fp16" not in target.isa and computes_in_fp16(result.model):
            return f"it calculates in fp16, which {target.name} has no instructions for"
        return ""

    estimates = {result.name: estimate_of(result, target) for result in results}
    at_home = target.arch in ("", HOST_ARCH)
    if results and all(_counts(estimate, at_home) for estimate in estimates.values()):
        times = {name: estimate.p50_us for name, estimate in estimates.items() if estimate is not None}
        source = next(iter(estimates.values()))
        how = source.provenance if source is not None else ""
        return _Goal(
            lambda result: times[result.name],
            show_ms,
            lambda us: f"{us:.1f} us",
            f"latency on {target.name} ({how})",
            last,
        )
    if at_home:
        return _Goal(
            _ratio, lambda ratio: f"{ratio:.2f} x fp32", lambda ratio: f"{ratio:.4f} x fp32", "latency", last
        )
    # Never the ratio of another architecture: what is slower here may be the fastest there.
    return _Goal(
        _SIZE.figure, show_bytes, exact_bytes, f"size, as no latency is known on {target.name},", last
    )


def _counts(estimate: Estimate | None, at_home: bool) -> bool:
    """Whether to rank by it: at home a measured ratio says more than peak figures."""
    return estimate is not None and not (at_home and estimate.provenance.startswith("not verified"))


def choose(
    results: Sequence[VariantResult],
    target: Target,
    objective: Objective,
    alternatives: Sequence[Target] = (),
) -> Choice:
    """The best passing variant that fits the target, with fp32 behind it as the fallback where that fits.

    Ties go to what keeps more of fp32, then to the smaller file, then to the name.

    Args:
        alternatives: other targets, to be named where the model fits them and not this one.

    Raises:
        BudgetError: nothing that passes fits; its children name the budget that nothing keeps.
    """
    fitting = [result for result in results if result.passed and not misfits(result, target)]
    if not fitting:
        raise _nothing_fits(results, target, alternatives)
    goal = _goal(objective, target, fitting)
    ranked = sorted(
        fitting,
        key=lambda result: (
            bool(goal.last(result)), goal.figure(result), _drop(result), result.size_bytes, result.name,
        ),
    )  # fmt: skip
    best = ranked[0]
    names = [best.name]
    if best.name != FP32 and any(result.name == FP32 for result in fitting):
        names.append(FP32)
    lost = {
        result.name: _why_lost(result, best, target, goal) for result in results if result.name not in names
    }
    return Choice(target=target.name, variants=tuple(names), lost=lost, pareto=pareto(fitting, target))


def slowdowns(result: VariantResult, fp32: VariantResult, targets: Sequence[Target]) -> dict[str, float]:
    """Latency as a multiple of fp32's on each target of which that is known.

    From estimates that rest on measurements there; else from this host, if the target is of its kind.
    """
    found = {}
    for target in targets:
        one, other = result.estimates.get(target.name), fp32.estimates.get(target.name)
        if one and other and not any(each.provenance.startswith("not verified") for each in (one, other)):
            found[target.name] = one.p50_us / other.p50_us
        elif target.arch == HOST_ARCH and result.latency is not None:
            found[target.name] = result.latency.best_ratio
    return found


def pareto(results: Sequence[VariantResult], target: Target | None = None) -> tuple[str, ...]:
    """Those that no other one beats in size, memory, latency and fidelity at once."""
    latency = _ratio if target is None else _latency_goal(target, results).figure

    def figures(result: VariantResult) -> tuple[float, ...]:
        return (result.size_bytes, ram_bytes(result), latency(result), _drop(result))

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
        return "does not fit: " + "; ".join(problem.text for problem in problems)
    if behind := goal.last(result):
        return behind
    ours, theirs = goal.figure(result), goal.figure(best)
    if ours == theirs:
        return f"the same {goal.what} as {best.name}, which keeps no less of fp32"
    mine, its = goal.both(ours, theirs)
    return f"{goal.what} {mine}; {best.name} has {its}"


_ERRORS: Final = (
    (("size", "flash"), SizeBudgetError),
    (("memory",), MemoryBudgetError),
)
"""The error where all passing variants break one of these budgets."""


_SMALLER: Final = "Train a smaller model."


def _nothing_fits(
    results: Sequence[VariantResult], target: Target, alternatives: Sequence[Target]
) -> BudgetError:
    """The error; its notes say the same line by line, for people."""
    passing = [result for result in results if result.passed]
    problems = {result.name: misfits(result, target) for result in passing}
    texts = {name: "; ".join(one.text for one in found) for name, found in problems.items()}
    needs = _what_would_fit(results, target, alternatives)
    what = f"no variant fits {target.name}"
    message = f"{what}: {' | '.join(f'{name}: {text}' for name, text in texts.items()) or 'none passed'}"
    hint = f"What would fit: {'; '.join(needs)}. Else train a smaller model." if needs else _SMALLER
    error = BudgetError(message, hint=hint)
    for budgets, kind in _ERRORS:
        if passing and all(any(one.what in budgets for one in found) for found in problems.values()):
            error = kind(message, hint=hint)
            break
    width = max(map(len, texts), default=0)
    error.add_note(f"{what}:" if texts else f"{what}: none passed")
    for name, text in texts.items():
        error.add_note(f"  {name.ljust(width)}  {text}")
    if needs:
        error.add_note("What would fit:")
        for need in needs:
            error.add_note(f"  - {need}")
    error.add_note("→ Take one of these, or train a smaller model." if needs else f"→ {_SMALLER}")
    return error


def _what_would_fit(
    results: Sequence[VariantResult], target: Target, alternatives: Sequence[Target]
) -> list[str]:
    passing = [result for result in results if result.passed]
    needs = []
    if passing:
        smallest, leanest = min(result.size_bytes for result in passing), min(map(ram_bytes, passing))
        needs.append(
            f"a profile with {show_bytes(smallest)} for the model and {show_bytes(leanest)} of memory"
        )
    takers: dict[str, list[str]] = {}
    for other in alternatives:
        fitting = [result for result in passing if not misfits(result, other)]
        if other.name != target.name and fitting:
            takers.setdefault(min(fitting, key=lambda result: result.size_bytes).name, []).append(other.name)
    needs += [
        f"the profile{'s' if len(names) > 1 else ''} {', '.join(names)} ({variant})"
        for variant, names in takers.items()
    ]
    needs += [
        f"a larger --max-drop: {result.name} ({show_bytes(result.size_bytes)};"
        f" {result.verdict}: {result.reason}"
        + (f"; --max-drop {drop:.4f} takes it" if (drop := _needed_drop(result)) else "")
        + ")"
        for result in results
        if not result.passed and result.model and not misfits(result, target)
    ]
    return needs


def _needed_drop(result: VariantResult) -> float:
    """The least ``--max-drop`` with which it would pass, rounded up; 0 if none would."""
    judged = result.held_out or result.fidelity
    needed = 0.0 if judged is None else int(judged.drop_bound * 10_000 + 1) / 10_000
    return needed if 0 < needed < 1 else 0.0
