"""The database: one writer, many readers, short transactions.

SQLite runs in WAL mode with ``synchronous=FULL``: what a caller was told is committed survives a power cut.
All writes go through one connection behind one lock, and no other connection ever checkpoints, because SQLite
before 3.51.3 can corrupt its WAL when two connections do.

Tables are declared by each feature in its ``tables.py`` on the `metadata` of this file.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.pool import QueuePool, StaticPool

from skerry_contract.errors import StorageError

from .files import storage_error

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Database:
    """SQLite in one file. `write` and `read` are the only ways in."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite gives its side files the mode of the database, so that comes first.
            path.touch(mode=0o600)
        except OSError as error:
            raise storage_error(f"the database {path} cannot be opened", error) from error
        url = sa.URL.create("sqlite", database=str(path))
        arguments = {"check_same_thread": False, "timeout": 30.0}
        self._writer = sa.create_engine(url, poolclass=StaticPool, connect_args=arguments)
        self._readers = sa.create_engine(
            url, poolclass=QueuePool, pool_size=8, max_overflow=32, connect_args=arguments
        )
        self._lock = threading.Lock()
        self._owner: int | None = None
        _prepare(self._writer, writer=True)
        _prepare(self._readers, writer=False)
        try:
            self._writer.connect().close()
        except sa.exc.DatabaseError as error:
            raise StorageError(
                f"the database {path} cannot be opened: {error.orig}",
                hint="Check that the folder is writable and the file is a Skerry fleet database.",
            ) from error

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """One transaction that may write; committed at the end, rolled back by an exception. Keep it short.

        Raises:
            StorageError: the disk is full, read-only or failing.
        """
        if self._owner == threading.get_ident():
            raise RuntimeError("transactions do not nest: pass the connection on")
        with self._lock:
            self._owner = threading.get_ident()
            try:
                with self._writer.begin() as connection:
                    yield connection
            except sa.exc.OperationalError as error:
                raise StorageError(
                    f"the database could not be written: {error.orig}",
                    hint="Check free space and permissions of the data folder; nothing was changed.",
                ) from error
            finally:
                self._owner = None

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A consistent snapshot; writing fails."""
        with self._readers.begin() as connection:
            yield connection

    def close(self) -> None:
        """Readers first, so that the writer is the one that checkpoints."""
        self._readers.dispose()
        with self._lock:
            self._writer.dispose()


def _prepare(engine: sa.Engine, *, writer: bool) -> None:
    # pysqlite's own transaction handling is switched off: it would begin late and never for a SELECT.
    begin = "BEGIN IMMEDIATE" if writer else "BEGIN"
    pragmas = (
        ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON")
        if writer
        else ("query_only=ON", "wal_autocheckpoint=0")
    )

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql(begin)
