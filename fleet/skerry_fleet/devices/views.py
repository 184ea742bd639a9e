"""What the fleet knows of a device, as it leaves the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skerry_contract.messages import ErrorReport


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredView:
    """Which version of a model a device shall run."""

    digest: str
    version: str
    release: int
    rollout: str
    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedView:
    """What a device last said about a model."""

    active: str | None
    active_version: str
    active_variant: str
    target: str | None
    target_version: str
    phase: str | None
    error: ErrorReport | None
    bytes_done: int
    bytes_total: int
    received_ms: int


def reported(row: Mapping[Any, Any]) -> ReportedView:
    """From a row of ``reported_model``."""
    error = ErrorReport(code=row["error_code"], message=row["error_message"], hint=row["error_hint"])
    return ReportedView(
        active=row["active"],
        active_version=row["active_version"],
        active_variant=row["active_variant"],
        target=row["target"],
        target_version=row["target_version"],
        phase=row["phase"],
        error=error if error.code else None,
        bytes_done=row["bytes_done"],
        bytes_total=row["bytes_total"],
        received_ms=row["received_ms"],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementView:
    """What ran where, from when to when; ``to_ms`` None: it runs."""

    id: int
    device: str
    model: str
    digest: str
    version: str
    health: str
    rollout: str
    from_ms: int
    to_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """One device of a list. ``presence`` is empty if it was never seen."""

    id: str
    device_class: str
    labels: Mapping[str, str]
    presence: str
    presence_ms: int
    last_seen_ms: int | None
    created_ms: int
    agent_version: str
    desired_revision: int
    reported_revision: int
    desired: Mapping[str, DesiredView]
    reported: Mapping[str, ReportedView]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceDetail:
    """One device with all that is known of it."""

    device: DeviceView
    hardware: Mapping[str, Any] | None
    engines: list[Mapping[str, Any]]
    capabilities: list[str]
    epoch: int
    boot: str
    clock_quality: int
    placements: list[PlacementView]
    """Newest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """A new device; the password inside ``config_toml`` is shown this once."""

    id: str
    device_class: str
    labels: Mapping[str, str]
    config_toml: str
