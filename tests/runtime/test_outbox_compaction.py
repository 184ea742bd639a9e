"""A full buffer merges windows before it gives up any: exactly, in order, never what may have been sent."""

from __future__ import annotations

import functools
import itertools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.outbox_rows import (
    HOUR_MS,
    STAMP,
    disk_bytes,
    event,
    tiny_budget,
    window,
    window_bytes,
    windows_of,
)

from skerry_contract.summary import CLOCK_NONE, Flags, LabelCount, WindowSummary, decode, encode, merge
from skerry_runtime.agent import compaction
from skerry_runtime.agent.outbox import MIN_BUDGET_BYTES, Outbox, Priority

SIX_HOURS, DAY, WEEK = compaction.LEVELS_MS


def planned(*summaries: WindowSummary, span: int = SIX_HOURS) -> list[tuple[tuple[int, ...], int]]:
    rows = [(number, encode(summary)) for number, summary in enumerate(summaries, 1)]
    return [(merged.gone, merged.kept) for merged in compaction.plan(rows, span)[0]]


# --- what is merged ---


def test_hours_become_six_hours_then_a_day_then_a_week() -> None:
    hours = [window(number) for number in range(1, 25)]
    assert planned(*hours)[0] == ((1, 2, 3, 4, 5), 6)
    assert len(planned(*hours)) == 4
    assert planned(*hours, span=DAY) == [(tuple(range(1, 24)), 24)]
    assert len(planned(*[window(number) for number in range(1, 24 * 8)], span=WEEK)) == 2


def test_a_merged_window_is_what_the_contract_says_and_marked() -> None:
    hours = [window(number, rows=number) for number in range(1, 7)]
    (merged,), _ = compaction.plan([(n, encode(hour)) for n, hour in enumerate(hours, 1)], SIX_HOURS)
    expected = functools.reduce(merge, hours)
    assert decode(merged.body) == replace(expected, flags=Flags.COMPACTED)
    assert expected.rows == 21


def test_windows_of_two_models_that_take_turns_are_merged_each_with_its_own() -> None:
    other = b"another!"
    turns = [window(n, bundle=other) if n % 2 else window(n) for n in range(1, 7)]
    assert planned(*turns) == [((1, 3), 5), ((2, 4), 6)]


@pytest.mark.parametrize(
    "second",
    {
        "another spec": window(2, spec_hash=b"12345678"),
        "private": window(2, flags=Flags.DP),
        "clock not set": window(2, clock_quality=CLOCK_NONE),
        "clock stepped in between": window(2, start_utc_ms=window(2).start_utc_ms + 60_000),
        "clock ten years ahead": window(2, boot=b"b" * 16, start_utc_ms=2_100_000_000_000),
        "other features": window(2, features=()),
        "a block of a newer version": window(2, unknown=((9, b"new"),)),
        "too long": window(2, duration_ms=6 * HOUR_MS),
    }.items(),
    ids=lambda pair: pair[0],
)
def test_windows_that_do_not_belong_together_stay_apart(second: tuple[str, WindowSummary]) -> None:
    assert planned(window(1), second[1]) == []


def test_without_a_set_clock_only_windows_of_one_boot_are_merged() -> None:
    unset = [window(n, clock_quality=CLOCK_NONE) for n in (1, 2)]
    assert planned(*unset) == [((1,), 2)]
    assert planned(unset[0], replace(unset[1], boot=b"b" * 16)) == []
    # With a set clock a restart of the machine is no border.
    assert planned(window(1), window(2, boot=b"b" * 16)) == [((1,), 2)]


def test_a_merged_window_never_grows_beyond_what_the_fleet_reads() -> None:
    labels = tuple(LabelCount(window=2**40 + n, truth=1, predicted=2, count=2**30) for n in range(3000))
    large = [window(1, labels=labels), window(2)]
    large[1] = replace(large[1], labels=tuple(replace(label, window=label.window * 2) for label in labels))
    assert len(encode(large[0])) < 64 * 1024 < 2 * len(encode(large[0]))
    assert planned(*large) == []


def test_what_cannot_be_read_is_left_for_the_fleet_to_judge() -> None:
    rows = [(1, b"nonsense"), (2, encode(window(2))), (3, b""), (4, encode(window(4)))]
    merges, _ = compaction.plan(rows, SIX_HOURS)
    assert [(merged.gone, merged.kept) for merged in merges] == [((2,), 4)]


# --- in the outbox ---


def test_a_full_buffer_loses_no_window_while_merging_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "outbox.db", tiny_budget(monkeypatch, 16))
    for number in range(1, 401):
        outbox.append_window(window_bytes(number), STAMP)
    assert outbox.gaps() == []
    assert outbox.merged > 200
    assert outbox.waiting() == 400 - outbox.merged
    rows = outbox.rows_after(0, 1000)
    assert windows_of(rows) == Counter(range(1, 401))
    lengths = [decode(row.frame.body).duration_ms // HOUR_MS for row in rows]
    assert max(lengths) <= 7 * 24
    # The newest are as fine as they were.
    assert lengths[-3:] == [1, 1, 1]
    previous = 0
    for row in rows:
        assert row.frame.prev in (previous, row.frame.first - 1)
        assert row.frame.first > row.frame.acked
        previous = row.frame.last


def test_events_between_windows_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox = Outbox(tmp_path / "outbox.db", tiny_budget(monkeypatch, 24))
    for number in range(1, 251):
        outbox.append_window(window_bytes(number), STAMP)
        if number % 10 == 0:
            outbox.append_events([event("update.staged", number=number)], Priority.AUDIT, STAMP)
    assert outbox.merged
    assert outbox.gaps() == []
    rows = outbox.rows_after(0, 1000)
    assert windows_of(rows) == Counter(range(1, 251))
    assert [row.frame.first for row in rows] == sorted(row.frame.first for row in rows)
    for before, after in itertools.pairwise(rows):
        assert (after.frame.prev, before.frame.last < after.frame.first) == (before.frame.last, True)


def test_what_may_have_been_sent_is_never_merged_even_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = tiny_budget(monkeypatch, 16)
    outbox = Outbox(tmp_path / "outbox.db", budget)
    for number in range(1, 11):
        outbox.append_window(window_bytes(number), STAMP)
    sent = [row.frame for row in outbox.rows_to_send(0, 8)]
    outbox.append_window(window_bytes(11), STAMP, offer=True)
    outbox.close()
    outbox = Outbox(tmp_path / "outbox.db", budget)
    for number in range(12, 200):
        outbox.append_window(window_bytes(number), STAMP)
    assert outbox.merged
    kept = {frame.first: frame.body for frame in (row.frame for row in outbox.rows_after(0, 1000))}
    assert all(kept[frame.first] == frame.body for frame in sent)
    # The one that was offered at once is the newest of those: nothing up to it may change.
    assert set(range(1, 12)) <= set(kept)


def test_an_acknowledgement_names_the_rows_that_go_next(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES)
    for number in range(1, 11):
        outbox.append_window(window_bytes(number), STAMP)
    outbox.rows_to_send(0, 2)
    outbox.acknowledge(outbox.stream, 2, offer_rows=3)
    stored = outbox._file.select("SELECT offered_seq FROM stream")
    assert stored == [(5,)]


def test_windows_that_cannot_be_merged_go_last_and_are_accounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "outbox.db", tiny_budget(monkeypatch, 16))
    outbox.append_events([event("update.confirmed")], Priority.AUDIT, STAMP)
    for number in range(1, 201):
        outbox.append_window(window_bytes(number, bundle=number.to_bytes(8, "big")), STAMP)
    assert outbox.merged == 0
    lost = sum(gap.items for gap in outbox.gaps())
    assert lost > 0
    rows = outbox.rows_after(0, 1000)
    assert rows[0].frame.last == 1
    assert windows_of(rows) == Counter(range(lost + 1, 201))


def test_the_gap_of_a_merged_window_counts_all_that_were_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "outbox.db", tiny_budget(monkeypatch, 16))
    appended = 0
    while not outbox.gaps():
        appended += 1
        # Eight weeks apart: of those of one day each, nothing can be merged further.
        start = window(appended).start_utc_ms + appended // 24 * 8 * WEEK
        outbox.append_window(window_bytes(appended, start_utc_ms=start, boot=os.urandom(16)), STAMP)
    held = windows_of(outbox.rows_after(0, 10_000))
    assert outbox.merged
    assert sum(gap.items for gap in outbox.gaps()) == appended - len(held)
    assert max(held.values()) == 1


def test_file_and_journal_stay_within_the_budget_whatever_comes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES)
    largest = 0
    for number in range(1, 400):
        outbox.append_window(window_bytes(number), STAMP)
        if number % 3 == 0:
            noise = [event(noise=os.urandom(6000).hex())] * 2
            outbox.append_events(noise, Priority.DETAIL, STAMP)
        largest = max(largest, disk_bytes(tmp_path))
        if number % 100 == 0:
            row = outbox.rows_to_send(outbox.done_seq, 20)[-1]
            outbox.acknowledge(outbox.stream, row.frame.last)
    assert outbox.gaps()
    assert largest <= MIN_BUDGET_BYTES
    assert outbox.disk_bytes() == disk_bytes(tmp_path)


def test_an_outbox_that_was_emptied_gives_its_space_back(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", 16 << 20)
    for _ in range(12):
        outbox.append_events([event(noise=os.urandom(90_000).hex())] * 2, Priority.AUDIT, STAMP)
    assert (tmp_path / "outbox.db").stat().st_size > 1 << 20
    stream = outbox.stream
    last = outbox.append_window(b"last", STAMP)
    outbox.acknowledge(stream, last)
    assert disk_bytes(tmp_path) < 100_000
    outbox.close()
    again = Outbox(tmp_path / "outbox.db", 16 << 20)
    assert (again.stream, again.done_seq, again.append_window(b"next", STAMP)) == (stream, last, last + 1)
