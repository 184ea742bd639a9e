"""The sections of the page, each from the evidence alone; empty where there is nothing to say."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..console import size
from ..lineage import gaps_of
from ..results import FP32
from ..runlog_compare import flatten
from . import bars, plot
from .evidence import Evidence, Limits, Operator, Tried
from .figures import METRICS, bound, duration, loss, scored
from .markup import Html, Node, el, join

_TONES: Final = {"ok": "good", "skipped": "idle"}
_MOST_OPERATORS: Final = 20
_NOTHING: Final = Html("")


def metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)


def pareto(evidence: Evidence) -> Html:
    """One plot for this host and one for each profile that latencies are known of."""
    figures = [_figure(evidence, view) for view in plot.views(evidence)]
    if not figures:
        return _NOTHING
    first, *others = figures
    folded = [
        el("details", el("summary", f"The same on {view.title}"), figure, class_="card")
        for view, figure in zip(plot.views(evidence)[1:], others, strict=True)
    ]
    return join(el("div", first, class_="card"), *folded)


def _figure(evidence: Evidence, view: plot.View) -> Html:
    drawn = plot.drawable(evidence, view)
    key = el("ol", *(el("li", tried.name, value=tried.number) for tried, _, _ in drawn), class_="key")
    missing = [tried for tried in evidence.tried if tried not in [point[0] for point in drawn]]
    left_out = ", ".join(f"{tried.name} ({tried.verdict})" for tried in missing)
    return el(
        "figure",
        el("figcaption", f"Latency on {view.title}: {view.provenance}. Lower left is better."),
        plot.draw(evidence, view),
        key,
        plot.legend(),
        el("p", f"Not drawn, without a size or a latency there: {left_out}.", class_="soft")
        if missing
        else None,
    )


def candidates(evidence: Evidence) -> Html:
    """Every variant with its figures and the reason."""
    if not evidence.tried:
        return el("div", "Nothing was tried before the run ended.", class_="card empty")
    columns: list[tuple[str, str]] = [
        ("#", "num"), ("variant", "text"), ("verdict", "text"), ("size", "num"),
        (metric_name(evidence.metric) or "score", "num"), ("95% bound of the loss", "num"),
        ("latency here", "num"), ("RAM here", "num"),
    ]  # fmt: skip
    head = [
        el("th", name, scope="col", data_sort=kind, class_="num" if kind == "num" else None)
        for name, kind in columns
    ]
    head.append(el("th", "why", scope="col"))
    return el(
        "div",
        el(
            "table",
            el(
                "caption",
                "Losses and scores are of the held-out rows where the variant got that far, else of the "
                "search rows. Latency and RAM were measured on the packing host.",
            ),
            el("thead", el("tr", *head)),
            el("tbody", *(_candidate(evidence, tried) for tried in evidence.tried)),
            class_="sortable candidates",
        ),
        class_="card scroll", tabindex=0, role="region", aria_label="Table of candidates",
    )  # fmt: skip


def _candidate(evidence: Evidence, tried: Tried) -> Html:
    judged = None if tried.name == FP32 else tried.judged
    badges = (
        [el("span", f"chosen: {', '.join(tried.chosen_for)}", class_="chip good")] if tried.chosen_for else []
    )
    why = " · ".join(part for part in (tried.why, tried.note) if part)
    return el(
        "tr",
        _figure_cell(str(tried.number), tried.number),
        el("th", tried.name, " ", *badges, scope="row"),
        el("td", el("span", tried.verdict, class_=f"chip {_TONES.get(tried.verdict, 'bad')}")),
        _figure_cell(size(tried.size), tried.size, f"{tried.ratio:.0%} of fp32" if tried.ratio else ""),
        _figure_cell(
            scored(tried, evidence.metric),
            None if tried.judged is None else tried.judged.score,
            "search rows" if evidence.confirmed and tried.judged and tried.judged == tried.search else "",
        ),
        _figure_cell(bound(judged) if judged else "", judged.bound if judged else None),
        _figure_cell(
            duration(tried.p50_us),
            tried.p50_us,
            f"x{tried.latency_ratio:.2f} of fp32" if tried.latency_ratio else "",
        ),
        _figure_cell(size(tried.ram_measured), tried.ram_measured),
        el("td", why, class_="why"),
        id=f"variant-{tried.number}",
        class_="chosen" if tried.chosen_for else None,
        data_variant=str(tried.number),
    )


def _figure_cell(text: str, value: float | None, below: str = "") -> Html:
    small = el("div", below, class_="soft") if below else None
    return el("td", text or "-", small, class_="num", data_value="" if value is None else f"{value:.12g}")


def accuracy(evidence: Evidence) -> Html:
    """The loss of each candidate with its bound, against the gate."""
    judged = evidence.judgeable
    if not judged:
        return _NOTHING
    scale, gate = bars.loss_scale(evidence), evidence.max_drop
    cells: list[Node] = []
    for tried in judged:
        cells += [
            el("div", tried.name),
            el("div", bars.interval(tried, scale, gate), class_="strip-cell"),
            el("div", _losses(tried), class_="soft"),
        ]
    axis = [el("div"), el("div", bars.loss_axis(scale, gate), class_="strip-cell"), el("div")]
    about = (
        f"From the mean loss of {metric_name(evidence.metric)} against fp32 to the upper end of its "
        "one-sided 95% interval (paired bootstrap). Hollow: search rows; filled: held-out rows, which no "
        f"choice had seen. A bound beyond the red gate ({loss(gate)}) is refused; an arrow leaves the "
        "drawing."
    )
    if any(item.by_odds for tried in judged for item in (tried.search, tried.held_out) if item):
        about += (
            " By the odds: the loss counts the labels of the few rows that flipped, the bound how likely "
            "they were to flip either way, so that it may be the smaller one."
        )
    return el(
        "div", el("p", about, class_="soft pad"), el("div", *cells, *axis, class_="rows"), class_="card"
    )


def _losses(tried: Tried) -> Html:
    items = [item for item in (tried.search, tried.held_out) if item]
    lines = [f"{item.split} {loss(item.drop)}, {bound(item)}, {item.samples} rows" for item in items]
    return join(*(el("div", line) for line in lines))


def sensitivity(evidence: Evidence) -> Html:
    """The operators of mixed-precision variants, the most harmful first."""
    return join(
        *(_sensitivity(tried) for tried in evidence.tried if tried.sensitivity),
    )


def _sensitivity(tried: Tried) -> Html:
    ordered = sorted(tried.sensitivity, key=lambda item: (-item.noise, item.node))
    noises = [item.noise for item in ordered]
    shown, rest = ordered[:_MOST_OPERATORS], ordered[_MOST_OPERATORS:]
    kept = sum(item.kept_float for item in ordered)
    more = None
    if rest:
        more = el(
            "details",
            el("summary", f"{len(rest)} more, less harmful"),
            el("div", *_operators(rest, noises), class_="rows"),
        )
    about = (
        f"Noise that quantizing one operator alone adds to the outputs, over the signal's power (log scale). "
        f"{kept} of {len(ordered)} operators are kept in floating point (amber)."
    )
    return el(
        "div",
        el("div", el("h3", tried.name), el("span", about, class_="soft"), class_="head"),
        el("div", *_operators(shown, noises), class_="rows"),
        more,
        class_="card",
    )


def _operators(items: Iterable[Operator], noises: list[float]) -> list[Node]:
    cells: list[Node] = []
    for item in items:
        kept = "kept in float" if item.kept_float else "quantized"
        cells += [
            el("div", item.node, " ", el("span", item.operator, class_="soft")),
            el("div", bars.noise_bar(item, noises), class_="strip-cell"),
            el("div", f"{item.noise:.2g}, saves {size(item.bytes_saved)}, {kept}", class_="soft"),
        ]
    return cells


def budgets(evidence: Evidence) -> Html:
    """What the variants take of each profile's limits; those that were chosen first."""
    return join(*(_profile(evidence, limits) for limits in evidence.limits))


def _profile(evidence: Evidence, limits: Limits) -> Html:
    chosen = [tried for name in limits.variants if (tried := evidence.variant(name))]
    others = [tried for tried in evidence.tried if tried not in chosen and tried.size]
    engines = ", ".join(f"{name} {version}" for name, version in limits.engines.items())
    folded = None
    if others:
        folded = el(
            "details",
            el("summary", f"The {len(others)} other variants"),
            *(_variant_meters(tried, limits, "") for tried in others),
            open="" if not chosen else None,
        )
    about = ", ".join(part for part in (limits.arch, engines) if part)
    said = " then ".join(limits.variants) or "nothing fits"
    return el(
        "div",
        el(
            "div",
            el("h3", limits.name),
            el("span", said, class_=f"chip {'good' if limits.variants else 'bad'}"),
            el("span", about, class_="soft"),
            class_="head",
        ),
        *(
            _variant_meters(tried, limits, "best" if position == 0 else "fallback")
            for position, tried in enumerate(chosen)
        ),
        folded,
        class_="card",
    )


def _variant_meters(tried: Tried, limits: Limits, role: str) -> Html:
    cells: list[Node] = []
    for meter in bars.meters(tried, limits):
        cells += [
            el("div", meter.title),
            el("div", bars.meter_bar(meter), class_="strip-cell"),
            el(
                "div",
                el("div", f"{meter.text}, {meter.verdict}", class_="over" if meter.over else None),
                el("div", meter.note, class_="soft") if meter.note else None,
            ),
        ]
    if limits.name not in tried.estimates:
        limit = f" (budget {duration(limits.latency_us)})" if limits.latency_us else ""
        cells += [
            el("div", "Latency"),
            el("div"),
            el("div", f"not verified{limit}: the device's self-test measures it", class_="soft"),
        ]
    chip = el("span", role, class_="chip good" if role == "best" else "chip idle") if role else None
    return el("div", el("h4", tried.name, " ", chip), el("div", *cells, class_="meters"), class_="variant")


def data(evidence: Evidence) -> Html:
    """Splits and their hashes, golden rows, preprocessing, states."""
    row = evidence.row
    splits = row.get("splits") or {}
    rows: list[tuple[str, Node]] = [
        (f"{name} split", join(f"{split.get('rows')} rows ", el("code", f"sha256 {split.get('sha256')}")))
        for name, split in splits.items()
    ]
    golden = row.get("golden_rows") or []
    if golden:
        rows.append(("golden samples", f"rows {', '.join(map(str, golden))} of the evaluation data"))
    rows += [
        (f"preprocessing: {name}", _value(value)) for name, value in (row.get("preprocessing") or {}).items()
    ]
    rows += [(f"state: {name}", f"goes into {value}") for name, value in (row.get("states") or {}).items()]
    if row.get("metric"):
        labels = "labels found" if row.get("labelled") else "without labels, against fp32"
        rows.insert(0, ("judged by", f"{metric_name(evidence.metric)}, {labels}"))
    if row.get("task"):
        rows.insert(0, ("task", str(row["task"])))
    return _facts(rows)


def lineage(evidence: Evidence) -> Html:
    """What is known of the training, and what nobody told."""
    told: Mapping[str, Any] = evidence.row.get("lineage") or {}
    rows: list[tuple[str, Node]] = []
    source = evidence.row.get("source_digest")
    if source or evidence.row.get("source_file"):
        rows.append(
            ("source model", join(str(evidence.row.get("source_file") or ""), " ", el("code", source or "")))
        )
    for key, value in told.items():
        if isinstance(value, Mapping):
            rows += [(f"{key}: {name}", _value(item)) for name, item in flatten(value)]
        elif value not in ("", None) and key != "source_model":
            rows.append((key.replace("_", " "), _value(value)))
    rows += [
        (key.replace("_", " "), el("span", "not known (--lineage tells)", class_="gap"))
        for key in gaps_of(told)
    ]
    return _facts(rows)


def notes(evidence: Evidence) -> Html:
    found = evidence.row.get("notes") or []
    return (
        el("ul", *(el("li", note, class_="note") for note in found), class_="card plain")
        if found
        else _NOTHING
    )


def again(evidence: Evidence) -> Html:
    """The command, the options and the versions that give the same bytes."""
    row = evidence.row
    command = shlex.join(map(str, row.get("command") or ()))
    shown = (
        el("pre", el("code", command))
        if command
        else el("div", "The command was not recorded.", class_="empty")
    )
    rows: list[tuple[str, Node]] = [
        (f"option: {name}", _value(value)) for name, value in flatten(row.get("options") or {})
    ]
    rows += [(name, _value(value)) for name, value in flatten(row.get("environment") or {})]
    if row.get("seconds") is not None:
        rows.append(("took", f"{row['seconds']:.1f} s"))
    return join(el("div", shown, class_="card"), _facts(rows))


def _facts(rows: list[tuple[str, Node]]) -> Html:
    if not rows:
        return _NOTHING
    lines = [el("tr", el("th", name, scope="row"), el("td", value)) for name, value in rows]
    return el("div", el("table", el("tbody", *lines), class_="facts"), class_="card")


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
