"""Who may ask over TCP. A Unix socket is guarded by its file's permissions instead."""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket

from .wire import Head, HttpError

_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]]+))(?::\d{1,5})?")


def check_tcp(head: Head, token: str) -> None:
    """Let a request pass.

    With a token: the bearer must have it. Without one: no web page of another origin may use a visitor's
    browser to get here, neither directly (Origin) nor by DNS rebinding (a foreign name in Host).

    Raises:
        HttpError: 401 or 403.
    """
    if token:
        scheme, _, given = head.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not right:
            challenge = ("WWW-Authenticate", "Bearer")
            raise HttpError(401, "the bearer token is missing or wrong", headers=[challenge])
        return
    if "origin" in head.headers:
        raise HttpError(403, "requests of web pages need a token")
    host = head.headers.get("host", "")
    if host and not _is_local_name(host):
        raise HttpError(403, f"this server is not known as {host[:100]!r}")


def _is_local_name(host: str) -> bool:
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = (match[1] or match[2]).lower().rstrip(".")
    own = socket.gethostname().lower()
    if name in ("localhost", own, f"{own}.local"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
