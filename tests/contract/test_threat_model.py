"""The threat model is true: every test that it names exists, and no attack that has a test is called open."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text()
CATALOGUE = {"B": 12, "M": 15, "S": 10, "Q": 14, "H": 11, "L": 10, "C": 3, "T": 7}
"""Kinds of attacks, and how many there are of each."""
ROWS = {row[0]: row[-1] for row in re.findall(r"^\| ([A-Z]\d+) \|(?:.*)\| ([^|]*) \|$", TEXT, re.M)}


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


NAMES = set().union(*(names_in(path) for path in (ROOT / "tests").rglob("test_*.py")))


def test_every_attack_of_the_catalogue_has_its_row() -> None:
    wanted = [f"{kind}{number}" for kind, most in CATALOGUE.items() for number in range(1, most + 1)]
    assert list(ROWS) == wanted


@pytest.mark.parametrize("attack", ROWS)
def test_the_tests_that_it_names_exist(attack: str) -> None:
    named = re.findall(r"`(test_[a-z0-9_*]+)`", ROWS[attack])
    assert named or ROWS[attack] == "open"
    for pattern in named:
        assert any(fnmatch(name, pattern) for name in NAMES), f"there is no {pattern}"


@pytest.mark.parametrize("attack", ROWS)
def test_an_attack_with_a_test_is_not_called_open(attack: str) -> None:
    own = sorted(name for name in NAMES if name.startswith(f"test_{attack.lower()}_"))
    if own:
        assert f"`test_{attack.lower()}_*`" in ROWS[attack], (
            f"write `test_{attack.lower()}_*` into the row of {attack}: {own[0]} exists"
        )


def test_every_test_named_after_an_attack_names_one_that_is_known() -> None:
    for name in NAMES:
        if found := re.match(r"test_([bmsqhlct]\d+)_", name):
            assert found[1].upper() in ROWS, (
                f"{name} is named after an attack that the catalogue does not have"
            )
