"""What a model took of the memory, and when it was last asked; kept across restarts, written seldom."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from skerry_contract.errors import StorageError

from ..ipc import Health
from .files import write_durably
from .log import get_logger

_SAVE_SECONDS: Final = 6 * 3600.0
"""Between two writes while nothing but the time of the last request changes."""
_GROWTH: Final = 1.1
_log = get_logger("usage")


class _Kept(msgspec.Struct, kw_only=True):
    peak_bytes: int = 0
    used_ms: int = 0


class Usage:
    """Of one model; used in the loop's thread only."""

    def __init__(self, file: Path, now_ms: Callable[[], int]) -> None:
        """``now_ms``: Unix time in milliseconds."""
        self._file = file
        self._now_ms = now_ms
        try:
            self._kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        except (OSError, msgspec.DecodeError):
            self._kept = _Kept()
        self._requests = 0
        self._dirty = False
        self._saved_at = time.monotonic()

    @property
    def peak_bytes(self) -> int:
        """That its process held at most, as far as is known; 0 if nothing is."""
        return self._kept.peak_bytes

    @property
    def used_ms(self) -> int:
        """When it was last asked, Unix time; 0 if never."""
        return self._kept.used_ms

    def begin(self, peak_bytes: int) -> None:
        """Another worker, or another generation, answers."""
        self._kept.peak_bytes, self._requests, self._dirty = peak_bytes, 0, True

    def saw(self, health: Health) -> None:
        """A report of the worker that answers."""
        if health.requests != self._requests:
            self._requests = health.requests
            self._kept.used_ms = self._now_ms()
            self._dirty = True
        if health.rss_bytes > self._kept.peak_bytes * _GROWTH:
            self._kept.peak_bytes = health.rss_bytes
            self.save()
        elif time.monotonic() - self._saved_at > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what changed; a disk that refuses is no reason for anything."""
        if not self._dirty:
            return
        self._dirty, self._saved_at = False, time.monotonic()
        try:
            write_durably(self._file, msgspec.json.encode(self._kept))
        except StorageError as error:
            _log.debug("the model's use of memory cannot be kept", extra={"error": error})
