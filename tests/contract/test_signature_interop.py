"""OpenSSF model-signing, another implementation, verifies our bundles, and we verify its signatures."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.builders import BundleBuilder, new_signer

from skerry_contract.errors import SignatureError
from skerry_contract.signing import generate_private_key, load_signer, verify_bundle

MODEL_SIGNING = Path(sys.executable).parent / "model_signing"


@dataclass
class Unpacked:
    """A bundle as a folder, unpacked by the system's tar, with the keys beside it."""

    folder: Path
    public_key: Path
    private_key: Path

    def model_signing(self, verb: str, *options: str | Path) -> subprocess.CompletedProcess[str]:
        signature = self.folder / "manifest.sig"
        return subprocess.run(
            [MODEL_SIGNING, verb, "key", self.folder, "--signature", signature, *options],
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": str(self.folder.parent)},
        )


@pytest.fixture
def unpacked(tmp_path: Path) -> Unpacked:
    pem = generate_private_key()
    builder = BundleBuilder(signer=load_signer(pem))
    path = builder.write(tmp_path)
    made = Unpacked(tmp_path / "bundle", tmp_path / "key.pub", tmp_path / "key.key")
    made.folder.mkdir()
    subprocess.run(["tar", "xf", path, "-C", made.folder, "--no-same-owner"], check=True)
    made.public_key.write_bytes(builder.signer.verifier.pem)
    made.private_key.write_bytes(pem)
    return made


def test_model_signing_accepts_our_bundle(unpacked: Unpacked) -> None:
    done = unpacked.model_signing("verify", "--public_key", unpacked.public_key)
    assert done.returncode == 0, done.stderr
    assert "succeeded" in done.stdout


def test_model_signing_refuses_our_bundle_once_a_blob_is_changed(unpacked: Unpacked) -> None:
    blob = next((unpacked.folder / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes() + b"\0")
    done = unpacked.model_signing("verify", "--public_key", unpacked.public_key)
    assert done.returncode != 0
    assert f"Hash mismatch for 'blobs/{blob.name}'" in done.stderr


def test_model_signing_refuses_our_bundle_under_another_key(unpacked: Unpacked) -> None:
    unpacked.public_key.write_bytes(new_signer().verifier.pem)
    assert unpacked.model_signing("verify", "--public_key", unpacked.public_key).returncode != 0


def test_we_accept_a_signature_that_model_signing_made(unpacked: Unpacked) -> None:
    signature = unpacked.folder / "manifest.sig"
    ours = signature.read_bytes()
    signature.unlink()
    done = unpacked.model_signing("sign", "--private_key", unpacked.private_key)
    assert done.returncode == 0, done.stderr
    assert signature.read_bytes() != ours  # another layout of the JSON, and a random nonce
    data = (unpacked.folder / "manifest.json").read_bytes()
    verifier = load_signer(unpacked.private_key.read_bytes()).verifier
    assert verify_bundle(data, signature.read_bytes(), [verifier]) == verify_bundle(data, ours, [verifier])


def test_we_refuse_what_model_signing_signed_beside_the_bundle(unpacked: Unpacked) -> None:
    (unpacked.folder / "manifest.sig").unlink()
    (unpacked.folder / "README.md").write_text("not in the manifest")
    assert unpacked.model_signing("sign", "--private_key", unpacked.private_key).returncode == 0
    data = (unpacked.folder / "manifest.json").read_bytes()
    verifier = load_signer(unpacked.private_key.read_bytes()).verifier
    with pytest.raises(SignatureError, match="list different blobs"):
        verify_bundle(data, (unpacked.folder / "manifest.sig").read_bytes(), [verifier])
