"""One request's way through the model: wait in a bounded queue, run, judge the answer.

An answer is always finite. One that is not is the model's fault if the input was finite, else the
client's; both are counted (attack M13).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import msgspec

from skerry_contract.errors import EngineError, InputError, MemoryBudgetError, OverloadedError, SelfTestError

from .engines import Array
from .golden import finite
from .limits import ServeLimits
from .loaded import LoadedModel
from .observer import Observer


class Answer(msgspec.Struct, frozen=True):
    """What came out, with what `Inference.record` needs."""

    inputs: Mapping[str, Array]
    outputs: dict[str, Array]
    microseconds: float
    """Of the inference itself, without queueing."""
    nonfinite_input: bool


class Gate:
    """Lets one inference run at a time and a bounded number wait, each for a bounded time."""

    def __init__(self, waiting: int, patience_s: float) -> None:
        self._most, self._patience_s = waiting, patience_s
        self._turn, self._count = threading.Lock(), threading.Lock()
        self._waiting = 0
        self._since: float | None = None

    def enter(self, timeout_us: int | None = None) -> None:
        """Wait for the turn, which ends with `leave`.

        Raises:
            OverloadedError: too many wait already, or the wait was too long.
        """
        if not self._turn.acquire(blocking=False):
            self._wait(self._patience_s if timeout_us is None else min(self._patience_s, timeout_us / 1e6))
        self._since = time.monotonic()

    def leave(self) -> None:
        """The turn is over."""
        self._since = None
        self._turn.release()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return self._waiting

    def running_s(self) -> float:
        """How long the inference has run that runs now; 0 if none does."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def _wait(self, patience_s: float) -> None:
        with self._count:
            if self._waiting >= self._most:
                raise OverloadedError("the queue of requests is full", hint="Try again in a second.")
            self._waiting += 1
        try:
            passed = self._turn.acquire(timeout=patience_s)
        finally:
            with self._count:
                self._waiting -= 1
        if not passed:
            raise OverloadedError("the request waited too long for the engine", hint="Try again in a second.")


class Inference:
    """The model behind its gate; called from any thread."""

    def __init__(self, model: LoadedModel, observer: Observer, limits: ServeLimits) -> None:
        self.model, self.observer = model, observer
        self.gate = Gate(limits.waiting, limits.wait_s)
        self.running: Mapping[str, Array] = {}
        """Inputs of the newest inference; none of a golden sample."""
        self._fixed = all(-1 not in spec.shape[1:] for spec in model.generation.manifest.inputs)

    def infer(self, inputs: Mapping[str, Array], timeout_us: int | None = None) -> Answer:
        """Run one request whose tensors fit the manifest.

        Args:
            inputs: by name.
            timeout_us: how long it may wait for the engine, if less than the server's own limit.

        Raises:
            OverloadedError: the queue is full, or the wait was too long.
            EngineError, MemoryBudgetError: the model failed.
            InputError: its inputs are such that no finite answer exists.
        """
        nonfinite = not _all_finite(inputs)
        if nonfinite:
            self.observer.nonfinite_input()
        try:
            self.gate.enter(timeout_us)
            try:
                self.running = inputs
                outputs, microseconds = self.model.run(inputs)
            finally:
                self.gate.leave()
        except (EngineError, MemoryBudgetError) as error:
            self.observer.failed(fault_of_model=self._fixed or not self.canary())
            raise error
        if not _all_finite(outputs):
            self.observer.failed(fault_of_model=not nonfinite)
            if nonfinite:
                raise InputError("NaN or infinity in the input left no finite answer")
            raise EngineError("the model gave NaN or infinity for a finite input")
        return Answer(inputs, outputs, microseconds, nonfinite)

    def record(self, answer: Answer) -> None:
        """Count an answer, after it was sent."""
        self.observer.answered(answer.inputs, answer.outputs, answer.microseconds)

    def canary(self, index: int = 0) -> bool:
        """Whether a golden sample still gets its recorded answer; it is not counted as a request."""
        samples = len(self.model.generation.golden.samples)
        try:
            self.gate.enter()
            try:
                self.running = {}
                self.model.run_golden(index % samples)
            finally:
                self.gate.leave()
        except (EngineError, MemoryBudgetError, SelfTestError):
            return False
        except OverloadedError:
            return True  # busy is not wrong
        return True


def _all_finite(tensors: Mapping[str, Array]) -> bool:
    return all(map(finite, tensors.values()))
