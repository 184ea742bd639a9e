"""Does a variant fit a target? Every budget with its numbers, and how sure each verdict is. Pure.

A *misfit* keeps a variant off the device; a *caution* is said, and left to the device's self-test.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from skerry_contract.limits import MIB

from .requirements import lacking
from .results import FP32, Estimate, Target, VariantResult

SLOTS: Final = 2
"""The version that runs and the one that replaces it."""


@dataclass(frozen=True, slots=True)
class Misfit:
    """One budget that is broken."""

    what: str
    """``size``, ``flash``, ``memory``, ``engine``, ``latency`` or ``slowdown``."""
    text: str


def ram_bytes(result: VariantResult) -> int:
    """Peak memory: measured if it was, else the lower bound."""
    return result.ram_predicted_bytes if result.memory is None else result.memory.peak_rss_bytes


def flash_bytes(result: VariantResult) -> int:
    """What the model takes on a device that keeps two versions of it."""
    return SLOTS * result.size_bytes


def estimate_of(result: VariantResult, target: Target) -> Estimate | None:
    """Latency there, as far as it is known."""
    return result.estimates.get(target.name) or target.estimate(result)


def misfits(result: VariantResult, target: Target) -> list[Misfit]:
    """Which of the target's budgets a variant breaks, with the numbers."""
    found = []
    if target.size_bytes and result.size_bytes > target.size_bytes:
        size, budget = show_both(result.size_bytes, target.size_bytes)
        found.append(Misfit("size", f"size {size}, budget {budget}"))
    if target.flash_bytes and flash_bytes(result) > target.flash_bytes:
        need, room = show_both(flash_bytes(result), target.flash_bytes)
        found.append(Misfit("flash", f"flash {need} for two slots, {room} there"))
    if target.ram_bytes:
        found += _memory(result, target.ram_bytes)
    if target.max_opset and result.opset > target.max_opset:
        found.append(Misfit("engine", f"opset {result.opset}, engine loads {target.max_opset}"))
    if target.max_ir and result.ir > target.max_ir:
        found.append(Misfit("engine", f"IR {result.ir}, engine loads {target.max_ir}"))
    found += [
        Misfit("engine", f"{gap} on profile {target.name}") for gap in lacking(result.model, target.engines)
    ]
    estimate = estimate_of(result, target) if target.latency_p95_us else None
    if estimate is not None and estimate.verified and estimate.high_us > target.latency_p95_us:
        took, budget = show_ms(estimate.high_us), show_ms(target.latency_p95_us)
        found.append(Misfit("latency", f"latency p95 {took}, budget {budget} ({estimate.provenance})"))
    slowdown = result.slowdowns.get(target.name, 0.0)
    if target.max_slowdown and slowdown > target.max_slowdown and result.name != FP32:
        found.append(
            Misfit("slowdown", f"{slowdown:.2f} x the latency of fp32, allowed {target.max_slowdown:g} x")
        )
    return found


def _memory(result: VariantResult, budget: int) -> list[Misfit]:
    if result.ram_predicted_bytes > budget:
        need, room = show_both(result.ram_predicted_bytes, budget)
        return [Misfit("memory", f"peak memory at least {need}, budget {room}")]
    if result.memory is not None and result.memory.peak_rss_bytes > budget:
        need, room = show_both(result.memory.peak_rss_bytes, budget)
        return [Misfit("memory", f"peak memory {need}, budget {room}")]
    return []


def cautions(result: VariantResult, target: Target) -> list[str]:
    """What may still go wrong on the target, although nothing is certain: the device's self-test decides."""
    found = []
    upper = result.ram_upper_bytes
    if target.ram_bytes and upper > target.ram_bytes >= ram_bytes(result):
        need, room = show_both(upper, target.ram_bytes)
        found.append(f"{result.name} may take up to {need} of memory on {target.name}, budget {room}")
    estimate = estimate_of(result, target) if target.latency_p95_us else None
    if estimate is not None and not estimate.verified and estimate.high_us > target.latency_p95_us:
        sure = "is likely to" if estimate.low_us > target.latency_p95_us else "may"
        found.append(
            f"{result.name} {sure} break the latency budget of {target.name}, "
            f"{show_ms(target.latency_p95_us)}: {show_estimate(estimate)}"
        )
    return found


def show_estimate(estimate: Estimate) -> str:
    """
    >>> show_estimate(Estimate(p50_us=2000, low_us=1000, high_us=4000, provenance="measured on a Pi"))
    '2.00 ms (1.00 ms to 4.00 ms, measured on a Pi)'
    """
    low, high = show_ms(estimate.low_us), show_ms(estimate.high_us)
    return f"{show_ms(estimate.p50_us)} ({low} to {high}, {estimate.provenance})"


def show_ms(us: float) -> str:
    """
    >>> show_ms(12_345), show_ms(250), show_ms(2.5)
    ('12.3 ms', '0.250 ms', '0.003 ms')
    """
    ms = us / 1000
    return (
        f"{ms:.0f} ms"
        if ms >= 100
        else f"{ms:.1f} ms"
        if ms >= 10
        else f"{ms:.2f} ms"
        if ms >= 1
        else f"{ms:.3f} ms"
    )


def show_bytes(number: float) -> str:
    return f"{number / MIB:.2f} MiB" if number >= MIB / 10 else f"{number:.0f} bytes"


def exact_bytes(number: float) -> str:
    return f"{number:,.0f} bytes"


def show_both(one: float, other: float) -> tuple[str, str]:
    """Two sizes, so that different ones look different."""
    shown = show_bytes(one), show_bytes(other)
    return shown if shown[0] != shown[1] or one == other else (exact_bytes(one), exact_bytes(other))
