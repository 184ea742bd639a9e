"""Real processes of the demo: started, watched, and all ended at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PLAN = "plan.json"
"""File of a demo's folder: the devices and their sockets."""
MARK = "SKERRY_DEMO_FOLDER"
"""Every process of a demo, and whatever it starts, carries its folder in this variable."""


@dataclass
class Processes:
    """Starts processes that log into files and can outlive the demo."""

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        """Start a process in a session of its own; its output goes to ``NAME.log``."""
        environment = {**os.environ, **(env or {}), MARK: str(self.folder)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def died(self) -> list[str]:
        """Names of processes that ended though nobody ended them."""
        return [name for name, process in self.running.items() if process.poll() is not None]

    def end(self, name: str, kind: signal.Signals = signal.SIGTERM, wait_s: float = 15.0) -> None:
        """End one process, politely first."""
        process = self.running.pop(name)
        process.send_signal(kind)
        try:
            process.wait(wait_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def end_all(self) -> None:
        """The latest first, so that clients go before servers."""
        for name in reversed(list(self.running)):
            self.end(name)

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The end of a process's log, for an error message."""
        path = self.folder / f"{name}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""


def of_demo(folder: Path) -> list[int]:
    """Processes on this machine that belong to the demo in the folder, found by `MARK`."""
    mark = f"{MARK}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def end_demo(folder: Path, wait_s: float = 20.0) -> list[int]:
    """End whatever a demo left running; returns what would not end."""
    deadline = time.monotonic() + wait_s
    for pid in of_demo(folder):
        _signal(pid, signal.SIGTERM)
    while (left := of_demo(folder)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        _signal(pid, signal.SIGKILL)
    while (left := of_demo(folder)) and time.monotonic() < deadline + 5:
        time.sleep(0.1)
    return left


def _signal(pid: int, kind: signal.Signals) -> None:
    try:
        os.kill(pid, kind)
    except ProcessLookupError:
        return


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(sock.getsockname()[1]) for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
