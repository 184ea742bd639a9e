"""Device profiles keep the promises of devices/README.md: numbers say where they are from, and add up."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROFILES = sorted((Path(__file__).resolve().parents[2] / "devices" / "profiles").glob("*.toml"))
PROVENANCES = {"measured", "emulated", "predicted", "datasheet", "assumed"}
ISA = {
    "aarch64": {"neon", "dotprod", "fp16", "i8mm"},
    "x86_64": {"avx2", "vnni"},
}


def load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text())


def is_fact(node: object) -> bool:
    return isinstance(node, dict) and "value" in node


def leaves(node: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Facts as a whole, and every other value, with its dotted place."""
    if is_fact(node):
        yield place, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{place}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from leaves(value, f"{place}[{index}]")
    else:
        yield place, node


@pytest.fixture(params=PROFILES, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    chosen = request.param
    assert isinstance(chosen, Path)
    return chosen


def test_there_is_a_profile_for_each_class_we_name() -> None:
    assert {path.stem for path in PROFILES} >= {
        "android-gateway",
        "jetson-orin-nano",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2w",
        "x86-gateway",
    }


def test_every_number_is_a_fact_with_provenance(path: Path) -> None:
    bare = [place for place, leaf in leaves(load(path)) if not is_fact(leaf) and not isinstance(leaf, str)]
    assert bare == []


def test_every_fact_names_its_provenance_and_source(path: Path) -> None:
    for place, leaf in leaves(load(path)):
        if isinstance(leaf, dict):
            assert set(leaf) == {"value", "provenance", "source"}, place
            assert leaf["provenance"] in PROVENANCES, place
            assert len(leaf["source"]) > 8, f"{place}: a source that nobody can look up"


def test_name_schema_and_flags_are_as_documented(path: Path) -> None:
    profile = load(path)
    assert profile["schema"] == "skerry-device-profile/1"
    assert profile["name"] == path.stem
    assert set(profile["cpu"]["isa"]["value"]) <= ISA[profile["arch"]]


def test_budgets_fit_the_machine(path: Path) -> None:
    profile = load(path)
    memory, flash, budgets = profile["memory"], profile["flash"], profile["budgets"]
    assert (
        budgets["ram_mb"]["value"] <= memory["available_for_model_mb"]["value"] < memory["total_mb"]["value"]
    )
    assert (
        2 * budgets["size_mb"]["value"]
        <= flash["available_for_models_mb"]["value"]
        < flash["total_mb"]["value"]
    )
    assert budgets["latency_p50_ms"]["value"] <= budgets["latency_p95_ms"]["value"]
    assert 1 <= profile["threads"]["cap"]["value"] <= profile["cpu"]["cores"]["value"]
    assert all(factor["value"] >= 1 for factor in profile["safety"].values())


def test_every_onnx_engine_says_what_it_loads(path: Path) -> None:
    engines = {engine["name"]: engine for engine in load(path)["engines"]}
    assert {"max_ir", "max_opset"} <= set(engines["onnxruntime"])
