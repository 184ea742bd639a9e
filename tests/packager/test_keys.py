"""The engineer's keys: made once, private, never overwritten."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.packager.cli_runner import run

from skerry_contract.errors import AccessError, ConfigError, ConflictError, InputError, StorageError
from skerry_packager import keys


def test_a_pair_signs_and_verifies(tmp_path: Path) -> None:
    pair = keys.init_keys(tmp_path, "engineer")
    signature = keys.read_signer(pair.private_path).sign(b"manifest")
    verifier = keys.read_verifier(pair.public_path)
    verifier.verify(b"manifest", signature)
    assert verifier.key_id == pair.key_id


def test_the_private_key_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    pair = keys.init_keys(tmp_path, "engineer")
    assert pair.private_path.stat().st_mode & 0o777 == 0o600
    assert not keys.open_to_others(pair.private_path)
    pair.private_path.chmod(0o640)
    assert keys.open_to_others(pair.private_path)
    assert not keys.open_to_others(pair.public_path), "a public key is for everybody"


def test_an_encrypted_key_opens_with_its_password_only(tmp_path: Path) -> None:
    pair = keys.init_keys(tmp_path, "engineer", b"correct horse")
    assert pair.encrypted
    assert keys.needs_password(pair.private_path)
    assert keys.read_signer(pair.private_path, b"correct horse").key_id == pair.key_id
    for wrong in (None, b"battery staple"):
        with pytest.raises(AccessError, match=r"engineer\.key"):
            keys.read_signer(pair.private_path, wrong)


@pytest.mark.parametrize("existing", ["engineer.key", "engineer.pub"])
def test_nothing_is_overwritten_and_no_half_pair_stays(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(ConflictError, match=existing):
        keys.init_keys(tmp_path, "engineer")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {existing: "precious"}


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        keys.init_keys(tmp_path, "engineer")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65, "new\nline"])
def test_a_name_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError):
        keys.init_keys(tmp_path / "keys", name)
    assert not list(tmp_path.iterdir())


def test_mixed_up_files_are_told_apart(tmp_path: Path) -> None:
    pair = keys.init_keys(tmp_path, "engineer")
    with pytest.raises(ConfigError, match="public key"):
        keys.read_signer(pair.public_path)
    with pytest.raises(ConfigError, match="private key"):
        keys.read_verifier(pair.private_path)
    (tmp_path / "letter.txt").write_text("Dear engineer")
    with pytest.raises(ConfigError, match=r"letter\.txt"):
        keys.read_signer(tmp_path / "letter.txt")
    with pytest.raises(InputError, match=r"nowhere\.key"):
        keys.read_signer(tmp_path / "nowhere.key")


def test_the_command_warns_of_an_unencrypted_key(tmp_path: Path) -> None:
    outcome = run("keys", "init", "--out", tmp_path / "new", "--name", "engineer")
    assert outcome.code == 0
    assert "not encrypted" in outcome.err
    assert str(tmp_path / "new" / "engineer.pub") in outcome.text
    assert "warning" not in run("keys", "init", "--out", tmp_path / "other", "--no-password").err


def test_the_command_takes_a_password_from_the_environment(tmp_path: Path) -> None:
    outcome = run("keys", "init", "--out", tmp_path, "--password-env", "PW", "--json", env={"PW": "secret"})
    assert (outcome.code, outcome.err, outcome.json["encrypted"]) == (0, "", True)
    assert keys.read_signer(Path(outcome.json["private_key"]), b"secret").key_id == outcome.json["key_id"]


def test_the_command_refuses_an_empty_password_and_contradictions(tmp_path: Path) -> None:
    unset = run("keys", "init", "--out", tmp_path, "--password-env", "PW", env={"PW": None})
    assert (unset.code, list(tmp_path.iterdir())) == (2, [])
    assert "PW" in unset.err
    assert run("keys", "init", "--out", tmp_path, "--password-env", "PW", "--no-password").code == 2


def test_the_command_does_not_overwrite(tmp_path: Path) -> None:
    assert run("keys", "init", "--out", tmp_path).code == 0
    again = run("keys", "init", "--out", tmp_path, "--json")
    assert (again.code, again.json["error"]["code"]) == (1, "conflict")
