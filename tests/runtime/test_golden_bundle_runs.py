"""The first bundle of a real model that was ever packed still verifies, passes its self-test, reads digits.

Its file is never regenerated; the private key was thrown away.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.runtime.model_zoo import digit_images

from skerry_contract.bundle import BundleReader
from skerry_contract.digests import hex_of
from skerry_contract.manifest import bundle_digest
from skerry_contract.signing import load_verifier, verify_bundle
from skerry_runtime import Model
from skerry_runtime.worker.preflight import self_test

FOLDER = Path(__file__).resolve().parent.parent / "data" / "bundles" / "v1"
BUNDLE = FOLDER / "digits-1.0.0.skerry"


def test_the_file_is_the_first_one() -> None:
    digest = hashlib.sha256(BUNDLE.read_bytes()).hexdigest()
    assert digest == "608aa2fdf13fd63a7b3ba4d7913de22d7cf95b5bb040a05c19b2474792058d23"


@pytest.mark.parametrize("variant", ["int8-store", "fp32"])
def test_every_variant_runs(variant: str, tmp_path: Path) -> None:
    with BUNDLE.open("rb") as file:
        reader = BundleReader(file)
        verifier = load_verifier((FOLDER / "digits.pub").read_bytes())
        manifest = verify_bundle(reader.manifest_bytes, reader.signature, [verifier])
        for ref, pieces in reader.blobs(manifest):
            (tmp_path / hex_of(ref.digest)).write_bytes(b"".join(pieces))
    assert [found.id for found in manifest.variants] == ["int8-store", "fp32"]
    description = {"variant": variant, "bundle": bundle_digest(reader.manifest_bytes), "budgets": {}}
    (tmp_path / "manifest.json").write_bytes(reader.manifest_bytes)
    (tmp_path / "generation.json").write_text(json.dumps(description))

    assert self_test(tmp_path).load_ms > 0
    images, labels = digit_images()
    with Model.open(tmp_path) as model:
        scores = model.infer({"image": images})["probabilities"]
    assert (scores.argmax(axis=1) == labels).mean() > 0.85
