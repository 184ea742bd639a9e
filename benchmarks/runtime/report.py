"""The figures as a table for a terminal, as a table for a page, and as bars. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log10

from .gates import FAIL, GATES, PASS, Figure, Gate, failing, verdict

Figures = Mapping[str, Figure]
_COLOURS = {PASS: "#0b6e4f", FAIL: "#c44536"}
_HEAD = ("metric", "against", "gate", "median", "quartiles", "verdict")


def number(value: float | None, unit: str) -> str:
    """Three digits, without the zeros of a ratio."""
    if value is None:
        return ""
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return text if unit == "x" else f"{text} {unit}"


def _shown(figures: Figures) -> list[Gate]:
    """What was asked for, in the order of `GATES`."""
    return [gate for gate in GATES if gate.key in figures]


def rows(figures: Figures) -> list[tuple[str, ...]]:
    """One for each gate that was asked for."""
    return [_row(gate, figures[gate.key]) for gate in _shown(figures)]


def _row(gate: Gate, figure: Figure) -> tuple[str, ...]:
    value = number(figure.value, gate.unit)
    between = ""
    if figure.low is not None and figure.high is not None:
        between = f"{number(figure.low, 'x')} to {number(figure.high, 'x')}"
    return (gate.what, gate.against, gate.target, value, between, verdict(gate, figure))


def table(figures: Figures) -> str:
    """For a terminal, each detail below its row."""
    lines = _aligned([_HEAD, *rows(figures)])
    found = [lines[0]]
    for line, gate in zip(lines[1:], _shown(figures), strict=True):
        found.append(line)
        if figures[gate.key].detail:
            found.append(f"    {figures[gate.key].detail}")
    return "\n".join([*found, "", summary(figures)]) + "\n"


def markdown(figures: Figures) -> str:
    """For a page."""
    lines = [f"| {' | '.join(row)} |" for row in (_HEAD, ("---",) * len(_HEAD), *rows(figures))]
    return "\n".join(lines) + "\n"


def summary(figures: Figures) -> str:
    """``PASS 9 of 12 gates`` and what fails."""
    words = [verdict(gate, figures.get(gate.key)) for gate in _shown(figures) if gate.bar is not None]
    text = f"{words.count(PASS)} of {len(words)} gates pass"
    missed = ", ".join(gate.key for gate in failing(figures))
    absent = len(words) - words.count(PASS) - words.count(FAIL)
    return text + (f"; missed: {missed}" if missed else "") + (f"; {absent} not run" if absent else "")


def _aligned(lines: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def share_of_bar(gate: Gate, figure: Figure | None) -> float | None:
    """How much of the gate is used up, 1 being the bar; below 1 is good in either direction.

    None where there is nothing to divide: no figure, no bar, or a bar of 0.
    """
    if figure is None or figure.value is None or not gate.bar or figure.value <= 0:
        return None
    return gate.bar / figure.value if gate.least else figure.value / gate.bar


def plot_svg(figures: Figures) -> str:
    """A bar for each gate with a bar: how much of it is used up, on a logarithmic scale."""
    shown = [(gate, share) for gate in GATES if (share := share_of_bar(gate, figures.get(gate.key)))]
    left, width, step = 380, 360, 24
    height = 50 + step * len(shown)

    def x(share: float) -> float:
        return left + (log10(min(max(share, 0.05), 20)) + 1.31) / 2.62 * width

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{left + width + 90}" height="{height}" fill="white"/>',
        f'<path d="M{x(1):.1f} 26V{height - 8}" stroke="#444" stroke-dasharray="3 3"/>',
        f'<text x="{x(1):.1f}" y="18" text-anchor="middle">gate</text>',
    ]
    for place, (gate, share) in enumerate(shown):
        y = 34 + place * step
        figure = figures[gate.key]
        colour = _COLOURS.get(verdict(gate, figure), "#5c6672")
        label = escape(f"{gate.what}{', ' + gate.against if gate.against else ''}")
        value = escape(number(figure.value, gate.unit))
        parts += [
            f'<text x="{left - 8}" y="{y + 11}" text-anchor="end">{label}</text>',
            f'<rect x="{left}" y="{y}" width="{x(share) - left:.1f}" height="14" fill="{colour}"/>',
            f'<text x="{x(share) + 6:.1f}" y="{y + 11}">{value} ({escape(gate.target)})</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
