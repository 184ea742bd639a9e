"""What a worker's past says about it: totals, recent latencies, whether it hangs. Pure; not thread-safe."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

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

    def __init__(self, inference_s: float) -> None:
        """``inference_s``: an inference that takes longer hangs."""
        self._inference_s = inference_s
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
        recent = [microseconds for at, microseconds in self._recent if at >= now - RECENT_S]
        return float(np.quantile(recent, 0.95)) if recent else 0.0

    def hangs(self, running_s: float) -> bool:
        """Whether the inference that has run for so long will not return."""
        return running_s > self._inference_s
