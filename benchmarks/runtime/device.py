"""A device as its owner would set it up: keys, bundles, configuration, daemon, by public commands."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .children import environment
from .models import BenchModel

ORG: Final = "bench"
DEVICE: Final = "bench-1"
_WAIT_S: Final = 60.0
_REST_S: Final = 90.0
_STOP_S: Final = 20.0
_TAIL: Final = 1500
_PROBATION_S: Final = 150.0
"""A minute by default, and as much again for a slow machine."""


class CommandError(Exception):
    """A command failed; its text says how."""


def program(name: str) -> str:
    """A console script beside this interpreter."""
    script = Path(sys.executable).with_name(name)
    if not script.exists():
        raise CommandError(f"{script} is missing: run 'make bench-runtime', or use the interpreter of .venv")
    return str(script)


def run(*command: str, cwd: Path) -> str:
    """A command to its end; what it printed. Raises `CommandError`."""
    done = subprocess.run(
        command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )
    if done.returncode:
        said = (done.stderr + done.stdout)[-800:]
        raise CommandError(f"{' '.join(command[:3])} ended with {done.returncode}: {said}")
    return done.stdout


@dataclass
class Workshop:
    """The engineer's side: two key pairs and the bundles."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("engineer", "director"):
            self._skerry("keys", "init", "--name", name, "--no-password")

    def pack(
        self, model: BenchModel, version: str = "1.0.0", *options: str, profile: str = "x86-gateway"
    ) -> Path:
        """A signed bundle. Raises `CommandError`."""
        out = self.folder / f"{model.name}-{version}.skerry"
        self._skerry(
            "pack", str(model.path), "--name", model.name, "--version", version, "--key", "engineer.key",
            "--evaluation", str(model.data), "--profile", profile, "--out", str(out), "--json",
            *(options or ("--objective", "latency")),
        )  # fmt: skip
        return out

    def public(self, name: str) -> str:
        return (self.folder / f"{name}.pub").read_text()

    def _skerry(self, *words: str) -> str:
        return run(program("skerry"), *words, cwd=self.folder)


@dataclass
class Device:
    """A data folder with its daemon; a context manager that ends the daemon."""

    folder: Path
    workshop: Workshop
    broker: int = 0
    """Port; 0: no fleet."""
    prefix: Sequence[str] = ()
    """Words before the daemon's command."""
    changes: Mapping[str, str] = field(default_factory=dict)
    """More tables of the configuration, as TOML by their names."""
    _process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        # In memory: lines are journald's business, and must not count as what the daemon writes.
        self._log = os.memfd_create("daemon.log")
        self.config = self.folder / "device.toml"
        text = f'device = "{DEVICE}"\norg = "{ORG}"\ndata_dir = "{self.folder / "data"}"\n'
        text += f'[trust]\nengineers = ["""{self.workshop.public("engineer")}"""]\n'
        if self.broker:
            text += f'director = """{self.workshop.public("director")}"""\n'
            text += f'[fleet]\nhost = "127.0.0.1"\nport = {self.broker}\npassword = ""\n'
        text += "".join(f"[{name}]\n{body}\n" for name, body in self.changes.items())
        self.config.write_text(text)
        self.config.chmod(0o600)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        os.close(self._log)

    # --- commands -----------------------------------------------------------------------------------

    def runtime(self, command: str, *words: str) -> str:
        """``skerry-runtime COMMAND``. Raises `CommandError`."""
        return run(program("skerry-runtime"), command, "--config", str(self.config), *words, cwd=self.folder)

    def install(self, bundle: Path) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.runtime("install", str(bundle), "--json"))
        return found

    def status(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = json.loads(self.runtime("status", "--json"))
        return found

    # --- the daemon ---------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the daemon and do not wait."""
        command = [*self.prefix, program("skerry-runtime"), "run", "--config", str(self.config)]
        self._process = subprocess.Popen(
            command, env=environment(), stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
        )

    def start(self) -> None:
        """Start the daemon and wait until all models answer. Raises `CommandError`."""
        self.launch()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Raises `CommandError` if the daemon ends, or no model answers in time."""
        deadline = time.monotonic() + _WAIT_S
        while not self.ready():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"the daemon does not answer: {self.log_tail()}")
            time.sleep(0.002)

    def ready(self) -> bool:
        """Whether the first model answers."""
        try:
            return get(str(self.socket), "/v2/health/ready")[0] == http.client.OK
        except (OSError, http.client.HTTPException):
            return False

    def wait_confirmed(self, model: str) -> None:
        """Until the active version has passed its probation. Raises `CommandError`."""
        deadline = time.monotonic() + _PROBATION_S
        while self.status()["models"][model]["phase"] != "confirmed":
            if time.monotonic() > deadline:
                raise CommandError(f"{model} is not confirmed: {self.log_tail()}")
            time.sleep(1.0)

    def wait_at_rest(self) -> None:
        """Until the process that forks workers has gone, as it does a while after the last fork, or stays."""
        deadline = time.monotonic() + _REST_S
        while self.status()["zygote_pid"] and time.monotonic() < deadline:
            time.sleep(1.0)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    @property
    def pid(self) -> int:
        if self._process is None:
            raise CommandError("the daemon does not run")
        return self._process.pid

    @property
    def socket(self) -> Path:
        """Of the first model that was installed."""
        return self.folder / "data" / "run" / "skerry.sock"

    def socket_of(self, model: str) -> str:
        return str(self.status()["models"][model]["socket"])

    def served_file(self, model: str, workshop: Workshop, bundle: Path) -> Path:
        """The model file that answers, out of its bundle: what raw ORT is to run too."""
        folder = workshop.folder / f"{bundle.stem}-unpacked"
        if not folder.exists():
            run(program("skerry"), "unpack", str(bundle), str(folder), "--no-verify", cwd=workshop.folder)
        variant = self.status()["models"][model]["active"]["variant"]
        manifest = json.loads((folder / "manifest.json").read_bytes())
        digest = next(one["model"]["digest"] for one in manifest["variants"] if one["id"] == variant)
        return next(path for path in (folder / "blobs").rglob("*") if digest.partition(":")[2] in path.name)

    def log_tail(self) -> str:
        """The daemon's last lines."""
        size = os.fstat(self._log).st_size
        return os.pread(self._log, _TAIL, max(0, size - _TAIL)).decode(errors="replace")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def get(path: str, url: str) -> tuple[int, bytes]:
    """Status and body over a Unix socket."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", url)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@dataclass
class Broker:
    """mosquitto on a free loopback port, open to all: it is on this machine for a minute."""

    folder: Path
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Broker:
        self.port = free_port()
        config = self.folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", "log_dest none"]
        lines += ["max_queued_messages 100000"]
        if os.geteuid() == 0:
            lines.append("user root")
        config.write_text("\n".join(lines) + "\n")
        path = os.environ["PATH"] + os.pathsep + "/usr/local/sbin:/usr/sbin"  # where Debian puts it
        self._process = subprocess.Popen(
            ["mosquitto", "-c", str(config)], env={**os.environ, "PATH": path},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for_port(self.port, self._process)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Raises `CommandError` if nobody listens in time."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise CommandError(f"nobody listens on port {port}") from error
            time.sleep(0.02)
