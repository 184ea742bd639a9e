"""``/v1/drift``."""

from __future__ import annotations

from fastapi import APIRouter

from ..cursors import Page
from ..dependencies import Cursor, Limit, ServicesDep
from ..telemetry.views import WindowView

router = APIRouter(prefix="/v1", tags=["drift"])


@router.get("/drift")
def list_scores(
    services: ServicesDep,
    device: str | None = None,
    model: str | None = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[WindowView]:
    """Judged windows with their scores by feature, newest first. ``severity`` is empty without evidence."""
    return services.telemetry.windows(device=device, model=model, scored=True, cursor=cursor, limit=limit)
