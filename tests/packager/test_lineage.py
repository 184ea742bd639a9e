"""Where a model comes from: what is seen, what is told, and nothing that is guessed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from skerry_contract.errors import DataError, InputError
from skerry_contract.manifest import Lineage
from skerry_packager.lineage import git_commit, lineage_gaps, packing_environment, read_lineage_file


def test_json_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"data_hash": "sha256:x", "metrics": {"accuracy": 0.97}}')
    (tmp_path / "a.toml").write_text('data_hash = "sha256:x"\n[metrics]\naccuracy = 0.97\n')
    assert read_lineage_file(tmp_path / "a.json") == read_lineage_file(tmp_path / "a.toml")


def test_dates_of_toml_become_text(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[hyperparameters]\nstarted = 2026-01-02\nat = [2026-01-02T03:04:05Z]\n")
    found = read_lineage_file(tmp_path / "a.toml")["hyperparameters"]
    assert found == {"started": "2026-01-02", "at": ["2026-01-02T03:04:05+00:00"]}


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("a.json", '{"data_hsah": "x"}', "data_hsah"),
        ("a.json", '{"data_hash": 7}', "data_hash must be a text"),
        ("a.json", '{"metrics": []}', "metrics must be a table"),
        ("a.json", '{"metrics": {"a": NaN}}', "NaN"),
        ("a.json", '{"metrics": {}, "metrics": {}}', "twice"),
        ("a.json", "[]", "must hold an object"),
        ("a.json", "{", "not JSON"),
        ("a.toml", "a = ", "not TOML"),
        ("a.toml", "[metrics]\nloss = inf\n", "metrics.loss is inf"),
        ("a.toml", 'tracking_uri = "https://me:secret@mlflow.example/1"', "password"),
        ("a.json", '{"description": "' + "x" * 300_000 + '"}', "more than"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_lineage_file(tmp_path / name)
    assert named in caught.value.message


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: 1")
    for path in (tmp_path / "a.yaml", tmp_path / "gone.json"):
        with pytest.raises(InputError):
            read_lineage_file(path)


def test_the_commit_is_seen_and_marked_when_files_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_commit(tmp_path) == ""
    git("init", "-q")
    assert git_commit(tmp_path) == ""
    (tmp_path / "train.py").write_text("1")
    git("add", "train.py")
    git("commit", "-qm", "first")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "model.onnx").write_text("new, not tracked")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "train.py").write_text("2")
    assert git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"


@pytest.mark.attack
def test_a_repository_cannot_start_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    subprocess.run(["git", "-C", str(tmp_path), "init", "-q"], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(
        ["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True
    )
    hook = tmp_path / "monitor.sh"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    hook.chmod(0o755)
    subprocess.run(["git", "-C", str(tmp_path), "config", "core.fsmonitor", str(hook)], check=True)
    assert git_commit(tmp_path)
    assert not (tmp_path / "started").exists()


def test_the_environment_names_what_can_change_the_bytes() -> None:
    assert {"python", "machine", "onnx", "onnxruntime", "numpy"} <= set(packing_environment())


def test_gaps_are_named() -> None:
    assert lineage_gaps(Lineage(data_hash="x", code_commit="y", metrics={"a": 1})) == [
        "hyperparameters",
        "tracking_uri",
    ]
