"""``skerry matrix``: every variant answers the golden samples on other engine versions and processors."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.builders import new_signer
from tests.packager.cli_runner import run
from tests.real_models import ROOT

from skerry_contract.digests import digest_of, hex_of
from skerry_contract.errors import InputError, UnavailableError
from skerry_contract.manifest import BlobRef, Manifest, Variant
from skerry_contract.tensors import Tensor, read_tensors, write_tensors
from skerry_packager.bundles import unpack
from skerry_packager.keys import init_keys
from skerry_packager.matrix import Cell, Environment, Outcome
from skerry_packager.matrix.environments import Interpreter, make, parse_environment
from skerry_packager.matrix.run import environments_for, run_matrix
from skerry_packager.profiles import load_profile

DIGITS = ROOT / "tests/data/bundles/v1/digits-1.0.0.skerry"
KEY = ROOT / "tests/data/bundles/v1/digits.pub"
CACHE = ROOT / ".envs/matrix"
"""Kept between test runs: what is in it depends on its names alone."""
OLD = Environment("onnxruntime", "1.23.2")


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Manifest, Path]:
    """The digits bundle, unpacked: its manifest and the folder of its blobs."""
    unpack(DIGITS, tmp_path / "bundle", None)
    described = unpack(DIGITS, tmp_path / "again", None)
    return described.manifest, tmp_path / "bundle" / "blobs"


def with_blob(manifest: Manifest, blobs: Path, variant: Variant, **changes: bytes) -> Manifest:
    """The manifest with other bytes for some blobs of a variant."""
    refs = {}
    for field, data in changes.items():
        refs[field] = BlobRef(digest=digest_of(data), size=len(data))
        (blobs / hex_of(refs[field].digest)).write_bytes(data)
    return replace(manifest, variants=(replace(variant, **refs),))  # type: ignore[arg-type] # refs fit by name


def test_environments_are_read_strictly() -> None:
    assert parse_environment("onnxruntime==1.23.2") == OLD
    assert parse_environment("tflite-runtime==2.14.0@cortex-a53").cpu == "cortex-a53"
    for wrong in ("onnxruntime", "torch==2", "onnxruntime==1@pentium", "onnxruntime==", "=="):
        with pytest.raises(InputError, match="names no environment"):
            parse_environment(wrong)


def test_by_default_the_engines_of_the_bundle_s_profiles_are_tried(bundle: tuple[Manifest, Path]) -> None:
    manifest, _ = bundle
    tried = environments_for(manifest, [load_profile("raspberry-pi-4")])
    assert OLD in tried
    assert all(one.library == "onnxruntime" for one in tried), "the bundle has no TFLite variant"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_old_engine_and_an_emulated_cortex_a53_answer_as_recorded(tmp_path: Path) -> None:
    pair = init_keys(tmp_path, "engineer")
    out = tmp_path / "checked.skerry"
    done = run(
        "matrix", DIGITS, "--key", KEY, "--cache", CACHE, "--json", "--sign", pair.private_path, "--out", out,
        "--environment", OLD.library + "==" + OLD.version, "--environment", "onnxruntime==1.23.2@cortex-a53",
    )  # fmt: skip
    cells = done.json["cells"]
    assert done.code == 0, done.text
    assert {(cell["variant"], cell["cpu"]) for cell in cells} == {
        (variant, cpu) for variant in ("fp32", "int8-store") for cpu in ("this machine", "cortex-a53")
    }
    assert {cell["outcome"] for cell in cells} <= {"identical", "within tolerance"}
    # The evidence is in the new bundle, under the new signature; what is the same each time, and no times.
    assert run("verify", out, "--key", pair.public_path).code == 0
    manifest = run("inspect", out, "--json").json["manifest"]
    shown = manifest["variants"][0]["evaluation"]["conformance"]
    assert [(one["engine"], one["version"], one.get("emulated_cpu", "")) for one in shown] == [
        ("onnxruntime", "1.23.2", ""),
        ("onnxruntime", "1.23.2", "cortex-a53"),
    ]
    assert "seconds" not in json.dumps(shown)


def run_one(manifest: Manifest, blobs: Path, environment: Environment = OLD) -> Cell:
    (cell,) = run_matrix(manifest, blobs, [environment], CACHE)
    return cell


@pytest.mark.timeout(600)
def test_other_answers_than_recorded_are_found(bundle: tuple[Manifest, Path]) -> None:
    manifest, blobs = bundle
    variant = manifest.variants[0]
    recorded = read_tensors((blobs / hex_of(variant.golden_outputs.digest)).read_bytes())
    name, tensor = next((key, one) for key, one in recorded.items() if one.dtype == "F32")
    shifted = np.frombuffer(tensor.data, np.float32) + np.float32(0.25)
    recorded[name] = Tensor(tensor.dtype, tensor.shape, shifted.tobytes())
    planted = with_blob(manifest, blobs, variant, golden_outputs=write_tensors(recorded))
    cell = run_one(planted, blobs)
    assert cell.outcome is Outcome.DIFFERS
    assert "tolerance" in cell.detail
    assert cell.max_abs_error == pytest.approx(0.25, abs=1e-3)
    assert run_one(replace(manifest, variants=(variant,)), blobs).outcome is Outcome.IDENTICAL


@pytest.mark.timeout(600)
def test_a_model_that_an_old_engine_does_not_load_fails_there(bundle: tuple[Manifest, Path]) -> None:
    manifest, blobs = bundle
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["x2"])], "new", [value], [
        helper.make_tensor_value_info("x2", TensorProto.FLOAT, [1])
    ])  # fmt: skip
    newer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx.defs.onnx_opset_version())])
    planted = with_blob(manifest, blobs, manifest.variants[0], model=newer.SerializeToString())
    cell = run_one(planted, blobs)
    assert cell.outcome is Outcome.FAILS
    assert "1.23.2" in cell.detail


def test_a_version_that_cannot_be_had_is_unavailable_and_never_good(tmp_path: Path) -> None:
    done = run(
        "matrix", DIGITS, "--key", KEY, "--cache", tmp_path, "--environment", "onnxruntime==0.0.99", "--json"
    )
    assert done.code == 1
    assert {cell["outcome"] for cell in done.json["cells"]} == {"unavailable"}
    assert "0.0.99 cannot be installed" in done.json["cells"][0]["detail"]


def test_a_process_that_dies_is_a_crash_of_that_cell_alone(
    bundle: tuple[Manifest, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, blobs = bundle
    killer = tmp_path / "python"
    killer.write_text("#!/bin/sh\nkill -SEGV $$\n")
    killer.chmod(0o700)
    monkeypatch.setattr(
        "skerry_packager.matrix.run.make", lambda environment, cache: Interpreter((str(killer),), tmp_path)
    )
    cells = run_matrix(manifest, blobs, [OLD], CACHE)
    assert {cell.outcome for cell in cells} == {Outcome.CRASHES}
    assert "signal 11" in cells[0].detail


def test_without_qemu_emulation_is_unavailable_and_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(UnavailableError, match="qemu-user is not installed") as caught:
        make(replace(OLD, cpu="cortex-a53"), tmp_path)
    assert "qemu-user-static" in caught.value.hint


def test_an_environment_sees_nothing_of_this_installation(tmp_path: Path) -> None:
    folder = tmp_path / f"onnxruntime-9.9-py{sys.version_info[0]}.{sys.version_info[1]}-{platform.machine()}"
    folder.mkdir()
    interpreter = make(Environment("onnxruntime", "9.9"), tmp_path)
    assert interpreter.site == folder
    assert interpreter.command[1:] == ("-I", "-S"), "neither site-packages nor the environment's variables"


def test_evidence_needs_a_key_and_a_place(tmp_path: Path) -> None:
    done = run("matrix", DIGITS, "--key", KEY, "--out", tmp_path / "x.skerry")
    assert done.code == 2
    assert "--sign and --out belong together" in done.text


@pytest.mark.attack
def test_a_bundle_that_does_not_verify_is_not_run(tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pub"
    stranger.write_bytes(new_signer().verifier.pem)
    copy = shutil.copy(DIGITS, tmp_path / "copy.skerry")
    done = run("matrix", copy, "--key", stranger, "--cache", tmp_path / "cache")
    assert done.code == 1
    assert not (tmp_path / "cache").exists(), "no environment was made for it"
