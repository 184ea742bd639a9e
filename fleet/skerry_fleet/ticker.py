"""A thread that acts at an interval, and at once when it is woken."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Ticker:
    def __init__(self, name: str, interval_s: float, act: Callable[[], None]) -> None:
        self._name = name
        self._interval_s = interval_s
        self._act = act
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Act soon."""
        self._wake.set()

    def stop(self) -> None:
        """Returns when the last act has ended."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self._act()
            except Exception:  # noqa: BLE001 the end of a thread: a full disk may be mended, and then it goes on
                _log.exception("%s failed; it is tried again", self._name)
            self._wake.wait(self._interval_s)
