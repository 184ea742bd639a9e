"""One background thread for what takes long: downloads, verification, hashing.

Results come back to the loop.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from skerry_contract.errors import ConflictError, SkerryError, UnavailableError

from .log import get_logger
from .loop import Loop

_log = get_logger("jobs")
T = TypeVar("T")


class Jobs:
    """Jobs run one after the other."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="jobs", daemon=True).start()

    def submit(
        self,
        work: Callable[[threading.Event], T],
        then: Callable[[T], None],
        failed: Callable[[SkerryError], None],
    ) -> threading.Event:
        """Do ``work`` in the background, then call one of the others in the loop.

        Setting the event that is returned cancels: the work should end soon, and nobody is called.
        """
        cancelled = threading.Event()

        def deliver(call: Callable[[], None]) -> None:
            self._loop.call_soon(lambda: None if cancelled.is_set() else call())

        def run() -> None:
            try:
                if cancelled.is_set():
                    raise ConflictError("the work was cancelled")
                result = work(cancelled)
            except SkerryError as error:
                # Bound as a default: the name is gone when the loop calls.
                deliver(lambda error=error: failed(error))  # type: ignore[misc]
            except Exception as error:  # noqa: BLE001 - the thread's boundary: a bug must not end all updates
                _log.exception("a job failed by a fault of the agent")
                failure = UnavailableError(
                    f"the agent failed: {error!r}", hint="Report this with the daemon's log."
                )
                deliver(lambda: failed(failure))
            else:
                deliver(lambda: then(result))

        self._queue.put(run)
        return cancelled

    def _run(self) -> None:
        while True:
            self._queue.get()()
