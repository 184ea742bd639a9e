"""Errors as HTTP: one table from code to status, one body (RFC 9457, ``application/problem+json``)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from skerry_contract.errors import SkerryError

STATUS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "bundle": 422,
        "model": 422,
        "data": 422,
        "input": 422,
        "message": 422,
        "selftest": 422,
        "budget": 422,
        "access": 403,
        "not_found": 404,
        "conflict": 409,
        "engine": 500,
        "slot": 500,
        "config": 500,
        "transfer": 502,
        "overloaded": 503,
        "unavailable": 503,
        "storage": 507,
    }
)
"""By code; a code that is not listed has the status of its parent."""

_CODES: Final[Mapping[int, str]] = MappingProxyType({401: "access", 404: "not_found", 409: "conflict"})

_log = logging.getLogger(__name__)


def status_of(code: str) -> int:
    """
    >>> status_of("bundle.signature")
    422
    """
    while code not in STATUS:
        code, dot, _ = code.rpartition(".")
        if not dot:
            return 500
    return STATUS[code]


def problem(
    status: int, code: str, detail: str, hint: str = "", headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The one error body of this API."""
    body = {
        "type": f"urn:skerry:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        # What was sent may be quoted, and may be no valid Unicode.
        "detail": detail.encode("utf-8", "backslashreplace").decode(),
        "hint": hint,
        "code": code,
    }
    return JSONResponse(
        body, status, headers=dict(headers) if headers else None, media_type="application/problem+json"
    )


def install(app: FastAPI) -> None:
    """Answer every error of this application with a problem."""
    app.add_exception_handler(SkerryError, _skerry)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    for kind in (UnicodeEncodeError, OverflowError):
        app.add_exception_handler(kind, _unstorable)
    app.add_exception_handler(Exception, _unexpected)


def _skerry(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SkerryError)  # noqa: S101 tells the type checker what the registration says
    return problem(status_of(error.code), error.code, error.message, error.hint)


def _validation(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 as above
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, "input", f"{where}: {first['msg']}", "The schema is at /openapi.json.")


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 as above
    code = _CODES.get(error.status_code, "input")
    return problem(error.status_code, code, str(error.detail), headers=error.headers)


def _unstorable(request: Request, error: Exception) -> JSONResponse:
    """Half of a surrogate pair, or an integer beyond 64 bits: JSON has them, no database takes them."""
    _log.warning("%s %s: %s", request.method, request.url.path, error)
    return problem(422, "input", f"a value cannot be stored: {error}")


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "error", "the server failed unexpectedly", "The server's log has the details.")
