"""``/v1/events`` and ``/v1/audit``."""

from __future__ import annotations

from fastapi import APIRouter

from ..cursors import Page
from ..dependencies import Cursor, Limit, ServicesDep
from .service import AuditCheck
from .views import AuditRow, EventRow

router = APIRouter(prefix="/v1", tags=["governance"])


@router.get("/events")
def list_events(
    services: ServicesDep, device: str | None = None, cursor: Cursor = None, limit: Limit = 100
) -> Page[EventRow]:
    """What happened, newest first."""
    return services.journal.events(device=device, cursor=cursor, limit=limit)


@router.get("/audit")
def list_audit(services: ServicesDep, cursor: Cursor = None, limit: Limit = 100) -> Page[AuditRow]:
    """Who did what, newest first."""
    return services.journal.audit_log(cursor=cursor, limit=limit)


@router.get("/audit/check")
def check_audit(services: ServicesDep) -> AuditCheck:
    """Whether no row of the audit log was changed, added in between or removed in between."""
    return services.journal.check()
