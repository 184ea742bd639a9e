"""The device: verifies, installs and serves models, offline if need be.

``from skerry_runtime import Model`` is the in-process use; it loads numpy and the engine, so it is looked up
only when somebody asks for it: the agent must never pay for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Model"]


def __getattr__(name: str) -> Any:
    if name == "Model":
        from .model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
