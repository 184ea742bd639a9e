"""Mosquitto, supervised: configured, started, watched, restarted, reloaded and stopped with the server.

Guarantees: nobody connects without a credential; a client's identity is its user name, whatever client
identifier it sends; a device writes only its own ``up`` topics and reads only its own ``dn`` topics; a server
that is killed leaves no broker behind.

Mosquitto answers SUBACK "granted" for foreign filters and filters at delivery: a SUBACK proves nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from skerry_contract.errors import ConfigError, StorageError, UnavailableError
from skerry_contract.limits import MIB
from skerry_contract.topics import check_id

from .mosquitto import SERVER_USER, find_mosquitto, hash_password, render_acl, render_config

log = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("broker_child.py")
_BACKOFF_S: Final = (0.1, 0.5, 2.0, 5.0, 15.0, 30.0)
_LONG_LIVED_S: Final = 60.0
_OWN_PORTS: Final = range(20_000, 32_000)
_LOG_BYTES: Final = 1 * MIB


class BrokerState(StrEnum):
    STOPPED = "stopped"
    RUNNING = "running"
    RESTARTING = "restarting"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """Where the broker listens. Beyond loopback it takes a certificate, or an explicit ``insecure``."""

    host: str = "127.0.0.1"
    port: int = 1883
    """0 takes a free one."""
    insecure: bool = False

    def __post_init__(self) -> None:
        if not self.insecure and not is_loopback(self.host):
            raise ConfigError(
                f"the broker would listen on {self.host} without TLS: passwords would travel in clear",
                hint="Use a tunnel to 127.0.0.1, or say --insecure-dev on a network that you trust.",
            )


class Broker:
    """One mosquitto in ``folder``. ``credentials()`` gives user names and password hashes, at every start
    and reload."""

    def __init__(
        self, folder: Path, *, org: str, listen: Listen, credentials: Callable[[], Mapping[str, str]]
    ) -> None:
        self._folder = folder
        self._org = check_id(org)
        self._credentials = credentials
        self._binary = find_mosquitto()
        self.host = listen.host
        self.port = listen.port or free_port(listen.host)
        self.password = secrets.token_urlsafe(32)
        """Of `SERVER_USER`; new with every start."""
        self.restarts = 0
        self.state = BrokerState.STOPPED
        self._account = _unprivileged_account()
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._first = threading.Event()
        self._error: UnavailableError | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """Of the running mosquitto."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    @property
    def connect_host(self) -> str:
        """Where the server itself reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)  # noqa: S104

    def start(self) -> None:
        """Returns when the broker accepts connections.

        Raises:
            UnavailableError: the port is taken, or mosquitto does not start; says what it said.
            StorageError: the folder cannot be written.
        """
        self._write_files()
        _end_leftover(self._folder)
        _check_port_free(self.host, self.port)
        self._thread = threading.Thread(target=self._supervise, name="broker", daemon=True)
        self._thread.start()
        self._first.wait()
        if self._error is not None:
            self.stop()
            raise self._error

    def reload(self) -> None:
        """Take over changed credentials; connections stay."""
        with self._lock:
            self._write_credentials()
        self._signal(signal.SIGHUP)

    def save(self) -> None:
        """Let it write sessions and retained messages to its file, which it else does every minute."""
        self._signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End it cleanly; it saves its sessions and retained messages."""
        self._stop.set()
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._thread is not None:
            self._thread.join()
        self.state = BrokerState.STOPPED

    def _signal(self, kind: signal.Signals) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(kind)

    def _supervise(self) -> None:
        """Starts mosquitto from this thread alone: the parent-death signal follows the thread that forked."""
        failures = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                self._spawn()
            except UnavailableError as error:
                if not self._first.is_set():
                    self._error = error
                    self._first.set()
                    return
                if not self._stop.is_set():
                    log.warning("the broker did not come back: %s", error)
            else:
                self.state = BrokerState.RUNNING
                self._first.set()
                assert self._process is not None  # noqa: S101 _spawn has set it
                code = self._process.wait()
                if self._stop.is_set():
                    return
                log.warning("the broker ended with %s; it is started again", code)
            self.state = BrokerState.RESTARTING
            failures = 1 if time.monotonic() - began > _LONG_LIVED_S else failures + 1
            self.restarts += 1
            self._stop.wait(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])

    def _spawn(self) -> None:
        log_path = self._folder / "mosquitto.log"
        fresh = not log_path.exists() or log_path.stat().st_size > _LOG_BYTES
        uid, gid = self._account or (-1, -1)
        with self._lock, log_path.open("wb" if fresh else "ab") as output:
            log_path.chmod(0o600)
            # Relative paths from its own working directory: the other user need not reach the folder by name.
            command = [sys.executable, "-I", "-S", str(_CHILD), str(os.getpid()), str(uid), str(gid)]
            try:
                self._process = subprocess.Popen(
                    [*command, str(self._binary), "-c", "mosquitto.conf"],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C is for the server, which then stops the broker
                )
            except OSError as error:
                raise UnavailableError(f"mosquitto cannot be started: {error.strerror}") from error
        self._await_ready(self._process, log_path)

    def _await_ready(self, process: subprocess.Popen[bytes], log_path: Path) -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said = log_path.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()[-5:]
                raise UnavailableError(
                    f"mosquitto ended with {process.returncode}: " + " | ".join(said),
                    hint=f"See {log_path}; the configuration beside it is written anew at every start.",
                )
            with contextlib.suppress(OSError), socket.create_connection((self.connect_host, self.port), 1):
                return
            self._stop.wait(0.02)
        process.kill()
        raise UnavailableError(f"mosquitto did not accept connections on port {self.port} within 20 s")

    def _write_files(self) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._folder.chmod(0o700)
            if self._account is not None:
                os.chown(self._folder, *self._account)
            self._write("mosquitto.conf", render_config(self.host, self.port))
            self._write("acl", render_acl(self._org))
            self._write_credentials()
        except OSError as error:
            raise StorageError(
                f"the broker's folder {self._folder} cannot be written: {error.strerror}",
                hint="Check free space and permissions of the data folder.",
            ) from error

    def _write_credentials(self) -> None:
        users = {**self._credentials(), SERVER_USER: hash_password(self.password)}
        self._write("passwd", "".join(f"{name}:{hashed}\n" for name, hashed in sorted(users.items())))

    def _write(self, name: str, text: str) -> None:
        """Atomic, 0600, owned by the user that mosquitto runs as."""
        temporary = self._folder / f"{name}.tmp"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)
            if self._account is not None:
                os.fchown(file.fileno(), *self._account)
        temporary.replace(self._folder / name)


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def _unprivileged_account() -> tuple[int, int] | None:
    """Root starts the broker as another user; nobody else can, or needs to."""
    if os.geteuid() != 0:
        return None
    for name in ("mosquitto", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise ConfigError(
        "root may not run the broker, and there is neither a user 'mosquitto' nor 'nobody'",
        hint="Run the server as an ordinary user.",
    )


def free_port(host: str) -> int:
    """A port that nothing uses now, below those that the system gives to clients: while a broker restarts, a
    client that tries to reach it could else be given its very port."""
    for _ in range(100):
        port = secrets.choice(_OWN_PORTS)
        with contextlib.suppress(OSError), socket.create_server((host, port), family=_family(host)):
            return port
    with socket.create_server((host, 0), family=_family(host)) as probe:
        return int(probe.getsockname()[1])


def _check_port_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port), family=_family(host)):
            return
    except OSError as error:
        raise UnavailableError(
            f"the broker cannot listen on {host or '*'} port {port}: {error.strerror}",
            hint=f"`ss -ltnp 'sport = :{port}'` shows what uses it; or choose another with --broker-port.",
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _end_leftover(folder: Path) -> None:
    """End a mosquitto that still works in our folder; the caller holds the lock of the data folder."""
    wanted = folder.resolve()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() == "mosquitto" and (entry / "cwd").resolve() == wanted:
                log.warning("ending a broker that an earlier server left behind (process %s)", entry.name)
                os.kill(int(entry.name), signal.SIGKILL)
                _await_end(entry)


def _await_end(entry: Path) -> None:
    deadline = time.monotonic() + 5
    while entry.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
