"""Waits for a descriptor without going to sleep, for as long as that pays.

Going to sleep and being woken costs from 8 microseconds (both processes on one core) to 40 (a virtual core
that was halted); looking costs less than one. But a core that looks is taken from whoever works on it. So
each time that it was in vain, twice as many waits sleep at once before the next trial: on a busy machine, and
for answers that take long, one wait in 64 looks.
"""

from __future__ import annotations

import select
from typing import Final

_LOOKS: Final = 150
"""Some 100 microseconds."""
_MOST_SKIPPED: Final = 64


class EagerPoll:
    """One waiter on a few descriptors; not thread-safe."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._skip, self._next_skip = 0, 1

    def register(self, descriptor: int, events: int) -> None:
        self._poll.register(descriptor, events)

    def wait(self, timeout_ms: int, *, eager: bool = True) -> list[tuple[int, int]]:
        """Descriptors and what happened on them; empty when the time is over. ``eager``: whether to look."""
        poll = self._poll.poll
        if not eager:
            return poll(timeout_ms)
        if self._skip:
            self._skip -= 1
            return poll(timeout_ms)
        for _ in range(_LOOKS):
            if events := poll(0):
                self._next_skip = 1
                return events
        self._skip = self._next_skip
        self._next_skip = min(_MOST_SKIPPED, self._next_skip * 2)
        return poll(timeout_ms)
