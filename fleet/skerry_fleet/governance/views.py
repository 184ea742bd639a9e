"""Audit rows and events, as they leave the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One act. ``hash`` covers every other field, and by ``previous`` all rows before it."""

    seq: int
    at_ms: int
    actor: str
    action: str
    subject: str
    data: Mapping[str, Any]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """Something that happened to a device, told by the device or by the fleet."""

    id: int
    device: str
    kind: str
    source: str
    received_ms: int
    wall_ms: int
    """As the clock of who reports it said."""
    at_ms: int
    """When it happened, as far as is known: repaired if that clock was set later."""
    clock_ok: bool
    """False: all that is known is when it arrived."""
    model: str
    digest: str
    data: Mapping[str, Any]
    error_code: str
    error_message: str
