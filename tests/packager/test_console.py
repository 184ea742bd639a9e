"""`skerry_packager.console`: tables that fit where they are read, and lose nothing."""

from __future__ import annotations

import pytest

from skerry_packager import console

TITLES = ("device", "seen", "labels")
ROW = ("pi-7", "2023-11-14 22:13:20Z", "site=gate-3 floor=2 owner=somebody-with-a-long-name")


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    console.table(TITLES, [ROW, ("pi-8", "", "")], whole=("device", "seen"))
    return capsys.readouterr().out.splitlines()


def test_a_pipe_gets_narrow_lines_without_blanks_at_their_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(capsys)
    assert lines[2] == "pi-7    2023-11-14 22:13:20Z  site=gate-3 floor=2 owner=somebody-with-a-long-name"
    assert lines[3] == "pi-8    -                     -"
    assert console.width() == 100


@pytest.mark.parametrize("columns", ["60", "40", "8"])
def test_columns_are_respected_as_far_as_names_and_times_stay_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    lines = printed(capsys)
    assert max(map(len, lines)) <= max(int(columns), 40)
    assert lines[2].startswith("pi-7    2023-11-14 22:13:20Z")
    folded = "".join(line[30:] for line in lines[2:] if not line.startswith("pi-8"))
    assert folded.replace(" ", "") == ROW[2].replace(" ", ""), "nothing is cut"


@pytest.mark.parametrize("columns", ["", "wide", "-3", "0"])
def test_columns_that_are_no_number_are_not_obeyed(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert console.width() == 100
