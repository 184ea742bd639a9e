"""A program that asks its model through shared memory: ``benchmarks.runtime.shared SOCKET ROWS.npz``."""

from __future__ import annotations

import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np

from skerry_runtime import LocalClient

from .children import serve
from .spread import quantile


class Caller:
    """One client and one row; the answer is checked by the controller before anything is timed."""

    def __init__(self, path: str, rows: str) -> None:
        self._client = LocalClient(path)
        with np.load(rows, allow_pickle=False) as stored:
            name = next(key for key in stored.files if key != "labels")
            self._feed = {name: stored[name][:1].copy()}

    def outputs(self) -> dict[str, Any]:
        (found,) = self._client.infer(self._feed).values()
        return {"shape": list(found.shape), "data": b64encode(found.astype("<f4").tobytes()).decode()}

    def latency(self, count: int) -> dict[str, Any]:
        """Microseconds of a call: arrays in, the caller's own arrays out."""
        infer, feed, clock, times = self._client.infer, self._feed, time.perf_counter_ns, []
        for _ in range(count):
            begin = clock()
            infer(feed)
            times.append((clock() - begin) / 1000)
        return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}


def main(arguments: Sequence[str]) -> None:
    path, rows = arguments
    caller = Caller(path, rows)
    serve({"outputs": caller.outputs, "latency": caller.latency})


if __name__ == "__main__":
    main(sys.argv[1:])
