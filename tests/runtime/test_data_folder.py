"""The data folder: refused if another user could plant files in it, or if a newer version wrote it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skerry_contract.errors import StorageError
from skerry_runtime.agent import data_folder
from skerry_runtime.agent.data_folder import FORMAT, check_format, check_owner


def test_the_format_is_noted_once(tmp_path: Path) -> None:
    file = tmp_path / "format"
    check_format(file)
    assert file.read_text() == f"{FORMAT}\n"
    before = file.stat().st_ino
    check_format(file)
    assert file.stat().st_ino == before


@pytest.mark.attack
@pytest.mark.parametrize("damage", [b"", b"\xff\0", b"soon", b"-1", b"9" * 40, "٣".encode()])
def test_l4_a_damaged_note_of_the_format_is_written_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "format").write_bytes(damage)
    check_format(tmp_path / "format")
    assert (tmp_path / "format").read_text() == f"{FORMAT}\n"


@pytest.mark.attack
@pytest.mark.parametrize("found", [FORMAT + 1, 999])
def test_l10_the_format_of_a_newer_version_is_refused_and_left(tmp_path: Path, found: int) -> None:
    (tmp_path / "format").write_text(f"{found}\n")
    with pytest.raises(StorageError, match=f"newer version .format {found}"):
        check_format(tmp_path / "format")
    assert (tmp_path / "format").read_text() == f"{found}\n"


def test_a_disk_that_takes_no_note_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, data: bytes) -> None:
        raise StorageError("read-only")

    monkeypatch.setattr(data_folder, "write_durably", fails)
    check_format(tmp_path / "format")


@pytest.mark.attack
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_l8_a_folder_that_everybody_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StorageError, match="everybody may write"):
        check_owner(tmp_path)
    tmp_path.chmod(0o755)
    check_owner(tmp_path)


@pytest.mark.attack
@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_l8_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(StorageError, match="belongs to the user 65534"):
        check_owner(tmp_path)


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        check_owner(tmp_path / "missing")
