"""HTTP/1.1 as bytes: one request's head parsed strictly, one answer written. Pure.

What two readers could understand differently is refused (RFC 9112, sections 2.2, 5, 6.3): bare line feeds,
folded headers, a space before a colon, two lengths, a length beside a transfer coding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Final

import msgspec

from skerry_contract.errors import SkerryError

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_REMEMBERED: Final = 64
_REMEMBERED_BYTES: Final = 512
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_SINGLE: Final = (
    "content-length",
    "host",
    "authorization",
    "inference-header-content-length",
    "transfer-encoding",
)


class HttpError(Exception):
    """A request that HTTP itself forbids, answered with this status."""

    def __init__(self, status: int, message: str, *, headers: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, tuple(headers)


@dataclass(frozen=True, slots=True)
class Head:
    """Request line and headers."""

    method: str
    path: str
    """Without the query."""
    headers: Mapping[str, str]
    """By lower-case name."""
    keep_alive: bool
    length: int
    """Of the body, in bytes."""


class Response(msgspec.Struct, frozen=True):
    """One answer."""

    status: int
    body: Sequence[bytes] = ()
    content_type: str = JSON
    headers: Sequence[tuple[str, str]] = ()


def parse_head(data: bytes) -> Head:
    """Parse what comes before the empty line.

    A client's next head is most often its last one again, so small ones are remembered.

    Raises:
        HttpError: not HTTP/1.x as this server understands it.
    """
    return _parse_remembered(data) if len(data) <= _REMEMBERED_BYTES else _parse(data)


@lru_cache(maxsize=_REMEMBERED)
def _parse_remembered(data: bytes) -> Head:
    return _parse(data)


def _parse(data: bytes) -> Head:
    lines = data.split(b"\r\n")
    parts = lines[0].split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]) or not _TARGET.fullmatch(parts[1]):
        raise HttpError(400, "the request line is not 'METHOD /path HTTP/1.1'")
    if parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise HttpError(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or b"\n" in value or b"\r" in value or b"\0" in value:
            raise HttpError(400, "a header line is malformed")
        key = name.decode("ascii").lower()
        if key in headers and key in _SINGLE:
            raise HttpError(400, f"the header {key} is there twice")
        headers[key] = value.strip(b" \t").decode("latin-1")
    if "transfer-encoding" in headers:
        status = 400 if "content-length" in headers else 411
        raise HttpError(status, "send the body with a Content-Length, without a transfer coding")
    if parts[2] == b"HTTP/1.1" and "host" not in headers:
        raise HttpError(400, "HTTP/1.1 needs a Host header")
    connection = headers.get("connection", "").lower()
    keep_alive = "close" not in connection if parts[2] == b"HTTP/1.1" else "keep-alive" in connection
    return Head(
        method=parts[0].decode("ascii"),
        path=parts[1].decode("ascii").partition("?")[0],
        headers=headers,
        keep_alive=keep_alive,
        length=parse_length(headers.get("content-length", "0"), "Content-Length"),
    )


def parse_length(text: str, name: str) -> int:
    """Raises `HttpError` unless the text is a plain decimal number."""
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise HttpError(400, f"{name} is not a number of bytes")
    return int(text)


def header_line(name: str, value: str) -> str:
    """One header as it is sent."""
    return f"{name}: {value}\r\n"


def write_head(response: Response, *, close: bool, always: str = "") -> bytes:
    """Status line and headers of an answer; ``always`` are header lines that every answer has."""
    length = sum(map(len, response.body))
    extra = "".join([header_line(*header) for header in response.headers]) if response.headers else ""
    connection = "Connection: close\r\n" if close else ""
    return (
        f"HTTP/1.1 {response.status} {_REASONS[response.status]}\r\nContent-Type: {response.content_type}\r\n"
        f"Content-Length: {length}\r\n{always}{extra}{connection}\r\n"
    ).encode("latin-1")


def error_response(
    status: int, message: str, *, code: str = "", hint: str = "", headers: Sequence[tuple[str, str]] = ()
) -> Response:
    """An error as the protocol has it: a string under ``error``; code and hint beside it."""
    body = {"error": message, **({"code": code} if code else {}), **({"hint": hint} if hint else {})}
    return Response(status, [msgspec.json.encode(body)], headers=headers)


def of_error(status: int, error: SkerryError, headers: Sequence[tuple[str, str]] = ()) -> Response:
    """A `SkerryError` as an answer."""
    return error_response(status, error.message, code=error.code, hint=error.hint, headers=headers)
