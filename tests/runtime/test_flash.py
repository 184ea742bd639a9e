"""The flash ledger: counted by the kernel, bounded, kept over restarts, honest about what it assumes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.runtime.outbox_rows import STAMP, event

from skerry_contract.messages import Event, encode
from skerry_runtime.agent.flash import (
    DAY_MS,
    DAYS,
    DEPLOYMENTS,
    Endurance,
    FlashLedger,
    Totals,
    Written,
    kernel_counts,
    with_card_size,
)
from skerry_runtime.agent.outbox import MIN_BUDGET_BYTES, Outbox, Priority

CARD = Endurance(card_bytes=8 << 30, cycles=1000, amplification=4.0)


class Kernel:
    """What the kernel has charged."""

    def __init__(self) -> None:
        self.outbox = self.other = 0

    def __call__(self) -> Written:
        return Written(self.outbox, self.outbox + self.other)


def update(state: str, transaction: str = "t-1") -> Event:
    return Event(
        kind=f"update.{state}", wall_ms=0, mono_ms=0, boot="", transaction=transaction, model="digits",
        digest="sha256:" + "ab" * 32,
    )  # fmt: skip


def test_bytes_are_told_apart_by_outbox_day_and_deployment() -> None:
    kernel = Kernel()
    ledger = FlashLedger(kernel)
    ledger.sample(0, 0)
    ledger.stored([update("downloading")])
    kernel.outbox, kernel.other = 4096, 34_000_000
    ledger.sample(10, 0)
    ledger.stored([update("confirmed")])
    kernel.outbox, kernel.other = 8192, 34_500_000
    ledger.sample(20, DAY_MS)
    told = ledger.status(CARD)
    assert (told["outbox_bytes"], told["other_bytes"], told["events"]) == (8192, 34_500_000, 2)
    assert told["days"] == [
        {"day": 0, "outbox_bytes": 4096, "other_bytes": 34_000_000},
        {"day": 1, "outbox_bytes": 4096, "other_bytes": 500_000},
    ]
    assert [
        (one["transaction"], one["digest"], one["bytes"], one["ended"]) for one in told["deployments"]
    ] == [("t-1", "ab" * 8, 34_000_000, True)]


def test_the_life_of_the_card_follows_from_what_is_assumed_and_that_is_said() -> None:
    kernel = Kernel()
    ledger = FlashLedger(kernel)
    ledger.sample(0, 0)
    kernel.outbox = 100 << 20
    ledger.sample(1800, 0)
    assert ledger.status(CARD)["card_years"] is None  # half an hour says nothing
    ledger.sample(86_400, 0)
    told = ledger.status(CARD)
    assert told["bytes_per_day"] == 100 << 20
    assert told["card_years"] == round((8 << 30) * 1000 / 4.0 / (100 << 20) / 365.25, 1)
    assert told["assumed"] == {
        "tbw_bytes": 0, "card_bytes": 8 << 30, "cycles": 1000, "amplification": 4.0,
    }  # fmt: skip
    # What the maker names counts instead of size and cycles.
    by_maker = ledger.status(Endurance(tbw_bytes=30 * 10**12, amplification=2.0))
    assert by_maker["card_years"] == round(30e12 / 2.0 / (100 << 20) / 365.25, 1)


def test_where_the_kernel_does_not_tell_nothing_is_claimed() -> None:
    ledger = FlashLedger(lambda: Written(None, None))
    ledger.sample(0, 0)
    ledger.sample(86_400, 0)
    told = ledger.status(CARD)
    assert (told["measured"], told["bytes_per_day"], told["card_years"]) == (False, None, None)


def test_the_ledger_stays_small_for_years() -> None:
    kernel = Kernel()
    ledger = FlashLedger(kernel)
    for day in range(2000):
        kernel.outbox += 10**12
        kernel.other += 10**12
        ledger.stored([update("downloading", "f" * 32 + str(day))])
        ledger.sample(day * 86_400, day * DAY_MS)
    assert len(ledger.totals.days) == DAYS
    assert len(ledger.totals.deployments) == DEPLOYMENTS
    assert len(ledger.dump()) < 3800


def test_the_ledger_survives_a_restart_and_a_damaged_note_begins_anew() -> None:
    kernel = Kernel()
    first = FlashLedger(kernel)
    first.stored([event(), event()])
    kernel.outbox = 5000
    first.sample(0, 0)
    second = FlashLedger(Kernel())
    second.load(first.dump())
    assert second.totals == first.totals
    for damaged in (b"", b"{", b"\xff", b"[1]"):
        second.load(damaged)
        assert second.totals == Totals()


def test_the_note_goes_with_every_commit_and_costs_no_page(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES, lambda: b"n" * 3800)
    outbox.append_window(b"x", STAMP)
    assert outbox.used_bytes() == 4 * 4096  # one for the schema and one for each table
    outbox.close()
    assert Outbox(tmp_path / "outbox.db", MIN_BUDGET_BYTES).note == b"n" * 3800


def test_the_card_is_the_file_system_of_the_data(tmp_path: Path) -> None:
    assert with_card_size(Endurance(), tmp_path).card_bytes > 1 << 20
    assert with_card_size(CARD, tmp_path) == CARD
    assert with_card_size(Endurance(tbw_bytes=1), tmp_path) == Endurance(tbw_bytes=1)
    assert with_card_size(Endurance(), tmp_path / "missing").card_bytes == 0


def test_an_event_costs_little_more_flash_than_its_bytes(tmp_path: Path) -> None:
    """The gate of the design: at 200 events a row, over a row's whole life, acknowledged and deleted."""
    (tmp_path / "probe").write_bytes(bytes(1 << 16))
    before = kernel_counts().outbox
    if not before:
        pytest.skip("the kernel counts no writes here: a tmpfs, or no task accounting")
    chance = random.Random(1)
    payload = 0
    outbox = Outbox(tmp_path / "outbox.db", 8 << 20)
    for _ in range(40):
        events = [
            Event(
                kind=chance.choice(["command", "worker.ended", "message.refused"]),
                wall_ms=1_800_000_000_000 + chance.randrange(10**9), mono_ms=chance.randrange(10**9),
                boot="8c1d1f0a5be24f7aa0f3a6f2e6f0d9b1", clock_quality=1,
                transaction=f"{chance.randrange(2**32):08x}", model="digits", digest="sha256:" + "3b" * 32,
                data={"message": f"{chance.randrange(10**4)} requests", "rss": chance.randrange(2**27)},
            )
            for _ in range(200)
        ]  # fmt: skip
        payload += sum(len(encode(one)) for one in events)
        last = outbox.append_events(events, Priority.DETAIL, STAMP, offer=True)
        outbox.acknowledge(outbox.stream, last)
    outbox.close()
    assert (kernel_counts().outbox or 0) - before <= 1.1 * payload
