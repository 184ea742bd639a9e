"""What endpoints ask for: the services of the application, and who is asking."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from .auth import ADMIN
from .cursors import MAX_PAGE
from .wiring import Services


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


def _actor(_request: Request) -> str:
    # One token, one role: `RequireToken` let nobody else come this far.
    return ADMIN


ServicesDep = Annotated[Services, Depends(_services)]
Actor = Annotated[str, Depends(_actor)]
Cursor = Annotated[str | None, Query(max_length=1024)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
