"""Tells the agent once a second how the worker does, and ends the worker when an inference hangs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import Final

from skerry_contract.errors import EngineError, UnavailableError
from skerry_contract.messages import ErrorReport
from skerry_contract.summary import encode

from ..ipc import Channel, Failed, Health, Window
from .deadline import Deadline
from .engines import Array
from .inference import Inference
from .limits import ServeLimits
from .process import PeakMemory, give_back_memory
from .serve.http import HttpServer

HUNG: Final = 75
"""Exit status of a worker whose inference did not return."""
_TICK_S: Final = 0.2
_HEALTH_S: Final = 1.0


class Heartbeat:
    """Two threads: one that must never block, and one for the canary, which may hang with the model.

    The second also returns what requests left behind to the kernel, when there are none.
    """

    def __init__(
        self,
        channel: Channel,
        inference: Inference,
        server: HttpServer,
        memory: PeakMemory,
        limits: ServeLimits,
        deadline_s: float,
    ) -> None:
        """``deadline_s`` of an inference that is as large as a golden sample."""
        self._channel, self._inference, self._server = channel, inference, server
        self._memory, self._limits = memory, limits
        self._observer = inference.observer
        golden = inference.model.generation.golden.samples[0].inputs
        self._deadline = Deadline(deadline_s, limits.inference_s, _elements(golden), _TICK_S)
        self._stopping = threading.Event()
        self._sending = threading.Lock()
        self._canary_ok = True
        self._canaries = 0

    def start(self) -> None:
        for loop in (self._watch, self._canary):
            threading.Thread(target=loop, name=loop.__name__, daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()

    def send_windows(self) -> None:
        """Send the closed windows, in order. Raises `UnavailableError` if the agent is gone."""
        with self._sending:
            for summary in self._observer.take():
                self._channel.send(Window(seq=summary.seq, rows=summary.rows, summary=encode(summary)))

    def _watch(self) -> None:
        next_health = time.monotonic()
        try:
            while not self._stopping.wait(_TICK_S):
                self._memory.sample()
                self._observer.tick()
                self.send_windows()
                running_s, elements = self._inference.gate.running_s(), _elements(self._inference.running)
                if self._deadline.passed(time.monotonic(), running_s, elements):
                    self._end_hung(elements)
                if time.monotonic() >= next_health:
                    next_health = time.monotonic() + _HEALTH_S
                    self._channel.send(self.health())
        except UnavailableError:
            return  # the agent is gone; the main thread sees it too and ends the process

    def health(self) -> Health:
        """Totals, and the extremes since the last call."""
        totals = self._observer.totals()
        rss_bytes = self._memory.take()
        self._observer.resident(rss_bytes)
        return Health(
            requests=totals.requests,
            failures=totals.failures,
            latency_p95_us=self._observer.latency_p95_us(),
            rss_bytes=rss_bytes,
            in_flight=self._server.in_flight,
            canary_ok=self._canary_ok,
            canaries=self._canaries,
        )

    def _canary(self) -> None:
        index = 0
        while not self._stopping.wait(self._limits.canary_s):
            self._canary_ok = self._inference.canary(index)
            self._canaries += self._canary_ok
            if not self._server.in_flight:
                give_back_memory()
            index += 1

    def _end_hung(self, elements: int) -> None:
        error = EngineError(
            f"an inference has not returned for {self._deadline.allowed_s(elements):.3g} s",
            hint="The model hangs on this device: roll back.",
        )
        self._channel.send(Failed(error=ErrorReport.of(error)))
        print(f"skerry worker: {error}", file=sys.stderr, flush=True)
        os._exit(HUNG)


def _elements(tensors: Mapping[str, Array]) -> int:
    return sum(array.size for array in tensors.values())
