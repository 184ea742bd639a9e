"""The HTTP application: every route, behind every guard.

Outermost first: only known ``Host`` names, the same protective headers on every answer, the token, a bound on
the body. Endpoints run in threads; there is no page that loads anything from elsewhere, so FastAPI's own
documentation pages are off and the schema is at ``/openapi.json``, behind the token.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, FastAPI

from . import errors_http
from .alerts import endpoints as alerts
from .auth import RequireToken
from .dependencies import ServicesDep
from .devices import endpoints as devices
from .drift import endpoints as drift
from .governance import endpoints as governance
from .http_limits import AddHeaders, KnownHosts, LimitBody
from .models import endpoints as models
from .rollouts import endpoints as rollouts
from .telemetry import endpoints as telemetry
from .web import endpoints as web
from .web.pages import content_security_policy
from .wiring import Services

_HEADERS = {
    "Content-Security-Policy": content_security_policy(),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

router = APIRouter(tags=["server"])


def create_app(services: Services, *, broker_state: Callable[[], str]) -> FastAPI:
    """The application around services that are built; while it runs, so does the rollout engine.

    Args:
        services: see `wiring.build_services`; the caller closes them after the application has ended.
        broker_state: a word for ``/healthz``.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        services.engine_ticker.start()
        yield
        services.engine_ticker.stop()

    app = FastAPI(
        title="Skerry fleet",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.services = services
    app.state.broker_state = broker_state
    errors_http.install(app)
    for part in (models, devices, rollouts, telemetry, drift, alerts, governance, web):
        app.include_router(part.router)

    @app.get("/healthz", tags=["server"])
    def health() -> dict[str, Any]:
        """Open to everybody: that it lives, and how the broker is."""
        return {"status": "ok", "version": _version(), "broker": {"state": broker_state()}}

    app.include_router(router)
    app.add_middleware(
        LimitBody,
        most=services.settings.max_body_bytes,
        most_at={models.UPLOAD_PATH: services.settings.max_bundle_bytes},
    )
    app.add_middleware(RequireToken, tokens=services.tokens, sign_in_page=web.sign_in_instead)
    app.add_middleware(AddHeaders, headers=_HEADERS)
    app.add_middleware(KnownHosts, hosts=services.settings.hosts)
    return app


@router.get("/v1/trust")
def trust(services: ServicesDep) -> dict[str, Any]:
    """The public keys that a device of this fleet trusts."""
    return {
        "org": services.site.org,
        "director_key": services.site.director,
        "engineer_keys": list(services.site.engineers),
    }


def _version() -> str:
    try:
        return version("skerry")
    except PackageNotFoundError:
        return "0"
