"""What decides a rollout, as pure functions: which device is in which wave, and whether a wave has passed its
gate.

A gate fails as soon as there are more failures than allowed, in this wave and all before it. It passes when
every device of the wave came to its end and at least one confirmed. A device that was offline before the
offer and still is, is unknown: neither success nor failure, and nobody waits for it. Else the gate holds.
Silence past the deadline is a failure; a device that is online and on probation is not silent, it waits.

Reasons are whole sentences: they can be joined with a space, or stand in lines of their own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from skerry_contract.errors import InputError

from .states import FAILED, IN_FLIGHT, Step

CONFIDENCE: Final = 0.95
MAX_WAVES: Final = 50
_NAMED: Final = 5
"""Devices that a reason names; more are counted."""


class Gate(StrEnum):
    """Verdict on a wave."""

    PASS = "pass"  # noqa: S105 a verdict, no password
    HOLD = "hold"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One device within a rollout, as the gate sees it."""

    device: str
    step: Step
    reachable: bool
    """It was online when it was offered the version, or is now."""
    online: bool
    """It is now."""
    error: str = ""
    """Why it failed: code and message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    gate: Gate
    reasons: tuple[str, ...]
    """Sentences for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedWave:
    number: int
    """From 1."""
    reaches: str
    """As asked for."""
    devices: tuple[str, ...]
    """In the order of their buckets."""


def bucket(rollout: str, device: str) -> str:
    """Where a device stands in a rollout: the same at every computation, another in every rollout.

    >>> bucket("r1", "pi-7") == bucket("r1", "pi-7") != bucket("r2", "pi-7")
    True
    """
    return hashlib.blake2b(f"{rollout}\0{device}".encode(), digest_size=8).hexdigest()


def plan_waves(rollout: str, devices: Sequence[str], reach: Sequence[float]) -> list[PlannedWave]:
    """Cut the devices, by ascending bucket, into waves.

    Args:
        rollout: identifier that the buckets are computed with.
        devices: distinct identifiers.
        reach: how much each wave reaches together with all waves before it, ascending: whole numbers count
            devices; if the first is a float, they are fractions of at most 1.

    Raises:
        InputError: the waves do not ascend or are neither fractions nor counts.
    """
    fractions = _are_fractions(reach)
    ordered = sorted(devices, key=lambda device: (bucket(rollout, device), device))
    waves = []
    begin = 0
    for number, amount in enumerate(reach, 1):
        end = min(len(ordered), math.ceil(amount * len(ordered) - 1e-9) if fractions else int(amount))
        reaches = f"{amount:.4g}" if not fractions else f"{100 * amount:.4g}%"
        waves.append(PlannedWave(number=number, reaches=reaches, devices=tuple(ordered[begin:end])))
        begin = max(begin, end)
    return waves


def _are_fractions(reach: Sequence[float]) -> bool:
    if not 1 <= len(reach) <= MAX_WAVES:
        raise InputError(f"a rollout has 1 to {MAX_WAVES} waves, not {len(reach)}")
    if not all(math.isfinite(amount) and amount > 0 for amount in reach):
        raise InputError("every wave must reach more than nothing")
    if any(later <= earlier for earlier, later in pairwise(reach)):
        raise InputError(
            "each wave must reach further than the one before",
            hint="Waves add up: [0.2, 0.5, 1.0] reaches a fifth, then half, then all of the devices.",
        )
    fractions = reach[0] < 1 or isinstance(reach[0], float)
    if fractions and reach[-1] > 1:
        raise InputError("a fraction is at most 1.0", hint="Write counts of devices as whole numbers.")
    if not fractions and any(amount != int(amount) for amount in reach):
        raise InputError("a wave counts whole devices", hint="Or give fractions of at most 1.0.")
    return fractions


def stand_ins(absent: Sequence[str], online: Sequence[str]) -> list[tuple[str, str]]:
    """Who changes places when a wave begins: each device of the wave that is offline, with the next device of
    the waves behind it that is online. A wave keeps its size, and proves something; who is offline is asked
    later.

    >>> stand_ins(["pi-1", "pi-2"], ["pi-9"])
    [('pi-1', 'pi-9')]
    """
    return list(zip(absent, online, strict=False))


def judge(
    *, number: int, waves: int, wave: Sequence[Member], earlier: Sequence[Member], max_failures: int
) -> Verdict:
    """The verdict on a wave.

    Args:
        number: of the wave, from 1.
        waves: how many there are.
        wave: its devices.
        earlier: devices of the waves before it; one may fail, or turn up, late.
        max_failures: in the whole rollout.
    """
    everyone = [*earlier, *wave]
    failed = [member for member in everyone if member.step in FAILED]
    confirmed = [member for member in wave if member.step is Step.CONFIRMED]
    busy = [member for member in wave if member.step in IN_FLIGHT and member.reachable]
    unknown = [member for member in wave if member.step in IN_FLIGHT and not member.reachable]
    waiting = [member for member in wave if member.step is Step.PENDING]

    reasons = [f"Wave {number} of {waves}: {_count(len(confirmed), len(wave))} confirmed."]
    reasons += [f"{member.device} {_told(member)}." for member in failed[:_NAMED]]
    if len(failed) > _NAMED:
        reasons.append(f"{len(failed) - _NAMED} more failed.")
    if len(failed) > max_failures:
        reasons.append(f"{_failures(len(failed))}: more than the {max_failures} allowed.")
        return Verdict(gate=Gate.FAIL, reasons=tuple(reasons))
    if unknown:
        names = _names([member.device for member in unknown])
        reasons.append(f"Offline since before the offer, so unknown: {names}.")
    if waiting or busy:
        if waiting:
            reasons.append(f"Not yet offered: {_names([member.device for member in waiting])}.")
        reasons += _busy(busy)
        return Verdict(gate=Gate.HOLD, reasons=tuple(reasons))
    if wave and not confirmed:
        if unknown:
            reasons.append("Nobody has confirmed it: the wave proves nothing yet.")
            return Verdict(gate=Gate.HOLD, reasons=tuple(reasons))
        reasons.append("Nobody confirmed it.")
        return Verdict(gate=Gate.FAIL, reasons=tuple(reasons))
    ended = len(failed) + sum(member.step is Step.CONFIRMED for member in everyone)
    reasons.append(_evidence(len(failed), ended) if ended else "The wave has no device.")
    return Verdict(gate=Gate.PASS, reasons=tuple(reasons))


def tell_passed(
    *, number: int, waves: int, wave: Sequence[Member], earlier: Sequence[Member], max_failures: int
) -> tuple[str, ...]:
    """What is true now of a wave that has passed its gate: devices may fail, or come, after that.

    Args: as for `judge`.
    """
    now = judge(number=number, waves=waves, wave=wave, earlier=earlier, max_failures=max_failures)
    if now.gate is Gate.PASS:
        return now.reasons
    return (*now.reasons, "It had passed its gate before that.")


def tell_counts(counts: Mapping[str, int]) -> str:
    """A rollout in a few words, from its devices by step.

    >>> tell_counts({"confirmed": 4, "rolled_back": 1}).partition(". ")[0]
    '4 of 5 devices confirmed, 1 rolled back'
    """
    confirmed = counts.get(Step.CONFIRMED, 0)
    failed = sum(counts.get(step, 0) for step in FAILED)
    others = [step for step in Step if step is not Step.CONFIRMED and counts.get(step)]
    told = f"{_count(confirmed, sum(counts.values()))} confirmed"
    told += "".join(f", {counts[step]} {_readable(step)}" for step in others)
    return f"{told}. {_evidence(failed, failed + confirmed)}" if confirmed else f"{told}."


MODEL_FAULTS: Final = ("selftest", "budget", "engine", "model")
"""Codes, or their first parts, of failures that speak against a version wherever it runs."""


def condemns(code: str) -> bool:
    """Whether a failure is the model's fault. A full disk, a wrong key or silence is a device's.

    >>> [condemns(code) for code in ("budget.memory", "selftest", "storage", "timeout", "")]
    [True, True, False, False, False]
    """
    return code.partition(".")[0] in MODEL_FAULTS


def overdue(
    *,
    step: Step,
    was_online: bool,
    online: bool,
    progress_ms: int,
    presence_ms: int,
    deadline_ms: float,
    now_ms: int,
) -> bool:
    """Whether a device was silent past the deadline: no new phase, no further bytes.

    Who was offline when it was offered the version cannot be overdue while it is away, and has its time from
    when it came back. Who is on probation has nothing to say before its end: it is not overdue while it is
    online, and has its time from when it went away.

    Args:
        step: how far it is.
        was_online: when it was offered the version.
        online: now.
        progress_ms: when it last said something new.
        presence_ms: since when it is online, or is not.
        deadline_ms: how long it may be silent.
        now_ms: the time.
    """
    if step not in IN_FLIGHT or not (was_online or online):
        return False
    if step is Step.PROBATION and online:
        return False
    counts_presence = step is Step.PROBATION or not was_online
    since = max(progress_ms, presence_ms) if counts_presence else progress_ms
    return now_ms - since > deadline_ms


def failure_rate_bound(failures: int, n: int, confidence: float = CONFIDENCE) -> float:
    """The largest failure rate under which so few failures still have a chance of ``1 - confidence``.

    One-sided exact bound of Clopper and Pearson (1934); for no failures, ``1 - (1 - confidence)^(1/n)``.

    >>> [round(100 * failure_rate_bound(0, n), 1) for n in (5, 30, 100, 300)]
    [45.1, 9.5, 3.0, 1.0]
    """
    if not 0 <= failures <= n or n == 0:
        raise ValueError("failures must be between 0 and n, and n positive")
    if failures == n:
        return 1.0
    low, high = failures / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(failures, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) of a binomial distribution."""
    if p in (0.0, 1.0):
        return 1.0 - p if k < n else 1.0
    logs = (
        math.lgamma(n + 1)
        - math.lgamma(i + 1)
        - math.lgamma(n - i + 1)
        + i * math.log(p)
        + (n - i) * math.log1p(-p)
        for i in range(k + 1)
    )
    return math.fsum(math.exp(log) for log in logs)


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"


def _told(member: Member) -> str:
    what = {
        Step.ROLLED_BACK: "rolled back",
        Step.REJECTED: "rejected it",
        Step.TIMED_OUT: "was silent past the deadline",
    }[member.step]
    return f"{what} ({member.error})" if member.error else what


def _busy(busy: Sequence[Member]) -> list[str]:
    """Who works on it, and who only waits."""
    waiting = [m.device for m in busy if m.step is Step.PROBATION and m.online]
    at_it = [f"{m.device} ({_readable(m.step)})" for m in busy if not (m.step is Step.PROBATION and m.online)]
    told = [f"Still at it: {_names(at_it)}."] if at_it else []
    if len(waiting) == 1:
        told.append(f"{waiting[0]} is on probation: it waits for requests or for its time.")
    elif waiting:
        told.append(f"{_names(waiting)} are on probation: they wait for requests or for their time.")
    return told


def _evidence(failures: int, ended: int) -> str:
    """What that many failures of so many devices say about all devices."""
    counted = f"{_failures(failures)} in {ended} device{'' if ended == 1 else 's'}"
    if failures == ended:
        return f"{counted}."
    bound = _percent(failure_rate_bound(failures, ended))
    return f"{counted}: with {_percent(CONFIDENCE)} confidence, fewer than {bound} of devices fail."


def _readable(step: Step) -> str:
    return step.value.replace("_", " ")


def _count(part: int, whole: int) -> str:
    return f"{part} of {whole} device{'' if whole == 1 else 's'}"


def _failures(count: int) -> str:
    return f"{count} failure{'' if count == 1 else 's'}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown
