"""``skerry pack``: one command from a model to a signed bundle, and nothing at all where it does not fit."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.packager.cli_runner import Outcome, run
from tests.packager.packing_inputs import Inputs, write_inputs

from skerry_contract.manifest import Manifest
from skerry_contract.monitoring import parse_spec
from skerry_packager.bundles import unpack, verify
from skerry_packager.keys import init_keys, read_verifier
from skerry_packager.packing import _latency_notes, release_of
from skerry_packager.profiles import load_profile
from skerry_packager.results import Objective
from skerry_packager.runlog import RunLog


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def packed(inputs: Inputs) -> tuple[Outcome, Path]:
    out = inputs.folder / "out.skerry"
    (inputs.folder / "run.toml").write_text(
        'data_hash = "sha256:aa"\ntracking_uri = "https://mlflow.example/runs/7"\ndataset = "quadrants v3"\n'
        'license = "apache-2.0"\n[hyperparameters]\nhidden = 64\n[metrics]\naccuracy = 0.99\n'
    )
    more = ("--profile", "raspberry-pi-4", "--profile", "x86-gateway", "--labels", "nw, ne, sw, se")
    lineage = ("--lineage", inputs.folder / "run.toml")
    return run(*inputs.arguments(*more, *lineage, "--out", out, "--json")), out


@pytest.fixture(scope="module")
def manifest(packed: tuple[Outcome, Path], inputs: Inputs) -> Manifest:
    return verify(packed[1], [read_verifier(inputs.public_key)]).manifest


def test_it_says_what_it_did(packed: tuple[Outcome, Path]) -> None:
    outcome, out = packed
    assert (outcome.code, outcome.err) == (0, "")
    said = outcome.json
    assert (said["bundle"], said["size"]) == (str(out), out.stat().st_size)
    assert (said["release"], said["task"], said["run"]) == (1_000_000, "classification", 1)
    by_name = {variant["name"]: variant for variant in said["variants"]}
    assert by_name["fp32"]["size_ratio"] == 1.0
    best = by_name[said["chosen"][0]]
    assert best["size"] == min(v["size"] for v in by_name.values() if v["verdict"] == "ok")
    assert [v["name"] for v in by_name.values() if v["chosen"]] == [best["name"]]
    assert best["chosen_for"] == ["raspberry-pi-4", "x86-gateway"]
    assert all(v["reason"] or v["lost"] for v in by_name.values() if v["name"] not in said["chosen"])
    assert said["lineage_gaps"] == ["code_commit"]


def test_it_says_what_judged(packed: tuple[Outcome, Path], inputs: Inputs, tmp_path: Path) -> None:
    judged = packed[0].json["judged_by"]
    assert (judged["metric"], judged["labels"], judged["split"], judged["rows"]) == (
        "accuracy",
        True,
        "held-out",
        200,
    )
    assert judged["fp32"] > 0.9
    with np.load(inputs.evaluation) as arrays:
        np.savez(tmp_path / "labels.npz", image=arrays["image"], labels=arrays["y"])
        np.savez(tmp_path / "none.npz", image=arrays["image"])
    more = ("--profile", "x86-gateway", "--out", tmp_path / "x.skerry", "--evaluation")
    told = run(*inputs.arguments(*more, tmp_path / "labels.npz")).out
    assert re.search(r"judged by accuracy on 200 held-out rows \(labels found\): fp32 \d+\.\d%", told)
    told = run(*inputs.arguments(*more, tmp_path / "none.npz")).out
    assert "no labels: judged by agreement with fp32 on 200 held-out rows" in told


def test_no_disagreement_is_said_with_its_exact_bound(
    packed: tuple[Outcome, Path], manifest: Manifest
) -> None:
    best = next(variant for variant in packed[0].json["variants"] if variant["chosen"])
    assert best["drop_bound"] == 0
    assert best["exact_bound"] == pytest.approx(1 - 0.05 ** (1 / 200))
    recorded = {variant.id: variant.evaluation["held_out"] for variant in manifest.variants}
    assert recorded[best["name"]]["exact_bound"] == best["held_out_exact_bound"]
    assert recorded["fp32"]["exact_bound"] is None, "fp32 agrees with itself by nature"
    card = run("inspect", packed[1], "--card").out
    assert "0; no disagreement in 200 rows (exact bound 1.5%)" in card


def test_latency_of_another_architecture_is_not_claimed(
    packed: tuple[Outcome, Path], manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [load_profile("raspberry-pi-4"), load_profile("x86-gateway")]
    (note,) = _latency_notes(profiles, Objective.SIZE, "AMD64")
    assert note == (
        "latency was measured on this machine (x86_64), not on raspberry-pi-4: not verified there; "
        "the device's self-test judges it"
    )
    assert "profile tells chose the variants" in _latency_notes(profiles, Objective.LATENCY, "x86_64")[0]
    assert "not on x86-gateway" in _latency_notes(profiles, Objective.SIZE, "arm64")[0]
    assert any("latency was measured" in note for note in packed[0].json["notes"])
    assert not any("latency was measured" in note for note in manifest.evaluation["notes"])


def test_the_bundle_verifies_and_says_the_same(
    packed: tuple[Outcome, Path], inputs: Inputs, manifest: Manifest
) -> None:
    outcome = run("verify", packed[1], "--key", inputs.public_key, "--json")
    assert outcome.code == 0
    assert outcome.json["digest"] == packed[0].json["digest"]
    assert [variant.id for variant in manifest.variants] == packed[0].json["chosen"]


def test_the_manifest_holds_what_a_device_decides_by(manifest: Manifest) -> None:
    assert (manifest.name, manifest.version, manifest.release) == ("quadrants", "1.0.0", 1_000_000)
    assert manifest.labels == ("nw", "ne", "sw", "se")
    assert manifest.budgets.ram_bytes == 768 << 20
    for variant in manifest.variants:
        assert variant.profiles == ("raspberry-pi-4", "x86-gateway")
        assert variant.requires.opset <= 23
        assert 0 < variant.requires.ram_bytes <= 384 << 20
        assert set(variant.tolerances) == {"scores"}
        assert variant.evaluation["held_out"]["drop"] <= 0.01


def test_the_lineage_is_what_was_seen_and_what_was_told(manifest: Manifest, inputs: Inputs) -> None:
    lineage = manifest.lineage
    assert lineage.data_hash == "sha256:aa"
    assert lineage.hyperparameters == {"hidden": 64}
    assert set(lineage.data_splits) == {"calibration", "search", "held-out"}
    assert lineage.environment["packing"]["onnxruntime"]
    assert lineage.unknown["dataset"] == "quadrants v3"


def test_no_measurement_of_this_host_is_signed(
    packed: tuple[Outcome, Path], inputs: Inputs, tmp_path: Path
) -> None:
    description = unpack(packed[1], tmp_path / "u", [read_verifier(inputs.public_key)])
    text = description.manifest_bytes.decode()
    assert "latency_p50" not in text
    assert "peak_rss" not in text


def test_the_same_inputs_give_the_same_bytes(inputs: Inputs, tmp_path: Path) -> None:
    """From two processes with other hash seeds, other folders, another time."""
    outputs = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        arguments = inputs.arguments(
            "--profile", "x86-gateway", "--run-log", folder / "runs.db", "--out", folder / "o.skerry"
        )
        program = "from skerry_packager.cli import main; main()"
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "TZ": f"UTC-{seed}",
            },
            check=True,
            cwd=folder,
            capture_output=True,
        )
        outputs.append((folder / "o.skerry").read_bytes())
    assert outputs[0] == outputs[1]


def test_the_table_names_every_variant_and_why_it_lost(
    inputs: Inputs, packed: tuple[Outcome, Path], tmp_path: Path
) -> None:
    outcome = run(*inputs.arguments("--profile", "x86-gateway", "--out", tmp_path / "x.skerry"))
    assert outcome.code == 0
    for variant in packed[0].json["variants"]:
        assert f"{variant['name']}:" in outcome.out
    assert "chosen for x86-gateway" in outcome.text
    assert "trying int8-store" in outcome.err
    assert str(tmp_path / "x.skerry") in outcome.text
    assert "(--lineage tells)" in outcome.text


def test_model_signing_accepts_the_unpacked_bundle(
    packed: tuple[Outcome, Path], inputs: Inputs, tmp_path: Path
) -> None:
    """The words of ``skerry verify --help``, with the tool of the OpenSSF."""
    folder = tmp_path / "unpacked"
    assert run("unpack", packed[1], folder, "--key", inputs.public_key).code == 0
    command = [
        "verify",
        "key",
        folder,
        "--signature",
        folder / "manifest.sig",
        "--public_key",
        inputs.public_key,
    ]
    tool = [sys.executable, "-m", "model_signing"]
    done = subprocess.run([*tool, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    blob = next((folder / "blobs").iterdir())
    blob.write_bytes(blob.read_bytes() + b"!")
    altered = subprocess.run([*tool, *map(str, command)], capture_output=True, text=True, check=False)
    assert altered.returncode != 0


def test_a_model_that_fits_nowhere_leaves_no_bundle_but_its_reason(inputs: Inputs, tmp_path: Path) -> None:
    log = tmp_path / "runs.db"
    more = (
        "--profile",
        "x86-gateway",
        "--budget-ram",
        "20",
        "--out",
        tmp_path / "no.skerry",
        "--run-log",
        log,
    )
    outcome = run(*inputs.arguments(*more, "--json"))
    assert outcome.code == 1
    error = outcome.json["error"]
    assert error["code"] == "budget.memory"
    assert "budget 20.00 MiB" in error["message"]
    assert "MiB of memory fits" in error["hint"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs.db"]
    logged = run("runs", "show", "1", "--run-log", log, "--json").json
    assert (logged["outcome"], logged["error_code"], logged["bundle"]) == ("failed", "budget.memory", None)


def test_a_failed_run_keeps_the_bundle_that_was_there(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "old.skerry"
    out.write_bytes(b"precious")
    more = (
        "--profile",
        "x86-gateway",
        "--budget-size",
        "0.001",
        "--out",
        out,
        "--run-log",
        tmp_path / "runs.db",
    )
    assert run(*inputs.arguments(*more)).code == 1
    assert out.read_bytes() == b"precious"


def test_devices_may_be_told_to_watch_less(inputs: Inputs, tmp_path: Path) -> None:
    kinds: dict[str, Any] = {}
    for monitor in ("image", "none"):
        out = tmp_path / f"{monitor}.skerry"
        assert (
            run(*inputs.arguments("--profile", "x86-gateway", "--monitor", monitor, "--out", out)).code == 0
        )
        manifest = unpack(out, tmp_path / monitor, None).manifest
        blob = tmp_path / monitor / "blobs" / manifest.monitoring.digest.removeprefix("sha256:")
        kinds[monitor] = {feature.source.kind for feature in parse_spec(blob.read_bytes()).features}
    assert kinds == {"image": {"image"}, "none": set()}
    refused = run(
        *inputs.arguments(
            "--profile", "x86-gateway", "--monitor", "column", "--out", tmp_path / "c", "--json"
        )
    )
    assert (refused.code, refused.json["error"]["code"]) == (2, "input")


@pytest.mark.parametrize(
    ("more", "code", "named"),
    [
        (["--profile", "raspberry-pie"], 2, "raspberry-pie"),
        (["--profile", "x86-gateway", "--name", "Not A Name"], 2, "Not A Name"),
        (["--profile", "x86-gateway", "--version", "1.0"], 2, "1.0"),
        (["--profile", "x86-gateway", "--version", "1.0.0-rc1"], 2, "--release"),
        (["--profile", "x86-gateway", "--max-drop", "5"], 2, "1pt"),
        (["--profile", "x86-gateway", "--security-floor", "9999999"], 2, "floor"),
        (["--profile", "x86-gateway", "--evaluation", "nowhere.npz"], 2, "nowhere.npz"),
        (["--profile", "x86-gateway", "--release", "99999999999999999999"], 2, "9007199254740991"),
        (["--profile", "x86-gateway", "--out", "/nowhere/x.skerry"], 2, "/nowhere"),
        (["--profile", "x86-gateway", "--run-log", "/nowhere/runs.db"], 2, "/nowhere/runs.db"),
        (["--profile", "x86-gateway", "--password-env", "NO_SUCH_VARIABLE"], 2, "NO_SUCH_VARIABLE"),
        (["--profile", "x86-gateway", "--budget-latency-ms", "0.0001"], 2, "0.001"),
        (["--profile", "x86-gateway", "--budget-size", "0.0001"], 2, "0.001"),
        (["--profile", "x86-gateway", "--budget-ram", "nan"], 2, "nan"),
        (["--profile", "x86-gateway", "--max-slowdown", "nan"], 2, "--max-slowdown"),
        (["--profile", "x86-gateway", "--time-limit", "nan"], 2, "--time-limit"),
        (["--profile", "x86-gateway", "--budget-latency-ms", "inf"], 2, "inf"),
        (["--profile", "x86-gateway", "--labels", "a,b,c"], 2, "4 classes"),
    ],
)
def test_what_is_wrong_is_said(
    inputs: Inputs, tmp_path: Path, more: list[str], code: int, named: str
) -> None:
    base = inputs.arguments("--out", tmp_path / "x.skerry", "--run-log", tmp_path / "runs.db")
    outcome = run(*base, *more)
    assert outcome.code == code, outcome.text
    assert named in outcome.text
    assert not list(tmp_path.glob("*.skerry"))


@pytest.mark.parametrize(
    ("option", "read", "what"),
    [
        ("--out", "model", "the model"),
        ("--out", "key", "the key"),
        ("--out", "evaluation", "the evaluation data"),
        ("--report", "calibration", "the calibration data"),
        ("--run-log", "model", "the model"),
    ],
)
def test_what_is_read_is_never_overwritten(
    inputs: Inputs, tmp_path: Path, option: str, read: str, what: str
) -> None:
    target: Path = getattr(inputs, read)
    (tmp_path / "alias").symlink_to(target)
    before = target.read_bytes()
    base = inputs.arguments("--profile", "x86-gateway", "--out", tmp_path / "x.skerry")
    for path in (target, tmp_path / "alias"):
        outcome = run(*base, option, path)
        assert outcome.code == 2, outcome.text
        assert f"is {what}, which it would overwrite" in outcome.text
        assert option in outcome.text.partition("→")[2]
    assert target.read_bytes() == before


def test_what_is_written_goes_to_different_files(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "x.skerry"
    outcome = run(*inputs.arguments("--profile", "x86-gateway", "--out", out, "--report", out))
    assert outcome.code == 2, outcome.text
    assert "what --out writes" in outcome.text
    assert not out.exists()


def test_a_file_that_is_no_model_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "letter.onnx").write_text("Dear engineer")
    arguments = inputs.arguments("--profile", "x86-gateway", "--out", tmp_path / "x.skerry", "--json")
    arguments[1] = str(tmp_path / "letter.onnx")
    outcome = run(*arguments)
    assert (outcome.code, outcome.json["error"]["code"]) == (1, "model")
    assert "letter.onnx" in outcome.json["error"]["message"]


def test_an_encrypted_key_needs_its_password_before_the_work(inputs: Inputs, tmp_path: Path) -> None:
    pair = init_keys(tmp_path, "safe", b"secret")
    arguments = inputs.arguments(
        "--profile", "x86-gateway", "--out", tmp_path / "x.skerry", "--key", pair.private_path
    )
    without = run(*arguments)
    assert (without.code, "loading" in without.err) == (1, False)
    assert "--password-env" in without.err
    assert run(*arguments, "--password-env", "PW", env={"PW": "wrong"}).code == 1
    right = run(*arguments, "--password-env", "PW", env={"PW": "secret"})
    assert right.code == 0, right.text
    verify(tmp_path / "x.skerry", [read_verifier(pair.public_path)])


def test_a_public_or_open_key_is_noticed(inputs: Inputs, tmp_path: Path) -> None:
    outcome = run(
        *inputs.arguments("--profile", "x86-gateway", "--out", tmp_path / "x", "--key", inputs.public_key)
    )
    assert outcome.code == 2
    assert "public key" in outcome.err
    pair = init_keys(tmp_path, "open")
    pair.private_path.chmod(0o644)
    more = ("--profile", "nothing", "--key", pair.private_path)
    assert "chmod 600" in run(*inputs.arguments(*more)).err


def test_a_log_that_fails_at_the_end_does_not_cost_the_bundle(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skerry_contract.errors import StorageError

    def full(self: RunLog, run: object) -> int:
        raise StorageError("disk full")

    monkeypatch.setattr(RunLog, "record", full)
    outcome = run(*inputs.arguments("--profile", "x86-gateway", "--out", tmp_path / "x.skerry"))
    assert outcome.code == 0
    assert "disk full" in outcome.err
    verify(tmp_path / "x.skerry", [read_verifier(inputs.public_key)])


def test_the_release_rises_as_the_version_does() -> None:
    versions = ["0.0.1", "0.1.0", "1.0.0", "1.0.1", "1.2.0", "1.10.0", "2.0.0", "10.999.999"]
    releases = [release_of(version) for version in versions]
    assert releases == sorted(set(releases))
    assert json.dumps(releases[2]) == "1000000"
