"""The judges of the torture: what must not be is found, what may be is let pass."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.torture.board import Board, Note
from tests.torture.cuts import cut_cases
from tests.torture.full import full_cases
from tests.torture.judge_models import Truth, faults_of_next
from tests.torture.judge_outbox import faults_of_outbox
from tests.torture.kills import fault_cases, kill_cases
from tests.torture.mistakes import MISTAKES, plant
from tests.torture.order import names_after_failed_fsync, order_cases
from tests.torture.proofs import MEANS_OF_MISTAKES
from tests.torture.results import Proof, Report, Result
from tests.torture.runs import case_of, sample

BEFORE: dict[str, Any] = {"current": 2, "previous": 1, "pending": None, "floor": 1, "bad": []}
FOUND = {**BEFORE, "answers": 2, "faults": []}


def notes(*facts: dict[str, Any]) -> list[Note]:
    """Made at 1, 2, 3 ... ns."""
    return [Note(number, fact) for number, fact in enumerate(facts, start=1)]


PENDING = ({"may": "pending", "release": 3}, {"is_": "pending", "release": 3, "tries": 3})
CONFIRMED = ({"may": "current", "release": 3}, {"is_": "current", "release": 3, "floor": 2})


def judged(facts: list[Note], before_ns: int | None = None, **found: Any) -> list[str]:
    truth = Truth.of(BEFORE)
    truth.follow(facts, before_ns)
    return truth.faults({**FOUND, **found})


# --- models ------------------------------------------------------------------------------------------


def test_nothing_happened_and_nothing_changed() -> None:
    assert judged([]) == []


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"answers": None}, "release None answers"),
        ({"answers": 1}, "release 1 answers"),
        ({"current": 1}, "the pointer names 1"),
        ({"floor": 0}, "floor fell from 1 to 0"),
        ({"pending": 3}, "release 3 is on trial"),
        ({"faults": ["Traceback"]}, "a traceback"),
    ],
)
def test_a_device_that_came_back_otherwise_is_found(found: dict[str, Any], words: str) -> None:
    assert [fault for fault in judged([], **found) if words in fault]


def test_what_was_begun_may_be_there_or_not() -> None:
    begun = notes(PENDING[0])
    assert judged(begun) == []
    assert judged(begun, pending=3, answers=3) == []
    assert judged(begun, pending=4)


def test_what_was_promised_must_be_there() -> None:
    done = notes(*PENDING)
    assert judged(done, pending=3, answers=3) == []
    assert judged(done) == ["release 3 was on trial and is forgotten"]
    confirmed = notes(*PENDING, *CONFIRMED, {"is_": "no pending"})
    assert judged(confirmed, answers=3, current=3, previous=2, floor=2) == []
    assert judged(confirmed, floor=2)
    assert judged(confirmed, answers=3, current=3)  # the floor is too low
    quarantined = notes({"may": "bad", "digest": "x"}, {"is_": "bad", "digest": "x"})
    assert judged(quarantined, bad=["x"]) == []
    assert judged(quarantined) == ["1 quarantined bundles are forgotten"]


def test_a_promise_that_came_after_the_power_went_may_be_lost() -> None:
    cut = notes(*PENDING)
    assert judged(cut, before_ns=2) == []
    assert judged(cut, before_ns=2, pending=3, answers=3) == []
    assert judged(cut, before_ns=3)


def test_the_next_install_must_work_and_leave_nothing() -> None:
    good = {"answers": 6, "current": 6, "state": "confirmed", "leftovers": [], "faults": [], "errors": []}
    assert faults_of_next(good, 6) == []
    assert faults_of_next({**good, "leftovers": ["store/x.part"]}, 6) == ["leftovers: store/x.part"]
    assert faults_of_next({**good, "answers": 2}, 6)


# --- the outbox ----------------------------------------------------------------------------------------

OPENED = {"is_": "opened", "stream": "s"}
EMPTY: dict[str, Any] = {
    "stream": "s", "aside": False, "done": 0, "rows": [], "gaps": [], "appended": 9, "kept": True, "left": 0,
    "leftovers": [],
}  # fmt: skip


def row(number: int, count: int = 1) -> dict[str, Any]:
    return {"first": number, "last": number, "windows": [[number, count]], "events": [], "gaps": 0}


def window(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"may": "window", "number": number}, {"is_": "window", "number": number, "last": number}


def outbox(*facts: dict[str, Any], before_ns: int | None = None, **found: Any) -> list[str]:
    return faults_of_outbox(notes(OPENED, *facts), {**EMPTY, **found}, before_ns)


def test_every_promised_window_is_on_the_device_or_at_the_fleet_once() -> None:
    assert outbox(*window(1), rows=[row(1)]) == []
    assert outbox(*window(1)) == ["1 promised windows are lost (1), gaps account for 0"]
    assert outbox(*window(1), rows=[row(1, 2)]) == ["windows are there twice: 1"]
    assert outbox(rows=[row(1)]) == ["windows that nobody wrote: 1"]
    committed = {"is_": "committed", **row(1)}
    assert outbox(*window(1), committed, rows=[row(1)]) == []
    acknowledged = ({"may": "acknowledged", "seq": 1}, {"is_": "acknowledged", "seq": 1})
    assert outbox(*window(1), committed, *acknowledged, done=1) == []
    assert outbox(*window(1), *acknowledged, done=1), "the broker had it, the fleet never"
    assert outbox(*window(1), committed, *acknowledged, done=0)


def test_gaps_account_for_what_was_given_up() -> None:
    lost = (*window(1), *window(2))
    assert outbox(*lost, rows=[row(1)], gaps=[[2, 2, 1, 0]]) == []
    assert outbox(*lost, gaps=[[2, 2, 1, 0]])


@pytest.mark.parametrize(
    "found",
    [{"stream": "t"}, {"aside": True}, {"appended": 1}, {"kept": False}, {"left": 1}, {"leftovers": ["x"]}],
)
def test_a_stream_that_is_not_the_same_any_more_is_found(found: dict[str, Any]) -> None:
    assert outbox(*window(1), **{"rows": [row(1)], **found})


def test_a_row_that_was_promised_after_the_power_went_may_be_lost() -> None:
    assert outbox(*window(1), before_ns=3) == []
    assert outbox(*window(1), before_ns=4)


# --- the rest --------------------------------------------------------------------------------------------


def test_a_file_whose_fsync_failed_gets_no_name_before_it_is_written_again() -> None:
    failed = "7 fsync(3</d/x.tmp>) = -1 EIO (Input/output error) (INJECTED)"
    renamed = '7 rename("/d/x.tmp", "/d/x") = 0'
    anew = '7 openat(AT_FDCWD</>, "/d/x.tmp", O_WRONLY|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 3</d/x.tmp>'
    again = "7 fsync(3</d/x.tmp>) = 0"
    assert names_after_failed_fsync("\n".join([failed, again, renamed]))
    assert names_after_failed_fsync("\n".join([failed, anew, again, renamed])) == []
    assert names_after_failed_fsync("\n".join([again, renamed])) == []


def test_a_case_is_found_by_its_name() -> None:
    counts = {"install": Counter({"fsync": 2}), "outbox-write": Counter({"pwrite64": 1})}
    cases = [
        *kill_cases(counts),
        *fault_cases(counts, 1, every=True),
        *order_cases(counts),
        *full_cases(("ext4", "xfs")),
        *cut_cases(1, 1, ("ext4", "xfs")),
    ]
    assert len({case.name for case in cases}) == len(cases)
    assert [case_of(case.name).name for case in cases] == [case.name for case in cases]
    for wrong in ("kill/install/fsync", "kill/nothing/fsync/1", "cut/ntfs/models/1", ""):
        with pytest.raises(ValueError, match="there is no case"):
            case_of(wrong)


def test_a_sample_is_drawn_by_its_seed() -> None:
    cases = list(cut_cases(50, 1, ("ext4",)))
    drawn = [case.name for case in sample(cases, 10, 3)]
    assert len(drawn) == 10
    assert drawn == [case.name for case in sample(cases, 10, 3)]
    assert drawn != [case.name for case in sample(cases, 10, 4)]
    assert len(sample(cases, 0, 3)) == len(cases)


def test_every_mistake_has_a_means_and_an_unknown_one_is_no_mistake() -> None:
    assert set(MEANS_OF_MISTAKES) == set(MISTAKES)
    with pytest.raises(KeyError):
        plant("no_such_mistake")


def test_a_report_counts_and_names_what_was_bad(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(
        seed=1,
        machine={},
        results=(
            Result(name="kill/install/fsync/1", faults=(), seconds=0.1),
            Result(name="cut/ext4/models/1-0", faults=("the floor fell",), seconds=0.1),
        ),
        proofs=(
            Proof(mistake="no_fsync", tried={"order": 2}, caught={"order": 2}),
            Proof(mistake="fsync_retried", tried={"order": 40}, caught={}),
        ),
    )
    report.show()
    said = capsys.readouterr().out
    for words in (
        "power cut, ext4, models",
        "NOT CAUGHT",
        "1/2 planted",
        "BAD cut/ext4/models/1-0",
        "the floor fell",
    ):
        assert words in said
    told = report.as_json()
    assert [(row["cases"], row["bad"]) for row in told["means"]] == [(1, 0), (1, 1)]
    assert len(report.uncaught) == 1


def test_a_board_keeps_its_notes_in_order() -> None:
    board = Board(Board.create())
    board.clear()
    assert board.empty
    for number in range(3):
        board.note(number=number)
    found = board.notes()
    assert [note.facts["number"] for note in found] == [0, 1, 2]
    assert [note.at_ns for note in found] == sorted(note.at_ns for note in found)
    board.begin()
    assert board.may_begin
    board.clear()
    assert not board.may_begin
    assert board.notes() == []
