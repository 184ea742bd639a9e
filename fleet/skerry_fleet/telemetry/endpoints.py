"""``/v1/devices/{id}/windows``."""

from __future__ import annotations

from fastapi import APIRouter

from ..cursors import Page
from ..dependencies import Cursor, Limit, ServicesDep
from .views import WindowView

router = APIRouter(prefix="/v1", tags=["telemetry"])


@router.get("/devices/{device_id}/windows")
def list_windows(
    device_id: str, services: ServicesDep, model: str | None = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[WindowView]:
    """The windows of a device, by their own time, newest first."""
    services.devices.device(device_id)
    return services.telemetry.windows(device=device_id, model=model, cursor=cursor, limit=limit)
