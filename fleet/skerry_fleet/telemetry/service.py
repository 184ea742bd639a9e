"""Windows for people: of one device or of all, newest first, over all daily files."""

from __future__ import annotations

import heapq
from itertools import islice
from typing import Final

from skerry_contract.errors import InputError

from .. import cursors
from ..cursors import Page
from . import repository
from .days import DayFiles
from .views import WindowView

_LAST: Final = 1 << 62
"""Behind every time and every id."""


class TelemetryService:
    def __init__(self, days: DayFiles) -> None:
        self._days = days

    def windows(
        self,
        *,
        device: str | None = None,
        model: str | None = None,
        scored: bool = False,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[WindowView]:
        """By their own time, newest first; a late window is where it belongs, not where it arrived."""
        at_ms, last_day, last_id = _position(cursor)
        wanted = cursors.check_limit(limit)
        found: list[list[WindowView]] = []
        for day in self._days.days():
            # Windows of one millisecond are ordered by day of receipt, then by id.
            after_id = last_id if day == last_day else (_LAST if day < last_day else 0)
            with self._days.read(day) as db:
                found.append(
                    repository.windows(
                        db,
                        day,
                        device=device,
                        model=model,
                        scored=scored,
                        before=(at_ms, after_id),
                        limit=wanted + 1,
                    )
                )
        merged = heapq.merge(*found, key=lambda row: (row.at_ms, row.day, row.id), reverse=True)
        return cursors.page(list(islice(merged, wanted + 1)), wanted, lambda r: f"{r.at_ms} {r.day} {r.id}")


def _position(cursor: str | None) -> tuple[int, str, int]:
    """Time, day and id of the last window of the page before. Raises `InputError`: no cursor of this list."""
    if cursor is None:
        return _LAST, "", 0
    at_ms, _, rest = cursors.decode(cursor, str).partition(" ")
    day, _, last_id = rest.partition(" ")
    if not (at_ms.isdecimal() and last_id.isdecimal() and max(len(at_ms), len(last_id)) < 19):
        raise InputError(
            "the cursor is not one of this list", hint="Pass 'next' of the page before unchanged."
        )
    return int(at_ms), day, int(last_id)
