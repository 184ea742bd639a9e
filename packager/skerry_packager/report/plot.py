"""The Pareto plot: file size against latency, one mark for each variant, every mark labelled.

Shape says the verdict, colour what is lost; both are also in words, in each mark's title and in the table.
It is drawn twice: wide with names, narrow (for phones) with the numbers of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from ..console import size
from .evidence import Evidence, Limits, Tried
from .figures import accuracy_class, bytes_unit, duration, loss, tick, time_unit
from .markup import Html, el, join, number
from .scales import Axis, Box, axis_of, place_labels

_LABEL_HEIGHT: Final = 15.0
_CHARACTER: Final = 7.4
"""Width of a character of a label, at most."""
_LONGEST: Final = 24


@dataclass(frozen=True, slots=True)
class View:
    """Where the latencies of one plot come from."""

    title: str
    provenance: str
    latency: Callable[[Tried], float | None]
    relative: bool = False
    """Whether it is a multiple of fp32's latency, not microseconds."""

    def shown(self, latency: float) -> str:
        return f"x{latency:.2f}" if self.relative else duration(latency)

    def unit(self, largest: float) -> tuple[float, str]:
        return (1.0, "fp32 = 1") if self.relative else time_unit(largest)


@dataclass(frozen=True, slots=True)
class _Canvas:
    kind: str
    width: float
    height: float
    left: float = 66.0
    right: float = 14.0
    top: float = 14.0
    bottom: float = 52.0

    @property
    def area(self) -> Box:
        return Box(
            self.left,
            self.top,
            self.width - self.left - self.right,
            self.height - self.top - self.bottom,
        )


_WIDE: Final = _Canvas("wide", 920.0, 440.0)
_NARROW: Final = _Canvas("narrow", 340.0, 380.0, left=62.0, right=10.0)


def views(evidence: Evidence) -> list[View]:
    """The host first, if it was measured there; then every profile that something is known of."""
    found = []
    if any(tried.latency_ratio for tried in evidence.tried):
        # Variants were timed one after the other, each in turns with fp32: only the ratios can be compared.
        found.append(
            View(
                "this host",
                "paired with fp32 on the packing host; not verified on any device",
                lambda tried: tried.latency_ratio,
                relative=True,
            )
        )
    for limits in evidence.limits:
        known = [tried.estimates[limits.name] for tried in evidence.tried if limits.name in tried.estimates]
        if known:
            how = "; ".join(sorted({guess.provenance for guess in known}))
            found.append(View(limits.name, how, _on(limits)))
    return found


def _on(limits: Limits) -> Callable[[Tried], float | None]:
    return lambda tried: tried.estimates[limits.name].p50 if limits.name in tried.estimates else None


def drawable(evidence: Evidence, view: View) -> list[tuple[Tried, float, float]]:
    """Variants with a size and a latency there."""
    return [
        (tried, float(tried.size), latency)
        for tried in evidence.tried
        if tried.size and (latency := view.latency(tried))
    ]


def front(points: Sequence[tuple[Tried, float, float]]) -> list[tuple[float, float]]:
    """Size and latency of the passing variants that no passing one beats in both, the smallest first."""
    best: list[tuple[float, float]] = []
    for _, bytes_, latency in sorted(points, key=lambda point: (point[1], point[2])):
        if not best or latency < best[-1][1]:
            best.append((bytes_, latency))
    return best


def draw(evidence: Evidence, view: View) -> Html:
    """Both drawings of one view. Empty if nothing can be drawn."""
    # What was chosen is drawn last, above the others.
    points = sorted(drawable(evidence, view), key=lambda point: bool(point[0].chosen_for))
    if not points:
        return Html("")
    return join(*(_draw(evidence, view, points, canvas) for canvas in (_WIDE, _NARROW)))


def _draw(evidence: Evidence, view: View, points: list[tuple[Tried, float, float]], canvas: _Canvas) -> Html:
    area = canvas.area
    across, up = axis_of([point[1] for point in points]), axis_of([point[2] for point in points])

    def place(bytes_: float, latency: float) -> tuple[float, float]:
        return area.x + across.at(bytes_) * area.width, area.y + (1 - up.at(latency)) * area.height

    spots = [place(bytes_, latency) for _, bytes_, latency in points]
    names = [_label(tried, canvas) for tried, _, _ in points]
    boxes = place_labels(spots, [(len(name) * _CHARACTER + 4, _LABEL_HEIGHT) for name in names], area)
    passing = [point for point in points if point[0].passed]
    return el(
        "svg",
        el("title", f"Size against latency on {view.title}"),
        _axes(canvas, view, across, up),
        _staircase([place(*point) for point in front(passing)], area),
        *(_leader(spot, box) for spot, box in zip(spots, boxes, strict=True)),
        *(
            _mark(evidence, tried, spot, name, box, view.shown(latency))
            for (tried, _, latency), spot, name, box in zip(points, spots, names, boxes, strict=True)
        ),
        viewBox=f"0 0 {number(canvas.width)} {number(canvas.height)}",
        class_=f"plot {canvas.kind}",
        role="group",
        aria_label=f"Size against latency on {view.title}; the table below has the same figures",
    )


def _label(tried: Tried, canvas: _Canvas) -> str:
    if canvas is _NARROW:
        return str(tried.number)
    half = _LONGEST // 2
    return tried.name if len(tried.name) <= _LONGEST else f"{tried.name[: half - 1]}…{tried.name[-half:]}"


def _axes(canvas: _Canvas, view: View, across: Axis, up: Axis) -> Html:
    area = canvas.area
    bottom, right = area.y + area.height, area.x + area.width
    bytes_, bytes_name = bytes_unit(across.high)
    times, times_name = view.unit(up.high)
    parts = []
    for value in across.ticks(6 if canvas is _WIDE else 3, bytes_):
        x = area.x + across.at(value) * area.width
        parts.append(el("line", x1=x, y1=area.y, x2=x, y2=bottom, class_="grid"))
        parts.append(el("text", tick(value, bytes_), x=x, y=bottom + 18, class_="tick", text_anchor="middle"))
    for value in up.ticks(5, times):
        y = area.y + (1 - up.at(value)) * area.height
        parts.append(el("line", x1=area.x, y1=y, x2=right, y2=y, class_="grid"))
        parts.append(el("text", tick(value, times), x=area.x - 8, y=y + 4, class_="tick", text_anchor="end"))
    parts.append(
        el("path", d=f"M{number(area.x)} {number(area.y)}V{number(bottom)}H{number(right)}", class_="axis")
    )
    middle = area.y + area.height / 2
    parts.append(
        el(
            "text", f"file size, {bytes_name}{_log(across)}", class_="axis-name",
            x=area.x + area.width / 2, y=bottom + 40, text_anchor="middle",
        )
    )  # fmt: skip
    parts.append(
        el(
            "text", f"latency, {times_name}{_log(up)}", class_="axis-name", x=14.0, y=middle,
            text_anchor="middle", transform=f"rotate(-90 14 {number(middle)})",
        )
    )  # fmt: skip
    return join(*parts)


def _log(axis: Axis) -> str:
    return " (log)" if axis.log else ""


def _staircase(steps: list[tuple[float, float]], area: Box) -> Html:
    if not steps:
        return Html("")
    first, *rest = steps
    path = f"M{number(first[0])} {number(area.y)}V{number(first[1])}"
    path += "".join(f"H{number(x)}V{number(y)}" for x, y in rest)
    return el("path", d=f"{path}H{number(area.x + area.width)}", class_="front")


def _leader(spot: tuple[float, float], box: Box | None) -> Html | None:
    """A line to a label that had to go far."""
    if box is None:
        return None
    x, y = spot
    near_x = min(max(x, box.x), box.x + box.width)
    near_y = min(max(y, box.y), box.y + box.height)
    if abs(near_x - x) + abs(near_y - y) < 16:
        return None
    return el("line", x1=x, y1=y, x2=near_x, y2=near_y, class_="leader")


def _mark(
    evidence: Evidence, tried: Tried, spot: tuple[float, float], name: str, box: Box | None, latency: str
) -> Html:
    x, y = spot
    about = [tried.name, tried.verdict, size(tried.size), f"latency {latency}"]
    if tried.judged is not None and tried.number > 1:
        about.append(f"loss {loss(tried.judged.drop)}, at most {loss(tried.judged.bound)}")
    about.append(tried.why)
    words = ", ".join(part for part in about if part)
    text = None
    if box is not None:
        text = el("text", name, x=box.x + 2, y=box.y + _LABEL_HEIGHT - 4, class_="label")
    ring = el("circle", cx=x, cy=y, r=10, class_="ring") if tried.pareto_for else None
    colour = accuracy_class(tried, evidence.max_drop)
    return el(
        "a",
        el("title", words),
        ring,
        el("path", d=shape(tried, x, y), class_=f"mark {colour}"),
        text,
        href=f"#variant-{tried.number}",
        aria_label=words,
        class_="chosen point" if tried.chosen_for else "point",
        data_variant=tried.number,
    )


def shape(tried: Tried, x: float, y: float) -> str:
    """Star: chosen. Circle: passes. Triangle: loses too much. Square: any other failure."""
    if tried.chosen_for:
        return _polygon(x, y, [(0, -8.5), (2.2, -2.8), (8.2, -2.7), (3.5, 1.1), (5.1, 7), (0, 3.6), (-5.1, 7),
                               (-3.5, 1.1), (-8.2, -2.7), (-2.2, -2.8)])  # fmt: skip
    if tried.passed:
        return f"M{number(x - 5)} {number(y)}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z"
    if tried.verdict == "accuracy":
        return _polygon(x, y, [(0, -6), (6, 5), (-6, 5)])
    return _polygon(x, y, [(-5, -5), (5, -5), (5, 5), (-5, 5)])


def _polygon(x: float, y: float, corners: Sequence[tuple[float, float]]) -> str:
    return f"M{'L'.join(f'{number(x + dx)} {number(y + dy)}' for dx, dy in corners)}Z"


def legend() -> Html:
    """What shapes, colours and lines mean."""

    def sign(path: str, colour: str, words: str, ring: bool = False) -> Html:
        circle = el("circle", cx=12, cy=12, r=10, class_="ring") if ring else None
        drawn = el(
            "svg",
            circle,
            el("path", d=path, class_=f"mark {colour}"),
            viewBox="0 0 24 24",
            aria_hidden="true",
        )
        return el("li", drawn, words)

    circle = "M7 12a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z"
    star = _polygon(12, 12, [(0, -8.5), (2.2, -2.8), (8.2, -2.7), (3.5, 1.1), (5.1, 7), (0, 3.6), (-5.1, 7),
                             (-3.5, 1.1), (-8.2, -2.7), (-2.2, -2.8)])  # fmt: skip
    line = el("path", d="M2 12H22", class_="front")
    return el(
        "ul",
        sign(star, "keeps", "chosen for a profile"),
        sign(circle, "keeps", "passes, loses next to nothing"),
        sign(circle, "within", "passes, loses within the gate"),
        sign(_polygon(12, 12, [(0, -6), (6, 5), (-6, 5)]), "over", "loses too much"),
        sign(_polygon(12, 12, [(-5, -5), (5, -5), (5, 5), (-5, 5)]), "unknown", "fails otherwise"),
        sign(circle, "keeps", "Pareto set: none beats it in size, RAM, latency and loss at once", ring=True),
        el(
            "li",
            el("svg", line, viewBox="0 0 24 24", aria_hidden="true"),
            "nothing that passes is both smaller and faster",
        ),
        class_="legend",
    )
