"""One SQLite file a day, named by the day of receipt (UTC).

Guarantees: what `DayFiles.write` has left is on the disk; the high-water marks of all streams stand in the
file that is being written, in the very transaction of the rows, so a kill at any moment neither loses nor
doubles a window; retention is an unlink. One connection writes, and no other ever checkpoints.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from skerry_contract.errors import StorageError

from ..clock import Clock
from .tables import DAY_SCHEMA

log = logging.getLogger(__name__)

DAY_MS: Final = 86_400_000
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}")

# What must be known tomorrow, too. Never backwards, whatever the clock of the server did.
_CARRY: Final = (
    "INSERT INTO main.mark SELECT * FROM source.mark WHERE updated_ms >= :since "
    "ON CONFLICT DO UPDATE SET "
    "seq = max(seq, excluded.seq), updated_ms = max(updated_ms, excluded.updated_ms)",
    "INSERT INTO main.detector SELECT * FROM source.detector WHERE updated_ms >= :since "
    "ON CONFLICT DO UPDATE SET state = excluded.state, updated_ms = excluded.updated_ms "
    "WHERE excluded.updated_ms > updated_ms",
)


class DayFiles:
    """The files ``<folder>/YYYY-MM-DD.db``. Safe for several threads."""

    def __init__(self, folder: Path, clock: Clock, *, keep_days: int = 90) -> None:
        self._folder = folder
        self._clock = clock
        self._keep_ms = keep_days * DAY_MS
        self._lock = threading.RLock()
        self._day = ""
        self._writer: sqlite3.Connection | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _storage_error(f"{folder} cannot be made", error) from error

    def today(self) -> str:
        return day_of(self._clock.now_ms())

    def days(self) -> list[str]:
        """Newest first."""
        return sorted((p.stem for p in self._folder.glob("*.db") if _NAME.fullmatch(p.stem)), reverse=True)

    @contextmanager
    def write(self, day: str | None = None) -> Iterator[sqlite3.Connection]:
        """One durable transaction in the file of today, or of an older day.

        Raises:
            StorageError: the disk is full, read-only or failing; nothing was changed.
        """
        with self._lock:
            try:
                current = self._current()
                if day is None or day == self._day:
                    with _transaction(current) as db:
                        yield db
                else:
                    with contextlib.closing(_connect(self._path(day))) as other, _transaction(other) as db:
                        yield db
            except sqlite3.Error as error:
                raise _storage_error("telemetry could not be written", error) from error

    @contextmanager
    def read(self, day: str) -> Iterator[sqlite3.Connection]:
        """A consistent snapshot of one file; writing fails. A day without a file is empty."""
        path = self._path(day)
        target = f"{path.absolute().as_uri()}?mode=ro" if path.exists() else ":memory:"
        try:
            with contextlib.closing(
                sqlite3.connect(target, uri=True, isolation_level=None, timeout=30)
            ) as db:
                if not path.exists():
                    db.executescript(DAY_SCHEMA)
                db.row_factory = sqlite3.Row
                db.execute("BEGIN")
                yield db
        except sqlite3.Error as error:
            raise _storage_error(f"telemetry of {day} could not be read", error) from error

    def prune(self) -> list[str]:
        """Unlink the files that are past retention; returns their days."""
        oldest = day_of(self._clock.now_ms() - self._keep_ms)
        with self._lock:
            gone = [day for day in self.days() if day < oldest and day != self._day]
            for day in gone:
                for suffix in (".db", ".db-wal", ".db-shm"):
                    (self._folder / f"{day}{suffix}").unlink(missing_ok=True)
        return gone

    def close(self) -> None:
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _current(self) -> sqlite3.Connection:
        today = self.today()
        if self._writer is None or self._day != today:
            self.close()
            self._writer = self._open(today)
            self._day = today
        return self._writer

    def _open(self, day: str) -> sqlite3.Connection:
        path = self._path(day)
        try:
            return self._prepared(day)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            aside = path.with_name(f"{path.name}.damaged-{self._clock.now_ms()}")
            log.error("%s is damaged (%s); it is kept as %s and a new one begins", path, error, aside.name)
            path.rename(aside)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            return self._prepared(day)

    def _prepared(self, day: str) -> sqlite3.Connection:
        writer = _connect(self._path(day))
        try:
            writer.executescript(DAY_SCHEMA)
            self._carry_into(writer, day)
        except sqlite3.Error:
            writer.close()
            raise
        return writer

    def _carry_into(self, writer: sqlite3.Connection, day: str) -> None:
        """Take over marks and detectors of the last file before, and of later ones (the clock went back)."""
        others = [other for other in self.days() if other != day]
        before = [other for other in others if other < day][:1]
        after = [other for other in others if other > day]
        if writer.execute("SELECT 1 FROM carried").fetchone():
            before = []
        since = self._clock.now_ms() - self._keep_ms
        for other in before + after:
            writer.execute("ATTACH ? AS source", (self._path(other).absolute().as_uri() + "?mode=ro",))
            try:
                with _transaction(writer):
                    for statement in _CARRY:
                        writer.execute(statement, {"since": since})
                    writer.execute("INSERT OR IGNORE INTO main.carried VALUES (?)", (other,))
            finally:
                writer.execute("DETACH source")

    def _path(self, day: str) -> Path:
        return self._folder / f"{day}.db"


def _connect(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    db = sqlite3.connect(
        path.absolute().as_uri(), uri=True, isolation_level=None, check_same_thread=False, timeout=30
    )
    db.row_factory = sqlite3.Row
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    return db


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def day_of(ms: int) -> str:
    """Name of the file of a time (UTC)."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d")


def _storage_error(what: str, error: sqlite3.Error | OSError) -> StorageError:
    return StorageError(f"{what}: {error}", hint="Check free space and permissions of the data folder.")
