"""The outbox on disks that are full, failing, read-only or rotten, and on files of other versions."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import pytest
from tests.runtime.outbox_rows import STAMP, event, execute, window_bytes, windows_of

from skerry_contract.errors import StorageError
from skerry_contract.messages import EventBatch, decode
from skerry_runtime.agent.outbox import MIN_BUDGET_BYTES, Kind, Outbox, Priority
from skerry_runtime.agent.outbox_file import SCHEMA_VERSION

WINDOWS = 12

OPENER = """
import sys
from pathlib import Path
from skerry_runtime.agent.outbox import Outbox
Outbox(Path(sys.argv[1]), 0)
"""
V1 = """
CREATE TABLE outbox(first_seq INTEGER PRIMARY KEY, last_seq INT NOT NULL, kind INT NOT NULL,
  prio INT NOT NULL, codec INT NOT NULL, boot_id BLOB NOT NULL, mono_ns INT NOT NULL, wall_ms INT NOT NULL,
  clock_q INT NOT NULL, crc INT NOT NULL, body BLOB NOT NULL);
CREATE TABLE gaps(from_seq INT NOT NULL, to_seq INT NOT NULL, prio INT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE stream(id BLOB NOT NULL, done_seq INT NOT NULL, next_seq INT NOT NULL);
PRAGMA user_version=1;
"""


@pytest.mark.attack
@pytest.mark.parametrize(
    "fault",
    [
        "pwrite64:error=ENOSPC:when=30..45",
        "pwrite64:error=EIO:when=25..40",
        "pwrite64:error=EROFS:when=20..35",
        "fdatasync:error=EIO:when=5..9",
        "fdatasync:error=EIO:when=4+7",
        "openat:error=ENOSPC:when=1..6",
    ],
)
def test_l2_a_disk_that_fails_for_a_while_loses_nothing_and_stops_nobody(
    tmp_path: Path, root: Path, fault: str
) -> None:
    call = fault.partition(":")[0]
    files = [tmp_path / f"outbox.db{suffix}" for suffix in ("", "-wal", "-journal")]
    command = ["strace", "-f", "-qq", "-o", str(tmp_path / "trace"), "-e", f"trace={call}"]
    command += [argument for file in files for argument in ("-P", str(file))]
    command += ["-e", f"inject={fault}", sys.executable, "-m", "tests.runtime.telemetry_child"]
    done = subprocess.run(
        [*command, str(tmp_path), str(WINDOWS)], cwd=root, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert "(INJECTED)" in (tmp_path / "trace").read_text()
    assert said["lost"] == 0
    assert said["slowest_s"] < 5.0
    outbox = Outbox(tmp_path / "outbox.db", 64 << 20)
    assert outbox.set_aside is None
    rows = outbox.rows_after(0, 1000)
    assert windows_of(rows) == Counter(range(1, WINDOWS + 1))
    events = [
        told.data["number"]
        for row in rows
        if row.kind is Kind.EVENTS
        for told in decode(row.frame.body, EventBatch).events
    ]
    assert events == list(range(1, WINDOWS + 1))
    assert [row.frame.first for row in rows] == list(range(1, 2 * WINDOWS + 1))
    assert outbox.gaps() == []


@pytest.mark.attack
def test_l4_an_outbox_that_rots_while_it_is_open_asks_to_be_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    for _ in range(20):
        outbox.append_events([event(noise=os.urandom(3000).hex())], Priority.AUDIT, STAMP)
    outbox.close()
    pages = path.stat().st_size // 4096
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    with path.open("r+b") as file:
        for page in range(1, pages):
            file.seek(page * 4096)
            file.write(os.urandom(4096))
    outbox._file.select("PRAGMA shrink_memory")  # else the pages that were read stay in memory
    with pytest.raises(StorageError):
        outbox.rows_after(0, 100)
    assert outbox.broken
    outbox.close()
    again = Outbox(path, MIN_BUDGET_BYTES)
    assert again.set_aside is not None
    assert again.stream != outbox.stream


def test_of_damaged_files_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for _ in range(3):
        path.write_bytes(b"no database, and longer than a header of one hundred bytes" * 9)
        Outbox(path, MIN_BUDGET_BYTES).close()
    assert len(list(tmp_path.glob("outbox.db.damaged-*"))) == 1


def test_a_file_of_the_first_version_is_upgraded_and_its_rows_are_never_merged(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    db.executescript(V1)
    db.execute("INSERT INTO stream VALUES (?, 3, 10)", (b"stream-1",))
    db.execute("INSERT INTO gaps VALUES (5, 6, 1, 'budget')")
    body = window_bytes(1)
    crc = zlib.crc32(body)
    db.execute("INSERT INTO outbox VALUES (4,4,0,1,0,?,1,2,1,?,?)", (bytes(16), crc, body))
    db.execute("INSERT INTO outbox VALUES (7,9,1,2,0,?,1,2,1,?,?)", (bytes(16), crc, body))
    db.commit()
    db.close()
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    assert (outbox.stream, outbox.done_seq, outbox.waiting(), outbox.set_aside) == (b"stream-1", 3, 2, None)
    assert [(gap.first, gap.last, gap.items, gap.told) for gap in outbox.gaps()] == [(5, 6, 2, False)]
    assert outbox._file.select("SELECT offered_seq, merged FROM stream") == [(9, 0)]
    assert outbox._file.select("SELECT items FROM outbox") == [(1,), (3,)]
    assert outbox._file.select("PRAGMA user_version") == [(SCHEMA_VERSION,)]
    assert outbox.append_window(body, STAMP) == 10


def test_an_upgrade_that_is_killed_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    db = sqlite3.connect(path)
    db.executescript(V1)
    db.execute("INSERT INTO stream VALUES (?, 0, 1)", (b"stream-1",))
    db.commit()
    db.close()
    for when in (1, 2, 3):
        subprocess.run(
            ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64",
             "-e", f"inject=pwrite64:signal=KILL:when={when}", sys.executable, "-c",
             OPENER, str(path)],
            check=False, timeout=60, capture_output=True,
        )  # fmt: skip
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    assert (outbox.stream, outbox.set_aside) == (b"stream-1", None)
    assert outbox.append_window(b"x", STAMP) == 1


def test_a_row_that_is_too_large_for_what_is_left_is_given_up_not_waited_for(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES)
    with contextlib.suppress(StorageError):
        while True:
            outbox.append_events([event(noise=os.urandom(9000).hex())], Priority.AUDIT, STAMP)
    last = outbox.append_window(os.urandom(60_000), STAMP)
    (gap,) = outbox.gaps()
    assert (gap.first, gap.last, gap.items, gap.priority) == (last, last, 1, Priority.WINDOW)


def test_gaps_that_pile_up_are_joined_and_stay_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skerry_runtime.agent.outbox.GAPS", 8)
    outbox = Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES)
    for number in range(40):
        outbox.give_up_unstored({Priority.WINDOW if number % 2 else Priority.DETAIL: 2}, "disk")
    gaps = outbox.gaps()
    assert len(gaps) <= 9
    assert sum(gap.items for gap in gaps) == 80
    assert [n for gap in gaps for n in range(gap.first, gap.last + 1)] == list(range(1, 81))


def test_a_gap_stays_until_it_was_told_even_when_what_follows_is_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    outbox.append_window(b"1", STAMP)
    outbox.append_window(b"2", STAMP)
    outbox.close()
    execute(path, "UPDATE outbox SET body = ? WHERE first_seq = 1", b"rotten")
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    assert [row.frame.first for row in outbox.rows_after(0, 9)] == [2]
    outbox.acknowledge(outbox.stream, 2)
    (gap,) = outbox.gaps()
    outbox.close()
    outbox = Outbox(path, MIN_BUDGET_BYTES)
    assert outbox.gaps() == [gap]
    outbox.acknowledge(outbox.stream, outbox.append_events([event()], Priority.AUDIT, STAMP, telling=[gap]))
    assert outbox.gaps() == []
