"""Device profiles: every number with its provenance, read strictly."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from skerry_contract.errors import ConfigError, InputError
from skerry_contract.limits import MIB
from skerry_packager import profiles
from skerry_packager.targets import known_targets, peaks, target_of

ALL = (
    "android-gateway",
    "jetson-orin-nano",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "raspberry-pi-zero-2w",
    "x86-gateway",
)


def test_the_profiles_that_come_with_skerry() -> None:
    assert profiles.profile_names() == ALL


@pytest.mark.parametrize("name", ALL)
def test_each_loads_and_gives_a_target(name: str) -> None:
    profile = profiles.load_profile(name)
    assert profile.name == name
    assert 0 < profile.predicted_ram_bytes < profile.ram_bytes
    assert profile.size_bytes > 0
    assert profile.latency_p95_us > 0
    assert {fact.provenance for fact in profile.facts.values()} <= set(profiles.PROVENANCES)


def test_what_a_model_may_cost_is_the_smaller_of_budget_and_room() -> None:
    profile = profiles.load_profile("raspberry-pi-4")
    assert profile.size_bytes == 128 * MIB
    assert profile.ram_bytes == 384 * MIB
    assert profile.predicted_ram_bytes == int(384 * MIB / 1.3)
    assert profile.latency_p95_us == 60_000
    crowded = _changed(
        "raspberry-pi-4", lambda raw: raw["flash"]["available_for_models_mb"].update(value=100)
    )
    assert crowded.size_bytes == 50 * MIB


def test_an_engine_is_found_by_name() -> None:
    profile = profiles.load_profile("raspberry-pi-4")
    engine = profile.engine("onnxruntime")
    assert engine.max_ir is not None
    assert (engine.version, engine.max_ir.value) == ("1.23.2", 11)
    with pytest.raises(InputError, match="ai-edge-litert"):
        profile.engine("ai-edge-litert")


def test_an_unknown_profile_is_answered_with_a_guess() -> None:
    with pytest.raises(InputError, match="raspbery-pi-4") as caught:
        profiles.load_profile("raspbery-pi-4")
    assert "Did you mean raspberry-pi-4?" in caught.value.hint
    with pytest.raises(InputError) as caught:
        profiles.load_profile("..")
    assert "x86-gateway" in caught.value.hint


def test_a_profile_of_ones_own_is_given_by_its_path(tmp_path: Path) -> None:
    text = _source("raspberry-pi-4").replace('name = "raspberry-pi-4"', 'name = "my-board"', 1)
    (tmp_path / "my-board.toml").write_text(text)
    assert profiles.load_profile(str(tmp_path / "my-board.toml")).name == "my-board"
    (tmp_path / "other.toml").write_text(text)
    with pytest.raises(ConfigError, match="my-board"):
        profiles.load_profile(str(tmp_path / "other.toml"))
    with pytest.raises(InputError, match="nowhere"):
        profiles.load_profile(str(tmp_path / "nowhere.toml"))


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        profiles.load_profile(str(tmp_path / "x.toml"))
    (tmp_path / "x.toml").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(ConfigError, match="at most"):
        profiles.load_profile(str(tmp_path / "x.toml"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw["budgets"].pop("ram_mb"), "budgets.ram_mb is missing"),
        (lambda raw: raw["budgets"].update(ram_gb=1), "budgets.ram_gb"),
        (lambda raw: raw.update(colour="red"), "colour"),
        (lambda raw: raw["budgets"]["ram_mb"].update(value=-1), "budgets.ram_mb.value"),
        (lambda raw: raw["budgets"]["ram_mb"].update(value=True), "budgets.ram_mb.value"),
        (lambda raw: raw["budgets"]["ram_mb"].update(value=1.5), "budgets.ram_mb.value"),
        (lambda raw: raw["budgets"]["load_ms"].update(value=float("inf")), "budgets.load_ms.value"),
        (lambda raw: raw["budgets"].update(ram_mb=384), "budgets.ram_mb is '384'"),
        (lambda raw: raw["cpu"]["cores"].update(provenance="guessed"), "cpu.cores.provenance"),
        (lambda raw: raw["cpu"]["cores"].update(source=" "), "cpu.cores.source"),
        (lambda raw: raw["cpu"]["cores"].pop("source"), "cpu.cores"),
        (lambda raw: raw["cpu"]["isa"].update(value=["mmx"]), "cpu.isa.value"),
        (lambda raw: raw["safety"]["ram"].update(value=0.9), "safety.ram.value"),
        (lambda raw: raw["os"]["glibc"].update(value=2.36), "os.glibc.value"),
        (lambda raw: raw.update(arch="sparc"), "arch"),
        (lambda raw: raw.update(schema="skerry-device-profile/2"), "schema"),
        (lambda raw: raw.update(name="Pi 4"), "name"),
        (lambda raw: raw.update(engines=[]), "engines"),
        (lambda raw: raw["engines"][0].update(name="tensorrt"), "name is 'tensorrt'"),
        (lambda raw: raw["engines"][0].pop("max_ir"), "max_ir"),
        (lambda raw: raw["engines"][0].update(max_operators=3), "max_operators"),
        (lambda raw: raw.update(accelerators=[{"name": "x", "kind": "tpu"}]), "kind"),
        (lambda raw: raw.update(cpu="fast"), "cpu"),
        (lambda raw: raw["speed"].pop("node_us"), "speed.node_us is missing"),
        (lambda raw: raw["speed"].update(gpu_gflops=1), "speed.gpu_gflops"),
        (lambda raw: raw["speed"]["memory_gb_s"].update(value=0), "speed.memory_gb_s.value"),
        (lambda raw: raw.update(operators=7), "operators"),
    ],
)
def test_what_breaks_the_schema_is_named(change: Callable[[Any], object], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _changed("raspberry-pi-4", change)
    assert named in caught.value.message


def test_speeds_are_optional_and_fp16_among_them() -> None:
    bare = _changed("raspberry-pi-5", lambda raw: raw.pop("speed"))
    assert peaks(bare) is None
    without = peaks(_changed("raspberry-pi-5", lambda raw: raw["speed"].pop("fp16_gflops")))
    assert without is not None
    assert without.fp16_gflops == 0
    found = peaks(profiles.load_profile("raspberry-pi-5"))
    assert found is not None
    assert found.int8_gops > found.fp32_gflops > 0
    assert found.fp16_gflops > 0


def test_a_target_knows_flash_engines_and_instruction_sets() -> None:
    target = target_of(profiles.load_profile("raspberry-pi-4"), ram_bytes=7)
    assert target.flash_bytes == 512 * MIB
    assert target.size_bytes == 128 * MIB
    assert target.ram_bytes == 7
    assert (target.max_ir, target.max_opset) == (11, 23)
    assert (target.arch, target.isa) == ("aarch64", ("neon",))
    assert target.engines == {"onnxruntime": "1.23.2", "tflite-runtime": "2.14.0"}
    assert [each.name for each in known_targets()] == list(ALL)


def test_the_operator_table_lies_beside_the_profile(tmp_path: Path) -> None:
    text = _source("raspberry-pi-4").replace(
        "accelerators = []", 'accelerators = []\noperators = "t.json"', 1
    )
    (tmp_path / "raspberry-pi-4.toml").write_text(text)
    profile = profiles.read_profile(tmp_path / "raspberry-pi-4.toml")
    assert profile.operators == tmp_path / "t.json"
    with pytest.raises(InputError, match=r"t\.json"):
        target_of(profile)


def _source(name: str) -> str:
    folder = next(folder for folder in profiles._FOLDERS if folder.is_dir())
    return (folder / f"{name}.toml").read_text()


def _changed(name: str, change: Callable[[Any], object]) -> profiles.DeviceProfile:
    raw = tomllib.loads(_source(name))
    change(raw)
    return profiles.parse_profile(raw, "profile")
