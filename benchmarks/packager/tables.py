"""The benchmark's cells as a table for a terminal and a plot for a page. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import log2
from typing import Any, Final

from .verdicts import MOST_BYTES, MOST_LATENCY, MOST_SECONDS, MOST_SIZE, Ruling, passing, rule

Cell = Mapping[str, Any]
_PALETTE: Final = "#0b6e4f #c44536 #3a6ea5 #8d5a97 #d98e04 #5c6672 #00798c #a63d40 #6a994e #b56576 #444444"
_COLOURS: Final = _PALETTE.split()


def _names(cells: Sequence[Cell], key: str) -> list[str]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def _show(cell: Cell | None) -> str:
    """``size/latency/score`` and the verdict, which is silent where all is well."""
    if cell is None:
        return ""
    if "size" not in cell or "ratio" not in cell:
        return str(cell["ruling"])
    mark = "" if cell["ruling"] == "ok" else f" {cell['ruling']}"
    return f"{cell['size']:.2f}/{cell['ratio']:.2f}/{cell['made']:.3f}{mark}"


def table(cells: Sequence[Cell]) -> str:
    """One block per engine, a line per model, a column per method; then who passes how many of what."""
    lines = ["Cells: size / latency / score, the first two as shares of the source; a word where it fails.\n"]
    for engine in _names(cells, "engine"):
        part = [cell for cell in cells if cell["engine"] == engine]
        methods, found = _names(part, "method"), {(cell["model"], cell["method"]): cell for cell in part}
        rows = [["model", *methods]]
        for model in _names(part, "model"):
            rows.append([model, *(_show(found.get((model, method))) for method in methods)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines += [
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.append("")
    return "\n".join([*lines, *summary(cells)]) + "\n"


def summary(cells: Sequence[Cell]) -> list[str]:
    """``METHOD passing A of N`` for every group of models, the best single tool, and the cost of ours."""
    lines = []
    smaller = [cell for cell in cells if cell["group"] != "kept"]
    everything = {
        "named models": [cell for cell in cells if cell["group"] == "named"],
        "models that can shrink": smaller,
        "models to be left unharmed": [cell for cell in cells if cell["group"] == "kept"],
    }
    for title, part in everything.items():
        if part:
            counts = passing((cell["method"], Ruling(cell["ruling"], "")) for cell in part)
            newest = passing((cell["method"], _on_newest(cell)) for cell in part)
            lines.append(f"passing of the {len(_names(part, 'model'))} {title}:")
            lines += [
                f"  {method:20} {good} of {total}"
                + (
                    f" ({newest[method][0]} if only the newest runtime counts)"
                    if newest[method][0] > good
                    else ""
                )
                for method, (good, total) in counts.items()
            ]
    ours = [cell for cell in cells if cell["method"] == "ours" and "seconds" in cell]
    if ours:
        longest, largest = max(c["seconds"] for c in ours), max(c.get("peak_bytes", 0) for c in ours)
        lines.append(
            f"ours takes at most {longest:.0f} s (bar {MOST_SECONDS:.0f}) "
            f"and {largest / 1e9:.2f} GB (bar {MOST_BYTES / 1e9:.1f}) a model"
        )
    return lines


def _on_newest(cell: Cell) -> Ruling:
    """The ruling as if nobody had an older runtime: fair to tools that write for the newest alone."""
    if "runtimes" not in cell or "ratio" not in cell:
        return Ruling(cell["ruling"], "")
    return rule({**cell, "runtimes": {}}, cell["metric"], cell["group"] == "kept")


def plot_svg(cells: Sequence[Cell]) -> str:
    """Size against latency, both as shares of the source; hollow where a promise is broken."""
    width, height, left, bottom = 860, 520, 60, 470
    methods = _names(cells, "method")

    def x(size: float) -> float:
        return left + min(size, 1.4) / 1.4 * 560

    def y(ratio: float) -> float:
        return bottom - (log2(min(max(ratio, 0.25), 8)) + 2) / 5 * 430

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<rect x="{left}" y="{y(MOST_LATENCY):.1f}" width="{x(MOST_SIZE) - left:.1f}" '
        f'height="{bottom - y(MOST_LATENCY):.1f}" fill="#eef6f1"/>',
        f'<text x="{left + 6}" y="{y(MOST_LATENCY) + 16:.1f}" fill="#0b6e4f">smaller and not slower</text>',
    ]
    for size in (0, 0.25, 0.5, 0.75, 1, 1.25):
        parts.append(f'<text x="{x(size):.1f}" y="{bottom + 18}" text-anchor="middle">{size}</text>')
    for ratio in (0.25, 0.5, 1, 2, 4, 8):
        parts.append(f'<text x="{left - 8}" y="{y(ratio) + 4:.1f}" text-anchor="end">{ratio}</text>')
        parts.append(f'<path d="M{left} {y(ratio):.1f}H620" stroke="#ddd"/>')
    parts.append(f'<text x="340" y="{bottom + 40}" text-anchor="middle">size / source</text>')
    parts.append(
        '<text x="16" y="255" text-anchor="middle" transform="rotate(-90 16 255)">latency / source</text>'
    )
    for place, method in enumerate(methods):
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(f'<circle cx="652" cy="{40 + place * 22}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="664" y="{44 + place * 22}">{escape(method)}</text>')
    for cell in cells:
        if "size" in cell and "ratio" in cell:
            colour = _COLOURS[methods.index(cell["method"]) % len(_COLOURS)]
            fill = colour if cell["ruling"] == "ok" else "none"
            label = escape(f"{cell['model']}, {cell['method']}: {cell['ruling']}")
            parts.append(
                f'<circle cx="{x(cell["size"]):.1f}" cy="{y(cell["ratio"]):.1f}" r="5" fill="{fill}" '
                f'fill-opacity="0.75" stroke="{colour}" stroke-width="1.5"><title>{label}</title></circle>'
            )
    return "\n".join([*parts, "</svg>"]) + "\n"
