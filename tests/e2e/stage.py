"""Real processes for the end-to-end tests: the installed commands, a fleet server, its broker, daemons."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.waiting import wait_until

from skerry_contract.errors import SkerryError
from skerry_packager.demo.cameras import UnixConnection
from skerry_packager.demo.processes import Processes, free_ports
from skerry_packager.fleet_client import FleetClient


def program(name: str) -> str:
    """The installed console script beside this interpreter."""
    script = Path(sys.executable).with_name(name)
    assert script.exists(), f"{script} is missing: the end-to-end tests drive the installed commands"
    return str(script)


@dataclass
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(
    *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 110
) -> Answer:
    """Run a command to its end."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


@dataclass
class Device:
    """One device: its configuration and, while it runs, its daemon."""

    name: str
    config: Path
    folder: Path
    processes: Processes

    def start(self) -> None:
        self.processes.start(self.name, [program("skerry-runtime"), "run", "--config", str(self.config)])

    def kill(self) -> None:
        """kill -9 of the daemon, as a power cut would end it; its workers go with it."""
        self.processes.end(self.name, signal.SIGKILL)

    def stop(self) -> None:
        self.processes.end(self.name)

    def runtime(self, *arguments: str) -> Answer:
        """``skerry-runtime`` with this device's configuration."""
        command, *rest = arguments
        return run(program("skerry-runtime"), command, "--config", str(self.config), *rest)

    def status(self) -> dict[str, Any]:
        answer = self.runtime("status", "--json")
        return dict(answer.json) if answer.code == 0 else {}

    def phases(self) -> list[str]:
        """Every step of updates so far, from the daemon's log: ``update.verifying`` and the like."""
        lines = (self.processes.folder / f"{self.name}.log").read_text().splitlines()
        events = (json.loads(line).get("kind", "") for line in lines if line.startswith("{"))
        return [kind.removeprefix("update.") for kind in events if kind.startswith("update.")]

    def infer(self, images: np.ndarray) -> tuple[str, np.ndarray]:
        """The version that answers and the digits that it reads. Raises `OSError` or `AssertionError`."""
        connection = UnixConnection(str(self.folder / "run" / "skerry.sock"))
        tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape)}
        body = json.dumps({"inputs": [{**tensor, "data": images.ravel().tolist()}]})
        try:
            connection.request("POST", "/v2/models/digits/infer", body)
            response = connection.getresponse()
            answer = json.loads(response.read())
            assert response.status == 200, answer
        finally:
            connection.close()
        scores = np.array(answer["outputs"][0]["data"]).reshape(len(images), -1)
        return str(answer["model_version"]), scores.argmax(1)

    def answering(self, images: np.ndarray) -> str:
        """The version that answers now; empty if nobody does."""
        try:
            return self.infer(images)[0]
        except (OSError, http.client.HTTPException, AssertionError):
            return ""


@dataclass
class Stage:
    """A fleet server with its broker in a folder, ``skerry`` to steer it, and devices."""

    folder: Path
    engineer: Path
    """The engineer's public key."""
    processes: Processes = field(init=False)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.processes = Processes(self.folder)
        self.http_port, self.broker_port = free_ports(2)
        self.server = f"http://127.0.0.1:{self.http_port}"
        self.token_file = self.folder / "fleet" / "admin.token"
        self.environment = {"SKERRY_SERVER": self.server, "SKERRY_TOKEN_FILE": str(self.token_file)}

    def start_fleet(self) -> None:
        options = ["--data", str(self.folder / "fleet"), "--trust", str(self.engineer), "--org", "e2e"]
        ports = ["--port", str(self.http_port), "--broker-port", str(self.broker_port)]
        self.processes.start("fleet", [program("skerry"), "fleet", "serve", *options, *ports])
        wait_until(self._healthy, f"the fleet server: {self.processes.log_tail('fleet')}")

    def stop_fleet(self) -> None:
        self.processes.end("fleet")

    def client(self) -> FleetClient:
        return FleetClient(self.server, self.token_file.read_text().strip())

    def skerry(self, *arguments: str) -> Answer:
        return run(program("skerry"), *arguments, cwd=self.folder, env=self.environment)

    def ok(self, *arguments: str) -> Any:
        """The JSON of a command that must succeed."""
        answer = self.skerry(*arguments, "--json")
        assert answer.code == 0, f"{arguments}: {answer.out}{answer.err}"
        return answer.json

    def device(self, name: str, **options: object) -> Device:
        """Enrol a device; options replace values of its configuration."""
        config = self.folder / f"{name}.toml"
        self.ok("devices", "add", name, "--out", str(config))
        changes = {"data_dir": str(self.folder / name), "seconds": 1.0, **options}
        set_options(config, changes)
        return Device(name, config, self.folder / name, self.processes)

    def reported(self, device: str) -> Mapping[str, Any]:
        """What the device last said about the digits."""
        report: Mapping[str, Any] = self.client().device(device)["device"]["reported"].get("digits", {})
        return report

    def _healthy(self) -> bool:
        try:
            return self.token_file.exists() and FleetClient(self.server).healthy()
        except SkerryError:
            return False


def set_options(config: Path, changes: Mapping[str, object]) -> None:
    """Set values in a device configuration that names each of them once."""
    text = config.read_text()
    for key, value in changes.items():
        text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {json.dumps(value)}", text)
        assert found == 1, f"{config} names {key} {found} times"
    config.write_text(text)
