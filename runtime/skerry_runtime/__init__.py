"""The device: verifies, installs and serves models, offline if need be.

``from skerry_runtime import Model`` is the in-process use, ``LocalClient`` asks a running daemon. They load
numpy, and an engine, so they are looked up only when somebody asks for them: the agent must never pay for
them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .model import Model
    from .shared_client import LocalClient

__all__ = ["LocalClient", "Model"]

_HOMES: Final = {"LocalClient": ".shared_client", "Model": ".model"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
