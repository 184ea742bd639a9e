"""When devices were last heard of by their telemetry.

Noting a device costs a dictionary entry; all that were noted are written together, at an interval, so that a
fleet that sends a lot costs one small transaction now and then. What was noted and not yet written is lost
with the process, and comes again with the next message.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from ..clock import Clock
from ..db import Database
from . import repository

INTERVAL_S: Final = 10.0


class Sightings:
    """`note` may be called from any thread."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._lock = threading.Lock()
        self._noted: dict[str, int] = {}

    def note(self, device_ids: Iterable[str]) -> None:
        """These devices were heard of just now."""
        now = self._clock.now_ms()
        with self._lock:
            self._noted.update(dict.fromkeys(device_ids, now))

    def write(self) -> None:
        """One transaction, none if nothing was noted. Raises `StorageError`."""
        with self._lock:
            noted, self._noted = self._noted, {}
        if noted:
            with self._db.write() as db:
                repository.note_seen(db, noted)
