"""Which windows of a full buffer become one: counts stay exact, only the resolution in time decays. Pure.

Windows are merged by the contract's `merge` if one could not tell them apart but by their time: the same
bundle and spec, clocks that agree, no block that only a newer version could merge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from skerry_contract.errors import MessageError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.summary import CLOCK_NONE, Flags, WindowSummary, decode, encode, merge

LEVELS_MS: Final = (6 * 3_600_000, 24 * 3_600_000, 7 * 24 * 3_600_000)
"""How long a merged window may be; the next level only when the one before was not enough."""
CLOCK_STEP_MS: Final = 5_000
"""Between two windows of one boot wall clock and monotonic clock may differ by so much: no one set it."""

_Key = tuple[bytes, bytes, bytes, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """Several rows that become one. It has the number of the last, so that the order of the others holds."""

    gone: tuple[int, ...]
    kept: int
    body: bytes


@dataclass(slots=True)
class _Group:
    numbers: list[int]
    summary: WindowSummary
    body: bytes


def plan(rows: Iterable[tuple[int, bytes]], span_ms: int) -> tuple[Sequence[Merge], int]:
    """What to merge.

    Args:
        rows: number and encoded summary of every window, oldest first.
        span_ms: a merged window lasts no longer.

    Returns:
        The merges, and the lowest number that a later row could still be merged with (0: none).
    """
    open_groups: dict[_Key, _Group] = {}
    done: list[_Group] = []
    for number, body in rows:
        try:
            summary = decode(body)
        except MessageError:
            continue  # the fleet says what is wrong with it
        if summary.unknown:
            continue
        key = _key(summary)
        group = open_groups.get(key)
        if group is not None and (joined := _join(group.summary, summary, span_ms)) is not None:
            group.summary, group.body = joined
            group.numbers.append(number)
            continue
        if group is not None:
            done.append(group)
        open_groups[key] = _Group([number], summary, body)
    lowest = min((group.numbers[-1] for group in open_groups.values()), default=0)
    done += open_groups.values()
    merges = [
        Merge(gone=tuple(group.numbers[:-1]), kept=group.numbers[-1], body=group.body)
        for group in done
        if len(group.numbers) > 1
    ]
    return merges, lowest


def _key(summary: WindowSummary) -> _Key:
    """Windows of different keys are never merged; without a set clock, time is only known within a boot."""
    boot = summary.boot if summary.clock_quality == CLOCK_NONE else b""
    return summary.spec_hash, summary.bundle, boot, summary.clock_quality, summary.flags & Flags.DP


def _join(a: WindowSummary, b: WindowSummary, span_ms: int) -> tuple[WindowSummary, bytes] | None:
    """Both as one, and its encoding; None if that would be too long, too large or wrong."""
    stepped = abs((b.start_utc_ms - a.start_utc_ms) - (b.start_mono_ms - a.start_mono_ms)) > CLOCK_STEP_MS
    if a.boot == b.boot and stepped:
        return None
    start = min(a.start_utc_ms, b.start_utc_ms)
    if max(s.start_utc_ms + s.duration_ms for s in (a, b)) - start > span_ms:
        return None
    try:
        merged = merge(a, b)
        merged = replace(merged, flags=merged.flags | Flags.COMPACTED)
        body = encode(merged)
    except MessageError:
        return None
    return (merged, body) if len(body) <= DEFAULT_LIMITS.summary_bytes else None
