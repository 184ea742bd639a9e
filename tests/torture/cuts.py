"""Means 3: the power goes at a random moment of a device's life, on a real file system."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from typing import Final

from tests.torture.bench import Bench, Case
from tests.torture.deeds_models import Order
from tests.torture.disks import cut_power
from tests.torture.forks import PATIENCE_S, Hung
from tests.torture.images import at_data, fresh_image
from tests.torture.scenarios import LAST, MODELS, Scenario

_TWO: Final = next(scenario for scenario in MODELS if scenario.name == "install").base
LIVES: Final = {
    "models": Scenario(name="life-of-models", base=_TWO, order=Order(deed="live"), following=LAST + 1),
    "outbox": Scenario(name="life-of-outbox", base=(), order=Order(deed="outbox_live"), outbox=True),
}
_LONGEST: Final = {"models": 9_000, "outbox": 24_000}
"""Bytes of notes after which the power goes at the latest: some 100 promises."""
_LATER_S: Final = 0.003


def cut_cases(cycles: int, seed: int, kinds: tuple[str, ...], mistake: str = "") -> Iterator[Case]:
    for number in range(cycles):
        for kind in kinds:
            for what in LIVES:
                yield cut_case(kind, what, f"{seed}-{number}", mistake)


def cut_case(kind: str, what: str, seed: str, mistake: str = "") -> Case:
    """One life that ends by a power cut: its moves and the moment follow from the seed."""
    scenario = LIVES[what]

    def run(bench: Bench) -> list[str]:
        chance = random.Random(f"{kind} {what} {seed}")
        image = fresh_image(bench, kind, scenario)
        order = bench.order(scenario.order, seed=chance.random(), last=LAST)
        truth = bench.truth(scenario)
        with at_data(bench, kind, image):
            bench.forks.begin(order, mistake=mistake, waits=True)
            try:
                bench.forks.wait_ready()
                bench.forks.board.begin()
                before_ns = _cut(bench, chance.randint(100, _LONGEST[what]), chance.uniform(0, _LATER_S))
            finally:
                bench.forks.kill()
            done = bench.forks.finish()
        with at_data(bench, kind, image):
            return bench.judge(scenario, truth, done, before_ns)

    return Case(name=f"cut/{kind}/{what}/{seed}", run=run)


def _cut(bench: Bench, notes: int, later_s: float) -> int:
    """Wait for so many bytes of notes, or the end of that life, and a moment longer; then cut."""
    deadline = time.monotonic() + PATIENCE_S
    board = bench.forks.board
    point = os.open(bench.data, os.O_RDONLY | os.O_DIRECTORY)
    try:
        used = board.used
        last_look = time.monotonic()
        while board.used < notes:
            if board.used != used:
                used, last_look = board.used, time.monotonic()
            elif time.monotonic() - last_look > 0.2 and bench.forks.ended():
                break
            if time.monotonic() > deadline:
                raise Hung("a life makes no progress")
            time.sleep(0.0005)
        time.sleep(later_s)
        return cut_power(point)
    finally:
        os.close(point)
