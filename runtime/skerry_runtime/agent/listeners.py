"""The sockets that clients connect to. The agent holds them open for as long as a model is active.

Workers get duplicates and accept; across swaps and crashes a connection waits in the kernel's queue and is
never refused. Before the first model is active nothing listens, so a client gets a clear refusal.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from skerry_contract.errors import StorageError, UnavailableError

from ..config import ServeConfig

BACKLOG: Final = 256
BUSY_SECONDS: Final = 5.0
"""How long to wait for a port that workers of a killed daemon still hold."""


class Listeners:
    """Bound at the start, so that a busy port is found then; listening from `open` on."""

    def __init__(self, config: ServeConfig, others: Path) -> None:
        """``others`` is the folder for the sockets of further models.

        Raises:
            UnavailableError: the port, or the socket's path, is taken.
            StorageError: the socket's path cannot be used.
        """
        self._path = config.socket
        self._others_folder = others
        self._others: dict[str, socket.socket] = {}
        self._listening = False
        self._tcp = _bind_tcp(config.http) if config.http else None
        try:
            # In its own folder, which it has locked, only its own orphans can answer.
            if config.socket.parent != others:
                _wait_until_free(config.socket)
            self._unix = bind_unix(config.socket, 0o660)
        except BaseException:
            if self._tcp is not None:
                self._tcp.close()
            raise

    @property
    def tcp_address(self) -> tuple[str, int] | None:
        """The real port."""
        return self._tcp.getsockname()[:2] if self._tcp is not None else None

    def socket_path(self, model: str, front: bool) -> Path:
        """Where clients of a model connect: the front model has the configured socket."""
        return self._path if front else self._others_folder / f"{model}.sock"

    def open(self, model: str, front: bool) -> Sequence[tuple[str, int]]:
        """Kind and descriptor of each listening socket of a model. The front model has the TCP port too.

        Raises:
            UnavailableError: it cannot listen.
        """
        if not front:
            if model not in self._others:
                self._others[model] = bind_unix(self.socket_path(model, front), 0o660)
                self._others[model].listen(BACKLOG)
            return [("unix", self._others[model].fileno())]
        sockets = [("unix", self._unix)] + ([("tcp", self._tcp)] if self._tcp is not None else [])
        if not self._listening:
            for _, sock in sockets:
                sock.listen(BACKLOG)
            self._listening = True
        return [(kind, sock.fileno()) for kind, sock in sockets]

    def refuse(self, model: str, front: bool) -> None:
        """No model answers any more: new connections are refused instead of waiting for ever.

        Raises:
            StorageError: the socket's path could not be taken again.
        """
        if not front:
            if (sock := self._others.pop(model, None)) is not None:
                sock.close()
                self.socket_path(model, front).unlink(missing_ok=True)
        elif self._listening:
            self._listening = False
            if self._tcp is not None:
                _stop_listening(self._tcp)
            before, self._unix = self._unix, bind_unix(self._path, 0o660)
            before.close()

    def close(self) -> None:
        """Stop listening and remove the sockets' files."""
        for sock, path in [
            (self._unix, self._path),
            *((sock, self.socket_path(name, front=False)) for name, sock in self._others.items()),
        ]:
            sock.close()
            with contextlib.suppress(OSError):
                path.unlink()
        if self._tcp is not None:
            self._tcp.close()


def bind_unix(path: Path, mode: int) -> socket.socket:
    """A Unix socket with exactly this mode; a socket that a killed daemon left is replaced.

    Raises:
        StorageError: the folder is missing or not writable, or the path is no socket.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise StorageError(f"{path} is not a socket", hint="Move that file away, or set serve.socket.")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # By the umask and not by chmod afterwards: there is no moment in which others may connect.
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
    except OSError as error:
        sock.close()
        raise StorageError(
            f"the socket {path} cannot be created: {error.strerror or error}",
            hint="Check that its folder exists and belongs to the user of the daemon.",
        ) from error
    except StorageError:
        sock.close()
        raise
    return sock


def _wait_until_free(path: Path) -> None:
    """Raises `UnavailableError`: another process answers there, and goes on doing so."""
    end = time.monotonic() + BUSY_SECONDS
    while _somebody_answers(path):
        if time.monotonic() > end:
            raise UnavailableError(
                f"another process serves at {path}",
                hint="Stop it, or give this daemon another serve.socket.",
            )
        time.sleep(0.1)


def _somebody_answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except BlockingIOError:
            return True  # it listens, and its queue is full
        except OSError:
            return False
    return True


def _stop_listening(sock: socket.socket) -> None:
    """Of a TCP socket, also where workers hold duplicates of it; the port that was bound stays taken."""
    sock.shutdown(socket.SHUT_RDWR)


def _bind_tcp(address: tuple[str, int]) -> socket.socket:
    host, port = address
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UnavailableError(f"serve.http: {host!r} is no address of this machine: {error}") from error
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(where)
            if port:
                return sock
            # A port that the kernel chose is lost when listening ends; one that was asked for is not.
            with sock:
                return _bind_tcp((host, sock.getsockname()[1]))
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() > give_up:
                raise UnavailableError(
                    f"{host}:{port} cannot be used: {error.strerror}",
                    hint="Another program uses it: stop that one, or choose another port in serve.http.",
                ) from error
        time.sleep(0.1)
