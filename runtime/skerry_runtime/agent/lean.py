"""How the agent stays small: it leaves out what its libraries import and never use."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


@contextlib.contextmanager
def without_modules(*absent: str, stand_ins: Sequence[str] = ()) -> Iterator[None]:
    """What is imported inside finds the first modules not installed and the others empty.

    A module that was imported before stays what it is. Afterwards everything can be imported again.
    """
    planted: dict[str, ModuleType | None] = {name: None for name in absent}
    planted.update((name, ModuleType(name)) for name in stand_ins)
    planted = {name: module for name, module in planted.items() if name not in sys.modules}
    parents = {}
    for name, module in planted.items():
        package, _, last = name.rpartition(".")
        if module is not None and package:
            parents[name] = importlib.import_module(package)
            setattr(parents[name], last, module)
    sys.modules.update(planted)  # type: ignore[arg-type]  # None is how Python marks what must not be imported
    try:
        yield
    finally:
        for name in planted:
            sys.modules.pop(name, None)
            if name in parents:
                delattr(parents[name], name.rpartition(".")[2])


def few_arenas() -> None:
    """One malloc arena for all threads: the agent's are idle nearly always. glibc only."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what was freed to the kernel. glibc only."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
