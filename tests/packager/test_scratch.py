"""Temporary folders: gone at the end, and gone at the next start after a kill, but never while in use."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from skerry_packager.scratch import clean, scratch

HOLDER = """
import sys
from pathlib import Path
from skerry_packager.scratch import scratch
with scratch("test", Path(sys.argv[1])) as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "large").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that uses a folder until it is told to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def folder_of(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_a_folder_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    with scratch("test", tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="broken"), scratch("test", tmp_path):
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_goes_at_the_next_start(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    folder = folder_of(holder)
    assert clean(tmp_path) == 0
    assert (folder / "sub" / "large").exists(), "its owner lives"
    holder.kill()
    holder.wait()
    assert folder.exists()
    with scratch("other", tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_a_folder_in_use_stays_however_often_others_clean(tmp_path: Path) -> None:
    with scratch("test", tmp_path) as folder, scratch("test", tmp_path) as second:
        (folder / "file").write_text("x")
        assert clean(tmp_path) == 0
        assert (folder / "file").read_text() == "x"
        assert second.exists()


def test_what_is_not_ours_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with scratch("test", tmp_path) as folder:
        lock = (folder / ".skerry-owner").name
    victim = tmp_path / "elsewhere"
    for name in ("elsewhere", "skerry-demo-x", "skerry-foreign-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    (victim / lock).touch()
    (tmp_path / "skerry-link-x").symlink_to(victim)
    (tmp_path / "skerry-file-x").touch()
    (tmp_path / "skerry-pipe-x").mkdir()
    os.mkfifo(tmp_path / "skerry-pipe-x" / lock)
    (tmp_path / "skerry-trap-x").mkdir()
    (tmp_path / "skerry-trap-x" / lock).symlink_to(victim / lock)
    (tmp_path / "skerry-foreign-x" / lock).touch()
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert clean(tmp_path) == 0
    monkeypatch.setattr(os, "geteuid", lambda: mine)
    assert clean(tmp_path) == 2, "those with a lock of our own that nobody holds"
    assert {path.name for path in tmp_path.iterdir()} == {
        "elsewhere", "skerry-demo-x", "skerry-link-x", "skerry-file-x", "skerry-trap-x",
    }  # fmt: skip
    assert (victim / "file").exists()


def test_a_folder_that_vanishes_is_no_error(tmp_path: Path) -> None:
    assert clean(tmp_path / "missing") == 0


def test_the_first_folder_of_a_process_cleans_the_systems_one(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = folder_of(holder)
    holder.kill()
    holder.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch("test"):
        assert not left.exists()
