"""What a worker's past says about it: totals, recent latencies. Pure; not thread-safe."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

RECENT_S: Final = 10.0
"""How far back "recent" latencies go."""
_RECENT_MOST: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Since the worker began."""

    requests: int = 0
    failures: int = 0
    """Requests that failed by the model's fault."""
    nonfinite_inputs: int = 0
    """Requests whose inputs held NaN or infinity."""


class Monitor:
    """Remembers; every call that needs the time is given it, in seconds."""

    def __init__(self) -> None:
        self._recent: deque[tuple[float, float]] = deque(maxlen=_RECENT_MOST)
        self._requests = self._failures = self._nonfinite = 0

    def answered(self, now: float, microseconds: float) -> None:
        """One inference, without queueing."""
        self._requests += 1
        self._recent.append((now, microseconds))

    def failed(self, *, fault_of_model: bool) -> None:
        """One inference without an answer."""
        self._requests += 1
        self._failures += fault_of_model

    def nonfinite_input(self) -> None:
        """One request whose inputs held NaN or infinity."""
        self._nonfinite += 1

    def totals(self) -> Totals:
        return Totals(requests=self._requests, failures=self._failures, nonfinite_inputs=self._nonfinite)

    def latency_p95_us(self, now: float) -> float:
        """Of the last `RECENT_S` seconds' inferences; 0 if there were none."""
        recent = sorted(microseconds for at, microseconds in self._recent if at >= now - RECENT_S)
        if not recent:
            return 0.0
        # By hand: numpy's quantile imports numpy.ma when it is first called.
        place = 0.95 * (len(recent) - 1)
        below, above = recent[math.floor(place)], recent[math.ceil(place)]
        return below + (above - below) * (place - math.floor(place))
