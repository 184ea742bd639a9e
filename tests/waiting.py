"""Waiting for a condition, so that no test sleeps for a guessed time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
WAIT_S = 60.0
_PAUSE_S = 0.02


def wait_until(condition: Callable[[], T | None], what: str, timeout_s: float = WAIT_S) -> T:
    """The condition's first true value; fails, saying what was awaited, when there is none in time."""
    pause = threading.Event()
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        pause.wait(_PAUSE_S)
    return value
