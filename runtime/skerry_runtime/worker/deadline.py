"""When an inference hangs: after a deadline of its own model, made of what the golden samples took here.

A model that answers in milliseconds is not waited for as long as one that takes seconds. The deadline grows
with the request, and time in which this whole process stood still (a machine that stalls) does not count.
Pure; not thread-safe.
"""

from __future__ import annotations

from typing import Final

LEAST_S: Final = 2.0
"""The shortest deadline: an engine's first inference of a kind, or a slow disk, may take that long."""
TIMES: Final = 50
"""So many times the 95th percentile of the golden samples..."""
TIMES_BUDGET: Final = 10
"""...or so many times the latency that the model is allowed, if that is longer."""


def deadline_s(latency_p95_us: float, budget_us: int, most_s: float) -> float:
    """Of one inference that is as large as the golden samples; ``most_s`` is the longest there is.

    >>> [deadline_s(p95_us, budget_us, 30.0) for p95_us, budget_us in ((900, 0), (80_000, 0), (900, 500_000))]
    [2.0, 4.0, 5.0]
    """
    return min(most_s, max(LEAST_S, TIMES * latency_p95_us / 1e6, TIMES_BUDGET * budget_us / 1e6))


class Deadline:
    """Told regularly how long an inference has run; says when that is too long."""

    def __init__(self, seconds: float, most_s: float, golden_elements: int, tick_s: float) -> None:
        """``golden_elements`` of all inputs of a golden sample; ``tick_s`` between two calls of `passed`."""
        self.seconds = seconds
        self._most_s = most_s
        self._golden_elements = max(1, golden_elements)
        self._late_s = 2 * tick_s
        self._last: float | None = None
        self._lost_s = 0.0

    def passed(self, now: float, running_s: float, elements: int) -> bool:
        """Whether the inference that began ``running_s`` ago will not return.

        Args:
            now: monotonic, in seconds.
            running_s: 0 if none runs.
            elements: of all its inputs.
        """
        since_last = 0.0 if self._last is None else now - self._last
        self._last = now
        if running_s < since_last:
            self._lost_s = 0.0  # it began after the last call
        elif since_last > self._late_s:
            self._lost_s += since_last - self._late_s
        return running_s - self._lost_s > self.allowed_s(elements)

    def allowed_s(self, elements: int) -> float:
        """For an inference on so many input elements."""
        return min(self._most_s, self.seconds * max(1.0, elements / self._golden_elements))
