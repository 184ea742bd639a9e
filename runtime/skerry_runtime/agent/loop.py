"""A small selector loop: everything that decides runs in its one thread, so nothing there needs a lock.

`call_soon` may come from any thread. A callback that raises is a bug of the agent; it is logged and the loop
goes on, because the daemon must outlive its bugs.
"""

from __future__ import annotations

import collections
import heapq
import itertools
import os
import selectors
import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from .log import get_logger

_log = get_logger("loop")
T = TypeVar("T")


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Timer:
    """A call in the future."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None] | None) -> None:
        self.call = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """Runs in the thread that calls `run`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._ready: collections.deque[Callable[[], None]] = collections.deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()
        self._running = True
        self._thread = threading.get_ident()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ, self._drain_wakes)

    def call_soon(self, call: Callable[[], None]) -> None:
        """Run it in the loop's thread; safe from any thread and from signal handlers."""
        self._ready.append(call)
        try:
            os.write(self._wake_write, b"w")
        except BlockingIOError:
            return  # The pipe is full of wake-ups already.

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Only from the loop's thread."""
        timer = Timer(call)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), timer))
        return timer

    def ask(self, call: Callable[[], T], timeout: float) -> T:
        """From another thread: run it in the loop and wait for what it returns or raises.

        Raises:
            TimeoutError: the loop did not come to it in time; it may still do it.
        """
        answered = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
                errors.append(error)
            answered.set()

        self.call_soon(run)
        if not answered.wait(timeout):
            raise TimeoutError
        for error in errors:
            raise error
        return results[0]

    def add_reader(self, file: HasFileno, call: Callable[[], None]) -> None:
        self._selector.register(file.fileno(), selectors.EVENT_READ, call)

    def remove_reader(self, file: HasFileno) -> None:
        self._selector.unregister(file.fileno())

    def stop(self) -> None:
        """Only from the loop's thread."""
        self._running = False

    def run(self) -> None:
        """Until `stop`."""
        while self._running:
            self.run_once()

    def run_once(self) -> None:
        """Wait for one round of events."""
        for key, _ in self._selector.select(self._seconds_to_next()):
            # A callback of this round may have removed the reader of a later one.
            if key.fd in self._selector.get_map():
                self._guard(key.data)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                self._guard(timer.call)
        for _ in range(len(self._ready)):
            self._guard(self._ready.popleft())

    def close(self) -> None:
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _seconds_to_next(self) -> float | None:
        if self._ready:
            return 0.0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _drain_wakes(self) -> None:
        try:
            os.read(self._wake_read, 4096)
        except BlockingIOError:
            return

    def _guard(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:  # noqa: BLE001 - the boundary that keeps the daemon alive; nothing is hidden
            _log.exception("a part of the agent failed")
