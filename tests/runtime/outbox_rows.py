"""Windows and events for tests of the outbox; every window can be recognised after it was merged."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests import builders

from skerry_contract.messages import Event
from skerry_contract.summary import LabelCount, WindowSummary, decode, encode
from skerry_runtime.agent import outbox_file
from skerry_runtime.agent.outbox import Kind, Row, Stamp

HOUR_MS = 3_600_000
STAMP = Stamp(boot=bytes(16), mono_ns=1, wall_ms=2, quality=1)


def window(number: int, **changes: Any) -> WindowSummary:
    """The hour ``number``; its label counts tell which windows are in it, and how often."""
    label = LabelCount(window=number, truth=0, predicted=0, count=1)
    return builders.window(seq=number, **{"labels": (label,), **changes})


def window_bytes(number: int, **changes: Any) -> bytes:
    return encode(window(number, **changes))


def numbers_in(bodies: Iterable[bytes]) -> Counter[int]:
    """Which windows are in these summaries, and how often."""
    found: Counter[int] = Counter()
    for body in bodies:
        for label in decode(body).labels:
            found[label.window] += label.count
    return found


def windows_of(rows: Iterable[Row]) -> Counter[int]:
    return numbers_in(row.frame.body for row in rows if row.kind is Kind.WINDOW)


def event(kind: str = "test", **data: Any) -> Event:
    return Event(kind=kind, wall_ms=2, mono_ms=1, boot="00" * 16, data=data)


def tiny_budget(monkeypatch: pytest.MonkeyPatch, pages: int) -> int:
    """A budget whose file holds so many pages: pressure without megabytes."""
    budget = (pages + 32 + outbox_file._TRANSACTION_PAGES) * outbox_file.PAGE_BYTES
    monkeypatch.setattr(outbox_file, "MIN_BUDGET_BYTES", budget)
    return budget


def disk_bytes(folder: Path) -> int:
    """All that SQLite has there."""
    return sum(path.stat().st_size for path in folder.glob("outbox.db*"))


def execute(path: Path, statement: str, *values: object) -> None:
    """Behind the outbox's back."""
    db = sqlite3.connect(path)
    db.execute(statement, values)
    db.commit()
    db.close()
