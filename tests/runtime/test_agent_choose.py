"""Which variant a device takes, and what it says when it can take none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.builders import BundleBuilder

from skerry_contract.errors import IncompatibleError
from skerry_contract.limits import MIB
from skerry_contract.manifest import Manifest, Requirements
from skerry_contract.messages import EngineInfo, Hardware
from skerry_runtime.agent.choose import choose_variant

PI = Hardware(arch="aarch64", cores=4, ram_bytes=512 * MIB, isa=("neon",), device_class="pi-zero")
ONNX = (EngineInfo(name="onnx", version="1.23.2"),)


@pytest.fixture
def manifest(builder: BundleBuilder) -> Manifest:
    return builder.manifest()


def having(manifest: Manifest, **requirements: object) -> Manifest:
    """The same manifest, all of whose variants need that."""
    needs = Requirements(**requirements)  # type: ignore[arg-type]
    return replace(manifest, variants=tuple(replace(v, requires=needs) for v in manifest.variants))


def test_the_first_variant_that_runs_is_taken_and_the_reason_is_said(manifest: Manifest) -> None:
    choice = choose_variant(manifest, PI, ONNX)
    assert choice.variant is manifest.variants[0]
    assert "first variant of the bundle that runs here" in choice.reason


def test_a_variant_selected_for_the_class_comes_first(manifest: Manifest) -> None:
    first, second = manifest.variants
    chosen = replace(manifest, variants=(first, replace(second, profiles=("pi-zero",))))
    choice = choose_variant(chosen, PI, ONNX)
    assert choice.variant.id == second.id
    assert "best variant for the class pi-zero" in choice.reason


def test_what_was_passed_over_is_in_the_reason(manifest: Manifest) -> None:
    first, second = manifest.variants
    needs = replace(first.requires, isa=("dotprod",))
    choice = choose_variant(replace(manifest, variants=(replace(first, requires=needs), second)), PI, ONNX)
    assert choice.variant.id == second.id
    assert f"passed over: {first.id} needs the instructions dotprod" in choice.reason


@pytest.mark.parametrize(
    ("requirements", "missing"),
    [
        ({"architectures": ("x86_64",)}, "a processor x86_64"),
        ({"isa": ("dotprod", "neon")}, "the instructions dotprod"),
        ({"min_engine": "1.24"}, "onnx 1.24"),
        ({"ram_bytes": 600 * MIB}, "600 MiB of memory"),
    ],
)
def test_what_is_missing_is_named(manifest: Manifest, requirements: dict[str, object], missing: str) -> None:
    with pytest.raises(IncompatibleError, match=missing):
        choose_variant(having(manifest, **requirements), PI, ONNX)


def test_an_engine_that_is_not_installed_is_named(manifest: Manifest) -> None:
    with pytest.raises(IncompatibleError, match="the engine onnx, which is not installed"):
        choose_variant(manifest, PI, (EngineInfo(name="tflite", version="2.1.0"),))


def test_the_devices_own_budget_counts(manifest: Manifest) -> None:
    hungry = having(manifest, ram_bytes=100 * MIB)
    choose_variant(hungry, PI, ONNX, ram_budget_bytes=100 * MIB)
    with pytest.raises(IncompatibleError, match="100 MiB of memory"):
        choose_variant(hungry, PI, ONNX, ram_budget_bytes=99 * MIB)


@pytest.mark.parametrize("arch", ["arm64", "AARCH64"])
def test_other_names_of_an_architecture_are_known(manifest: Manifest, arch: str) -> None:
    choose_variant(having(manifest, architectures=("aarch64",)), replace(PI, arch=arch), ONNX)


@pytest.mark.parametrize(
    ("version", "runs"), [("1.23", True), ("1.23.0", True), ("1.22.9", False), ("1.23rc1", True), ("2", True)]
)
def test_versions_compare_by_number(manifest: Manifest, version: str, runs: bool) -> None:
    engines = (EngineInfo(name="onnx", version=version),)
    if runs:
        choose_variant(having(manifest, min_engine="1.23.0"), PI, engines)
    else:
        with pytest.raises(IncompatibleError):
            choose_variant(having(manifest, min_engine="1.23.0"), PI, engines)


@pytest.mark.attack
def test_s3_a_bundle_for_another_class_is_refused(manifest: Manifest) -> None:
    with pytest.raises(IncompatibleError, match="is for jetson, and this device is pi-zero"):
        choose_variant(replace(manifest, device_classes=("jetson",)), PI, ONNX)
