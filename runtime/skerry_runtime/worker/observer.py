"""Counts what a worker answers: windows for the fleet, totals and recent latencies for the agent.

A row is counted after its answer was sent. Rows of several requests are taken together, because extracting
the features of sixty rows costs hardly more than of one; none waits longer than `PENDING_S`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Final

import msgspec
import numpy as np

from skerry_contract.digests import prefix8
from skerry_contract.errors import InputError
from skerry_contract.limits import KIB
from skerry_contract.summary import WindowSummary

from .engines import Array
from .features import Floats, Ints, embedding_vectors, extract, predictions
from .generation import Generation
from .monitor import Monitor, Totals
from .windows import Clock, WindowBuilder

PENDING_S: Final = 0.2
PENDING_ROWS: Final = 64
PENDING_BYTES: Final = 256 * KIB
WINDOWS: Final = 8
"""Closed windows that wait for `take`. While so many do the open one goes on: nothing is lost."""

SYSTEM_CLOCK: Final = Clock(
    boot_ms=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
    utc_ms=lambda: time.time_ns() // 1_000_000,
)


class _Answered(msgspec.Struct, frozen=True):
    """One answered request: when, how long it ran, and its monitored tensors.

    They are copies where they were views: a view would keep the whole request's body in memory.
    """

    at: float
    microseconds: float
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    rows: int

    def form(self) -> list[tuple[int, ...]]:
        """What must be equal for two of them to be taken together; names and types always are."""
        arrays = (*self.inputs.values(), *self.outputs.values())
        return [array.shape[1:] if len(array.shape) else (-1,) for array in arrays]


class Observer:
    """Thread-safe; one a worker."""

    def __init__(
        self,
        generation: Generation,
        *,
        boot: str = "",
        first_window: int = 1,
        seconds: float = 3600.0,
        rows: int = 100_000,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``boot`` is the boot identifier, 32 hexadecimal digits; empty for none."""
        spec = self._spec = generation.monitoring
        self._sources = tuple(feature.source for feature in spec.features)
        watched = [*self._sources, *([spec.embedding.source] if spec.embedding else [])]
        outputs = [source.tensor for source in watched if source.kind == "output"]
        if spec.prediction is not None:
            outputs.append(spec.prediction.output)
        self._inputs = tuple(dict.fromkeys(source.tensor for source in watched if source.kind != "output"))
        self._outputs = tuple(dict.fromkeys(outputs))
        self._windows = WindowBuilder(
            spec,
            spec_hash=generation.spec_hash,
            bundle=prefix8(generation.bundle),
            boot=bytes.fromhex(boot.replace("-", "")).ljust(16, b"\0")[:16],
            first_seq=first_window,
            seconds=seconds,
            rows=rows,
            clock=clock,
        )
        self._absorbing = threading.Lock()
        """Taken before `_lock`, and for as long as features are extracted."""
        self._lock = threading.Lock()
        """Guards all below and the window; never held for longer than it takes to add a row."""
        self._closed: deque[WindowSummary] = deque()
        self._pending: list[_Answered] = []
        """Neither in the window nor in the monitor yet."""
        self._pending_rows = self._pending_bytes = 0
        self._pending_since = 0.0
        self._monitor = Monitor()

    def answered(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], microseconds: float
    ) -> None:
        """Count one answered request; axis 0 of the tensors is the rows."""
        now = time.monotonic()
        watched = {name: _owned(inputs[name]) for name in self._inputs}
        said = {name: _owned(outputs[name]) for name in self._outputs}
        rows = _rows(watched or said or inputs)
        nbytes = sum([array.nbytes for array in (*watched.values(), *said.values())])
        answered = _Answered(now, microseconds, watched, said, rows)
        with self._lock:
            if not self._pending:
                self._pending_since = now
            self._pending.append(answered)
            self._pending_rows += rows
            self._pending_bytes += nbytes
            full = (
                self._pending_rows >= PENDING_ROWS
                or self._pending_bytes >= PENDING_BYTES
                or now - self._pending_since >= PENDING_S
            )
        if full:
            self.tick()

    def failed(self, *, fault_of_model: bool) -> None:
        """Count one inference without an answer."""
        with self._lock:
            self._monitor.failed(fault_of_model=fault_of_model)
            self._windows.failed()

    def nonfinite_input(self) -> None:
        """Count one request whose inputs held NaN or infinity."""
        with self._lock:
            self._monitor.nonfinite_input()

    def resident(self, rss_bytes: int) -> None:
        """Note resident memory in the open window."""
        with self._lock:
            self._windows.resident(rss_bytes)

    def settings(self, seconds: float, rows: int) -> None:
        """Length of the windows, from the next one on."""
        with self._lock:
            self._windows.settings(seconds, rows)

    def tick(self) -> None:
        """Count the rows that wait; close the window if it is over."""
        with self._absorbing:
            self._absorb()
            with self._lock:
                if self._windows.due() and len(self._closed) < WINDOWS:
                    self._close()

    def close_window(self) -> None:
        """Close the window now; an empty one is left out."""
        with self._absorbing:
            self._absorb()
            with self._lock:
                self._close()

    def take(self) -> list[WindowSummary]:
        """The closed windows, oldest first."""
        with self._lock:
            taken = list(self._closed)
            self._closed.clear()
        return taken

    def totals(self) -> Totals:
        """Since the beginning."""
        with self._lock:
            totals = self._monitor.totals()
            return replace(totals, requests=totals.requests + len(self._pending))

    def latency_p95_us(self) -> float:
        """Of the last seconds' inferences; 0 if there were none."""
        with self._lock:
            return self._monitor.latency_p95_us(time.monotonic())

    def _close(self) -> None:
        summary = self._windows.close()
        if summary is not None:
            self._closed.append(summary)

    def _absorb(self) -> None:
        """Move all waiting rows into the window. Call with `_absorbing` held."""
        with self._lock:
            pending, self._pending = self._pending, []
            self._pending_rows = self._pending_bytes = 0
            for answered in pending:
                self._monitor.answered(answered.at, answered.microseconds)
                self._windows.latency(answered.microseconds)
        for _, group in groupby(pending, _Answered.form):
            for piece in _pieces(list(group)):
                try:
                    features, predicted, scores, vectors = self._extract(piece)
                except InputError:
                    with self._lock:
                        self._windows.dropped(piece.rows)
                    continue
                with self._lock:
                    self._windows.observe(features, predicted, scores, vectors)

    def _extract(self, answered: _Answered) -> tuple[Floats, Ints | None, Floats | None, Floats | None]:
        """Features, classes, scores, embedding vectors. Raises `InputError` if they do not fit the rows."""
        spec, inputs, outputs = self._spec, answered.inputs, answered.outputs
        features = extract(self._sources, inputs, outputs) if self._sources else np.empty((answered.rows, 0))
        predicted = scores = vectors = None
        if spec.prediction is not None:
            predicted, scores = predictions(spec.prediction, outputs)
        if spec.embedding is not None:
            vectors = embedding_vectors(spec.embedding.source, inputs, outputs)
        if any(part is not None and len(part) != answered.rows for part in (features, predicted, vectors)):
            raise InputError("what is monitored has other rows than the request")
        return features, predicted, scores, vectors


def _owned(array: Array) -> Array:
    return array if array.base is None else array.copy()


def _rows(tensors: Mapping[str, Array]) -> int:
    """Axis 0 of the first tensor."""
    first = next(iter(tensors.values()))
    return len(first) if first.ndim else 1


def _pieces(group: list[_Answered]) -> Iterator[_Answered]:
    """Requests of one form as one; each alone where its tensors' rows differ among themselves."""
    if len(group) == 1 or any(_uneven(answered) for answered in group):
        yield from group
        return
    yield _Answered(
        group[0].at,
        group[0].microseconds,
        {name: np.concatenate([one.inputs[name] for one in group]) for name in group[0].inputs},
        {name: np.concatenate([one.outputs[name] for one in group]) for name in group[0].outputs},
        sum(one.rows for one in group),
    )


def _uneven(answered: _Answered) -> bool:
    arrays = (*answered.inputs.values(), *answered.outputs.values())
    return any(array.ndim == 0 or len(array) != answered.rows for array in arrays)
