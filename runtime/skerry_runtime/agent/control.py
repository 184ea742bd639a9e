"""The control socket: how ``skerry-runtime`` on this machine asks the daemon, and steers it.

One JSON object a connection, one a line back. A bundle file comes as an open descriptor, so the daemon needs
no right to its path. The socket is 0600: who may stop the daemon may talk to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import InputError, OverloadedError, SkerryError, UnavailableError, from_code

from .daemon import Daemon
from .listeners import bind_unix
from .log import get_logger
from .log_ring import Ring, matches

MAX_REQUEST: Final = 64 * 1024
_MAX_CONNECTIONS: Final = 16
_READ_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1
_FOLLOWERS: Final = 4
"""Clients that may wait for log lines; more would leave no connection for orders."""
_log = get_logger("control")

Send = Callable[[Mapping[str, Any]], None]


class ControlServer:
    """Answers in threads of its own; everything that changes anything runs in the daemon's loop."""

    def __init__(self, daemon: Daemon, path: Path, ring: Ring) -> None:
        """``ring`` holds the newest log lines."""
        self._daemon = daemon
        self._ring = ring
        self._followers = threading.BoundedSemaphore(_FOLLOWERS)
        self._path = path
        self._socket = bind_unix(path, 0o600)
        self._socket.listen(_MAX_CONNECTIONS)
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._closing = False

    def start(self) -> None:
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closing:
            self._slots.acquire()
            try:
                connection, _ = self._socket.accept()
            except OSError:
                self._slots.release()
                if not self._closing:
                    time.sleep(0.1)
                continue
            threading.Thread(
                target=self._serve, args=(connection,), name="control-client", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        descriptors: list[int] = []

        def send(line: Mapping[str, Any]) -> None:
            connection.sendall(json.dumps(line).encode() + b"\n")

        try:
            with connection:
                connection.settimeout(_READ_SECONDS)
                try:
                    request = _read_request(connection, descriptors)
                    if request.get("do") == "logs":
                        result: Any = self._logs(request, connection, send)
                    else:
                        result = self._answer(request, descriptors, send)
                    send({"result": result})
                except SkerryError as error:
                    send({"error": {"code": error.code, "message": error.message, "hint": error.hint}})
        except OSError as error:
            _log.debug("a control client went away", extra={"error": str(error)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            self._slots.release()

    def _answer(self, request: Mapping[str, Any], descriptors: list[int], send: Send) -> Any:
        daemon, loop = self._daemon, self._daemon.loop
        try:
            match request.get("do"):
                case "status":
                    return loop.ask(daemon.status, _ANSWER_SECONDS)
                case "install":
                    return self._install(descriptors, send)
                case "rollback":
                    name = str(request.get("model") or "")
                    return loop.ask(
                        lambda: daemon.roll_back(name, "by a person on the device"), _ANSWER_SECONDS
                    )
                case "close_windows":
                    return loop.ask(lambda: {"windows": daemon.close_windows()}, _ANSWER_SECONDS)
                case "stop":
                    loop.call_soon(daemon.stop)
                    return {"stopping": True}
                case other:
                    raise InputError(f"the daemon does not know the request {str(other)[:40]!r}")
        except TimeoutError as error:
            raise UnavailableError(
                f"the daemon did not answer within {_ANSWER_SECONDS:.0f} s", hint="See its log."
            ) from error

    def _logs(self, request: Mapping[str, Any], connection: socket.socket, send: Send) -> Mapping[str, Any]:
        """The newest lines, or those of one update; with ``follow`` also new ones until the client goes."""
        transaction, most = str(request.get("transaction") or ""), request.get("lines")
        if type(most) is not int or most < 0:
            raise InputError("lines must be a number from 0 on")
        follow = bool(request.get("follow"))
        if follow and not self._followers.acquire(blocking=False):
            raise OverloadedError(f"{_FOLLOWERS} clients follow the log already", hint="End one of them.")
        try:
            lines = self._ring.after(0)
            number = lines[-1][0] if lines else 0
            send({"begin": True})
            wanted = [line for _, line in lines if matches(line, transaction)]
            for line in wanted[max(0, len(wanted) - most) :]:
                send({"line": line})
            while follow and not self._closing and not _is_gone(connection):
                for own, line in self._ring.after(number, _POLL_SECONDS * 5):
                    number = own
                    if matches(line, transaction):
                        send({"line": line})
        finally:
            if follow:
                self._followers.release()
        return {"last": number}

    def _install(self, descriptors: list[int], send: Send) -> Mapping[str, Any]:
        """Import, then tell every state until the new model answers or is refused."""
        if len(descriptors) != 1:
            raise InputError("an install needs exactly one open bundle file")
        descriptor = descriptors.pop()
        begun: dict[str, str] = {}
        refused: list[SkerryError] = []
        known = threading.Event()

        def then(answer: dict[str, str]) -> None:
            begun.update(answer)
            known.set()

        def failed(error: SkerryError) -> None:
            refused.append(error)
            known.set()

        self._daemon.loop.call_soon(lambda: self._daemon.import_bundle(descriptor, then, failed))
        known.wait()
        if refused:
            raise refused[0]
        send({"state": "verified", **begun})
        return {**begun, **self._follow(begun, send)}

    def _follow(self, begun: Mapping[str, str], send: Send) -> Mapping[str, Any]:
        said = ""
        while True:
            status = self._daemon.loop.ask(self._daemon.status, _ANSWER_SECONDS)["models"][begun["name"]]
            if status["transaction"] != begun["transaction"]:
                raise UnavailableError("another update took its place", hint="See 'skerry-runtime status'.")
            state = str(status["state"])
            if state != said:
                said = state
                send({"state": state})
            if state in ("probation", "confirmed"):
                return {"state": state, "active": status["active"]}
            if state in ("rejected", "rolled_back", "idle"):
                error = status["error"] or {
                    "code": "unavailable",
                    "message": f"the update is {state}",
                    "hint": "",
                }
                raise from_code(error["code"], error["message"], error["hint"])
            time.sleep(_POLL_SECONDS)


def request(
    path: Path, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()
) -> Iterator[Mapping[str, Any]]:
    """The client's side: every line of the answer.

    Raises:
        UnavailableError: no daemon runs there, or it went away in the middle.
        SkerryError: what the daemon refused.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except OSError as error:
            hint = "Start it with 'skerry-runtime run --config FILE', as the same user or root."
            if isinstance(error, PermissionError):
                hint = "Only the daemon's own user and root may ask it: try again as one of them."
            raise UnavailableError(
                f"no skerry-runtime answers at {path}: {error.strerror}", hint=hint
            ) from error
        try:
            socket.send_fds(sock, [json.dumps(message).encode() + b"\n"], descriptors)
            with sock.makefile("rb") as lines:
                for line in lines:
                    answer = json.loads(line)
                    if "error" in answer:
                        refusal = answer["error"]
                        raise from_code(refusal["code"], refusal["message"], refusal["hint"])
                    yield answer
                    if "result" in answer:
                        return
        except (OSError, json.JSONDecodeError) as error:
            raise UnavailableError(f"the daemon's answer broke off: {error}", hint="See its log.") from error
    raise UnavailableError("the daemon went away before it answered", hint="See its log.")


def _is_gone(connection: socket.socket) -> bool:
    """The client closed, or the connection broke."""
    # Not by recv alone: on a socket with a time-out that would wait for it.
    readable = select.poll()
    readable.register(connection, select.POLLIN)
    if not readable.poll(0):
        return False
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _read_request(connection: socket.socket, descriptors: list[int]) -> Mapping[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        piece, received, _, _ = socket.recv_fds(connection, 65536, 4)
        descriptors += received
        data += piece
        if not piece or len(data) > MAX_REQUEST:
            raise InputError("not a request")
    try:
        message = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError("not a request") from error
    if not isinstance(message, dict):
        raise InputError("not a request")
    return message
