"""Means 4: a disk that is full for real, has no inodes left, or becomes read-only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tests.torture.bench import Bench, Case
from tests.torture.disks import remount
from tests.torture.images import disk, drop_ballast, fill, use_up_inodes
from tests.torture.kills import faults_of_refusal
from tests.torture.scenarios import SCENARIOS, Scenario

_KIB_LEFT: Final = (0, 4, 8, 12, 16, 24, 32, 48, 56, 64, 72, 96, 128, 160, 224)
_INODES_LEFT: Final = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16)
_FULL_DISK: Final = ("install", "download", "confirm", "roll-back", "recover", "outbox-write", "outbox-full")
_READ_ONLY: Final = (*_FULL_DISK, "condemn", "collect")


def full_cases(kinds: tuple[str, ...]) -> Iterator[Case]:
    """Every space that may be left, in memory and on the file systems of real disks."""
    for name in _FULL_DISK:
        scenario = SCENARIOS[name]
        for left in _KIB_LEFT:
            yield space_case(scenario, "tmpfs", left)
            for kind in kinds:
                yield space_case(scenario, kind, left)
        for left in _INODES_LEFT:
            yield inodes_case(scenario, left)
    for name in _READ_ONLY:
        for kind in ("tmpfs", *kinds):
            yield read_only_case(SCENARIOS[name], kind)


def space_case(scenario: Scenario, kind: str, left: int) -> Case:
    """So many KiB are left when the deed begins; then space is freed."""

    def run(bench: Bench) -> list[str]:
        with disk(bench, scenario, kind, "size=24m"):
            fill(bench.data, left << 10)
            return _refuse_and_recover(bench, scenario)

    return Case(name=f"full/{scenario.name}/{kind}/{left}", run=run)


def inodes_case(scenario: Scenario, left: int) -> Case:
    """So many files may be made."""

    def run(bench: Bench) -> list[str]:
        with disk(bench, scenario, "tmpfs", "size=24m,nr_inodes=400"):
            use_up_inodes(bench.data, left)
            return _refuse_and_recover(bench, scenario)

    return Case(name=f"full/{scenario.name}/inodes/{left}", run=run)


def read_only_case(scenario: Scenario, kind: str) -> Case:
    """The file system is read-only when the deed begins, and later writable again."""

    def run(bench: Bench) -> list[str]:
        with disk(bench, scenario, kind, "size=24m"):
            truth = bench.truth(scenario)
            remount(bench.data, "ro")
            started = [] if scenario.outbox else _answers_read_only(bench)
            done = bench.forks.run(bench.order(scenario.order, no_reserve=True))
            remount(bench.data, "rw")
            faults = faults_of_refusal(scenario, done)
            return started + faults + bench.judge(scenario, truth, done)

    return Case(name=f"full/{scenario.name}/{kind}/read-only", run=run)


def _answers_read_only(bench: Bench) -> list[str]:
    """A device that starts on a disk that cannot be written serves what is good."""
    found = bench.do("start").end or {}
    return [] if found.get("answers") else [f"nothing answers on a read-only disk: {found}"]


def _refuse_and_recover(bench: Bench, scenario: Scenario) -> list[str]:
    truth = bench.truth(scenario)
    done = bench.forks.run(bench.order(scenario.order, no_reserve=True))
    faults = faults_of_refusal(scenario, done)
    drop_ballast(bench.data)
    return faults + bench.judge(scenario, truth, done)
