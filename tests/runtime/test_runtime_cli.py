"""``skerry-runtime`` as a person uses it: every command, its words and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.builders import new_signer
from tests.runtime.agent_world import QUICK, Device, Headquarters, Made, make_bundle, running
from tests.runtime.model_zoo import digit_images
from tests.waiting import wait_until

from skerry_contract.signing import EcdsaSigner

COMMANDS = ("run", "status", "infer", "install", "rollback")


def run(*arguments: object, config: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [str(argument) for argument in arguments]
    if config is not None:
        words += ["--config", str(config)]
    return subprocess.run(
        [sys.executable, "-m", "skerry_runtime.cli", *words], capture_output=True, text=True, check=False
    )


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def idle(tmp_path: Path, signer: EcdsaSigner) -> Device:
    """A device whose daemon does not run."""
    device = Device(tmp_path, signer)
    device.write_config()
    return device


# --- words and codes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"Example: skerry-runtime {command}" in done.stdout
    assert "--config" in done.stdout


def test_the_commands_are_listed() -> None:
    done = run("--help")
    assert all(command in done.stdout for command in COMMANDS)
    assert run("--version").stdout.startswith("skerry-runtime ")


@pytest.mark.parametrize("arguments", [(), ("dance",), ("infer",), ("status", "--color")])
def test_a_wrong_command_is_code_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).returncode == 2


def test_a_wrong_configuration_is_code_2_with_what_to_do(tmp_path: Path) -> None:
    done = run("run", config=tmp_path / "none.toml")
    assert done.returncode == 2
    assert "→" in done.stderr
    (tmp_path / "bad.toml").write_text("device = 5\n")
    done = run("status", config=tmp_path / "bad.toml")
    assert done.returncode == 2
    assert "device must be a string" in done.stderr


@pytest.mark.parametrize("arguments", [("status",), ("infer", "digits", "--input", "x.npy")])
def test_without_a_daemon_it_is_code_3_and_says_how_to_start_one(
    idle: Device, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments, config=idle.config)
    assert done.returncode == 3
    assert "skerry-runtime run --config" in done.stderr


# --- with a daemon ---------------------------------------------------------------------------------------


def test_install_status_infer_and_rollback(idle: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    bundle = make_bundle(signer).write(tmp_path)
    with running(idle):
        empty = run("status", config=idle.config)
        assert "none yet" in empty.stdout
        done = run("install", bundle, config=idle.config)
        assert done.returncode == 0, done.stderr
        assert "digits 1.0.0 answers now (probation)" in done.stdout
        assert done.stderr.startswith("verified")
        status = run("status", config=idle.config)
        assert "digits 1.0.0" in status.stdout
        assert "probation" in status.stdout
        assert parsed(run("status", "--json", config=idle.config))["models"]["digits"]["phase"] == "probation"

        images, _ = digit_images()
        np.save(tmp_path / "digit.npy", images[:2])
        np.savez(tmp_path / "digit.npz", image=images[:2])
        tensor = {
            "name": "image",
            "shape": [2, 1, 8, 8],
            "datatype": "FP32",
            "data": images[:2].ravel().tolist(),
        }
        (tmp_path / "digit.json").write_text(json.dumps({"inputs": [tensor]}))
        answers = [
            parsed(
                run("infer", "digits", "--input", tmp_path / f"digit.{kind}", "--json", config=idle.config)
            )
            for kind in ("npy", "npz", "json")
        ]
        assert answers[0]["outputs"] == answers[1]["outputs"] == answers[2]["outputs"]
        assert answers[0]["outputs"][0]["shape"] == [2, 10]
        plain = run("infer", "digits", "--input", tmp_path / "digit.npy", config=idle.config)
        assert plain.stdout.startswith("probabilities FP32[2, 10]: [")

        again = run("install", bundle, config=idle.config)
        assert again.returncode == 1
        assert "an update of digits to 1.0.0 is probation" in again.stderr
        nothing = run("rollback", config=idle.config)
        assert nothing.returncode == 1
        assert "no earlier generation" in nothing.stderr


def test_what_is_wrong_with_an_input_is_said(idle: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    with running(idle):
        idle.install(make_bundle(signer).write(tmp_path))
        np.save(tmp_path / "wrong.npy", np.zeros((1, 3), np.float32))
        np.save(tmp_path / "text.npy", np.array(["a"]))
        (tmp_path / "broken.npy").write_bytes(b"hello")
        (tmp_path / "broken.json").write_bytes(b"{")
        for name, words in {
            "wrong.npy": "HTTP 400",
            "text.npy": "has the type <U1",
            "broken.npy": "not a numpy file",
            "broken.json": "not a JSON file",
            "missing.npy": "not a numpy file",
            "x.png": "suffix '.png'",
        }.items():
            done = run("infer", "digits", "--input", tmp_path / name, config=idle.config)
            assert done.returncode == 1, name
            assert words in done.stderr, name
        done = run("infer", "letters", "--input", tmp_path / "wrong.npy", config=idle.config)
        assert "Installed: digits" in done.stderr


@pytest.mark.attack
def test_s1_a_bundle_of_a_stranger_is_refused(idle: Device, tmp_path: Path) -> None:
    foreign = make_bundle(new_signer()).write(tmp_path)
    with running(idle):
        done = run("install", foreign, config=idle.config)
    assert done.returncode == 1
    assert "not signed by a trusted key" in done.stderr
    offline = run("install", foreign, config=idle.config)
    assert offline.returncode == 1
    assert "not signed by a trusted key" in offline.stderr


# --- without a daemon --------------------------------------------------------------------------------------


def test_an_install_without_a_daemon_is_activated_at_its_next_start(
    idle: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    result = parsed(run("install", make_bundle(signer).write(tmp_path), "--json", config=idle.config))
    assert (result["name"], result["state"]) == ("digits", "pending")
    second = run(
        "install", make_bundle(signer, version="2.0.0", release=2).write(tmp_path), config=idle.config
    )
    assert second.returncode == 1
    assert "waits for the daemon" in second.stderr
    with running(idle):
        model = idle.wait_state("probation", "1.0.0")
        assert model["reason"] == result["reason"]
        wait_until(lambda: idle.infer()["model_version"] == "1.0.0", "an answer")


def test_a_bad_model_is_found_without_a_daemon_too(idle: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    bundle = make_bundle(signer, wrong_golden=True).write(tmp_path)
    done = run("install", bundle, config=idle.config)
    assert done.returncode == 1
    assert "→" in done.stderr
    with running(idle):
        assert idle.model()["state"] == "rejected"
        with pytest.raises(ConnectionRefusedError):
            idle.infer()


def test_rolling_back_without_a_daemon(idle: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    assert run("rollback", config=idle.config).returncode == 1
    with running(idle):
        idle.install(make_bundle(signer).write(tmp_path))
        for _ in range(3):
            idle.infer()
    # It was in probation: there is nothing good to return to.
    done = run("rollback", "digits", config=idle.config)
    assert done.returncode == 1
    assert "no earlier generation" in done.stderr


def test_rolling_back_without_a_daemon_returns_to_the_last_good_one(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    second = _confirm_two(device, headquarters, signer)
    assert device.stop() == 0
    done = run("rollback", config=device.config)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "digits 1.0.0 will answer when the daemon starts; the version that was left is quarantined.\n"
    )
    # Once: there is no version before that one.
    again = run("rollback", config=device.config)
    assert again.returncode == 1
    assert "no earlier" in again.stderr
    device.start()
    assert device.infer()["model_version"] == "1.0.0"
    model = device.wait_state("rolled_back", "2.0.0")
    assert (model["error"]["code"], model["active"]["version"]) == ("conflict", "1.0.0")
    assert device.quarantined(second)
    # The fleet is told, and its order is not obeyed any more.
    report = headquarters.wait_report(lambda r: r["phase"] == "rolled_back")
    assert report["active_version"] == "1.0.0"
    headquarters.desire(second, probation=QUICK)
    wait_until(lambda: device.status()["fleet"]["revision"] == 3, "the order")
    assert device.infer()["model_version"] == "1.0.0"
    # A person may change his mind.
    assert device.install(second.write(device.folder))["state"] == "probation"
    assert device.infer()["model_version"] == "2.0.0"


def test_what_waits_for_the_daemon_can_be_taken_back(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    _confirm_two(device, headquarters, signer)
    device.stop()
    third = make_bundle(signer, version="3.0.0", release=3)
    assert run("install", third.write(device.folder), config=device.config).returncode == 0
    done = run("rollback", "digits", "--json", config=device.config)
    assert json.loads(done.stdout) == {"name": "digits", "version": "2.0.0"}
    device.start()
    assert device.infer()["model_version"] == "2.0.0"
    assert device.quarantined(third)
    assert "3.0.0: probation" not in device.log.read_text()
    assert device.ask("rollback") == {"name": "digits", "version": "1.0.0"}, (
        "the last good one is still there"
    )


def test_rolling_back_below_the_security_floor_is_refused_and_changes_nothing(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    second = _confirm_two(device, headquarters, signer, security_floor=2)
    device.stop()
    done = run("rollback", config=device.config)
    assert done.returncode == 1
    assert "below the security floor 2" in done.stderr
    assert not device.quarantined(second)
    device.start()
    assert device.infer()["model_version"] == "2.0.0"
    assert device.model()["state"] == "confirmed"


def _confirm_two(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, **of_the_second: Any
) -> Made:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2, **of_the_second)
    for made in (first, second):
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)
    return second


def test_a_file_that_is_not_there(idle: Device, tmp_path: Path) -> None:
    done = run("install", tmp_path / "none.skerry", config=idle.config)
    assert done.returncode == 1
    assert "No such file" in done.stderr


def test_a_pipe_is_no_bundle_and_nobody_waits_for_it(idle: Device, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.skerry")
    done = run("install", tmp_path / "pipe.skerry", config=idle.config)
    assert done.returncode == 1
    assert "is no file" in done.stderr


def test_with_json_an_error_is_json_too(idle: Device, tmp_path: Path) -> None:
    done = run("install", tmp_path / "nothing.skerry", "--json", config=idle.config)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "input"
    assert error["hint"] == "Name a .skerry file."
    assert json.loads(run("status", "--json", config=idle.config).stdout)["error"]["code"] == "unavailable"
