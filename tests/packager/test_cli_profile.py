"""``skerry profile``: what people and scripts see of device profiles, and one that a device measured."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from tests.packager.test_latency import made_up_table

from skerry_contract.errors import ConfigError, InputError
from skerry_packager.cli.app import skerry
from skerry_packager.cli.profiles import profile
from skerry_packager.costs import parse_table
from skerry_packager.measured_profile import profile_toml
from skerry_packager.profiles import profile_names, read_profile
from skerry_packager.targets import target_of


def run(*arguments: object) -> Result:
    # As the root calls it: click keeps the help option of a command's first call.
    result = CliRunner().invoke(profile, [str(item) for item in arguments], **skerry.context_settings)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def as_json(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """What came from a device."""
    path = tmp_path / "board.json"
    path.write_text(json.dumps(made_up_table()))
    return path


def test_every_command_shows_an_example() -> None:
    assert isinstance(profile, click.Group)
    for name in profile.commands:
        assert "Example:" in run(name, "--help").stdout


def test_the_profiles_are_listed() -> None:
    listed = as_json("list")
    assert [each["name"] for each in listed] == list(profile_names())
    assert all(each["ram_bytes"] > 0 and each["engines"] for each in listed)
    shown = run("list").stdout
    assert "raspberry-pi-zero-2w" in shown
    assert "120 ms" in shown


def test_a_profile_is_shown_with_the_provenance_of_each_fact() -> None:
    found = as_json("show", "raspberry-pi-4")
    assert found["facts"]["cpu.isa"]["value"] == ["neon"]
    assert found["facts"]["engines.onnxruntime.max_ir"] == {
        "value": 11,
        "provenance": "measured",
        "source": "models of rising IR and opset loaded with onnxruntime 1.23.2 on x86_64",
    }
    shown = run("show", "raspberry-pi-4").stdout
    assert "budgets.ram_mb" in shown
    assert "assumed" in shown


def test_an_unknown_profile_is_an_error_with_a_guess() -> None:
    with pytest.raises(InputError) as caught:
        run("show", "raspbery-pi-4")
    assert "raspberry-pi-4" in caught.value.hint


def test_a_profile_is_made_from_what_a_device_measured(table: Path, tmp_path: Path) -> None:
    made = as_json("measure", "--name", "my-board", "--from", table, "--out", tmp_path / "out")
    found = read_profile(tmp_path / "out" / "my-board.toml")
    assert made["profile"] == str(tmp_path / "out" / "my-board.toml")
    assert (found.arch, found.title) == ("aarch64", "Made-up board")
    assert found.facts["memory.total_mb"].value == 1024
    assert found.facts["memory.total_mb"].provenance == "measured"
    assert found.facts["budgets.ram_mb"].provenance == "assumed"
    assert found.facts["speed.fp32_gflops"].provenance == "measured"
    assert found.facts["speed.fp32_gflops"].value == pytest.approx(10, rel=0.4)
    assert found.engine("onnxruntime").version == "1.23.2"
    assert found.operators == tmp_path / "out" / "my-board.operators.json"
    assert found.operators.read_text() == table.read_text()
    assert target_of(found).name == "my-board"


def test_every_number_of_a_measured_profile_says_where_it_is_from(table: Path, tmp_path: Path) -> None:
    run("measure", "--name", "b", "--from", table, "--out", tmp_path)
    raw = tomllib.loads((tmp_path / "b.toml").read_text())
    facts = [raw["cpu"]["cores"], *raw["memory"].values(), *raw["flash"].values(), *raw["budgets"].values()]
    assert all(set(fact) == {"value", "provenance", "source"} for fact in facts)
    assert all("2026-05-04" in fact["source"] for fact in facts if fact["provenance"] == "measured")


def test_this_machine_measures_itself(tmp_path: Path) -> None:
    made = as_json("measure", "--name", "here", "--seconds", 3, "--store", tmp_path, "--out", tmp_path)
    found = read_profile(Path(made["profile"]))
    assert found.operators is not None
    estimator = target_of(found).estimate
    assert getattr(estimator, "here", False)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda machine: machine.update(arch="armv7l"), "armv7l"),
        (lambda machine: machine.update(libc="musl"), "musl"),
        (lambda machine: machine.update(packages={}), "no inference engine"),
        (lambda machine: machine.update(python="unknown"), "no version"),
    ],
)
def test_a_device_that_no_profile_can_describe_is_refused(
    change: Callable[[Any], object], named: str
) -> None:
    raw = made_up_table()
    change(raw["machine"])
    with pytest.raises(ConfigError, match=named):
        profile_toml("board", parse_table(raw, "table"), "t.json")


def test_a_hostile_title_stays_a_text() -> None:
    raw = made_up_table()
    raw["machine"]["title"] = 'x"\narch = "sparc"\x1b[31m\\'
    text = profile_toml("board", parse_table(raw, "table"), "t.json")
    assert tomllib.loads(text)["arch"] == "aarch64"
    assert "\x1b" not in text


def test_what_is_no_table_leaves_nothing_behind(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    with pytest.raises(ConfigError):
        run("measure", "--name", "b", "--from", bad, "--out", tmp_path / "out")
    with pytest.raises(InputError, match="cannot name"):
        profile_toml("My Board", parse_table(made_up_table(), "table"), "t.json")
    assert not (tmp_path / "out").exists()
