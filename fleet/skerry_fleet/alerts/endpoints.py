"""``/v1/alerts``."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ..cursors import Page
from ..dependencies import Actor, Cursor, Limit, ServicesDep
from .views import AlertView

router = APIRouter(prefix="/v1", tags=["alerts"])


@router.get("/alerts")
def list_alerts(
    services: ServicesDep,
    device: str | None = None,
    only_open: Annotated[bool, Query(alias="open")] = False,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[AlertView]:
    """What a person should look at, newest first; ``open=true`` leaves out what is over."""
    return services.alerts.alerts(device=device, only_open=only_open, cursor=cursor, limit=limit)


@router.post("/alerts/{alert_id}/acknowledge")
def acknowledge_alert(alert_id: int, services: ServicesDep, actor: Actor) -> AlertView:
    """Say that you look after it."""
    return services.alerts.acknowledge(alert_id, actor)
