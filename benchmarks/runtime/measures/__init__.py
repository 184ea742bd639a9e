"""Every measurement: a module with ``measure(world) -> figures by gate``.

One that needs a device which has run for a while has ``prepare(world)`` too, called before all measurements.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from ..gates import Figure
from ..world import World


def prepare(name: str, world: World) -> None:
    """Raises as `run`."""
    module = importlib.import_module(f"{__name__}.{name}")
    if hasattr(module, "prepare"):
        module.prepare(world)


def run(name: str, world: World) -> Mapping[str, Figure]:
    """Raises `CommandError`, `ChildError`, OSError or ValueError if it cannot be measured."""
    figures: Mapping[str, Figure] = importlib.import_module(f"{__name__}.{name}").measure(world)
    return figures
