"""The overview: true, readable without a script, and inert whatever anybody named anything."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from tests.fleet.fleet_harness import Fleet

from skerry_contract.messages import ErrorReport, Phase, Severity
from skerry_fleet.alerts.service import AlertKind
from skerry_fleet.web.overview import gather


class Page(HTMLParser):
    """Tags, attributes and visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.style = ""
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "style" and not self.style:
            self.style = data
        elif data.strip():
            self.words.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.words)


def overview(fleet: Fleet) -> Page:
    answer = fleet.client.get("/", headers={"Accept": "text/html"})
    assert answer.status_code == 200
    return Page(answer.text)


def test_an_empty_fleet_says_what_to_do_first(fleet: Fleet) -> None:
    text = overview(fleet).text
    assert "No device yet: skerry devices add" in text
    assert "No rollout yet: skerry rollout start" in text
    assert "nothing to look at" in text


def test_it_shows_health_desired_against_reported_and_why_a_gate_decided(fleet: Fleet) -> None:
    fleet.publish("1.0.0", 1)
    bad = fleet.publish("2.0.0", 2)
    fleet.enrol("pi-1", "pi-2", "pi-3", site="gate")
    fleet.settle(fleet.roll_out("1.0.0", waves=[1.0]))
    fleet.devices["pi-3"].vanish()
    rollout = fleet.roll_out("2.0.0", waves=[0.3, 1.0])
    (device,) = fleet.members(rollout, 1)
    device.take()
    device.say(Phase.DOWNLOADING, bad, "2.0.0", bytes_done=250)
    busy = gather(fleet.services)
    line = next(item for item in busy.device_lines if item.id == device.id)
    assert (line.models[0].desired, line.models[0].reported, line.models[0].progress) == (
        "2.0.0",
        "1.0.0",
        25,
    )
    assert (busy.devices, busy.online, busy.gone, busy.running_rollouts) == (3, 2, 1, 1)
    assert busy.converged == 2
    device.fail()
    fleet.rollout(rollout)
    text = overview(fleet).text
    for words in (
        "2 of 3", "site=gate", "lost", "1.0.0", "digits 2.0.0", "reverted", "FAIL",
        f"{device.id} rolled back (budget.memory: 412 MB of memory, 300 MB are granted).",
        "1 failure: more than the 0 allowed.",
        "The rollout of digits 2.0.0 was halted at wave 1",
    ):  # fmt: skip
        assert words in text, words


def test_a_device_that_left_a_completed_rollout_is_seen_with_its_reason(fleet: Fleet) -> None:
    bad = fleet.publish("2.0.0", 2)
    (door,) = fleet.enrol("door-1")
    fleet.settle(fleet.roll_out("2.0.0", waves=[1]))
    assert gather(fleet.services).rollouts[0].chip.tone == "good"
    door.active = None
    error = ErrorReport(code="engine", message="the worker crashed 3 times")
    door.say(Phase.ROLLED_BACK, bad, "2.0.0", error=error)
    shown = gather(fleet.services)
    (rollout,) = shown.rollouts
    assert (rollout.chip.text, rollout.chip.tone, rollout.confirmed) == ("completed", "warn", 0)
    (wave,) = rollout.waves
    assert (wave.chip.text, wave.chip.tone) == ("PASS", "warn")
    assert [(dot.text, dot.tone) for dot in wave.dots] == [
        ("door-1: rolled back (engine: the worker crashed 3 times)", "bad")
    ]
    text = overview(fleet).text
    assert "door-1 rolled back (engine: the worker crashed 3 times)." in text
    assert "door-1 rolled digits 2.0.0 back after its rollout had completed" in text


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(fleet: Fleet) -> None:
    answer = fleet.client.get("/")
    page = Page(answer.text)
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("style", "src")]
    assert not [value for _, value in page.attributes if "//" in value]
    assert "url(" not in page.style
    assert "@import" not in page.style
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    allowed = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy["style-src"] == f"'sha256-{allowed}'"
    assert policy["default-src"] == "'none'"
    assert "script-src" not in policy
    assert ("http-equiv", "refresh") in page.attributes


@pytest.mark.attack
def test_h7_names_and_errors_are_inert_text(fleet: Fleet) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"{{ 7 * 7 }}"
    fleet.publish("1.0.0", 1)
    (device,) = fleet.enrol("pi-1", site=hostile)
    fleet.roll_out("1.0.0", waves=[1])
    device.fail("selftest", hostile)
    fleet.services.engine.tick()
    with fleet.services.db.write() as db:
        fleet.services.alerts.raise_alert(
            db, AlertKind.DRIFT, Severity.MAJOR, title=hostile, detail=hostile, device="pi-1"
        )
    page = overview(fleet)
    assert not {"script", "img"} & set(page.tags)
    assert page.text.count("alert(1)") >= 4
    assert "49" not in re.findall(r"\d+", page.text)


def test_the_sign_in_page_has_the_same_policy(fleet: Fleet) -> None:
    answer = fleet.client.get("/login")
    page = Page(answer.text)
    allowed = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert f"'sha256-{allowed}'" in answer.headers["content-security-policy"]
    assert "script" not in page.tags
