"""Power cuts take root and long: ``python -m tests.torture --json FILE`` makes them; this reads the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..gates import Figure
from ..world import World

FILE_SYSTEMS: Final = ("ext4", "xfs")
LEAST: Final = 200
_MISSING: Final = "run 'make torture' as root with --json, and name its report with --torture"


def measure(world: World) -> dict[str, Figure]:
    try:
        means = json.loads(world.torture.read_text())["means"]
    except FileNotFoundError:
        return {key: Figure(value=None, detail=_MISSING) for key in ("cuts-install", "cuts-outbox")}
    return {"cuts-install": figure(means, "models"), "cuts-outbox": figure(means, "outbox")}


def figure(means: Iterable[Mapping[str, Any]], what: str) -> Figure:
    """All that were bad; nothing is said where one of the file systems saw too few cuts. Pure.

    ``means`` are the report's rows: ``{"means": "power cut, ext4, models", "cases": 200, "bad": 0}``.
    """
    rows = {f"power cut, {system}, {what}": system for system in FILE_SYSTEMS}
    made, bad = dict.fromkeys(FILE_SYSTEMS, 0), 0
    for row in means:
        if system := rows.get(row["means"]):
            made[system] += int(row["cases"])
            bad += int(row["bad"])
    detail = ", ".join(f"{count} on {system}" for system, count in made.items())
    if bad:
        return Figure(value=bad, detail=detail)
    if min(made.values()) < LEAST:
        return Figure(value=None, detail=f"{detail}: fewer than {LEAST} each; {_MISSING}")
    return Figure(value=0, detail=detail)
