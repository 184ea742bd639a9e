"""The slots of one model for ``skerry-runtime status``: what answers, is tried, or can be returned to."""

from __future__ import annotations

from typing import Any

from skerry_contract.errors import SkerryError

from .slots import ModelSlots


def slots_of(slots: ModelSlots) -> list[dict[str, Any]]:
    """Each generation that a pointer names, as plain JSON.

    ``state`` is ``active`` or ``inactive``; ``health`` is ``unknown`` (in probation), ``good``, or ``bad``
    (damaged).
    """
    current, pending = slots.current(), slots.pending()
    named: list[tuple[int, str, str]] = []
    if pending is not None:
        named.append((pending.gen, "active", "unknown"))
    if current is not None:
        named.append((current.gen, "inactive" if pending else "active", "good"))
        if current.previous:
            named.append((current.previous, "inactive", "good"))
    return [_slot(slots, *slot) for slot in named]


def _slot(slots: ModelSlots, number: int, state: str, health: str) -> dict[str, Any]:
    try:
        manifest = slots.load(number).manifest
    except SkerryError as error:
        return {
            "generation": number, "state": "inactive", "health": "bad", "version": "", "error": error.message,
        }  # fmt: skip
    return {"generation": number, "state": state, "health": health, "version": manifest.version, "error": ""}
