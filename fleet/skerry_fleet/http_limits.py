"""Bounds on every request, and headers on every answer, before a route sees either."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors_http import problem

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]]*)(?::\d{1,5})?", re.IGNORECASE)


class KnownHosts:
    """Middleware: 400 to a ``Host`` that is not this server's, so that no foreign name can be made to point
    here."""

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or self._knows(Headers(scope=scope).get("host", "")):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            hint = "Use its own address, or start it with SKERRY_FLEET_ALLOWED_HOSTS naming this one."
            await problem(400, "input", "this server does not answer to that Host", hint)(
                scope, receive, send
            )
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _knows(self, header: str) -> bool:
        match = _HOST.fullmatch(header)
        return match is not None and match[1].strip("[]").lower() in self._hosts


class LimitBody:
    """Middleware: 413 for a body over the limit of its path, whether it is announced or merely sent."""

    def __init__(self, app: ASGIApp, most: int, most_at: Mapping[str, int]) -> None:
        self._app = app
        self._most = most
        self._most_at = most_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._most_at.get(scope["path"], self._most)
        announced = Headers(scope=scope).get("content-length", "0")
        if not announced.isdecimal():
            await problem(400, "input", "Content-Length is not a number")(scope, receive, send)
            return
        if len(announced) > 18 or int(announced) > most:
            await _too_large(most)(scope, receive, send)
            return
        received = 0
        answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLarge:
            if not answered:
                await _too_large(most)(scope, receive, send)


class _TooLarge(BaseException):
    """Not an `Exception`: no handler of an error in the application may take it for one of its own."""


def _too_large(most: int) -> ASGIApp:
    return problem(413, "input", f"the request body is larger than {most} bytes")


class AddHeaders:
    """Middleware: the same headers on every answer, errors included."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, with_headers)
