"""``/``: the overview, and ``/login``: the way of a browser to it."""

from __future__ import annotations

from urllib.parse import parse_qs

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Receive, Scope, Send

from ..auth import COOKIE, SESSION_S
from ..dependencies import ServicesDep
from . import overview, pages

router = APIRouter(include_in_schema=False)


@router.get("/")
def show_overview(services: ServicesDep) -> HTMLResponse:
    return HTMLResponse(pages.overview_page(overview.gather(services)))


@router.get("/login")
def show_sign_in() -> HTMLResponse:
    return HTMLResponse(pages.sign_in_page(refused=False))


@router.post("/login")
async def sign_in(request: Request, services: ServicesDep) -> Response:
    """Exchange the token for a cookie that allows reading."""
    fields = parse_qs((await request.body()).decode("utf-8", "replace"))
    if not services.tokens.accepts(fields.get("token", [""])[0].strip()):
        return HTMLResponse(pages.sign_in_page(refused=True), 401)
    answer = RedirectResponse("/", 303)
    answer.set_cookie(
        COOKIE,
        services.tokens.new_session(),
        max_age=SESSION_S,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return answer


async def sign_in_instead(scope: Scope, receive: Receive, send: Send) -> None:
    """What a browser without a session gets at any path."""
    await HTMLResponse(pages.sign_in_page(refused=False), 401)(scope, receive, send)
