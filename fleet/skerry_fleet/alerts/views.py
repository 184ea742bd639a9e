"""Alerts as they leave the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertView:
    """Something that a person should look at. Open until ``resolved_ms`` is set."""

    id: int
    kind: str
    severity: str
    device: str
    model: str
    cause: str
    title: str
    detail: str
    data: Mapping[str, Any]
    times: int
    raised_ms: int
    updated_ms: int
    acknowledged_ms: int | None
    acknowledged_by: str
    resolved_ms: int | None
