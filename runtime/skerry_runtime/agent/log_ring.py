"""The last log lines, in RAM: ``skerry-runtime logs`` reads them over the control socket.

Nothing is written to flash for it. The ring is bounded in lines and bytes and begins anew with the daemon;
what shall outlive it is journald's to keep.
"""

from __future__ import annotations

import collections
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from skerry_contract.limits import KIB

LINES: Final = 2000
BYTES: Final = 512 * KIB
_LONGEST: Final = 8 * KIB
"""Of one line as JSON; of a longer one the message is cut."""

Line = Mapping[str, Any]


class Ring(logging.Handler):
    """Keeps the newest lines; readers may wait for more."""

    def __init__(self, line_of: Callable[[logging.LogRecord], dict[str, Any]]) -> None:
        """``line_of`` gives a record's fields."""
        super().__init__()
        self._line_of = line_of
        self._lines: collections.deque[tuple[int, int, Line]] = collections.deque(maxlen=LINES)
        self._bytes = 0
        self._count = 0
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        line = self._line_of(record)
        size = len(json.dumps(line, default=str))
        if size > _LONGEST:
            line = {key: line[key] for key in ("time", "level", "part")}
            line["message"] = record.getMessage()[: _LONGEST // 4] + " …"
            size = _LONGEST // 4
        with self._more:
            while self._lines and (len(self._lines) == LINES or self._bytes + size > BYTES):
                self._bytes -= self._lines.popleft()[1]
            self._count += 1
            self._lines.append((self._count, size, line))
            self._bytes += size
            self._more.notify_all()

    def after(self, number: int, wait_s: float = 0.0) -> Sequence[tuple[int, Line]]:
        """Numbers and lines above ``number``; waits up to ``wait_s`` seconds for one if there is none."""
        with self._more:
            if wait_s:
                self._more.wait_for(lambda: self._count > number, wait_s)
            return [(own, line) for own, _, line in self._lines if own > number]


def matches(line: Line, transaction: str) -> bool:
    """Whether a line belongs to an update; an empty transaction asks for all lines."""
    return not transaction or line.get("transaction") == transaction
