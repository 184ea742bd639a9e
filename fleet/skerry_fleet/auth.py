"""Who may ask: every path needs the administrator's token, except those listed as open. Deny by default.

A program sends ``Authorization: Bearer <token>``. A browser signs in once and gets a cookie that allows
reading only, is never readable by a script and never sent from another site, so that no other site can act
through it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from skerry_contract.errors import ConfigError

from .clock import Clock
from .errors_http import problem
from .files import read_or_create

OPEN_PATHS: Final = frozenset({"/healthz", "/login"})
COOKIE: Final = "skerry_session"
SESSION_S: Final = 12 * 3600
ADMIN: Final = "admin"

_SAFE: Final = frozenset({"GET", "HEAD"})


class Tokens:
    """The administrator's token, as digests: no comparison reveals by its time how much of a guess was
    right."""

    def __init__(self, token: str, clock: Clock) -> None:
        self._digest = hashlib.sha256(token.encode()).digest()
        self._session_key = hashlib.sha256(b"skerry session\0" + token.encode()).digest()
        self._clock = clock

    @classmethod
    def open(cls, path: Path, clock: Clock) -> Tokens:
        """Read the token file (mode 0600), made at the first start.

        Raises:
            StorageError: it cannot be read or made.
            ConfigError: it is empty.
        """
        token = read_or_create(path, lambda: f"{secrets.token_urlsafe(32)}\n".encode()).decode().strip()
        if not token:
            raise ConfigError(f"{path} is empty", hint="Remove it; the next start makes a new token.")
        return cls(token, clock)

    def accepts(self, token: str) -> bool:
        return hmac.compare_digest(hashlib.sha256(token.encode()).digest(), self._digest)

    def new_session(self) -> str:
        """The value of a cookie that is good for `SESSION_S` seconds."""
        expires = str(self._clock.now_ms() // 1000 + SESSION_S)
        return f"{expires}.{self._mac(expires)}"

    def accepts_session(self, value: str) -> bool:
        expires, _, mac = value.partition(".")
        if not hmac.compare_digest(mac.encode(), self._mac(expires).encode()):
            return False
        return int(expires) > self._clock.now_ms() // 1000

    def _mac(self, expires: str) -> str:
        return hmac.new(self._session_key, expires.encode(), hashlib.sha256).hexdigest()


class RequireToken:
    """Middleware: 401 to whoever shows no valid token, before any route is looked up."""

    def __init__(self, app: ASGIApp, tokens: Tokens, sign_in_page: ASGIApp) -> None:
        self._app = app
        self._tokens = tokens
        self._sign_in_page = sign_in_page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._allowed(scope)):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] in _SAFE and "text/html" in Headers(scope=scope).get("accept", ""):
            await self._sign_in_page(scope, receive, send)
        else:
            refusal = problem(
                401,
                "access",
                "the token is missing or wrong",
                "Name admin.token of the server's data folder with --token-file or SKERRY_TOKEN_FILE "
                "(API: send 'Authorization: Bearer TOKEN').",
                {"WWW-Authenticate": "Bearer"},
            )
            await refusal(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS:
            return True
        headers = Headers(scope=scope)
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self._tokens.accepts(token.strip())
        if scope["method"] in _SAFE:
            return self._tokens.accepts_session(_cookie(headers.get("cookie", "")))
        return False


def _cookie(header: str) -> str:
    try:
        jar = SimpleCookie(header)
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""
