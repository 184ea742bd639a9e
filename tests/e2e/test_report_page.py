"""The report as people see it, in a browser, wide and narrow, light and dark, with and without script."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.chromium import PROGRAM, Page, chromium
from tests.packager.report_runs import (
    failed_document,
    hostile_document,
    many_document,
    rich_document,
)

from skerry_packager.report import render_html

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")

WIDE, NARROW = 1280, 400
DOCUMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "rich": rich_document,
    "failed": failed_document,
    "hostile": hostile_document,
    "one": lambda: many_document(1),
    "two": lambda: many_document(2),
    "crowd": lambda: many_document(25),
    "same spot": lambda: many_document(25, spread=0.0),
}
OVERLAPS = """(() => {
  const boxes = [...document.querySelectorAll('svg.plot')].filter(s => s.getBoundingClientRect().width)
    .flatMap(s => [...s.querySelectorAll('.label, .tick, .axis-name')])
    .map(t => [t.textContent, t.getBoundingClientRect()]);
  const found = [];
  boxes.forEach(([a, x], i) => boxes.slice(i + 1).forEach(([b, y]) => {
    if (x.left < y.right - 1 && y.left < x.right - 1 && x.top < y.bottom - 2 && y.top < x.bottom - 2)
      found.push(a + ' / ' + b);
  }));
  return [boxes.length, found];
})()"""
OUTSIDE = """(() => {
  const width = document.documentElement.clientWidth;
  return [...document.querySelectorAll('main *')].filter(e => {
    const box = e.getBoundingClientRect();
    return box.right > width + 1 && !e.closest('.scroll');
  }).map(e => e.outerHTML.slice(0, 120));
})()"""
CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const bad = [];
  for (const e of document.querySelectorAll('main *, header *, footer')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('style, script') || !e.getBoundingClientRect().width) continue;
    const style = getComputedStyle(e);
    const ink = parse(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) bad.push([e.tagName, e.className?.baseVal ?? e.className, ratio.toFixed(2)].join(' '));
  }
  return [...new Set(bad)];
})()"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def written(name: str) -> Path:
        path = tmp_path / "report.html"
        path.write_text(render_html(DOCUMENTS[name]()), encoding="utf-8")
        return path

    return written


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_overlaps_and_nothing_leaves_the_page(
    page: Page, write: Callable[[str], Path], name: str, width: int
) -> None:
    page.show(write(name), width)
    labels, overlaps = page.value(OVERLAPS)
    assert labels > 0
    assert overlaps == []
    assert page.value(OUTSIDE) == []
    assert page.value("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("name", ["rich", "hostile"])
def test_it_asks_for_nothing_and_no_policy_is_broken(
    page: Page, write: Callable[[str], Path], name: str
) -> None:
    path = write(name)
    page.show(path, WIDE)
    assert page.requests == [path.as_uri()]
    assert page.complaints == []


@pytest.mark.attack
def test_markup_in_names_is_text(page: Page, write: Callable[[str], Path]) -> None:
    page.show(write("hostile"), WIDE)
    assert page.value("document.querySelectorAll('img, iframe, object, [onerror]').length") == 0
    assert page.value("document.scripts.length") == 1
    assert page.value("[...document.links].every(a => a.getAttribute('href').startsWith('#'))")
    assert page.value("document.querySelector('h1').textContent").startswith("<script>alert")
    assert not [event for event in page.events if event.get("method") == "Page.javascriptDialogOpening"]


@pytest.mark.attack
def test_the_policy_stops_a_script_that_slipped_through(page: Page, tmp_path: Path) -> None:
    html = render_html(rich_document()).replace("</main>", "<script>window.hacked = 1</script></main>")
    (tmp_path / "report.html").write_text(html)
    page.show(tmp_path / "report.html", WIDE)
    assert page.value("window.hacked") is None
    assert any("Content Security Policy" in text for text in page.complaints)


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(page: Page, write: Callable[[str], Path], dark: bool) -> None:
    page.show(write("rich"), WIDE, dark=dark)
    assert page.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert page.value(CONTRAST) == []


def test_the_table_is_sorted_by_a_click(page: Page, write: Callable[[str], Path]) -> None:
    page.show(write("rich"), WIDE)
    names = "[...document.querySelectorAll('.candidates tbody tr')].map(r => r.cells[0].textContent)"
    assert page.value(names) == [str(number) for number in range(1, 10)]
    click = "document.querySelectorAll('.candidates thead button')[3].click()"
    page.value(click)
    assert page.value(names) == ["9", "3", "7", "4", "5", "6", "2", "1", "8"], "by size; unknown sizes last"
    page.value(click)
    assert page.value(names) == ["1", "2", "6", "5", "4", "7", "3", "9", "8"]
    assert page.value("document.querySelectorAll('th[aria-sort=descending]').length") == 1


def test_the_keyboard_reaches_every_mark_and_lights_its_row(page: Page, write: Callable[[str], Path]) -> None:
    page.show(write("rich"), WIDE)
    reached = page.value(
        "[...document.querySelectorAll('svg.wide a')].filter(a => a.closest('details') === null)"
        ".map(a => { a.focus(); return document.activeElement === a "
        "&& document.querySelector(a.getAttribute('href')).classList.contains('lit')"
        "&& a.getAttribute('aria-label').length > 20; })"
    )
    assert reached == [True] * 7
    unnamed = page.value(
        "[...document.querySelectorAll('svg')].filter(s => !s.getAttribute('aria-label') "
        "&& s.getAttribute('aria-hidden') !== 'true').length"
    )
    assert unnamed == 0


def test_it_is_complete_without_script(page: Page, write: Callable[[str], Path]) -> None:
    page.show(write("rich"), WIDE, script=False)
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    names = {node.get("name", {}).get("value", "") for node in tree}
    assert {"Size against latency", "What each loses", "Budgets of each profile"} <= names
    assert any(str(name).startswith("int8-store, ok, 822.3 KiB") for name in names)


def test_it_prints(page: Page, write: Callable[[str], Path]) -> None:
    page.show(write("rich"), WIDE)
    assert page.print().startswith(b"%PDF")
