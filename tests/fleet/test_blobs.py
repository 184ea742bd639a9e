"""Blobs: whole under their digest, or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skerry_contract.digests import Digest, digest_of
from skerry_contract.errors import BundleFormatError, NotFoundError, StorageError
from skerry_fleet.blobs import BlobStore


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file()]


def test_a_committed_blob_is_read_in_any_piece(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.staging() as staging:
        digest = staging.put_bytes(b"0123456789")
        assert not store.has(digest)
        staging.commit()
    assert store.read(digest) == b"0123456789"
    assert store.read(digest, 8, 100) == b"89"
    assert store.read(digest, 10, 100) == b""
    assert [path.name for path in files(tmp_path)] == [digest.removeprefix("sha256:")]


def test_without_commit_nothing_stays(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.staging() as staging:
        digest = staging.put_bytes(b"half a bundle")
    assert not store.has(digest)
    assert files(tmp_path) == []


def test_bytes_of_another_digest_are_refused(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.staging() as staging, pytest.raises(BundleFormatError, match="altered"):
        staging.put(digest_of(b"promised"), [b"something ", b"else"])


def test_a_missing_blob_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no blob sha256:"):
        BlobStore(tmp_path).read(digest_of(b"never stored"))


def test_the_same_blob_twice_is_one_file(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    for _ in range(2):
        with store.staging() as staging:
            staging.put_bytes(b"shared by two versions")
            staging.commit()
    assert len(files(tmp_path)) == 1


def test_a_start_clears_unfinished_and_unlisted_files(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    with store.staging() as staging:
        kept, left = staging.put_bytes(b"listed"), staging.put_bytes(b"a crash came before its commit")
        staging.commit()
    (tmp_path / "tmp" / "upload").write_bytes(b"unfinished")
    store = BlobStore(tmp_path)
    assert store.remove_unlisted({kept}) == 1
    assert (store.has(kept), store.has(left)) == (True, False)
    assert len(files(tmp_path)) == 1


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BlobStore(tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left") as caught, store.staging() as staging:
        staging.put_bytes(b"too much")
    assert "free space" in caught.value.hint
    assert files(tmp_path) == []


def test_bytes_are_on_disk_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that survives a power cut: fsync the file, rename, fsync the folder."""
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def noted_replace(path: Path, target: Path) -> Path:
        order.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    with BlobStore(tmp_path).staging() as staging:
        staging.put_bytes(b"weights")
        staging.commit()
    assert order == ["fsync", "rename", "fsync", "fsync"]


def test_a_digest_cannot_lead_outside(tmp_path: Path) -> None:
    """Digests reach the store through `parse_digest`; even so, the name is only hexadecimal digits."""
    with pytest.raises(NotFoundError):
        BlobStore(tmp_path / "blobs").read(Digest("sha256:" + "0" * 64))
