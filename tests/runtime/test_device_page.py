"""``docs/device.md`` tells what the code does: its generated parts are up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from docs import make_device_page

from skerry_contract.errors import ConfigError
from skerry_runtime.agent.update import TRANSITIONS, UpdateState
from skerry_runtime.config import parse_config

SECTIONS: Final = {"fleet", "trust", "serve", "budgets", "windows", "telemetry", "flash"}


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


def test_every_key_of_the_configuration_is_told() -> None:
    rows = re.findall(r"^\| (`[a-z].*?) \|", part("Configuration"), re.MULTILINE)
    told = {key for row in rows for key in re.findall(r"`([a-z0-9_.]+)`", row)}
    least = {"device": "pi-7", "org": "acme", "data_dir": "/var/lib/skerry"}
    fleet = {"host": "localhost", "port": 1883, "password": "secret"}
    known = keys_of({**least, "unknown": 1}) - SECTIONS
    for section in SECTIONS:
        table = {**(fleet if section == "fleet" else {}), "unknown": 1}
        known |= {f"{section}.{key}" for key in keys_of({**least, section: table})}
    assert told == known


def keys_of(raw: dict[str, Any]) -> set[str]:
    """What the refusal of an unknown key names as known."""
    with pytest.raises(ConfigError, match="is not a key") as caught:
        parse_config(raw)
    return set(caught.value.hint.partition("Known here: ")[2].partition(". ")[0].split(", "))


def part(title: str) -> str:
    text = make_device_page.PAGE.read_text(encoding="utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no part called diagram"):
        make_device_page.page("# A device\n")


def test_the_program_runs() -> None:
    script = Path(make_device_page.__file__)
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "docs/device.md" in done.stdout
