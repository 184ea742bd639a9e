"""A generation folder is hashed again when it is read; anything that is not what was verified is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.model_zoo import describe, digits, lay_out

from skerry_contract.digests import Digest, digest_of, hex_of
from skerry_contract.errors import ManifestError, SelfTestError, SkerryError, SlotError
from skerry_contract.monitoring import MonitoringSpec
from skerry_runtime.worker.generation import load_generation
from skerry_runtime.worker.loaded import load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "gen", digits(), budgets={"ram_bytes": 1000, "latency_p95_us": 7, "load_ms": 3})


def blob(folder: Path, digest: Digest) -> Path:
    return folder / hex_of(digest)


def test_a_good_folder_loads(folder: Path) -> None:
    generation = load_generation(folder)
    assert generation.manifest.name == "digits"
    assert generation.bundle == digest_of((folder / "manifest.json").read_bytes())
    assert (generation.budgets.ram_bytes, generation.budgets.latency_p95_us, generation.budgets.load_ms) == (
        1000,
        7,
        3,
    )
    assert len(generation.golden.samples) == 5
    assert digest_of(bytes(generation.open_model().content())) == generation.variant.model.digest


@pytest.mark.attack
@pytest.mark.parametrize("part", ["model", "golden_inputs", "golden_outputs", "monitoring"])
def test_l3_a_flipped_bit_in_any_blob_is_found(folder: Path, part: str) -> None:
    generation = load_generation(folder)
    owner = generation.variant if part in ("model", "golden_outputs") else generation.manifest
    path = blob(folder, getattr(owner, part).digest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SlotError, match="not those that were verified"):
        load_model(load_generation(folder))


def link_to_same_bytes(path: Path) -> None:
    other = path.with_name("other")
    path.rename(other)
    path.symlink_to(other)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "link": link_to_same_bytes,
    "fifo": fifo,
    "folder": folder_instead,
}


@pytest.mark.attack
@pytest.mark.parametrize("how", DAMAGE)
def test_only_a_plain_file_of_the_right_bytes_will_do(folder: Path, how: str) -> None:
    path = blob(folder, load_generation(folder).variant.model.digest)
    DAMAGE[how](path)
    with pytest.raises(SlotError) as caught:
        load_model(load_generation(folder))
    assert "Install the bundle again" in caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"variant":"fp32","bundle":"md5:1"}', b'{"variant":1}']
)
def test_a_damaged_description_is_found(folder: Path, text: bytes) -> None:
    (folder / "generation.json").write_bytes(text)
    with pytest.raises(SlotError):
        load_generation(folder)


def test_another_manifest_than_the_verified_one_is_found(folder: Path) -> None:
    describe(folder, digest_of(b"another"))
    with pytest.raises(SlotError, match="manifest"):
        load_generation(folder)


def refused(folder: Path, kind: type[SkerryError], match: str) -> None:
    with pytest.raises(kind, match=match):
        load_model(load_generation(folder))


@pytest.mark.attack
def test_m12_a_signature_that_differs_from_the_manifest_is_refused(tmp_path: Path) -> None:
    (given,), (taken,) = digits().inputs, digits().outputs
    spec = MonitoringSpec(rows=1, features=())

    def lay(place: str, **changes: Any) -> Path:
        image = replace(given, **changes)
        sample = {image.name: np.zeros((1, 1, 8, 8), np.float64 if image.datatype == "FP64" else np.float32)}
        model = replace(digits(), inputs=(image,), golden=(sample,), spec=spec)
        outputs = [{taken.name: np.zeros((1, 10), np.float32)}]
        return lay_out(tmp_path / place, model, golden_outputs=outputs)

    refused(lay("name", name="photo"), SelfTestError, "photo")
    refused(lay("type", datatype="FP64"), SelfTestError, "FP64")
    refused(lay("free", shape=(-1, -1, 8, 8)), SelfTestError, "image")
    load_model(
        load_generation(lay("narrower", shape=(1, 1, 8, 8)))
    )  # a manifest may fix what the model leaves free


def test_golden_samples_must_fit_the_manifest(tmp_path: Path) -> None:
    wrong = replace(digits(), golden=({"image": np.zeros((1, 1, 4, 4), np.float32)},))
    outputs = [{"probabilities": np.zeros((1, 10), np.float32)}]
    refused(lay_out(tmp_path / "shape", wrong, golden_outputs=outputs), ManifestError, "shape")
    not_finite = [{"probabilities": np.full((1, 10), np.nan, np.float32)}] * 5
    refused(lay_out(tmp_path / "nan", digits(), golden_outputs=not_finite), SelfTestError, "finite")
    fewer = [{"probabilities": np.zeros((1, 10), np.float32)}] * 2
    refused(lay_out(tmp_path / "count", digits(), golden_outputs=fewer), ManifestError, "counts")


def test_monitoring_of_a_tensor_that_is_not_there_is_refused(tmp_path: Path) -> None:
    feature = digits().spec.features[0]
    elsewhere = replace(feature, source=replace(feature.source, tensor="audio"))
    model = replace(digits(), spec=MonitoringSpec(rows=1, features=(elsewhere,)))
    refused(lay_out(tmp_path / "g", model), ManifestError, "audio")
