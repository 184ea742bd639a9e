"""What ``skerry-runtime doctor`` looks at of sockets and the broker; everything with a short timeout.

While the daemon is connected nobody else may use its credentials: the broker would end the daemon's
connection for the newer one. Then its own word is taken.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Iterator
from typing import Final

from ..config import FleetConfig
from .doctor import AS_WHOM, Check, Finding, Patient, fail, ok, said, warn

SECONDS: Final = 5.0
_CREDENTIALS: Final = (
    "Compare fleet.username and fleet.password with what the fleet gave this device, and see whether the"
    " device is still in the fleet."
)
_REFUSALS: Final = {
    1: ("it does not speak MQTT 3.1.1", "Use another broker."),
    2: ("it refuses the device's name", "Compare device with what the fleet gave this device."),
    3: ("it is not available", "See the broker's log."),
    4: ("it refuses the user name or the password", _CREDENTIALS),
    5: ("it refuses the user name or the password", _CREDENTIALS),
}
"""Return codes of CONNACK (MQTT 3.1.1, 3.2.2.3)."""


def broker(patient: Patient) -> Iterator[Finding]:
    fleet, status = patient.config.fleet, patient.status
    if fleet is None:
        yield ok("broker", "no fleet is configured: updates come by skerry-runtime install")
        return
    where = f"{fleet.host}:{fleet.port}"
    if status is not None and status["fleet"]["state"] == "connected":
        yield ok("broker", f"the daemon is connected to {where}")
        return
    try:
        connection = socket.create_connection((fleet.host, fleet.port), SECONDS)
    except OSError as error:
        yield fail(
            "broker",
            f"{where} does not answer: {said(error)}",
            "Check fleet.host and fleet.port, the network, and the firewall.",
        )
        return
    with connection:
        try:
            code = _connect(_secured(connection, fleet), fleet, patient.config.device)
        except ssl.SSLCertVerificationError as error:
            hint = "Compare fleet.tls_ca and fleet.host with its certificate, and check the clock."
            yield fail("broker", f"the certificate of {where} is not trusted: {error.verify_message}", hint)
        except (OSError, ValueError) as error:
            yield fail(
                "broker",
                f"{where} is there, but does not speak MQTT:"
                f" {said(error) if isinstance(error, OSError) else error}",
                "Check fleet.port and fleet.tls_ca.",
            )
        else:
            if code:
                why, hint = _REFUSALS.get(code, (f"it refuses with code {code}", "See the broker's log."))
                yield fail("broker", f"{where}: {why}", hint)
            else:
                yield ok("broker", f"{where} takes this device's credentials")


def sockets(patient: Patient) -> Iterator[Finding]:
    """Running: every model answers on its socket. Not running: the addresses are free."""
    if patient.status is not None:
        for name, model in patient.status["models"].items():
            if model["active"]:
                yield _ready(name, model["socket"])
        return
    path, http = patient.config.serve.socket, patient.config.serve.http
    folder = path.parent
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        yield fail("sockets", f"{path} is no socket", "Move that file away, or set serve.socket.")
    elif folder != patient.config.run_dir and not os.access(folder, os.W_OK | os.X_OK):
        yield fail(
            "sockets", f"the folder {folder} is missing or not writable", "Make it, or set serve.socket."
        )
    else:
        yield ok("sockets", f"{path} can be made")
    if http is not None and http[1]:
        with socket.socket(
            socket.AF_INET6 if ":" in http[0] else socket.AF_INET, socket.SOCK_STREAM
        ) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(http)
            except OSError as error:
                yield fail(
                    "sockets",
                    f"{http[0]}:{http[1]} cannot be used: {error.strerror}",
                    "Choose another serve.http.",
                )
            else:
                yield ok("sockets", f"{http[0]}:{http[1]} is free")


NETWORK_CHECKS: Final[tuple[Check, ...]] = (sockets, broker)


def _ready(name: str, path: str) -> Finding:
    question = b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SECONDS)
            connection.connect(path)
            connection.sendall(question)
            answer = connection.recv(64)
    except PermissionError:
        return warn("sockets", f"you may not use {path}", f"Join the group of the socket. {AS_WHOM}")
    except OSError as error:
        return fail("sockets", f"{name} does not answer at {path}: {said(error)}", "See skerry-runtime logs.")
    if b" 200 " not in answer:
        return fail("sockets", f"{name} is not ready at {path}", "See skerry-runtime logs.")
    return ok("sockets", f"{name} answers at {path}")


def _secured(connection: socket.socket, fleet: FleetConfig) -> socket.socket:
    if not fleet.tls_ca:
        return connection
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=fleet.tls_ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context.wrap_socket(connection, server_hostname=fleet.host)


def _connect(connection: socket.socket, fleet: FleetConfig, device: str) -> int:
    """MQTT 3.1.1 CONNECT as the daemon does it, its session kept, without a will; the return code of CONNACK.

    Raises:
        OSError: the connection ended.
        ValueError: the answer is no CONNACK.
    """
    flags = 0x80 | 0x40  # user name, password; not clean: the daemon's subscriptions stay
    body = _text("MQTT") + bytes([4, flags]) + (30).to_bytes(2, "big")
    body += _text(device) + _text(fleet.username) + _text(fleet.password)
    connection.sendall(b"\x10" + _length(len(body)) + body)
    answer = b""
    while len(answer) < 4:
        piece = connection.recv(4 - len(answer))
        if not piece:
            raise ConnectionResetError("it closed the connection")
        answer += piece
    if answer[:2] != b"\x20\x02":
        raise ValueError("the answer is no CONNACK")
    connection.sendall(b"\xe0\x00")
    return answer[3]


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def _length(value: int) -> bytes:
    """MQTT 3.1.1, 2.2.3."""
    out = b""
    while True:
        value, digit = divmod(value, 128)
        out += bytes([digit | (0x80 if value else 0)])
        if not value:
            return out
