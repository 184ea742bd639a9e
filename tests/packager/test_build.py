"""The bundle file appears whole, flushed and verified, or not at all."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.builders import new_signer
from tests.packager.packing_inputs import Inputs, write_inputs

from skerry_contract.errors import InputError, ManifestError, SignatureError, StorageError
from skerry_contract.manifest import Budgets, Lineage
from skerry_packager.build import Assembled, Identity, assemble, budgets_for, check_writable, sign_and_write
from skerry_packager.bundles import verify
from skerry_packager.keys import read_signer
from skerry_packager.pipeline import pack_variants
from skerry_packager.results import Fidelity, PackResult, Target

IDENTITY = Identity(name="quadrants", version="1.0.0", release=1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="module")
def result(inputs: Inputs) -> PackResult:
    return pack_variants(inputs.model, evaluation=inputs.evaluation, targets=[Target(name="any")])


@pytest.fixture(scope="module")
def assembled(result: PackResult) -> Assembled:
    return assemble(IDENTITY, result, Lineage())


def test_what_is_written_verifies(assembled: Assembled, inputs: Inputs, tmp_path: Path) -> None:
    signer = read_signer(inputs.key)
    size = sign_and_write(assembled, signer, tmp_path / "a.skerry")
    assert size == (tmp_path / "a.skerry").stat().st_size
    assert verify(tmp_path / "a.skerry", [signer.verifier]).digest == assembled.digest
    with pytest.raises(SignatureError):
        verify(tmp_path / "a.skerry", [new_signer().verifier])
    assert [path.name for path in tmp_path.iterdir()] == ["a.skerry"]


def test_the_same_result_gives_the_same_bytes(result: PackResult, inputs: Inputs, tmp_path: Path) -> None:
    signer = read_signer(inputs.key)
    for name in ("a", "b"):
        sign_and_write(assemble(IDENTITY, result, Lineage()), signer, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_blob_is_listed_and_every_listed_blob_is_there(assembled: Assembled) -> None:
    assert {ref.digest for ref in assembled.manifest.blobs()} == set(assembled.blobs)
    assert assembled.manifest.model_card is not None


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file_and_no_draft(
    assembled: Assembled, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a.skerry").write_bytes(b"precious")
    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(StorageError, match="No space left"):
        sign_and_write(assembled, read_signer(inputs.key), tmp_path / "a.skerry")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.skerry": b"precious"}


def test_a_name_that_no_manifest_can_have_is_refused(result: PackResult) -> None:
    with pytest.raises(ManifestError):
        assemble(replace(IDENTITY, name="../up"), result, Lineage())


def test_a_figure_without_a_bound_is_null_in_the_manifest(result: PackResult) -> None:
    fidelity = Fidelity(
        split="search",
        output="scores",
        metric="sqnr",
        samples=9,
        reference=0.0,
        candidate=0.0,
        drop=0.0,
        drop_bound=float("inf"),
    )
    variants = tuple(replace(variant, fidelity=fidelity) for variant in result.variants)
    made = assemble(IDENTITY, replace(result, variants=variants), Lineage())
    assert made.manifest.variants[0].evaluation["search"]["drop_bound"] is None


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.skerry")
    for path in (tmp_path, tmp_path / "missing" / "x.skerry"):
        with pytest.raises(InputError):
            check_writable(path)


def test_the_budgets_of_a_bundle_allow_every_profile_it_is_for() -> None:
    small = Budgets(ram_bytes=10, latency_p95_us=200, load_ms=5, size_bytes=1)
    large = Budgets(ram_bytes=20, latency_p95_us=100, load_ms=0, size_bytes=2)
    assert budgets_for([small, large]) == Budgets(ram_bytes=20, latency_p95_us=200, load_ms=0, size_bytes=2)
    assert budgets_for([]) == Budgets()
