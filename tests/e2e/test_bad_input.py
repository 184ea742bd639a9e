"""What people get wrong, through the installed commands: a clear error with a next step, nothing lost."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Packed
from tests.e2e.stage import Answer, Stage, program, run, set_options
from tests.waiting import wait_until


def refused(answer: Answer, *, code: int, error: str) -> Mapping[str, Any]:
    """The error of a command with --json; it says what to do next."""
    assert answer.code == code, answer.out + answer.err
    told: Mapping[str, Any] = json.loads(answer.out)["error"]
    assert told["code"] == error
    assert told["message"]
    assert told["hint"], told
    return told


def test_a_file_that_is_no_model(stage: Stage) -> None:
    (stage.folder / "photo.onnx").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2000))
    refused(stage.skerry("inspect", "photo.onnx", "--json"), code=1, error="model")
    packing = ("--name", "x", "--version", "1.0.0", "--profile", "x86-gateway", "--evaluation", "none.npz")
    answer = stage.skerry("pack", "photo.onnx", *packing, "--key", str(stage.engineer), "--json")
    assert answer.code != 0
    assert json.loads(answer.out)["error"]["hint"]
    assert not list(stage.folder.glob("*.skerry"))


def test_a_truncated_bundle_and_one_of_another_engineer(packed: Packed, stage: Stage) -> None:
    device = stage.device("pi")
    cut = stage.folder / "cut.skerry"
    cut.write_bytes(packed.v1.read_bytes()[:-1000])
    stage.ok("keys", "init", "--name", "stranger", "--no-password")
    stranger = stage.folder / "stranger.pub"

    refused(
        stage.skerry("verify", str(cut), "--key", str(stage.engineer), "--json"),
        code=1,
        error="bundle.format",
    )
    refused(stage.skerry("publish", str(cut), "--json"), code=1, error="bundle.format")
    assert device.runtime("install", str(cut)).code == 1
    answer = stage.skerry("verify", str(packed.v1), "--key", str(stranger), "--json")
    refused(answer, code=1, error="bundle.signature")

    # A fleet and a device that trust somebody else refuse what this engineer signed.
    other = Stage(stage.folder / "other", stranger)
    other.folder.mkdir()
    try:
        other.start_fleet()
        refused(other.skerry("publish", str(packed.v1), "--json"), code=1, error="bundle.signature")
        suspicious = other.device("suspicious")
        told = suspicious.runtime("install", str(packed.v1))
        assert told.code == 1
        assert "not signed by a trusted key" in told.err
        assert "→" in told.err
    finally:
        other.processes.end_all()


def test_an_unknown_device(packed: Packed, stage: Stage) -> None:
    refused(stage.skerry("devices", "show", "nobody", "--json"), code=1, error="not_found")
    # A device with a wrong password says so, and serves what it has all the same.
    device = stage.device("pi")
    set_options(device.config, {"password": "guessed"})
    assert device.runtime("install", str(packed.v1)).code == 0
    device.start()
    wait_until(lambda: device.answering(packed.images[:1]), "it answers")
    error = wait_until(lambda: device.status()["fleet"]["error"], "the refusal is told")
    assert error["code"] == "access"
    assert "fleet.password" in error["hint"]


def test_a_busy_port(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ("--data", str(stage.folder / "second"), "--trust", str(stage.engineer))
        answer = run(program("skerry"), "fleet", "serve", *options, "--port", port, "--broker-port", "0")
        assert answer.code == 3
        assert port in answer.err
        assert "→" in answer.err


@pytest.mark.slow
def test_no_broker(packed: Packed, stage: Stage) -> None:
    device = stage.device("pi")
    assert device.runtime("install", str(packed.v1)).code == 0
    stage.stop_fleet()
    device.start()

    def waiting() -> int:
        assert device.answering(packed.images[:8]) in ("", "1.0.0")
        return int(device.status()["outbox"]["waiting_rows"]) if device.status() else 0

    wait_until(lambda: waiting() >= 3, "it answers and keeps its telemetry")
    error = device.status()["fleet"]["error"]
    assert error["code"] == "unavailable"
    assert error["hint"]
    stage.start_fleet()
    stage.ok("publish", str(packed.v1))
    wait_until(lambda: waiting() <= 1, "the fleet has all of it")
    assert device.status()["outbox"]["lost"] == 0


def test_no_server(tmp_path: Path) -> None:
    nobody = {"SKERRY_SERVER": "http://127.0.0.1:9", "SKERRY_TOKEN": "x"}
    answer = run(program("skerry"), "devices", "list", "--json", cwd=tmp_path, env=nobody)
    told = refused(answer, code=3, error="unavailable")
    assert "skerry fleet serve" in told["hint"]
