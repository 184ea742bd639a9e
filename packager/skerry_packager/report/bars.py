"""Drawings that are as wide as their place: intervals of the loss, budgets, sensitivity. One row, one SVG.

Every one says in words what it shows (``aria-label``), and stands beside the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..console import size
from .evidence import Evidence, Judged, Limits, Operator, Tried
from .figures import bound, duration, loss
from .markup import Html, el, number, percent

_HEIGHT = 22.0
_MIDDLE = _HEIGHT / 2


@dataclass(frozen=True, slots=True)
class LossScale:
    """The range of losses that is drawn; what lies outside is drawn as an arrow at the edge."""

    low: float
    high: float

    def at(self, value: float) -> float:
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def loss_scale(evidence: Evidence) -> LossScale:
    """Wide enough for everything that passes, and for the gate to be seen; far losers are cut off."""
    judged = [item for tried in evidence.judgeable for item in (tried.search, tried.held_out) if item]
    gate = evidence.max_drop
    ends = [item.bound for item in judged] or [gate]
    high = max(gate, min(max(ends), max(4 * gate, 0.004)))
    low = min([0.0, *(max(item.drop, -high) for item in judged)])
    room = 0.06 * (high - low) or 0.01
    return LossScale(low - room, high + room)


def interval(tried: Tried, scale: LossScale, gate: float) -> Html:
    """Both splits of one variant: the mean loss and the way to its upper bound, with the gate."""
    rows = [item for item in (tried.search, tried.held_out) if item is not None]
    height = 16.0 * len(rows) + 4
    words = "; ".join(f"{item.split}: loss {loss(item.drop)}, {bound(item)}" for item in rows)
    gate_x, zero_x = percent(scale.at(gate)), percent(scale.at(0.0))
    parts = [
        el("line", x1=zero_x, x2=zero_x, y1=0, y2=height, class_="zero"),
        el("line", x1=gate_x, x2=gate_x, y1=0, y2=height, class_="gate"),
    ]
    for index, item in enumerate(rows):
        parts += _interval(item, scale, gate, 10 + 16.0 * index)
    return el("svg", *parts, width="100%", height=height, role="img", aria_label=words, class_="strip")


def _interval(item: Judged, scale: LossScale, gate: float, y: float) -> list[Html]:
    tone = "bad" if item.bound > gate else "good"
    start, end = scale.at(item.drop), scale.at(item.bound)
    beyond = item.bound > scale.high
    parts = [
        el("line", x1=percent(start), x2=percent(end), y1=y, y2=y, class_=f"whisker {tone}"),
    ]
    if beyond:
        parts.append(el("text", "▸", x="100%", y=y + 5, text_anchor="end", class_=f"beyond {tone}"))
    else:
        parts.append(
            el("line", x1=percent(end), x2=percent(end), y1=y - 5, y2=y + 5, class_=f"whisker {tone}")
        )
    if item.drop <= scale.high:
        hollow = "hollow " if item.split == "search" else ""
        parts.append(el("circle", cx=percent(start), cy=y, r=4, class_=f"dot {hollow}{tone}"))
    return parts


def loss_axis(scale: LossScale, gate: float) -> Html:
    """The scale below the intervals."""
    marks = {0.0: "0", gate: f"gate {loss(gate)}"} if gate > 0 else {0.0: "0 = gate"}
    parts = []
    for value, text in marks.items():
        share = scale.at(value)
        anchor = "start" if share < 0.15 else "end" if share > 0.85 else "middle"
        parts.append(el("text", text, x=percent(share), y=14, text_anchor=anchor, class_="tick"))
    return el("svg", *parts, width="100%", height=18, aria_hidden="true", class_="strip")


@dataclass(frozen=True, slots=True)
class Meter:
    """One budget and what a variant takes of it."""

    title: str
    used: float
    """What decides."""
    low: float
    high: float
    """Ends of the interval; equal to `used` where there is none."""
    budget: float
    """0: no limit."""
    text: str
    note: str = ""

    @property
    def over(self) -> bool:
        return 0 < self.budget < self.used

    @property
    def at_risk(self) -> bool:
        """The upper end of the interval does not fit."""
        return not self.over and 0 < self.budget < self.high

    @property
    def verdict(self) -> str:
        if not self.budget:
            return "no limit"
        used = self.used / self.budget
        share = f"{used:.0%} of the budget" if used >= 0.01 else "under 1% of the budget"
        return f"over budget: {share}" if self.over else f"may be over: {share}" if self.at_risk else share


def meters(tried: Tried, limits: Limits) -> list[Meter]:
    """Everything that is known of a variant on a profile, against its limits."""
    found = []
    if tried.size:
        found.append(_bytes("File", tried.size, limits.size))
        if limits.flash:
            found.append(_bytes("Flash, two slots", 2 * tried.size, limits.flash))
    ram = [value for value in (tried.ram_lower, tried.ram_measured, tried.ram_upper) if value]
    if ram:
        used = tried.ram_measured or tried.ram_lower or ram[0]
        named = [
            f"{word} {size(value)}"
            for word, value in (
                ("lower bound", tried.ram_lower),
                ("measured here", tried.ram_measured),
                ("upper bound", tried.ram_upper),
            )
            if value
        ]
        limit = f" of {size(limits.ram)}" if limits.ram else ""
        found.append(
            Meter("RAM", used, min(ram), max(ram), limits.ram, f"{size(used)}{limit}", ", ".join(named))
        )
    guess = tried.estimates.get(limits.name)
    limit = f" of {duration(limits.latency_us)}" if limits.latency_us else ""
    if guess is not None:
        interval = f"{duration(guess.low)} to {duration(guess.high)}; {guess.provenance}"
        found.append(
            Meter(
                "Latency", guess.p50, guess.low, guess.high, limits.latency_us,
                f"{duration(guess.p50)}{limit}", interval,
            )
        )  # fmt: skip
    slowdown = tried.slowdowns.get(limits.name)
    if slowdown is not None:
        of = f" of x{limits.slowdown:.2f}" if limits.slowdown else ""
        found.append(
            Meter("Latency, fp32 = 1", slowdown, slowdown, slowdown, limits.slowdown, f"x{slowdown:.2f}{of}")
        )
    return found


def _bytes(title: str, used: int, budget: int) -> Meter:
    limit = f" of {size(budget)}" if budget else ""
    return Meter(title, used, used, used, budget, f"{size(used)}{limit}")


def meter_bar(meter: Meter) -> Html:
    """The bar of a meter: the budget is its full width, or a line in it where more is used."""
    full = max(meter.budget, meter.used, meter.high) or 1.0
    tone = "bad" if meter.over else "warn" if meter.at_risk else "good" if meter.budget else "idle"
    parts = [
        el("rect", x=0, y=5, width="100%", height=12, rx=3, class_="track"),
        el("rect", x=0, y=5, width=percent(meter.used / full), height=12, rx=3, class_=f"fill {tone}"),
    ]
    if meter.high > meter.low:
        start, end = percent(meter.low / full), percent(meter.high / full)
        parts.append(el("line", x1=start, x2=end, y1=_MIDDLE, y2=_MIDDLE, class_="whisker"))
        parts += [
            el("line", x1=x, x2=x, y1=_MIDDLE - 5, y2=_MIDDLE + 5, class_="whisker") for x in (start, end)
        ]
    if meter.budget:
        x = percent(meter.budget / full)
        parts.append(el("line", x1=x, x2=x, y1=1, y2=_HEIGHT - 1, class_="gate"))
    words = f"{meter.title}: {meter.text}, {meter.verdict}"
    return el("svg", *parts, width="100%", height=_HEIGHT, role="img", aria_label=words, class_="strip")


def noise_bar(item: Operator, noises: Sequence[float]) -> Html:
    """The noise of one operator on a logarithmic scale from a decade below the least."""
    positive = [noise for noise in noises if noise > 0]
    share = 0.0
    if item.noise > 0:
        low, high = math.log10(min(positive)) - 1, math.log10(max(positive))
        share = (math.log10(item.noise) - low) / (high - low)
    kept, tone = ("kept in float", "warn") if item.kept_float else ("quantized", "busy")
    return el(
        "svg",
        el("rect", x=0, y=5, width="100%", height=12, rx=3, class_="track"),
        el("rect", x=0, y=5, width=percent(share), height=12, rx=3, class_=f"fill {tone}"),
        width="100%", height=number(_HEIGHT), role="img", aria_label=f"noise {item.noise:.2g}, {kept}",
        class_="strip",
    )  # fmt: skip
