"""``/v1/devices`` and ``/v1/placements``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import APIRouter, Query

from skerry_contract.errors import InputError

from ..cursors import Page
from ..dependencies import Actor, Cursor, Limit, ServicesDep
from .config_toml import DATA_DIR
from .views import DeviceDetail, DeviceView, Enrolled, PlacementView

router = APIRouter(prefix="/v1", tags=["devices"])


@dataclass(frozen=True, slots=True, kw_only=True)
class EnrolRequest:
    """A device that is to join the fleet."""

    id: str
    labels: Mapping[str, str] = field(default_factory=dict)
    device_class: str = ""
    """Name of a device profile, optional."""
    data_dir: str = DATA_DIR
    """Where the device will keep its data: an absolute path without control characters."""


@router.post("/devices", status_code=201)
def enrol(body: EnrolRequest, services: ServicesDep, actor: Actor) -> Enrolled:
    """Enrol a device. The answer holds its configuration with its password, which is shown this once."""
    return services.devices.enrol(body.id, body.labels, body.device_class, actor, data_dir=body.data_dir)


@router.get("/devices")
def list_devices(
    services: ServicesDep,
    label: Annotated[list[str] | None, Query(description="name=value; several must all match")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[DeviceView]:
    """Every device, by id."""
    return services.devices.devices(labels=_labels(label or []), cursor=cursor, limit=limit)


@router.get("/devices/{device_id}")
def show_device(device_id: str, services: ServicesDep) -> DeviceDetail:
    """One device: presence, hardware, desired and reported state, what ran on it."""
    return services.devices.device(device_id)


@router.delete("/devices/{device_id}", status_code=204)
def remove_device(device_id: str, services: ServicesDep, actor: Actor) -> None:
    """Remove a device: its credential is void at once."""
    services.devices.remove(device_id, actor)


@router.get("/placements")
def list_placements(
    services: ServicesDep,
    device: str | None = None,
    model: str | None = None,
    version: str | None = None,
    at_ms: Annotated[int | None, Query(ge=0, lt=1 << 53, description="what ran at this time")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[PlacementView]:
    """What ran where, from when to when, newest first."""
    return services.devices.placements(
        device=device, model=model, version=version, at_ms=at_ms, cursor=cursor, limit=limit
    )


def _labels(pairs: list[str]) -> dict[str, str]:
    wanted = {}
    for pair in pairs:
        label, equals, value = pair.partition("=")
        if not equals:
            raise InputError(
                f"{pair[:80]!r} is no label", hint="Write 'label=site=s12' as a query parameter."
            )
        wanted[label] = value
    return wanted
