"""The agent as a parent by adoption: of workers whose zygote has ended.

Linux gives the children of a process that ends to its nearest ancestor that asked for them. So the agent can
wait for a worker that it did not fork, and the worker can ask to die with the agent.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from typing import Final

from .loop import Loop

_PR_SET_CHILD_SUBREAPER: Final = 36
_LOOK_SECONDS: Final = 0.05
_LOOKS: Final = 600


@cache
def can_adopt() -> bool:
    """Ask for the orphans of this process' children; False where the kernel refuses."""
    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def wait_for_end(
    loop: Loop, pid: int, told: Callable[[int], None] | None = None, looks: int = _LOOKS
) -> None:
    """Reap a child that is about to end, without blocking; ``told`` gets its wait status.

    Nothing happens if it is not this process' child, or does not end within half a minute.
    """
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return
    if found and told is not None:
        told(status)
    elif not found and looks:
        loop.call_later(_LOOK_SECONDS, lambda: wait_for_end(loop, pid, told, looks - 1))
