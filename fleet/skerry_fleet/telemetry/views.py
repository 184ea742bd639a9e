"""Telemetry as it leaves the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowView:
    """A window as it leaves the server. ``day`` (of receipt) and ``id`` together are its name."""

    day: str
    id: int
    device: str
    first: int
    last: int
    boot: str
    """The boot of the device, 32 hexadecimal digits; `seq` counts its windows within it."""
    seq: int
    model: str
    version: str
    digest: str
    at_ms: int
    clock_ok: bool
    duration_ms: int
    flags: int
    rows: int
    errors: int
    received_ms: int
    severity: str | None
    scores: Mapping[str, Any] | None
