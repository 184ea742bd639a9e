"""The lock installs what pyproject.toml asks for, and only files that are known by their hash."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
LOCKED_EXTRAS = ["onnx", "packager", "fleet", "demo"]


def normal(requirement: str) -> str:
    """The normalised name of a requirement such as `PyOpenSSL>=25.1`."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def locked() -> dict[str, str]:
    """Name to the lock's whole entry, its lines joined."""
    text = (REPOSITORY / "requirements.lock").read_text().replace("\\\n", "")
    entries = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {normal(entry): entry for entry in entries}


def test_every_locked_package_has_one_version_and_hashes(locked: dict[str, str]) -> None:
    for name, entry in locked.items():
        assert re.match(r"\S+==\S+", entry), name
        assert "--hash=sha256:" in entry, name


def test_the_lock_has_every_direct_dependency(project: dict[str, Any], locked: dict[str, str]) -> None:
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *(requirement for extra in LOCKED_EXTRAS for requirement in extras[extra]),
        *project["dependency-groups"]["dev"],
        *project["build-system"]["requires"],
    ]
    assert [requirement for requirement in wanted if normal(requirement) not in locked] == []


def test_the_device_pays_for_no_extra(project: dict[str, Any]) -> None:
    base = {normal(requirement) for requirement in project["project"]["dependencies"]}
    assert base == {"cryptography", "msgspec", "numpy", "paho-mqtt"}
