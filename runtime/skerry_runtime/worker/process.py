"""What a worker asks of its kernel: to die with its parent, to be limited, to know its own memory.

Linux only, as the runtime is; where a kernel lacks a call, the weaker behaviour is stated beside it.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None, use_errno=True)

THREAD_STACK_BYTES = 1 << 20
"""Stack of a connection's thread; an engine runs on it."""


def die_with_parent(parent: int) -> None:
    """Ask for SIGKILL when the parent dies; end at once if it died before the question."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def die_with_nobody() -> None:
    """Take `die_with_parent` back."""
    _libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def name_process(name: str) -> None:
    """What ``ps`` and ``top`` show; at most 15 characters."""
    _libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0)


def few_arenas() -> None:
    """Two malloc arenas instead of eight a core: a thread a connection would else spread over all of them.

    glibc only; other C libraries have no such arenas and no such call.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 2)


def give_back_memory() -> None:
    """Return what was freed to the kernel, which else stays with the process for good. glibc only."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def silence_standard_streams() -> None:
    """Engines print to stdout as they like: send it to stderr, and give them nothing to read."""
    with open(os.devnull, "rb") as null:
        os.dup2(null.fileno(), 0)
    os.dup2(2, 1)


def die_first(*, on_trial: bool) -> None:
    """When memory runs out the kernel shall take a worker, never the agent; and first one that serves nobody."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("900" if on_trial else "500")
    except OSError:
        pass  # a sandbox may forbid it; then the kernel's own choice stands


def limit_memory(ram_bytes: int, threads: int = 0) -> None:
    """Cap private writable memory at what is mapped now plus ``ram_bytes`` and the stacks of ``threads``.

    An allocation beyond it fails, so a model that asks for 256 GiB gets an error, not the machine.
    """
    if ram_bytes <= 0:
        return
    most = _status_bytes("VmData") + ram_bytes + threads * THREAD_STACK_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def resident_bytes() -> int:
    """Resident memory now, shared pages included."""
    return _status_bytes("VmRSS")


class PeakMemory:
    """Peak resident memory since the last `take`, from the kernel's own high-water mark.

    The mark sees a peak inside one inference, which no polling does. Where it cannot be reset (a kernel
    without CONFIG_PROC_PAGE_MONITOR) the peak is that of the calls of `sample` and `take`. Pages of a mapped
    model do not count: the kernel drops them when it needs the room.
    """

    def __init__(self) -> None:
        self.droppable: Callable[[], int] = lambda: 0
        """Bytes of a mapped model that are in memory now."""
        self._lock = threading.Lock()
        self._peak = self._sampled = 0
        self._resettable = _reset_high_water()

    def sample(self) -> None:
        """Look now; does nothing where the kernel keeps the mark."""
        if not self._resettable:
            with self._lock, suppress(OSError):
                self._sampled = max(self._sampled, resident_bytes())

    def take(self) -> int:
        """Bytes; begins the next interval. The last figure again while no descriptor is left to look with."""
        with self._lock, suppress(OSError):
            self._peak = self._look()
        return self._peak

    def _look(self) -> int:
        if self._resettable:
            peak = _status_bytes("VmHWM")
            _reset_high_water()
        else:
            peak = max(self._sampled, resident_bytes())
            self._sampled = 0
        return max(0, peak - self.droppable())


def _reset_high_water() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int:
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(field.encode() + b":"):
                return int(line.split()[1]) * 1024
    return 0
