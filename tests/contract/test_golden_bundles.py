"""Bundles of past releases stay readable and verifiable; their files are never regenerated.

The private key of the first one was thrown away, so that nobody can.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from skerry_contract.bundle import BundleReader, write_bundle
from skerry_contract.manifest import bundle_digest, parse_manifest
from skerry_contract.monitoring import parse_spec
from skerry_contract.signing import load_verifier, verify_bundle
from skerry_contract.tensors import read_tensors

FOLDER = Path(__file__).resolve().parent.parent / "data" / "bundles" / "v1"
TINY = (FOLDER / "tiny-1.0.0.skerry").read_bytes()
PUBLIC_KEY = (FOLDER / "tiny.pub").read_bytes()


def test_the_file_is_the_first_one() -> None:
    assert (
        hashlib.sha256(TINY).hexdigest() == "a0c09006cd0b9bdffa60fe4ae6466ddd0266e7078af4539a95ea985c56c1d3d7"
    )


def test_it_verifies_and_is_complete() -> None:
    reader = BundleReader(io.BytesIO(TINY))
    manifest = verify_bundle(reader.manifest_bytes, reader.signature, [load_verifier(PUBLIC_KEY)])
    assert bundle_digest(reader.manifest_bytes) == (
        "sha256:aef9eeeec06bda964023bcb31ad7e7e51140fe30f175094ec0cc0b1dc5c981f7"
    )
    assert (manifest.name, manifest.version, manifest.release, manifest.security_floor) == (
        "tiny",
        "1.0.0",
        3,
        2,
    )
    assert manifest.unknown == {"x-kept": {"deep": [1, 2.5, None, "ü"]}}
    blobs = {ref.digest: b"".join(pieces) for ref, pieces in reader.blobs(manifest)}
    assert set(blobs) == {ref.digest for ref in manifest.blobs()}
    assert manifest.model_card is not None
    assert blobs[manifest.model_card.digest].startswith(b"# Tiny\n")
    assert set(read_tensors(blobs[manifest.golden_inputs.digest])) == {"inputs/image"}
    assert [feature.name for feature in parse_spec(blobs[manifest.monitoring.digest]).features] == [
        "x0",
        "x1",
    ]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.skerry")), ids=lambda path: path.stem)
def test_todays_writer_gives_the_same_bytes(path: Path) -> None:
    """For every golden bundle, whoever packed it."""
    data = path.read_bytes()
    reader = BundleReader(io.BytesIO(data))
    manifest = parse_manifest(reader.manifest_bytes)
    blobs = {ref.digest: b"".join(pieces) for ref, pieces in reader.blobs(manifest)}
    again = write_bundle(manifest, reader.manifest_bytes, reader.signature, blobs.__getitem__)
    assert b"".join(again) == data
    assert manifest.to_bytes() == reader.manifest_bytes
