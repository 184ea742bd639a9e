"""Means 6: the proof that all this can fail. Each planted mistake must be caught."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from tests.torture.bench import Case
from tests.torture.cuts import cut_case
from tests.torture.kills import kill_case
from tests.torture.order import order_case
from tests.torture.results import Proof
from tests.torture.scenarios import SCENARIOS

Counts = Mapping[str, Counter[str]]
_DEEDS: Final = ("install", "confirm", "roll-back")
_CHANGING: Final = ("write", "fsync", "rename", "unlink", "close")
MEANS_OF_MISTAKES: Final = {
    "no_fsync": ("order", "cut/models"),
    "no_directory_fsync": ("order", "cut/models"),
    "pointer_in_place": ("order", "kill", "cut/models"),
    "fsync_retried": ("order",),
    "outbox_synchronous_normal": ("cut/outbox",),
    "deleted_on_puback": ("cut/outbox",),
}
"""By what each mistake may be caught."""


def prove(
    mistake: str,
    counts: Counts,
    seed: int,
    most: int,
    kinds: tuple[str, ...],
    run: Callable[[Case], bool],
    *,
    by_all: bool,
) -> Proof:
    """Let each means try to catch the mistake.

    Args:
        most: cases of each means.
        run: says whether a case was bad.
        by_all: try the other means, too, when one has caught it.
    """
    tried: dict[str, int] = {}
    caught: dict[str, int] = {}
    example = ""
    for means in MEANS_OF_MISTAKES[mistake]:
        for number, case in enumerate(_cases(means, mistake, counts, seed, most, kinds), start=1):
            tried[means] = number
            if run(case):
                caught[means] = number
                example = example or case.name
                break
        if caught and not by_all:
            break
    return Proof(mistake=mistake, tried=tried, caught=caught, example=example)


def _cases(
    means: str, mistake: str, counts: Counts, seed: int, most: int, kinds: tuple[str, ...]
) -> Iterable[Case]:
    match means:
        case "order":
            return itertools.islice(_orders(mistake, counts), most)
        case "kill":
            return itertools.islice(_kills(mistake, counts), most)
        case _:
            what = means.partition("/")[2]
            return itertools.islice(
                (
                    cut_case(kind, what, f"{seed}-{number}", mistake)
                    for number in itertools.count()
                    for kind in kinds
                ),
                most if kinds else 0,
            )


def _orders(mistake: str, counts: Counts) -> Iterator[Case]:
    for name in _DEEDS:
        yield order_case(SCENARIOS[name], mistake=mistake)
    for name in _DEEDS:
        for when in range(1, counts[name]["fsync"] + 1):
            yield order_case(SCENARIOS[name], when, mistake)


def _kills(mistake: str, counts: Counts) -> Iterator[Case]:
    for name in ("confirm", "roll-back", "install"):
        for call in _CHANGING:
            for when in range(1, counts[name][call] + 1):
                yield kill_case(SCENARIOS[name], call, when, mistake)
