"""What may lie in a data folder when nothing goes on: everything else is a leftover that would grow."""

from __future__ import annotations

import re
from pathlib import Path

from skerry_runtime.agent.slots import ModelSlots
from skerry_runtime.agent.store import Store

_STATE = re.compile(r"current|pending|update|memory|bad")
_DEVICE = re.compile(r"time-floor|front|windows|clock-offset")
_TOP = re.compile(r"store|models|state|lock|run|lost\+found|outbox\.db(-wal)?")


def leftovers(data: Path) -> list[str]:
    """Names that no model needs; with an empty list a device's disk never fills by itself."""
    extra = [path for path in data.iterdir() if not _TOP.fullmatch(path.name)]
    extra += [path for path in (data / "state").iterdir() if not _DEVICE.fullmatch(path.name)]
    store = Store(data / "store")
    for model in (data / "models").iterdir():
        slots = ModelSlots(model, store)
        current, pending = slots.current(), slots.pending()
        wanted = {pending.gen, pending.prev} if pending else set()
        if current:
            wanted |= {current.gen, current.previous}
        extra += [path for path in slots.gens.iterdir() if path.name not in {str(gen) for gen in wanted}]
        extra += [path for path in slots.state.iterdir() if not _STATE.fullmatch(path.name)]
        extra += [path for path in slots.bad.iterdir() if not re.fullmatch(r"[0-9a-f]{64}", path.name)]
    for blob in store.folder.iterdir():
        if not re.fullmatch(r"[0-9a-f]{64}", blob.name) or blob.stat().st_nlink < 2:
            extra.append(blob)
    return sorted(str(path.relative_to(data)) for path in extra)
