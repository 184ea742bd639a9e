"""Rows of a daily file. Every function runs in its caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from .views import WindowView


@dataclass(frozen=True, slots=True, kw_only=True)
class NewWindow:
    """A window summary on its way into the store; fields as the columns of ``window``."""

    device: str
    stream: bytes
    first: int
    last: int
    boot: str
    seq: int
    model: str
    version: str
    digest: str
    at_ms: int
    clock_ok: bool
    duration_ms: int
    flags: int
    rows: int
    errors: int
    received_ms: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An outbox row that was acknowledged and is no telemetry; fields as the columns of ``refused``."""

    device: str
    stream: bytes
    first: int
    last: int
    code: str
    reason: str
    received_ms: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UnscoredWindow:
    """What drift needs of a window."""

    id: int
    device: str
    model: str
    at_ms: int
    flags: int
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What drift made of a window."""

    id: int
    severity: str
    scores: bytes | None


_NEW = tuple(field.name for field in fields(NewWindow))
_REFUSED = tuple(field.name for field in fields(Refused))
_STORED = tuple(field.name for field in fields(WindowView) if field.name != "day")
_UNSCORED = tuple(field.name for field in fields(UnscoredWindow))


def add_windows(db: sqlite3.Connection, windows: Iterable[NewWindow]) -> None:
    """A window that is there already stays as it is."""
    _insert(db, "window", _NEW, windows)


def add_refused(db: sqlite3.Connection, rows: Iterable[Refused]) -> None:
    _insert(db, "refused", _REFUSED, rows)


def remove_within(db: sqlite3.Connection, device: str, stream: bytes, first: int, last: int) -> int:
    """Remove windows that a compacted one replaces."""
    where = "WHERE device = ? AND stream = ? AND first >= ? AND last <= ?"
    return db.execute(f"DELETE FROM window {where}", (device, stream, first, last)).rowcount  # noqa: S608 constant


def mark_of(db: sqlite3.Connection, device: str, stream: bytes) -> int:
    """Up to where the stream is committed; 0 if it is not known."""
    row = db.execute("SELECT seq FROM mark WHERE device = ? AND stream = ?", (device, stream)).fetchone()
    return int(row[0]) if row else 0


def move_marks(db: sqlite3.Connection, marks: Mapping[tuple[str, bytes], int], at_ms: int) -> None:
    """Forward only."""
    db.executemany(
        "INSERT INTO mark (device, stream, seq, updated_ms) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq), updated_ms = excluded.updated_ms",
        [(device, stream, seq, at_ms) for (device, stream), seq in marks.items()],
    )


def windows(
    db: sqlite3.Connection,
    day: str,
    *,
    device: str | None,
    model: str | None,
    scored: bool,
    before: tuple[int, int],
    limit: int,
) -> list[WindowView]:
    """Those with a time and id before the given ones, newest first. ``day`` is the one of the file."""
    where = ["(at_ms, id) < (?, ?)"]
    arguments: list[Any] = [*before]
    for column, wanted in (("device", device), ("model", model)):
        if wanted is not None:
            where.append(f"{column} = ?")
            arguments.append(wanted)
    if scored:
        where.append("scores IS NOT NULL")
    query = f"SELECT {', '.join(_STORED)} FROM window WHERE {' AND '.join(where)} "  # noqa: S608 names are constants
    found = db.execute(query + "ORDER BY at_ms DESC, id DESC LIMIT ?", (*arguments, limit))
    return [_stored(day, row) for row in found]


def unscored(db: sqlite3.Connection, limit: int) -> list[UnscoredWindow]:
    """In the order of receipt."""
    query = f"SELECT {', '.join(_UNSCORED)} FROM window WHERE severity IS NULL ORDER BY id LIMIT ?"  # noqa: S608 constant
    return [UnscoredWindow(**dict(row)) for row in db.execute(query, (limit,))]


def save_scores(db: sqlite3.Connection, scores: Iterable[Score]) -> None:
    db.executemany(
        "UPDATE window SET severity = ?, scores = ? WHERE id = ?",
        [(score.severity, score.scores, score.id) for score in scores],
    )


def detector_state(db: sqlite3.Connection, device: str, model: str) -> bytes | None:
    row = db.execute("SELECT state FROM detector WHERE device = ? AND model = ?", (device, model)).fetchone()
    return None if row is None else bytes(row[0])


def save_detectors(db: sqlite3.Connection, states: Mapping[tuple[str, str], bytes], at_ms: int) -> None:
    db.executemany(
        "INSERT INTO detector (device, model, state, updated_ms) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET state = excluded.state, updated_ms = excluded.updated_ms",
        [(device, model, state, at_ms) for (device, model), state in states.items()],
    )


def _insert(db: sqlite3.Connection, table: str, names: tuple[str, ...], rows: Iterable[object]) -> None:
    marks = ", ".join("?" * len(names))
    db.executemany(
        f"INSERT OR IGNORE INTO {table} ({', '.join(names)}) VALUES ({marks})",  # noqa: S608 names are constants
        [tuple(getattr(row, name) for name in names) for row in rows],
    )


def _stored(day: str, row: sqlite3.Row) -> WindowView:
    told = dict(row)
    told["clock_ok"] = bool(told["clock_ok"])
    told["scores"] = None if told["scores"] is None else json.loads(told["scores"])
    return WindowView(day=day, **told)


def detector_count(db: sqlite3.Connection, model: str) -> int:
    """Devices of which windows of this model came in."""
    return int(db.execute("SELECT count(*) FROM detector WHERE model = ?", (model,)).fetchone()[0])
