"""The bundle file: deterministic, aligned, readable by any ``tar``, refused at any damage."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from tests.builders import BundleBuilder
from tests.contract.bundles import Trickle, accept, tiny

from skerry_contract import bundle
from skerry_contract.bundle import ALIGNMENT, BundleReader, write_bundle
from skerry_contract.digests import digest_of, hex_of
from skerry_contract.errors import BundleError, BundleFormatError
from skerry_contract.limits import Limits
from skerry_contract.manifest import BlobRef
from skerry_contract.signing import EcdsaSigner, verify_bundle


def names(builder: BundleBuilder) -> list[str]:
    blobs = [f"blobs/{hex_of(ref.digest)}" for ref in builder.manifest().blobs()]
    return ["manifest.json", "manifest.sig", *blobs]


def test_the_same_inputs_give_the_same_bytes(signer: EcdsaSigner) -> None:
    assert BundleBuilder(signer=signer).build() == BundleBuilder(signer=signer).build()


def test_what_is_written_is_read_back(builder: BundleBuilder) -> None:
    manifest, blobs = accept(builder.build(), [builder.signer.verifier])
    assert manifest == builder.manifest()
    assert blobs == builder.blobs


def test_system_tar_lists_and_unpacks_exactly_the_members(builder: BundleBuilder, tmp_path: Path) -> None:
    path = builder.write(tmp_path)
    listed = subprocess.run(["tar", "tf", path], check=True, capture_output=True, text=True)
    assert listed.stdout.splitlines() == names(builder)
    assert listed.stderr == ""
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "xf", path, "-C", out, "--no-same-owner"], check=True)
    found = sorted(str(file.relative_to(out)) for file in out.rglob("*") if file.is_file())
    assert found == sorted(names(builder))
    for file in (out / "blobs").iterdir():
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.name


def test_python_tarfile_sees_exactly_the_members_and_their_alignment(
    builder: BundleBuilder, tmp_path: Path
) -> None:
    with tarfile.open(builder.write(tmp_path)) as archive:
        members = archive.getmembers()
    assert [entry.name for entry in members] == names(builder)
    assert all(entry.isreg() and entry.mode == 0o644 for entry in members)
    assert all((entry.mtime, entry.uid, entry.gid, entry.uname) == (0, 0, 0, "") for entry in members)
    assert all(entry.offset_data % ALIGNMENT == 0 for entry in members[2:])


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 3072, 3583, 3584, 3585, 4095, 4096, 4097, 70_000])
def test_blobs_of_any_size_are_aligned_and_read_back(builder: BundleBuilder, size: int) -> None:
    builder.models = {"fp32": b"\1" * size}
    data = builder.build()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert all(entry.offset_data % ALIGNMENT == 0 for entry in archive.getmembers()[2:])
    assert accept(data, [builder.signer.verifier])[1] == builder.blobs


def test_blobs_are_aligned_after_a_manifest_of_any_length(builder: BundleBuilder) -> None:
    for padding in range(0, 4608, 256):  # every possible gap before the first blob
        builder.changes = {"unknown": {"x": "-" * padding}}
        data = builder.build()
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            assert all(entry.offset_data % ALIGNMENT == 0 for entry in archive.getmembers()[2:])
        assert accept(data, [builder.signer.verifier])[1] == builder.blobs


def test_the_reader_takes_one_byte_at_a_time_and_never_seeks(builder: BundleBuilder) -> None:
    stream = cast(BinaryIO, Trickle(builder.build()))
    assert accept(stream, [builder.signer.verifier])[1] == builder.blobs


def test_a_blob_that_nobody_reads_is_checked_all_the_same(builder: BundleBuilder) -> None:
    data = bytearray(builder.build())
    data[data.index(b"model fp32")] ^= 1
    reader = BundleReader(io.BytesIO(data))
    manifest = verify_bundle(reader.manifest_bytes, reader.signature, [builder.signer.verifier])
    with pytest.raises(BundleFormatError, match="was altered"):
        list(reader.blobs(manifest))


def test_a_blob_that_is_read_in_part_is_checked_to_its_end(builder: BundleBuilder) -> None:
    builder.models = {"fp32": bytes(200_000)}
    reader = BundleReader(io.BytesIO(builder.build()))
    manifest = verify_bundle(reader.manifest_bytes, reader.signature, [builder.signer.verifier])
    digests = []
    for ref, pieces in reader.blobs(manifest):
        assert len(next(pieces)) <= 1 << 16
        digests.append(ref.digest)
    assert digests == [ref.digest for ref in manifest.blobs()]


def test_truncated_at_every_byte(builder: BundleBuilder) -> None:
    data = tiny(builder)
    manifest = builder.manifest()
    for size in range(len(data)):
        with pytest.raises(BundleFormatError) as caught:
            for _ in BundleReader(io.BytesIO(data[:size])).blobs(manifest):
                pass
        assert "truncated" in str(caught.value)
        assert caught.value.hint


def test_every_flipped_byte_is_refused_but_in_the_unsigned_hint(builder: BundleBuilder) -> None:
    """Framing, digest or signature notices. Only the signature file says things that nobody signed (which
    key, in words for people): there a flip may pass, and changes nothing that was signed."""
    data = tiny(builder)
    verifiers = [builder.signer.verifier]
    manifest, blobs = accept(data, verifiers)
    signed = builder.parts()[1:]
    begin = data.index(b"manifest.sig") + 512
    end = begin + int(data[begin - 512 + 124 : begin - 512 + 135], 8)
    passed = 0
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        try:
            reader = BundleReader(io.BytesIO(broken))
            if (
                reader.manifest_bytes,
                reader.signature,
            ) != signed:  # to verify what did not change takes time
                assert verify_bundle(reader.manifest_bytes, reader.signature, verifiers) == manifest
            assert {ref.digest: b"".join(pieces) for ref, pieces in reader.blobs(manifest)} == blobs
        except BundleError:
            continue
        assert begin <= at < end, f"byte {at} was changed unnoticed"
        passed += 1
    assert passed < 200


def test_a_file_that_is_no_bundle_says_what_a_bundle_is() -> None:
    for data in (b"", b"\x89PNG\r\n" * 200, bytes(5000), b"\xff" * 2048):
        with pytest.raises(BundleFormatError) as caught:
            BundleReader(io.BytesIO(data))
        assert caught.value.hint


def test_limits_hold_before_anything_is_read(builder: BundleBuilder) -> None:
    data = builder.build()
    with pytest.raises(BundleFormatError, match=r"manifest\.json has \d+ bytes; at most 100"):
        BundleReader(io.BytesIO(data), Limits(manifest_bytes=100))
    with pytest.raises(BundleFormatError, match=r"manifest\.sig has \d+ bytes; at most 100"):
        BundleReader(io.BytesIO(data), Limits(signature_bytes=100))
    with pytest.raises(BundleFormatError, match="at most 100 are accepted"):
        list(BundleReader(io.BytesIO(data), Limits(bundle_bytes=100)).blobs(builder.manifest()))


def test_the_writer_refuses_a_blob_that_is_not_what_the_manifest_lists(builder: BundleBuilder) -> None:
    manifest, data, signature = builder.parts()
    with pytest.raises(BundleFormatError, match="not what the manifest lists"):
        list(write_bundle(manifest, data, signature, lambda digest: builder.blobs[digest] + b"\0"))
    with pytest.raises(BundleFormatError, match="not what the manifest lists"):
        list(write_bundle(manifest, data, signature, lambda digest: bytes(len(builder.blobs[digest]))))


def test_an_empty_blob_with_a_foreign_digest_is_refused(builder: BundleBuilder) -> None:
    manifest, data, signature = builder.parts()
    lie = replace(manifest, model_card=BlobRef(digest=digest_of(b"something"), size=0))
    pieces = list(write_bundle(manifest, data, signature, builder.blobs.__getitem__))
    head = b"".join(pieces[:2])
    stream = io.BytesIO(head)
    reader = BundleReader(stream)
    rest = bytearray()
    position = len(head)
    for ref in lie.blobs():
        blob = b"" if ref.digest == digest_of(b"something") else builder.blobs[ref.digest]
        piece = bundle._blob_head(ref, position) + blob + bytes(-len(blob) % 512)
        position += len(piece)
        rest += piece
    at = stream.tell()
    stream.write(rest + bytes(1024))
    stream.seek(at)
    with pytest.raises(BundleFormatError, match="was altered"):
        list(reader.blobs(lie))
