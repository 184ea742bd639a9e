"""What may not be in the tree, whoever adds it: large files, package indexes, paths of somebody's machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LARGEST_FILE = 1_000_000  # bytes

PACKAGE_INDEX = re.compile(
    r"\b(?:pypi\.org|pythonhosted\.org|registry\.npmjs\.org|index\.docker\.io|proxy\.golang\.org)\b"
)
HOME_FOLDER = re.compile(r"(?<![\w.$}])/(?:root|home/[a-z][\w-]*|Users/\w+)/")


def project_files() -> list[Path]:
    """Files that are, or would be, committed; ignored ones are not the project's."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if listing.returncode != 0:
        pytest.skip("not a git checkout: " + listing.stderr.decode().strip())
    paths = [REPOSITORY / name for name in listing.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def places(pattern: re.Pattern[str]) -> list[str]:
    """Every line of a text file of the project that `pattern` finds, as `file:line: text`."""
    found = []
    for path in set(project_files()) - {Path(__file__).resolve()}:
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()[:100]}")
    return found


def test_no_file_is_large() -> None:
    large = [str(path) for path in project_files() if path.stat().st_size > LARGEST_FILE]
    assert large == []


def test_no_text_names_a_package_index() -> None:
    assert places(PACKAGE_INDEX) == []


def test_no_text_names_a_folder_of_one_machine() -> None:
    assert places(HOME_FOLDER) == []
    assert places(re.compile(re.escape(str(REPOSITORY)) + r"\b")) == []


@pytest.mark.parametrize("text", ["open('/root/x')", "cd /home/ann/skerry/", '"/Users/ann/models"'])
def test_home_folders_are_recognised(text: str) -> None:
    assert HOME_FOLDER.search(text)


@pytest.mark.parametrize("text", ["$DATA/root/x", "GET /v1/devices", "fleet/root/", "ProtectHome=yes"])
def test_other_paths_are_left_alone(text: str) -> None:
    assert not HOME_FOLDER.search(text)
