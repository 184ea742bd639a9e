"""The fleet server's HTTP API, from the engineer's side.

Guarantee: whatever the server answers, the caller gets checked JSON or a `SkerryError`; the server's own
errors (RFC 9457 problem documents) come back as the class of their code. The token goes to the configured
server only: redirects are refused, and so is plain HTTP to another machine, unless that is asked for.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import quote, urlencode, urlsplit

from skerry_contract.errors import (
    AccessError,
    ConflictError,
    InputError,
    NotFoundError,
    OverloadedError,
    SkerryError,
    TransferError,
    UnavailableError,
    from_code,
)
from skerry_contract.limits import MIB

DEFAULT_SERVER: Final = "http://127.0.0.1:8420"

_ELSEWHERE: Final = "Is this the address of a fleet server?"
_EXAMPLE: Final = f"Write it as {DEFAULT_SERVER} or https://fleet.example.org."

_MAX_ANSWER: Final = 16 * MIB
_MAX_PAGES: Final = 10_000
_PIECE: Final = 256 * 1024
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")
_BY_STATUS: Final[Mapping[int, type[SkerryError]]] = {
    400: InputError, 401: AccessError, 403: AccessError, 404: NotFoundError, 409: ConflictError,
    413: InputError, 422: InputError, 429: OverloadedError, 503: UnavailableError,
}  # fmt: skip
"""For answers that are no problem document, such as a proxy's."""

Sent = Callable[[int, int], None]
"""Called as ``sent(bytes so far, bytes in all)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the server is; made by `parse_address`."""

    secure: bool
    host: str
    port: int
    prefix: str
    """Path before ``/v1``, without a slash at its end."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.secure else 'http'}://{host}:{self.port}{self.prefix}"

    @property
    def is_loopback(self) -> bool:
        """Whether it can only be this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(url: str) -> Address:
    """Read ``http://HOST[:PORT]`` or ``https://…``.

    Raises:
        InputError: it is no such address.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{url[:200]!r} is not an address: {error}", hint=_EXAMPLE) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"{url[:200]!r} is not the address of a fleet server", hint=_EXAMPLE)
    if parts.username or parts.password:
        raise InputError("the address of the server holds a password", hint="Give the token by --token-file.")
    secure = parts.scheme == "https"
    return Address(
        secure=secure,
        host=parts.hostname,
        port=port or (443 if secure else 80),
        prefix=parts.path.rstrip("/"),
    )


class FleetClient:
    """One server and one token; every method is one request, or one for each page.

    Args:
        server: address, see `parse_address`.
        token: bearer token; empty for what is open to everybody.
        timeout_s: of every single wait on the network.
        insecure: allow plain HTTP to another machine.

    Raises:
        InputError: the address, or the token, cannot be one.
        AccessError: a token would go over plain HTTP to another machine.
        UnavailableError: (all methods) no connection, or not a fleet server at the other end.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        token: str = "",
        *,
        timeout_s: float = 30.0,
        insecure: bool = False,
    ) -> None:
        self.address = parse_address(server)
        if token and not _TOKEN.fullmatch(token):
            raise InputError("the token contains spaces or other characters that no token has")
        if token and not self.address.secure and not self.address.is_loopback and not insecure:
            raise AccessError(
                f"the token would cross the network unencrypted to {self.address.host}",
                hint="Use https, or an SSH tunnel to the server's loopback; --insecure allows it.",
            )
        self._token = token
        self._timeout_s = timeout_s

    # --- anything

    def get(self, path: str) -> Mapping[str, Any]:
        """One object of the API, by its path and query, such as ``/v1/drift?device=pi-7``."""
        return self._object("GET", path)

    def healthy(self) -> bool:
        """Whether a fleet server answers there."""
        try:
            return self.get("/healthz").get("status") == "ok"
        except (TransferError, UnavailableError):
            return False

    # --- bundles

    def publish(self, path: Path, sent: Sent | None = None) -> tuple[bool, Mapping[str, Any]]:
        """Upload a bundle, streamed from its file.

        Returns:
            Whether it is new there, and what the server says of it.

        Raises:
            ConflictError: that version, or release, exists there with other bytes.
            SignatureError: the server does not trust its signer.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
                status, answer = self._request("POST", "/v1/bundles", _pieces(file, size, sent), headers)
        except OSError as error:
            raise InputError(
                f"{path}: {error.strerror or error}", hint="Give the path of a .skerry file."
            ) from error
        return status == 201, _as_object(answer)

    def models(self) -> list[Mapping[str, Any]]:
        """Every model that was published, with its newest release."""
        return self._pages("/v1/models")

    def versions(self, model: str) -> list[Mapping[str, Any]]:
        """Every version of a model, newest release first."""
        return self._pages(f"/v1/models/{_segment(model)}/versions")

    # --- devices

    def add_device(
        self,
        device: str,
        labels: Mapping[str, str] | None = None,
        device_class: str = "",
        data_dir: str = "",
    ) -> Mapping[str, Any]:
        """Enrol a device; the answer holds its configuration file, once, under ``config_toml``.

        Args:
            device: its id.
            labels: what rollouts select it by.
            device_class: name of a device profile.
            data_dir: folder on the device; empty takes the server's own default.
        """
        body = {"id": device, "labels": dict(labels or {}), "device_class": device_class}
        return self._object("POST", "/v1/devices", body | ({"data_dir": data_dir} if data_dir else {}))

    def remove_device(self, device: str) -> None:
        """Its credential is void at once."""
        self._json("DELETE", f"/v1/devices/{_segment(device)}")

    def devices(self) -> list[Mapping[str, Any]]:
        return self._pages("/v1/devices")

    def device(self, device: str) -> Mapping[str, Any]:
        return self.get(f"/v1/devices/{_segment(device)}")

    def windows(self, device: str) -> list[Mapping[str, Any]]:
        """Window summaries that the fleet holds of a device, newest first, without their counts."""
        return self._pages(f"/v1/devices/{_segment(device)}/windows?limit=500")

    def placements(self, model: str, version: str) -> list[Mapping[str, Any]]:
        """Which devices ran a version, from when to when."""
        return self._pages("/v1/placements?" + urlencode({"model": model, "version": version, "limit": 500}))

    # --- rollouts

    def start_rollout(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        return self._object("POST", "/v1/rollouts", request)

    def rollouts(self) -> list[Mapping[str, Any]]:
        return self._pages("/v1/rollouts")

    def rollout(self, rollout: str) -> Mapping[str, Any]:
        return self.get(f"/v1/rollouts/{_segment(rollout)}")

    def steer_rollout(self, rollout: str, verb: str) -> Mapping[str, Any]:
        """``pause``, ``resume``, ``abort`` or ``revert``."""
        return self._object("POST", f"/v1/rollouts/{_segment(rollout)}/{_segment(verb)}", {})

    # --- alerts

    def alerts(self) -> list[Mapping[str, Any]]:
        return self._pages("/v1/alerts")

    def acknowledge(self, alert: str) -> Mapping[str, Any]:
        return self._object("POST", f"/v1/alerts/{_segment(alert)}/acknowledge", {})

    # --- the wire

    def _object(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        return _as_object(self._json(method, path, body))

    def _pages(self, path: str) -> list[Mapping[str, Any]]:
        """All items of a list, following its opaque cursors."""
        items: list[Mapping[str, Any]] = []
        cursor = ""
        for _ in range(_MAX_PAGES):
            joint = "&" if "?" in path else "?"
            page = self._json("GET", path + (joint + urlencode({"cursor": cursor}) if cursor else ""))
            found, following = _page(page, path)
            items += found
            if not following:
                return items
            cursor = following
        raise UnavailableError(f"the server's list {path} does not end", hint="Update Skerry on both sides.")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = (
            {} if data is None else {"Content-Type": "application/json", "Content-Length": str(len(data))}
        )
        return self._request(method, path, data, headers)[1]

    def _request(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None, headers: Mapping[str, str]
    ) -> tuple[int, Any]:
        authorization = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        sent_headers = {"Accept": "application/json", "User-Agent": "skerry", **headers, **authorization}
        with self._connection() as connection:
            try:
                connection.request(method, self.address.prefix + path, body=body, headers=sent_headers)
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                # The server may have answered (too large, not trusted) before it read everything.
                if connection.sock is None:
                    raise
            response = connection.getresponse()
            data = response.read(_MAX_ANSWER + 1)
        if response.status == 204:
            return response.status, None
        if len(data) > _MAX_ANSWER:
            raise UnavailableError(f"{self.address} sent an answer of more than {_MAX_ANSWER // MIB} MiB")
        kind = response.headers.get_content_type()
        if 200 <= response.status < 300:
            return response.status, self._decoded(data, kind)
        raise self._refusal(response.status, response.getheader("Location", ""), data, kind)

    @contextmanager
    def _connection(self) -> Iterator[http.client.HTTPConnection]:
        """A connection, whatever fails on it turned into an error of ours."""
        host, port = self.address.host, self.address.port
        connection: http.client.HTTPConnection
        if self.address.secure:
            connection = http.client.HTTPSConnection(
                host, port, timeout=self._timeout_s, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        try:
            yield connection
        except ConnectionRefusedError as error:
            raise UnavailableError(
                f"no fleet server answers at {self.address}",
                hint="Start it by 'skerry fleet serve', or name another by --server or SKERRY_SERVER.",
            ) from error
        except ssl.SSLError as error:
            raise UnavailableError(
                f"{self.address} cannot be trusted: {error}",
                hint="Is it https there? Is the certificate valid, and its authority known to this machine?",
            ) from error
        except TimeoutError as error:
            raise TransferError(
                f"{self.address} did not answer within {self._timeout_s:g} s",
                hint="Try again; is the server busy?",
            ) from error
        except http.client.HTTPException as error:
            raise UnavailableError(
                f"{self.address} does not speak HTTP as it should: {type(error).__name__} {str(error)[:200]}",
                hint="Is another program listening at this port?",
            ) from error
        except OSError as error:
            raise UnavailableError(
                f"the connection to {self.address} failed: {error.strerror or error}",
                hint="Check the address (--server) and the network.",
            ) from error
        finally:
            connection.close()

    def _decoded(self, data: bytes, kind: str) -> Any:
        try:
            if kind != "application/json":
                raise ValueError(f"it is {kind}")
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UnavailableError(
                f"{self.address} did not answer with JSON ({str(error)[:200]})",
                hint=_ELSEWHERE,
            ) from error

    def _refusal(self, status: int, location: str, data: bytes, kind: str) -> SkerryError:
        """The error that a status other than 2xx stands for."""
        if 300 <= status < 400:
            return UnavailableError(
                f"{self.address} redirects to {location[:200] or 'nowhere'}",
                hint="Redirects could leak the token, so none is followed: give the final --server.",
            )
        if kind == "application/problem+json":
            problem = _problem(data)
            if problem is not None:
                return problem
        if status in (401, 403):
            return AccessError(
                f"{self.address} does not accept the token ({status})",
                hint="Give the one of admin.token in the server's data folder by --token-file.",
            )
        return _BY_STATUS.get(status, UnavailableError)(
            f"{self.address} answers {status} without saying why", hint=_ELSEWHERE
        )


def find_token(server: str, token: str, token_file: Path | None, default_file: Path) -> str:
    """The token to use: the given one, else the file's, else, for a server on this machine, the one that
    ``skerry fleet serve`` left in `default_file`. Empty if there is none.

    Raises:
        InputError: the named file cannot be read.
    """
    if token:
        return token
    if token_file is None:
        if not parse_address(server).is_loopback or not default_file.is_file():
            return ""
        token_file = default_file
    try:
        with token_file.open(encoding="ascii") as file:
            return file.read(8192).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the token in {token_file}: {error}",
            hint="It is admin.token in the server's data folder.",
        ) from error


def _pieces(file: BinaryIO, size: int, sent: Sent | None) -> Iterator[bytes]:
    done = 0
    while piece := file.read(min(_PIECE, size - done)):
        yield piece
        done += len(piece)
        if sent is not None:
            sent(done, size)


def _as_object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UnavailableError("the server's answer is not an object", hint=_ELSEWHERE)
    return value


def _page(page: Any, path: str) -> tuple[Sequence[Mapping[str, Any]], str]:
    """Items and the next cursor of one page: ``{"items": […], "next": "…" or null}``."""
    items, following = (page.get("items"), page.get("next")) if isinstance(page, dict) else (None, None)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnavailableError(f"the server's answer to {path} is not a list", hint=_ELSEWHERE)
    return items, following if isinstance(following, str) else ""


def _problem(data: bytes) -> SkerryError | None:
    """The error in a problem document (RFC 9457); None if it is not one."""
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(raw, dict):
        return None
    code, message, hint = (raw.get(name) for name in ("code", "detail", "hint"))
    if not isinstance(code, str) or not isinstance(message, str):
        return None
    return from_code(code[:100], message[:4000], hint[:2000] if isinstance(hint, str) else "")


def _segment(text: str) -> str:
    """One segment of a path, so that no name climbs out of it."""
    if text in ("", ".", ".."):
        raise InputError(f"{text!r} is not a name")
    return quote(text, safe="")
