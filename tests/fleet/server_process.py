"""``skerry fleet serve`` as a process of its own, on free loopback ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.waiting import wait_until

# The root of the command line with this one command, whether or not the distribution is installed.
_LAUNCH = """
from skerry_fleet.cli import fleet
from skerry_packager.cli.app import Root
class OnlyFleet(Root):
    def get_command(self, ctx, name):
        return fleet
OnlyFleet(name="skerry")(prog_name="skerry")
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", _LAUNCH, "fleet", "serve", *map(str, arguments)]


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[str]
    url: str
    broker_port: int
    data: Path

    @property
    def broker_pids(self) -> list[int]:
        return broker_pids(self.data)

    @property
    def client(self) -> httpx.Client:
        token = (self.data / "admin.token").read_text().strip()
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {token}"}, trust_env=False)

    def enrol(self, device: str) -> str:
        """Returns its password."""
        with self.client as client:
            answer = client.post("/v1/devices", json={"id": device})
        assert answer.status_code == 201, answer.text
        return str(tomllib.loads(answer.json()["config_toml"])["fleet"]["password"])

    def stop(self, kind: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit code."""
        self.process.send_signal(kind)
        code = self.process.wait(30)
        self._close()
        return code

    def kill(self) -> None:
        """As an out-of-memory kill does; returns when its broker is gone too."""
        self.process.kill()
        self.process.wait(30)
        self._close()
        wait_until(lambda: not self.broker_pids, "the broker is gone")

    def _close(self) -> None:
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


def start(data: Path, *arguments: str | Path) -> Server:
    """Returns when it says that it is ready."""
    process = subprocess.Popen(
        command("--data", data, "--json", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith('{"ready"'):
        assert process.stderr is not None
        raise AssertionError(line + process.stdout.read() + process.stderr.read())
    told: dict[str, Any] = json.loads(line)
    return Server(process, told["url"], int(told["broker"].rpartition(":")[2]), data)


@contextmanager
def running(data: Path, *arguments: str | Path) -> Iterator[Server]:
    """With free ports, unless ports are given."""
    ports = [] if "--port" in arguments else ["--port", "0", "--broker-port", "0"]
    server = start(data, *ports, *arguments)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def broker_pids(data: Path) -> list[int]:
    """Every mosquitto, zombies aside, that works in the data folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(entry / "cwd") == str((data / "broker").resolve()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
