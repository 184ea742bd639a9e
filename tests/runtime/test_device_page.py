"""``docs/device.md`` tells what the code does: its generated parts are up to date."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from docs import make_device_page

from skerry_runtime.agent.update import TRANSITIONS, UpdateState


def test_the_page_is_up_to_date() -> None:
    text = make_device_page.PAGE.read_text(encoding="utf-8")
    assert make_device_page.page(text) == text, "run: python docs/make_device_page.py"


def test_the_diagram_has_every_transition() -> None:
    arrows = {}
    for line in make_device_page.diagram().splitlines():
        if " : " in line:
            arrow, _, events = line.strip().partition(" : ")
            state, _, to = arrow.partition(" --> ")
            arrows.update({(state, event): to for event in events.split(", ")})
    assert arrows == {(str(state), str(event)): str(to) for (state, event), to in TRANSITIONS.items()}
    assert f"[*] --> {UpdateState.IDLE}" in make_device_page.diagram()


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no part called diagram"):
        make_device_page.page("# A device\n")


def test_the_program_runs() -> None:
    script = Path(make_device_page.__file__)
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "docs/device.md" in done.stdout
