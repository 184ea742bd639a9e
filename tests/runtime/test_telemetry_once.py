"""A disk that fails in the midst of a commit: what it has all the same is not stored a second time."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from tests.runtime.outbox_rows import STAMP, event, window_bytes, windows_of
from tests.waiting import wait_until

from skerry_contract.errors import StorageError
from skerry_contract.messages import Event, EventBatch, decode
from skerry_runtime.agent import telemetry as module
from skerry_runtime.agent.outbox import MIN_BUDGET_BYTES, Gap, Kind, Outbox, Priority, Row, Stamp
from skerry_runtime.agent.outbox_file import OutboxFile
from skerry_runtime.agent.telemetry import Telemetry


class Unsure(Outbox):
    """The first commit of each kind fails; with ``has`` the disk has it all the same."""

    has = True
    failing: set[str]

    def append_window(self, summary: bytes, stamp: Stamp, *, offer: bool = False) -> int:
        return self._unsurely("window", lambda: Outbox.append_window(self, summary, stamp, offer=offer))

    def append_events(
        self,
        events: Sequence[Event],
        priority: Priority,
        stamp: Stamp,
        *,
        offer: bool = False,
        telling: Sequence[Gap] = (),
    ) -> int:
        return self._unsurely(
            priority.name,
            lambda: Outbox.append_events(self, events, priority, stamp, offer=offer, telling=telling),
        )

    def give_up_unstored(self, counts: Mapping[Priority, int], reason: str) -> int:
        return self._unsurely("lost", lambda: Outbox.give_up_unstored(self, counts, reason))

    def _unsurely(self, kind: str, commit: Callable[[], int]) -> int:
        if kind not in self.failing:
            return commit()
        self.failing.discard(kind)
        if self.has:
            commit()
        self._file.broken = True
        raise StorageError("storing telemetry failed: disk I/O error")


@pytest.fixture(params=[True, False], ids=["it-has-it", "it-has-it-not"])
def unsure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Unsure]:
    monkeypatch.setattr(Unsure, "has", request.param)
    monkeypatch.setattr(Unsure, "failing", {"window", "AUDIT", "DETAIL", "lost"}, raising=False)
    monkeypatch.setattr(module, "Outbox", Unsure)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    return Unsure


def numbers_in(rows: Sequence[Row]) -> list[int]:
    return sorted(
        int(told.data["number"])
        for row in rows
        if row.kind is Kind.EVENTS
        for told in decode(row.frame.body, EventBatch).events
    )


def test_a_commit_that_the_disk_refused_and_has_is_not_repeated(tmp_path: Path, unsure: type[Unsure]) -> None:
    telemetry = Telemetry(tmp_path / "outbox.db", MIN_BUDGET_BYTES, lambda channel, body: True, lambda: STAMP)
    telemetry._note_lost(Priority.WINDOW)
    telemetry.start()
    for number in range(1, 7):
        telemetry.add_window(window_bytes(number))
        telemetry.add_event(event(number=number), critical=bool(number % 2))
    wait_until(lambda: not unsure.failing, "each kind of commit has failed once")
    telemetry.stop(60.0)
    outbox = Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES)
    rows = outbox.rows_after(0, 1000)
    assert windows_of(rows) == Counter(range(1, 7))
    assert numbers_in(rows) == list(range(1, 7))
    assert [(gap.items, gap.reason) for gap in outbox.gaps()] == [(1, "disk")]
    outbox.close()


def test_what_an_earlier_process_left_in_the_journal_is_written_anew_at_the_opening(tmp_path: Path) -> None:
    """An fsync of it may have failed, and then a later one says yes although the disk has nothing."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    for number in range(1, 6):
        outbox.append_window(window_bytes(number), STAMP)
    copy = tmp_path / "killed"
    copy.mkdir()
    for file in tmp_path.glob("outbox.db*"):
        shutil.copy(file, copy)
    outbox.close()
    assert (copy / "outbox.db-wal").stat().st_size > 0
    again = Outbox(copy / "outbox.db", MIN_BUDGET_BYTES)
    assert (copy / "outbox.db-wal").stat().st_size == 0
    assert windows_of(again.rows_after(0, 100)) == Counter(range(1, 6))
    again.close()


def test_a_page_that_cannot_be_read_once_does_not_begin_a_new_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To SQLite's check it is a damaged page."""
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    outbox.append_window(window_bytes(1), STAMP)
    outbox.close()
    honest, failures = OutboxFile._prepare, [True]

    def prepare(self: OutboxFile, db: sqlite3.Connection) -> None:
        if failures and failures.pop():
            raise sqlite3.DatabaseError("quick_check found damage")
        honest(self, db)

    monkeypatch.setattr(OutboxFile, "_prepare", prepare)
    again = Outbox(path, MIN_BUDGET_BYTES)
    assert (failures, again.set_aside, again.stream) == ([], None, outbox.stream)
    again.close()


def test_a_disk_that_does_not_even_tell_sizes_does_not_end_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    telemetry = Telemetry(tmp_path / "outbox.db", MIN_BUDGET_BYTES, lambda channel, body: True, lambda: STAMP)
    honest = Path.stat

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.name == "outbox.db":
            raise OSError(errno.EIO, "Input/output error")
        return honest(self, follow_symlinks=follow_symlinks)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", stat)
        telemetry.start()
        telemetry.add_window(window_bytes(1))
        wait_until(lambda: "Input/output error" in telemetry.status().error, "it says what failed")
    telemetry.add_window(window_bytes(2))
    wait_until(
        lambda: telemetry.status().waiting_rows == 2 and not telemetry.status().error, "both are stored"
    )
    telemetry.stop(60.0)
