"""The outbox's SQLite file: opened durable, bounded and private; upgraded forward; set aside when damaged.

WAL and synchronous=FULL, for that alone lost no acknowledged commit in power cuts. One process, one
connection, one thread: SQLite before 3.51.3 may corrupt a WAL that two connections write or checkpoint.
The file and its WAL together stay within the budget.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import StorageError
from skerry_contract.limits import MIB

PAGE_BYTES: Final = 4096
MIN_BUDGET_BYTES: Final = 1 * MIB
_FRAME_BYTES: Final = PAGE_BYTES + 24
_TRANSACTION_PAGES: Final = 48
"""Most that one transaction adds to the WAL before it is checkpointed."""
SCHEMA_VERSION: Final = 2
_SCHEMA: Final = """
CREATE TABLE outbox(first_seq INTEGER PRIMARY KEY, last_seq INT NOT NULL, kind INT NOT NULL,
  prio INT NOT NULL, codec INT NOT NULL, boot_id BLOB NOT NULL, mono_ns INT NOT NULL, wall_ms INT NOT NULL,
  clock_q INT NOT NULL, crc INT NOT NULL, body BLOB NOT NULL, items INT NOT NULL DEFAULT 1);
CREATE TABLE gaps(from_seq INT NOT NULL, to_seq INT NOT NULL, prio INT NOT NULL, reason TEXT NOT NULL,
  items INT NOT NULL, told INT NOT NULL DEFAULT 0);
CREATE TABLE stream(id BLOB NOT NULL, done_seq INT NOT NULL, next_seq INT NOT NULL,
  offered_seq INT NOT NULL DEFAULT 0, merged INT NOT NULL DEFAULT 0, note BLOB NOT NULL DEFAULT x'');
"""
_UPGRADES: Final[Mapping[int, str]] = {
    # A file of version 1 does not know what it has sent: everything may have been.
    1: """
ALTER TABLE outbox ADD COLUMN items INT NOT NULL DEFAULT 1;
UPDATE outbox SET items = last_seq - first_seq + 1;
ALTER TABLE gaps ADD COLUMN items INT NOT NULL DEFAULT 1;
UPDATE gaps SET items = to_seq - from_seq + 1;
ALTER TABLE gaps ADD COLUMN told INT NOT NULL DEFAULT 0;
ALTER TABLE stream ADD COLUMN offered_seq INT NOT NULL DEFAULT 0;
ALTER TABLE stream ADD COLUMN merged INT NOT NULL DEFAULT 0;
ALTER TABLE stream ADD COLUMN note BLOB NOT NULL DEFAULT x'';
UPDATE stream SET offered_seq = next_seq - 1;
""",
}
_DISK: Final = frozenset({
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_PERM,
})  # fmt: skip
"""Result codes for which the disk, not the file's content, is to blame."""
_REOPEN: Final = frozenset({sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How a budget is shared by the file and its WAL, in pages."""

    database: int
    checkpoint: int
    """Pages in the WAL that begin a checkpoint."""

    @classmethod
    def of(cls, budget_bytes: int) -> Sizes:
        """At least `MIN_BUDGET_BYTES` are used."""
        pages = max(budget_bytes, MIN_BUDGET_BYTES) // PAGE_BYTES
        checkpoint = min(max(pages // 8, 32), 256)
        return cls(database=pages - checkpoint - _TRANSACTION_PAGES, checkpoint=checkpoint)

    @property
    def wal_bytes(self) -> int:
        """A WAL beyond this could not be checkpointed."""
        return (self.checkpoint + _TRANSACTION_PAGES - 4) * _FRAME_BYTES


class OutboxFile:
    """A connection. Every failure is a `StorageError`; the next call tries again."""

    def __init__(self, path: Path, budget_bytes: int) -> None:
        self.path = path
        self.sizes = Sizes.of(budget_bytes)
        self.set_aside: Path | None = None
        """Where a damaged predecessor lies, if there was one at this opening."""
        self.broken = False
        """The connection is to be closed and the file opened anew: it may be damaged."""
        self._wal = path.with_name(path.name + "-wal")
        self._db = self._open()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def select(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed("reading the outbox", error) from error

    @contextlib.contextmanager
    def transaction(self, what: str) -> Iterator[sqlite3.Connection]:
        """What is done in it is durable afterwards, or not done at all."""
        self._bound_wal()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise self._failed(what, error) from error
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def pages(self) -> int:
        """Of the file, free ones included."""
        return int(self.select("PRAGMA page_count")[0][0])

    def used_pages(self) -> int:
        return self.pages() - int(self.select("PRAGMA freelist_count")[0][0])

    def disk_bytes(self) -> int:
        """Of the file and its WAL."""
        total = 0
        for path in (self.path, self._wal):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _storage_error("looking at the outbox's size", error) from error
        return total

    def shrink(self) -> None:
        """Give the space of deleted rows back to the file system."""
        try:
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise self._failed("shrinking the outbox", error) from error

    def _bound_wal(self) -> None:
        """SQLite goes on appending to a WAL whose checkpoints fail; that ends here."""
        try:
            size = self._wal.stat().st_size
        except OSError:
            return
        if size <= self.sizes.wal_bytes:
            return
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise self._failed("writing the outbox's journal back", error) from error

    def _failed(self, what: str, error: sqlite3.Error) -> StorageError:
        self.broken = self.broken or _code(error) in _REOPEN
        return _storage_error(what, error)

    def _open(self) -> sqlite3.Connection:
        for _ in range(2):
            # Twice: to SQLite's check a page that could not be read this time is a damaged one.
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if _code(error) in _DISK:
                    raise _storage_error("opening the outbox", error) from error
        try:
            self.set_aside = self._put_aside()
            return self._connect()
        except (sqlite3.DatabaseError, OSError) as error:
            raise _storage_error("opening the outbox", error) from error

    def _put_aside(self) -> Path:
        """Keep the damaged file, one of them: they count against nobody's budget."""
        for older in self.path.parent.glob(f"{self.path.name}.damaged-*"):
            older.unlink(missing_ok=True)
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        return aside

    def _connect(self) -> sqlite3.Connection:
        # The umask makes a new file private before SQLite creates it with its journal.
        before = os.umask(0o077)
        try:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        finally:
            os.umask(before)
        try:
            for pragma in (
                "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "temp_store=MEMORY",
                f"wal_autocheckpoint={self.sizes.checkpoint}",
                f"journal_size_limit={self.sizes.checkpoint * PAGE_BYTES}",
                f"max_page_count={self.sizes.database}",
            ):  # fmt: skip
                db.execute(f"PRAGMA {pragma}")
            self._prepare(db)
            # If an fsync failed before, the kernel may take what the WAL holds for written while the disk has
            # nothing of it: what comes after it would be lost, too. So it is written anew, and fsync'd.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except BaseException:
            db.close()
            raise
        return db

    def _prepare(self, db: sqlite3.Connection) -> None:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise StorageError(
                f"the outbox was written by a newer version (schema {version})",
                hint="Run the newer version again, or move the file outbox.db away.",
            )
        if version and db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("quick_check found damage")
        steps = [_UPGRADES[old] for old in range(version, SCHEMA_VERSION)] if version else [_SCHEMA]
        if version < SCHEMA_VERSION:
            db.executescript(f"BEGIN; {''.join(steps)} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        if db.execute("SELECT count(*) FROM stream").fetchone()[0] != 1:
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM stream")
            db.execute(
                "INSERT INTO stream (id, done_seq, next_seq) VALUES (?, 0, 1)", (secrets.token_bytes(8),)
            )
            db.execute("COMMIT")


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF


def _storage_error(what: str, error: sqlite3.Error | OSError) -> StorageError:
    return StorageError(f"{what} failed: {error}", hint="Check the disk's free space, mode and health.")
