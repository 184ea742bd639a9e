"""Carries cases out, on two benches side by side; a case by its name."""

from __future__ import annotations

import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.torture.bench import Bench, Case
from tests.torture.cuts import LIVES, cut_case
from tests.torture.full import inodes_case, read_only_case, space_case
from tests.torture.kills import ERRORS, fault_case, kill_case
from tests.torture.order import order_case
from tests.torture.results import Result
from tests.torture.scenarios import SCENARIOS
from tests.torture.tracing import CALLS

Counts = dict[str, Counter[str]]
Step = Callable[[str, int, int], None]
_FILE_SYSTEMS: Final = ("ext4", "xfs", "tmpfs")


@contextmanager
def benches(scratch: Path, count: int) -> Iterator[list[Bench]]:
    """Ready for cases; their processes end with the block."""
    made: list[Bench] = []
    try:
        for number in range(count):
            made.append(Bench(scratch, scratch / f"bench-{number}"))
        for bench in made:
            bench.prepare()
        yield made
    finally:
        for bench in made:
            bench.close()


def carry_out(bench: Bench, case: Case) -> Result:
    """One case; an exception is a fault like any other."""
    began = time.monotonic()
    try:
        faults = case.run(bench)
    except (AssertionError, OSError, ValueError, KeyError, TypeError):
        faults = [traceback.format_exc()]
        bench.renew()
    return Result(name=case.name, faults=tuple(faults), seconds=round(time.monotonic() - began, 3))


def carry_out_all(made: Sequence[Bench], cases: Sequence[Case], step: Step) -> list[Result]:
    """All cases, each bench in a thread of its own. Ctrl-C ends after the cases at hand."""
    results: list[Result] = []
    todo = iter(cases)
    lock, stop = threading.Lock(), threading.Event()

    def work(bench: Bench) -> None:
        while not stop.is_set():
            with lock:
                case = next(todo, None)
            if case is None:
                return
            result = carry_out(bench, case)
            with lock:
                results.append(result)
                step(case.means, len(results), len(cases))

    threads = [threading.Thread(target=work, args=(bench,)) for bench in made]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return results


def sample(cases: Iterable[Case], most: int, seed: int) -> list[Case]:
    """So many of them, drawn by the seed; all if ``most`` is 0."""
    every = list(cases)
    if not most or len(every) <= most:
        return every
    drawn = set(random.Random(seed).sample(range(len(every)), most))
    return [case for number, case in enumerate(every) if number in drawn]


def case_of(name: str, mistake: str = "") -> Case:
    """The case of that name. Raises `ValueError` if there is none."""
    means, *parts = name.split("/")
    match means, parts:
        case "kill", [scenario, call, when] if scenario in SCENARIOS and call in CALLS:
            return kill_case(SCENARIOS[scenario], call, int(when), mistake)
        case "fault", [scenario, call, times, error] if scenario in SCENARIOS and error in ERRORS:
            first = int(times.rstrip("+").partition("..")[0])
            return fault_case(SCENARIOS[scenario], call, first, error, lasting=not times.isdigit())
        case "full", [scenario, kind, "read-only"] if scenario in SCENARIOS and kind in _FILE_SYSTEMS:
            return read_only_case(SCENARIOS[scenario], kind)
        case "full", [scenario, "inodes", left] if scenario in SCENARIOS:
            return inodes_case(SCENARIOS[scenario], int(left))
        case "full", [scenario, kind, left] if scenario in SCENARIOS and kind in _FILE_SYSTEMS:
            return space_case(SCENARIOS[scenario], kind, int(left))
        case "order", [scenario] if scenario in SCENARIOS:
            return order_case(SCENARIOS[scenario], mistake=mistake)
        case "order", [scenario, "fsync-fails", when] if scenario in SCENARIOS:
            return order_case(SCENARIOS[scenario], int(when), mistake)
        case "cut", [kind, what, seed] if kind in _FILE_SYSTEMS and what in LIVES:
            return cut_case(kind, what, seed, mistake)
    raise ValueError(f"there is no case {name!r}")
