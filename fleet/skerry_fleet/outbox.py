"""From the outbox table to the broker: what was committed is published, retained, at least once.

A row goes when the broker has confirmed it. A device needs only its newest revision, so publishing one twice
does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from skerry_contract.topics import Down

from .devices.service import DeviceService

_BATCH: Final = 200

Retain = Callable[[list[tuple[str, Down, bytes]]], bool]


def drain(devices: DeviceService, retain: Retain) -> int:
    """Publish all that waits; stops early while the broker does not answer. Returns how many rows went.

    ``retain`` is `skerry_fleet.mqtt.Link.retain`.

    Raises:
        StorageError: the database could not be written; what was published is published again.
    """
    done = 0
    while rows := devices.outbox(_BATCH):
        if not retain([(row.device, Down.DESIRED, row.payload) for row in rows]):
            break
        devices.outbox_done([row.seq for row in rows])
        done += len(rows)
    return done
