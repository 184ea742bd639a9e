"""The commands that speak to the fleet, against the real server: publish, devices, rollout, alerts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.builders import BundleBuilder, new_signer
from tests.packager.cli_runner import Outcome, run
from tests.packager.odd_server import odd_server, reply

from skerry_contract.signing import EcdsaSigner

Skerry = Callable[..., Outcome]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, signer: EcdsaSigner) -> Iterator[dict[str, str]]:
    """A fleet server with its broker, as its own process; what it says when it is ready."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "engineer.pub").write_bytes(signer.verifier.pem)
    program = "from skerry_fleet.cli import fleet; fleet()"
    options = [
        "--data",
        folder / "data",
        "--port",
        "0",
        "--broker-port",
        "0",
        "--trust",
        folder / "engineer.pub",
    ]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *map(str, options), "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, (folder / "server.log").read_text()
            yield json.loads(line)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            process.stdout.close()


@pytest.fixture(scope="module")
def skerry(server: dict[str, str]) -> Skerry:
    """`run` with the server's address and token in the environment, as a person would set them."""
    env = {"SKERRY_SERVER": server["url"], "SKERRY_TOKEN_FILE": server["token_file"], "SKERRY_TOKEN": None}
    return lambda *arguments: run(*arguments, env=env)


def test_a_bundle_is_published_once(skerry: Skerry, builder: BundleBuilder, tmp_path: Path) -> None:
    path = builder.write(tmp_path)
    first = skerry("publish", path, "--json")
    assert (first.code, first.json["new"], first.json["name"]) == (0, True, "digits")
    again = skerry("publish", path)
    assert again.code == 0
    assert "unchanged digits 1.0.0" in again.text
    other = BundleBuilder(signer=builder.signer, models={"fp32": b"another model"}).write(tmp_path)
    refused = skerry("publish", other, "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "conflict")


def test_a_strangers_bundle_is_refused(skerry: Skerry, tmp_path: Path) -> None:
    path = BundleBuilder(name="strange", signer=new_signer()).write(tmp_path)
    refused = skerry("publish", path, "--json")
    assert (refused.code, refused.json["error"]["code"]) == (1, "bundle.signature")
    path.write_bytes(path.read_bytes()[:-100])
    assert skerry("publish", path, "--json").json["error"]["code"] == "bundle.format"


def test_a_device_is_enrolled_with_a_private_file(skerry: Skerry, tmp_path: Path) -> None:
    out = tmp_path / "pi-7.toml"
    added = skerry(
        "devices",
        "add",
        "pi-7",
        "--label",
        "site=gate-3",
        "--class",
        "raspberry-pi-4",
        "--data-dir",
        "/srv/skerry",
        "--out",
        out,
        "--json",
    )
    assert (added.code, added.json["id"], added.json["config"]) == (0, "pi-7", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    config = tomllib.loads(out.read_text())
    assert (config["device"], config["device_class"]) == ("pi-7", "raspberry-pi-4")
    assert config["data_dir"] == "/srv/skerry"
    assert config["fleet"]["password"] not in added.out
    listed = skerry("devices", "list")
    assert "never seen" in listed.out
    assert "site=gate-3" in listed.out
    assert [device["id"] for device in skerry("devices", "list", "--json").json["devices"]] == ["pi-7"]
    shown = skerry("devices", "show", "pi-7")
    assert "raspberry-pi-4" in shown.out
    assert skerry("devices", "show", "pi-7", "--json").json["device"]["labels"] == {"site": "gate-3"}


def test_a_refused_device_leaves_no_file(skerry: Skerry, tmp_path: Path) -> None:
    out = tmp_path / "x.toml"
    assert skerry("devices", "add", "twice", "--out", out).code == 0
    text = out.read_text()
    assert skerry("devices", "add", "other", "--out", out).code == 1
    assert out.read_text() == text
    again = skerry("devices", "add", "twice", "--out", tmp_path / "y.toml", "--json")
    assert (again.code, again.json["error"]["code"]) == (1, "conflict")
    assert not (tmp_path / "y.toml").exists()
    assert skerry("devices", "add", "other", "--out", tmp_path / "no" / "z.toml").code == 2


def test_a_rollout_is_started_watched_and_steered(
    skerry: Skerry, builder: BundleBuilder, tmp_path: Path
) -> None:
    builder.name = "rolled"
    skerry("publish", builder.write(tmp_path))
    skerry("devices", "add", "here", "--label", "site=here", "--out", tmp_path / "here.toml")
    more = (
        "--wave",
        "1",
        "--select",
        "site=here",
        "--deadline",
        "2h",
        "--probation-seconds",
        "5",
        "--max-failures",
        "1",
    )
    started = skerry("rollout", "start", "rolled", "1.0.0", *more, "--json")
    assert started.code == 0, started.text
    told = started.json
    assert (told["model"], told["state"], told["deadline_s"], told["max_failures"]) == (
        "rolled",
        "running",
        7200,
        1,
    )
    assert told["probation"]["seconds"] == 5
    assert told["selector"] == {"site": "here"}
    assert [device["device"] for wave in told["waves"] for device in wave["devices"]] == ["here"]
    shown = skerry("rollout", "status", told["id"])
    assert "rolled 1.0.0" in shown.text
    assert "here" in shown.text
    assert told["id"] in skerry("rollout", "status").out
    assert skerry("rollout", "status", told["id"], "--json").json["id"] == told["id"]
    assert skerry("rollout", "pause", told["id"], "--json").json["state"] == "paused"
    assert "running" in skerry("rollout", "resume", told["id"]).out
    assert skerry("rollout", "abort", told["id"], "--json").json["state"] == "aborted"
    watched = skerry("rollout", "status", told["id"], "--watch")
    assert watched.code == 1
    assert "rollout: aborted" in watched.out
    assert skerry("rollout", "resume", told["id"], "--json").json["error"]["code"] == "conflict"


def test_a_watched_rollout_tells_each_news_once_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_packager.cli.rollouts._POLL_S", 0.0)

    def state(phase: str, decision: str, word: str) -> dict[str, Any]:
        device = {"device": "pi-7", "phase": phase, "unknown": False, "error": None}
        gate = {"decision": decision, "reasons": ["Wave 1 of 1: 1 of 1 confirmed.", "Nothing failed."]}
        wave = {"number": 1, "reaches": "1 device", "verdict": gate, "devices": [device]}
        return {
            "id": "r1",
            "model": "m",
            "version": "1.0.0",
            "state": word,
            "reason": "" if word == "running" else " ".join(gate["reasons"]),
            "final": word != "running",
            "waves": [wave],
        }

    with odd_server() as server:
        states = iter(
            [
                state("offered", "hold", "running"),
                state("probation", "hold", "running"),
                state("probation", "hold", "running"),
                state("confirmed", "pass", "completed"),
            ]
        )
        server.answer = lambda request: reply(request, 200, next(states))
        outcome = run("rollout", "status", "r1", "--watch", "--server", server.url)
    assert outcome.code == 0
    told = [line for line in outcome.out.splitlines() if line.startswith(("wave 1,", "gate", "rollout:"))]
    assert told[:7] == [
        "wave 1, pi-7: offered",
        "gate 1: hold. Wave 1 of 1: 1 of 1 confirmed.",
        "rollout: running",
        "wave 1, pi-7: probation",
        "wave 1, pi-7: confirmed",
        "gate 1: pass. Wave 1 of 1: 1 of 1 confirmed. Nothing failed.",
        "rollout: completed",
    ]
    assert outcome.out.endswith("gate 1: pass\n  Wave 1 of 1: 1 of 1 confirmed.\n  Nothing failed.\n"), (
        "the whole story, a reason a line"
    )
    assert "reason" not in outcome.out, "the rollout's own reason is its gate's, said already"


@pytest.mark.parametrize("columns", [None, "80"])
def test_lists_fit_a_terminal_and_break_no_time(columns: str | None) -> None:
    """Piped, with names as long as real ones."""
    at, digest = 1_700_000_000_000, "sha256:" + "ab" * 32
    rollout = {
        "id": "r0123456789ab", "model": "quadrants", "version": "1.10.0", "state": "set_back", "wave": 1,
        "wave_count": 3, "phases": {"confirmed": 12, "rolled_back": 3, "waiting": 44}, "created_ms": at,
        "reason": "A long sentence. " * 9,
    }  # fmt: skip
    placement = {
        "model": "quadrants", "version": "1.10.0", "health": "unknown", "from_ms": at, "to_ms": at,
        "digest": digest,
    }  # fmt: skip
    device = {"id": "raspberry-0001", "labels": {f"label{n}": "value" for n in range(9)}, "last_seen_ms": at}
    alert = {
        "id": 17, "severity": "critical", "raised_ms": at, "device": "raspberry-0001", "model": "quadrants",
        "title": "Drift of the brightness. " * 9,
    }  # fmt: skip
    version = {
        "version": "1.10.0", "release": 1010000, "published_ms": at, "size": 99999, "digest": digest,
        "variants": [{"id": f"variant-{n}"} for n in range(9)], "quarantined_ms": at,
        "quarantine_reason": "It failed on 3 devices.",
    }  # fmt: skip
    model = {
        "name": "quadrants", "task": "classification", "versions": 3, "latest_version": "1.10.0",
        "latest_release": 1010000, "latest_digest": digest,
    }  # fmt: skip
    pages: dict[str, Any] = {
        "/v1/rollouts": rollout, "/v1/devices": device, "/v1/alerts": alert,
        "/v1/models/quadrants/versions": version, "/v1/models": model,
    }  # fmt: skip

    def run_with(*arguments: object) -> Outcome:
        return run(*arguments, "--server", odd.url, env={"COLUMNS": columns})

    with odd_server() as odd:
        odd.answer = lambda request: reply(
            request, 200,
            {"items": [pages[request.path]], "next": None} if request.path in pages
            else {"device": device, "placements": [placement]},
        )  # fmt: skip
        shown = {
            name: run_with(*name.split())
            for name in ("rollout status", "devices list", "devices show raspberry-0001", "alerts list",
                         "models list", "models show quadrants")
        }  # fmt: skip
    for name, outcome in shown.items():
        lines = outcome.out.splitlines()
        if name.startswith("devices show"):
            lines = lines[lines.index("", 1) :]  # facts are not folded
            assert "2023-11-14 22:13:20Z  2023-11-14 22:13:20Z  abababababab" in outcome.out
        assert max(map(len, lines)) <= int(columns or 100), name
        assert not [line for line in lines if line != line.rstrip()], name
        assert "ab" * 7 not in outcome.out, name
        if name != "models list":
            assert "2023-11-14 22:13:20Z" in outcome.out, name
    assert "long sentence" not in shown["rollout status"].out, "why is told by the status of one"
    assert "1.10.0 is quarantined: It failed on 3 devices." in shown["models show quadrants"].err


def test_models_are_listed_with_their_versions(
    skerry: Skerry, builder: BundleBuilder, tmp_path: Path
) -> None:
    builder.name = "listed"
    for builder.version, builder.release in (("1.0.0", 1), ("1.1.0", 2)):
        skerry("publish", builder.write(tmp_path))
    found = {model["name"]: model for model in skerry("models", "list", "--json").json["models"]}
    assert (found["listed"]["versions"], found["listed"]["latest_version"]) == (2, "1.1.0")
    digest = found["listed"]["latest_digest"].removeprefix("sha256:")
    listed = skerry("models", "list").out
    assert digest[:12] in listed
    assert digest[:13] not in listed
    versions = skerry("models", "show", "listed", "--json").json["versions"]
    assert [version["version"] for version in versions] == ["1.1.0", "1.0.0"]
    assert "fp32, int8" in skerry("models", "show", "listed").out


def test_a_removed_device_is_gone(skerry: Skerry, tmp_path: Path) -> None:
    skerry("devices", "add", "leaver", "--out", tmp_path / "leaver.toml")
    assert "leaver" in skerry("devices", "remove", "leaver").out
    assert skerry("devices", "show", "leaver").code == 1
    assert skerry("devices", "remove", "leaver", "--json").json["error"]["code"] == "not_found"
    skerry("devices", "add", "leaver", "--out", tmp_path / "again.toml")
    assert skerry("devices", "remove", "leaver", "--json").json == {"removed": "leaver"}


def test_the_data_folder_of_a_device_is_chosen_when_it_is_added(tmp_path: Path) -> None:
    with odd_server() as server:
        server.answer = lambda request: reply(request, 201, {"id": "pi-7", "config_toml": ""})
        more = ("--server", server.url, "--out")
        run("devices", "add", "pi-7", "--data-dir", "/srv/skerry", *more, tmp_path / "a.toml")
        run("devices", "add", "pi-7", *more, tmp_path / "b.toml")
        assert [json.loads(body)["data_dir"] for *_, body in server.asked] == [
            "/srv/skerry",
            "/var/lib/skerry",
        ]
    for wrong in ("skerry", "~/skerry", "/home/../etc", ""):
        refused = run("devices", "add", "pi-7", "--data-dir", wrong, *more, tmp_path / "c.toml")
        assert refused.code == 2
    assert not (tmp_path / "c.toml").exists()


def test_what_is_not_there_is_said(skerry: Skerry) -> None:
    for command in (
        ["devices", "show", "nobody"],
        ["devices", "remove", "nobody"],
        ["models", "show", "nothing"],
        ["rollout", "status", "nothing"],
        ["rollout", "start", "digits", "9.9.9"],
        ["alerts", "acknowledge", "4711"],
    ):
        outcome = skerry(*command, "--json")
        assert (outcome.code, outcome.json["error"]["code"]) == (1, "not_found"), command


def test_alerts_are_listed(skerry: Skerry) -> None:
    assert skerry("alerts", "list", "--json").json == {"alerts": []}
    assert "no alerts" in skerry("alerts", "list").out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--wave", "50%", "--wave", "20%"],
        ["--wave", "50%", "--wave", "3"],
        ["--wave", "0%"],
        ["--wave", "half"],
        ["--deadline", "soon"],
        ["--select", "site"],
    ],
)
def test_a_rollout_that_makes_no_sense_is_not_asked_for(skerry: Skerry, arguments: list[str]) -> None:
    assert skerry("rollout", "start", "digits", "1.0.0", *arguments).code == 2


@pytest.mark.attack
def test_a_wrong_token_is_refused(server: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("guessed")
    wrong = run("devices", "list", "--server", server["url"], "--token-file", tmp_path / "token", "--json")
    assert (wrong.code, wrong.json["error"]["code"]) == (1, "access")


def test_no_server_is_an_exit_code_of_its_own() -> None:
    outcome = run("devices", "list", "--server", "http://127.0.0.1:1", "--json")
    assert (outcome.code, outcome.json["error"]["code"]) == (3, "unavailable")
    assert "skerry fleet serve" in outcome.json["error"]["hint"]
