"""The report of a packaging run as data: what it says, and that it says it safely. How it looks is tested in
a browser, see ``tests/e2e/test_report_page.py``."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.packager.cli_runner import run as skerry
from tests.packager.report_runs import (
    HOSTILE,
    TARGETS,
    VARIANTS,
    failed_document,
    fidelity,
    hostile_document,
    many_document,
    result,
    rich_document,
    run,
)

from skerry_packager.report import bars, render_html, render_text
from skerry_packager.report.evidence import read_evidence
from skerry_packager.report.markup import el
from skerry_packager.report.plot import drawable, front, views
from skerry_packager.report.text import ASCII, UNICODE
from skerry_packager.runlog import RunLog, document

MADE: dict[str, Any] = {
    "rich": rich_document,
    "failed": failed_document,
    "hostile": hostile_document,
    "crowd": lambda: many_document(25),
}


class Reader(HTMLParser):
    """Tags, attributes and texts as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self._inside):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def test_it_says_everything_that_decides() -> None:
    text = Reader(render_html(rich_document())).text
    for said in (
        "magika 1.4.0", "packed", "sha256:" + "ef" * 32, "size", "losing at most 1 pt of accuracy",
        "raspberry-pi-4 gets int8-store (822.3 KiB, 26% of fp32)",
        "chosen: raspberry-pi-4, tiny-gateway", "accuracy: loses 42 points", "skipped: no profile has fp16",
        "tiny-gateway: does not fit: size 3.08 MiB", "held-out +0.05 pt, ≤ +0.19 pt, 400 rows",
        "0 pt, ≤ 0.8% exact", "/model/layer.3/conv/Conv", "kept in float", "4 of 36 operators",
        "Flash, two slots", "lower bound 42.0 MiB, measured here 50.0 MiB, upper bound 72.0 MiB",
        "7.02 ms to 35.1 ms; predicted from operator timings; not verified",
        "not verified (budget 5 ms): the device's self-test measures it",
        "held-out split", "sha256 " + "3" * 64, "rows 3, 14, 159, 265 of the evaluation data",
        "hyperparameters: opt.name", "adam", "tracking uri", "not known (--lineage tells)",
        "opset raised from 11 to 17", "skerry pack magika.onnx --name magika --evaluation 'test data.npz'",
        "onnxruntime", "1.32.0", "preprocessing: scale",
        "Not drawn, without a size or a latency there: fp16 (skipped)",
    ):  # fmt: skip
        assert said in text, said


def test_a_bound_below_the_loss_says_what_it_is_about() -> None:
    document = rich_document()
    assert "by the odds" not in Reader(render_html(document)).text
    chosen = next(row for row in document["variants"] if row["name"] == "int8-store")
    chosen.update(held_out_drop=0.0125, held_out_bound=0.0022)
    text = Reader(render_html(document)).text
    assert "held-out +1.25 pt, ≤ +0.22 pt by the odds, 400 rows" in text
    assert "the bound how likely they were to flip either way" in text
    lines = render_text(document, 80, ASCII)
    assert any(line.endswith("+1.25 pt, <= +0.22 pt odds") for line in lines)
    assert max(map(len, lines)) <= 80


def test_scores_of_search_rows_are_marked_where_others_are_of_held_out_rows() -> None:
    document = rich_document()
    failed = next(row for row in document["variants"] if row["name"] == "qdq-s8s8")
    assert failed["held_out_score"] is None
    rows = re.findall(r'<tr id="variant-.*?</tr>', render_html(document), re.DOTALL)
    marked = {re.search(r'scope="row">([\w-]+)', row)[1] for row in rows if "search rows" in row}  # type: ignore[index]
    assert "qdq-s8s8" in marked
    assert "int8-store" not in marked


def test_a_page_at_pack_time_and_one_from_the_log_are_the_same(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db")
    number = log.record(run())
    written = {**rich_document(), "id": number}
    assert render_html(log.run(number)) == render_html(written)
    log.close()


def test_the_same_run_gives_the_same_page() -> None:
    assert render_html(rich_document()) == render_html(rich_document())


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_it_needs_nothing_but_itself(made: Any) -> None:
    page = render_html(made())
    tags = Reader(page).tags
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}
    for tag, attributes in tags:
        assert not {"src", "style", "srcset", "data", "action"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(a["content"] for _, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[^']+'; script-src 'sha256-[^']+'; base-uri 'none'; "
        r"form-action 'none'",
        policy,
    )
    assert "url(" not in page
    assert "@import" not in page


@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_ids_are_unique_and_every_link_leads_somewhere(made: Any) -> None:
    tags = Reader(render_html(made())).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(attributes["href"])[1:] for tag, attributes in tags if tag == "a"}
    assert links <= set(ids)


@pytest.mark.attack
def test_hostile_names_stay_text() -> None:
    page = render_html(hostile_document())
    assert HOSTILE not in page
    assert "<img" not in page
    assert page.count("<script>") == 1
    assert HOSTILE in Reader(page).text


@pytest.mark.attack
def test_control_characters_never_reach_the_page() -> None:
    assert el("b", "a\x1b[31m\u202eb\ud800", title="\x00") == '<b title="�">a�[31m�b�</b>'


def test_a_loss_of_nothing_says_how_little_that_proves() -> None:
    same = tuple(
        replace(item, held_out=fidelity("held-out", 0.0, 0.0, exact=0.0149))
        if item.name == "int8-store"
        else item
        for item in VARIANTS
    )
    text = Reader(render_html(document(run(result=result(same))))).text
    assert "Loses 0 pt ≤ 1.5% exact (95%), 400 held-out rows" in text


def test_a_failed_run_shows_what_was_tried_and_what_broke_the_budget() -> None:
    text = Reader(render_html(failed_document())).text
    assert "refused" in text
    assert "no variant fits tiny-gateway" in text
    assert "→ Larger." in text
    assert "nothing fits" in text
    assert "3.1 MiB of 2.0 MiB, over budget: 154% of the budget" in text
    bare = Reader(render_html(document(run(result=None, targets=())))).text
    assert "Nothing was tried before the run ended." in bare


def test_a_log_of_an_older_schema_has_a_page_too(tmp_path: Path) -> None:
    old = rich_document()
    for column in ("targets", "choices", "options", "command", "golden_rows", "preprocessing", "states"):
        old[column] = None
    for row in old["variants"]:
        row |= dict.fromkeys(("estimates", "sensitivity", "pareto_for", "ram_upper_bytes", "reference"))
    text = Reader(render_html(old)).text
    assert "int8-store" in text
    assert "The command was not recorded." in text


def test_the_front_is_what_nothing_passing_beats_in_both() -> None:
    evidence = read_evidence(rich_document())
    points = drawable(evidence, views(evidence)[0])
    assert front([point for point in points if point[0].passed]) == [
        (842_000, 3190 / 3200),
        (1_010_000, 1650 / 3200),
    ]


def test_budgets_say_over_at_risk_and_none() -> None:
    evidence = read_evidence(rich_document())
    fp32, roomy, tiny = evidence.tried[0], *evidence.limits
    over = {meter.title: meter.over for meter in bars.meters(fp32, tiny)}
    assert over == {"File": True, "Flash, two slots": True, "RAM": False}
    latency = next(meter for meter in bars.meters(fp32, roomy) if meter.title == "Latency")
    assert (latency.over, latency.at_risk, latency.verdict) == (False, True, "may be over: 80% of the budget")
    free = replace(tiny, size=0, flash=0, ram=0)
    assert {meter.verdict for meter in bars.meters(fp32, free)} == {"no limit"}


@pytest.mark.parametrize("max_drop", [0.0, 0.01, 0.5])
def test_the_gate_is_always_in_the_drawing(max_drop: float) -> None:
    evidence = replace(read_evidence(rich_document()), max_drop=max_drop)
    scale = bars.loss_scale(evidence)
    assert 0 <= scale.at(0.0) <= scale.at(max_drop) <= 1
    assert scale.low < 0 < scale.high
    assert scale.high < 0.9, "a loss of 42 points must not press the others into a corner"


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("glyphs", [ASCII, UNICODE])
@pytest.mark.parametrize("made", MADE.values(), ids=MADE)
def test_the_terminal_shows_it_in_its_width(made: Any, glyphs: Any, width: int) -> None:
    lines = render_text(made(), width, glyphs)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    if glyphs is ASCII:
        assert all(line.isascii() for line in lines)


def test_the_terminal_marks_what_was_chosen_and_what_is_over() -> None:
    text = "\n".join(render_text(rich_document(), 100, ASCII))
    assert "C int8-store: 822.3 KiB, x1.00, chosen" in text
    assert "d qdq-u8s8: 840.8 KiB, x0.44, accuracy" in text
    assert re.search(r"mixed +o=+ \| +\+0.36 pt, <= \+0.85 pt$", text, re.MULTILINE)
    assert "42.00 pt, <= +47.00 pt  OVER" in text
    refused = "\n".join(render_text(failed_document(), 100, ASCII))
    assert "raspberry-pi-4: nothing was chosen" in refused
    assert re.search(r"File +!+ 3.1 MiB of 2.0 MiB, OVER budget: 154%", refused)


def test_every_variant_has_its_mark_in_the_plot_of_the_terminal() -> None:
    lines = render_text(many_document(25, spread=0.0), 100, ASCII)
    plot = "".join(line.partition("|")[2] for line in lines[1:13])
    assert sorted(plot.replace(" ", "").lower()) == sorted("abcdefghijklmnopqrstuvwxy")


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db")
    number = log.record(run())
    log.close()
    page = tmp_path / "report.html"
    shown = skerry("runs", "show", number, "--html", page, "--run-log", log.path)
    assert shown.code == 0
    assert "latency on this host, fp32 = 1" in shown.out
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    as_json = skerry("runs", "show", number, "--html", page, "--json", "--run-log", log.path)
    assert as_json.json["variants"][5]["sensitivity"][0]["kept_float"] is True
    refused = skerry("runs", "show", number, "--html", tmp_path / "no" / "x.html", "--run-log", log.path)
    assert (refused.code, "cannot write the report" in refused.text) == (1, True)


def test_a_variant_without_an_estimate_is_never_given_the_hosts_figure() -> None:
    bare = tuple(replace(item, estimates={}) for item in VARIANTS)
    text = Reader(render_html(document(run(result=result(bare), targets=TARGETS[:1])))).text
    assert "not verified (budget 20 ms)" in text
    assert "predicted" not in text
    assert "The same on" not in text, "no plot of a device that nothing is known of"
