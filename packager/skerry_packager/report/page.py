"""The report as one HTML page that works offline, for years, and trusts nothing that it shows.

No external font, script, style or picture. Every text is escaped, and a Content-Security-Policy allows only
the page's own style and script, by their hashes: even markup that slipped through could not run. Without the
script the page loses sorting and highlighting, nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from ..console import size
from . import sections
from .evidence import Evidence, read_evidence
from .figures import bound, headline, loss
from .markup import Html, el, join

_HERE: Final = Path(__file__).resolve().parent
_TITLES: Final = {
    "pareto": "Size against latency",
    "candidates": "What was tried, and why it won or lost",
    "accuracy": "What each loses",
    "sensitivity": "Sensitivity per layer",
    "budgets": "Budgets of each profile",
    "data": "Data",
    "lineage": "Where the model comes from",
    "notes": "Notes",
    "again": "Make it again",
}


def render_html(row: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
        row: as `skerry_packager.runlog.document` or `RunLog.run` gives it.
    """
    evidence = read_evidence(row)
    bodies = {
        "pareto": sections.pareto(evidence),
        "candidates": sections.candidates(evidence),
        "accuracy": sections.accuracy(evidence),
        "sensitivity": sections.sensitivity(evidence),
        "budgets": sections.budgets(evidence),
        "data": sections.data(evidence),
        "lineage": sections.lineage(evidence),
        "notes": sections.notes(evidence),
        "again": sections.again(evidence),
    }
    shown = {key: body for key, body in bodies.items() if body}
    links = [el("a", _TITLES[key], href=f"#{key}") for key in shown]
    parts = [
        el("section", el("h2", _TITLES[key], id=f"{key}-title"), body, id=key, aria_labelledby=f"{key}-title")
        for key, body in shown.items()
    ]
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", f"{evidence.title}: packaging report"),
        Html(f"<style>{style}</style>"),
    )
    body = el(
        "body",
        el("a", "Skip to the report", href="#top", class_="skip"),
        _banner(evidence),
        el("main", _summary(evidence), el("nav", *links, aria_label="Sections"), *parts, id="top"),
        el("footer", "Made by Skerry. Times are UTC; 1 MiB is 1,048,576 bytes; 1 pt is one hundredth."),
        Html(f"<script>{script}</script>"),
    )
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _banner(evidence: Evidence) -> Html:
    mark = el(
        "svg",
        el("path", d="M6 20 12 9l4 6 3-4 7 9"),
        el("path", d="M3 25c2.2-2 4.3-2 6.5 0s4.3 2 6.5 0 4.3-2 6.5 0 4.3 2 6.5 0"),
        viewBox="0 0 32 32", fill="none", stroke="currentColor", stroke_width=2.2, stroke_linecap="round",
        stroke_linejoin="round", aria_hidden="true",
    )  # fmt: skip
    run = evidence.row.get("id")
    return el(
        "header",
        el(
            "div",
            mark,
            el("b", "Skerry"),
            el("span", "packaging report" + (f", run {run}" if run else ""), class_="soft"),
            el("time", str(evidence.row.get("started") or "")),
        ),
    )


def _summary(evidence: Evidence) -> Html:
    row = evidence.row
    tone, word = ("bad", "refused") if evidence.failed else ("good", "packed")
    chip = el("span", word, class_=f"chip {tone}")
    digest = row.get("bundle_digest") or row.get("source_digest")
    what = "bundle" if row.get("bundle_digest") else "model"
    return join(
        el("h1", evidence.title, " ", chip),
        el("p", headline(evidence), class_="lead"),
        el("p", f"→ {row['error_hint']}", class_="lead") if row.get("error_hint") else None,
        el("p", f"{what} {digest}", class_="mono soft") if digest else None,
        el("div", *_tiles(evidence), class_="tiles"),
    )


def _tiles(evidence: Evidence) -> list[Html]:
    row = evidence.row
    tiles = []
    best = evidence.variant(row["chosen"][0]) if row.get("chosen") else None
    if best is not None:
        share = f"{size(best.size)}" + (f", {best.ratio:.0%} of fp32" if best.ratio else "")
        tiles.append(_tile("Chosen", best.name, share))
        if best.judged is not None and best.number > 1:
            rows = f"{bound(best.judged)} (95%), {best.judged.samples} {best.judged.split} rows"
            tiles.append(_tile("Loses", loss(best.judged.drop), rows))
        if best.latency_ratio:
            tiles.append(
                _tile("Latency on this host", f"{best.latency_ratio:.2f}x", "of fp32; no device's figure")
            )
    tried = len(evidence.tried)
    passing = sum(variant.passed for variant in evidence.tried)
    if tried:
        tiles.append(_tile("Variants that pass", str(passing), f"of {tried} tried"))
    tiles.append(
        _tile(
            "Objective",
            str(row["objective"]),
            f"losing at most {evidence.max_drop * 100:g} pt of {_metric(evidence)}",
        )
    )
    if row.get("bundle_bytes"):
        tiles.append(_tile("Bundle", size(row["bundle_bytes"]), f"release {row['release']}"))
    return tiles


def _metric(evidence: Evidence) -> str:
    return sections.metric_name(evidence.metric) if evidence.metric else "what fp32 keeps"


def _tile(title: str, figure: str, note: str) -> Html:
    return el("div", el("span", title), el("strong", figure), el("span", note), class_="tile")


@cache
def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
