"""The report on a terminal: the Pareto plot and the budgets, drawn with characters.

Where characters beyond ASCII may not be shown, every drawing has an ASCII form. Lines are plain text; the
tables around them are made by `skerry_packager.cli.runs`.
"""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..console import clean, size
from . import bars, plot
from .evidence import Evidence, Limits, Tried, read_evidence
from .figures import bound, bytes_unit, loss, tick
from .scales import axis_of

_ROWS: Final = 12
_MARGIN: Final = 9
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Glyphs:
    """Characters to draw with."""

    full: str
    empty: str
    over: str
    vertical: str
    horizontal: str
    corner: str
    dot: str
    dash: str
    gate: str


UNICODE: Final = Glyphs("█", "░", "▓", "│", "─", "└", "●", "━", "┃")
ASCII: Final = Glyphs("#", ".", "!", "|", "-", "+", "o", "=", "|")


def glyphs_for_stdout() -> Glyphs:
    """ASCII where the output is no terminal, cannot encode more, or must be plain (``NO_COLOR``)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    encodes = (sys.stdout.encoding or "").lower().startswith("utf")
    return ASCII if plain or not encodes else UNICODE


def render_text(row: Mapping[str, Any], width: int, glyphs: Glyphs) -> list[str]:
    """The lines of a run's drawings, none longer than `width` (at least 60).

    Args:
        row: as `skerry_packager.runlog.document` or `RunLog.run` gives it.
        width: characters of a line.
        glyphs: what to draw with.
    """
    evidence = read_evidence(row)
    width = max(width, 60)
    parts = [
        _pareto(evidence, width, glyphs),
        _losses(evidence, width, glyphs),
        _budgets(evidence, width, glyphs),
    ]
    lines: list[str] = []
    for part in parts:
        if part:
            lines += [*([""] if lines else []), *part]
    ascii_only = glyphs is ASCII
    return [_ascii(line) if ascii_only else line for line in (clean(line)[:width] for line in lines)]


def _pareto(evidence: Evidence, width: int, glyphs: Glyphs) -> list[str]:
    views = plot.views(evidence)
    if not views:
        return []
    view = views[0]
    points = plot.drawable(evidence, view)
    columns = min(width, 100) - _MARGIN - 2
    across, up = axis_of([point[1] for point in points]), axis_of([point[2] for point in points])
    grid: dict[tuple[int, int], str] = {}
    key = []
    for tried, bytes_, latency in points:
        letter = _letter(tried)
        column = round(across.at(bytes_) * (columns - 1))
        line = round((1 - up.at(latency)) * (_ROWS - 1))
        grid[_free(grid, line, column, columns)] = letter
        key.append(f"{letter} {tried.name}: {size(tried.size)}, {view.shown(latency)}{_mark(tried)}")
    times, times_name = view.unit(up.high)
    bytes_unit_, bytes_name = bytes_unit(across.high)
    ticks = {round((1 - up.at(value)) * (_ROWS - 1)): tick(value, times) for value in up.ticks(4, times)}
    lines = [f"latency on {view.title}, {times_name}{' (log)' if up.log else ''}"]
    for line in range(_ROWS):
        cells = "".join(grid.get((line, column), " ") for column in range(columns))
        lines.append(f"{ticks.get(line, ''):>{_MARGIN - 1}} {glyphs.vertical}{cells}".rstrip())
    lines.append(" " * _MARGIN + glyphs.corner + glyphs.horizontal * columns)
    scale = [" "] * (width - _MARGIN - 1)
    for value in across.ticks(5, bytes_unit_):
        text = tick(value, bytes_unit_)
        start = min(round(across.at(value) * (columns - 1)), len(scale) - len(text))
        if all(cell == " " for cell in scale[max(start - 1, 0) : start + len(text) + 1]):
            scale[start : start + len(text)] = text
    lines.append((" " * (_MARGIN + 1) + "".join(scale)).rstrip())
    lines.append(" " * (_MARGIN + 1) + f"file size, {bytes_name}{' (log)' if across.log else ''}")
    return [*lines, *_columns(key, width)]


def _letter(tried: Tried) -> str:
    """A capital for what was chosen. More than 26 variants share letters, and the key tells them apart."""
    letter = _LETTERS[(tried.number - 1) % len(_LETTERS)]
    return letter.upper() if tried.chosen_for else letter


def _mark(tried: Tried) -> str:
    return ", chosen" if tried.chosen_for else "" if tried.passed else f", {tried.verdict}"


def _free(grid: Mapping[tuple[int, int], str], line: int, column: int, columns: int) -> tuple[int, int]:
    """The cell, or the nearest free one in the line and those beside it."""
    for distance in range(columns):
        for row in (line, line - 1, line + 1):
            for at in (column + distance, column - distance):
                if 0 <= at < columns and 0 <= row < _ROWS and (row, at) not in grid:
                    return row, at
    return line, column


def _columns(items: list[str], width: int) -> list[str]:
    """Texts side by side as far as they fit."""
    widest = max(map(len, items), default=0) + 3
    across = max(width // widest, 1)
    lines = [items[start : start + across] for start in range(0, len(items), across)]
    return ["".join(f"{item:<{widest}}" for item in line).rstrip() for line in lines]


def _losses(evidence: Evidence, width: int, glyphs: Glyphs) -> list[str]:
    judged = evidence.judgeable
    if not judged:
        return []
    scale, gate = bars.loss_scale(evidence), evidence.max_drop
    name_width = min(max(len(tried.name) for tried in judged), 24)
    columns = min(width - name_width - 34, 60)
    lines = [f"loss and its 95% bound ({glyphs.gate} is the gate, {loss(gate)})"]
    for tried in judged:
        if (item := tried.judged) is None:
            continue
        start, end, limit = (
            round(scale.at(value) * (columns - 1)) for value in (item.drop, item.bound, gate)
        )
        cells = [" "] * columns
        cells[limit] = glyphs.gate
        for at in range(start, end + 1):
            cells[at] = glyphs.dash
        cells[start] = glyphs.dot
        if item.bound > scale.high:
            cells[-1] = ">"
        over = "  OVER" if item.bound > gate else ""
        word = f"{loss(item.drop)}, {bound(item).replace('≤', '<=').replace('by the odds', 'odds')}{over}"
        lines.append(f"{tried.name[:name_width]:<{name_width}} {''.join(cells)} {word}")
    return lines


def _budgets(evidence: Evidence, width: int, glyphs: Glyphs) -> list[str]:
    lines: list[str] = []
    for limits in evidence.limits:
        best = evidence.variant(limits.variants[0]) if limits.variants else None
        if best is not None:
            lines += _variant(best, limits, width, glyphs)
            continue
        # Nothing was chosen: the budgets that each one breaks are the reason.
        lines.append(f"{limits.name}: nothing was chosen")
        for tried in evidence.tried:
            broken = [meter for meter in bars.meters(tried, limits) if meter.over]
            if tried.passed and broken:
                lines += [
                    f" {tried.name}",
                    *(line for meter in broken for line in _meter(meter, width, glyphs)),
                ]
    return lines


def _variant(tried: Tried, limits: Limits, width: int, glyphs: Glyphs) -> list[str]:
    lines = [f"{limits.name}: {tried.name}"]
    lines += [line for meter in bars.meters(tried, limits) for line in _meter(meter, width, glyphs)]
    if limits.name not in tried.estimates:
        lines.append(f"  {'Latency':<17} not verified; the device's self-test measures it")
    return lines


def _meter(meter: bars.Meter, width: int, glyphs: Glyphs) -> list[str]:
    columns = min(max(width - 72, 12), 36)
    share = min(meter.used / meter.budget, 1.0) if meter.budget else 0.0
    filled = math.ceil(share * columns)
    bar = (glyphs.over if meter.over else glyphs.full) * filled + glyphs.empty * (columns - filled)
    word = f"{meter.text}, {meter.verdict}".replace("over budget", "OVER budget")
    words = [*_wrapped(word, width - columns - 21), *(_wrapped(meter.note, width - columns - 21))]
    first, *more = words
    return [f"  {meter.title:<17} {bar} {first}", *(f"{'':<{columns + 21}}{line}" for line in more)]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20))


def _ascii(line: str) -> str:
    return line.replace("µ", "u").encode("ascii", "replace").decode()
