"""Times the cases on this machine within a given time, and says how sure each figure is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_contract.errors import EngineError, MemoryBudgetError

from ..engines import Array, Engine, Session
from .cases import Case
from .describe import describe

SCHEMA: Final = "skerry-operator-table/1"
_LINKS: Final = 4
"""How many operators the longer chain has more than the shorter."""
_LEAST_ROUNDS, _MOST_ROUNDS = 7, 60
_BATCH_S: Final = 0.002
"""One timing lasts about this long, so that the clock does not count."""
_QUANTILES: Final = (0.1, 0.2, 0.5)
_LEAST_US: Final = 0.001
_CASE_S: Final = 0.05
"""No case gets less: after the time is up, the rest is left out instead."""

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what is timed, cases done, cases in all)``."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress callback of those who do not care."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds of one operator.

    Timed is what the thread calculates, not what it waits for. Other programs still only ever make a run
    longer (caches, clocks), so the figure is from the lower fifth of the rounds; `low_us`
    and `high_us` are from their lower tenth and their median.
    """

    us: float
    low_us: float
    high_us: float
    rounds: int


def collect(
    engine: Engine,
    grid: Sequence[Case],
    seconds: float,
    *,
    store: Path = Path("/"),
    progress: Progress = no_progress,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """The operator table of this machine, ready to be written as JSON.

    Args:
        engine: an imported engine.
        grid: what to time, the most important first.
        seconds: for all of it; what does not fit is listed under ``left_out``.
        store: where this device keeps models; its free space is told.
        clock: seconds, monotonic.

    Raises:
        StorageError: `store` cannot be looked at.
    """
    machine = describe(store)
    start = clock()
    first = _reference()
    rows, missing, left_out = [], [], []
    for number, case in enumerate(grid):
        name = f"{case.operator} {case.work.datatype}, {case.size}"
        progress(name, number, len(grid))
        left = seconds - (clock() - start)
        if left < _CASE_S:
            left_out.append(name)
            continue
        try:
            timing = time_case(engine, case, max(_CASE_S, left / (len(grid) - number)), clock)
        except (EngineError, MemoryBudgetError) as error:
            missing.append({"operator": case.operator, "datatype": case.work.datatype,
                            "size": case.size, "why": error.message[:200]})  # fmt: skip
            continue
        rows.append({"operator": case.operator, "size": case.size, **asdict(case.work), **asdict(timing)})
    progress("done", len(grid), len(grid))
    call_us = call_overhead(engine, min(grid, key=lambda case: case.work.bytes), clock)
    last = _reference()
    return {
        "schema": SCHEMA,
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": round(clock() - start, 1),
        "machine": machine,
        "engine": {"name": engine.name, "version": engine.version},
        "threads": 1,
        "call_us": round(call_us, 3),
        "drift": round(max(first, last) / min(first, last), 3),
        "operators": rows,
        "missing": missing,
        "left_out": left_out,
    }


def time_case(engine: Engine, case: Case, seconds: float, clock: Callable[[], float]) -> Timing:
    """Time one operator alone, see `skerry_runtime.worker.bench_ops.cases`.

    Raises:
        EngineError, MemoryBudgetError: the engine does not take it.
    """
    end = clock() + seconds
    feed = case.feed()
    short, long = engine.load(case.build(1)), engine.load(case.build(1 + _LINKS))
    for session in (short, long):
        session.run(feed)
    once = max(_timed(long, feed, 1), 1e-7)
    repeats = int(np.clip(min(_BATCH_S, seconds / 20) / once, 1, 1000))
    rounds: list[tuple[float, float]] = []
    while len(rounds) < _MOST_ROUNDS and (len(rounds) < _LEAST_ROUNDS or clock() < end):
        # In turns, and the order alternates: what else the machine does hits both.
        pair = (short, long) if len(rounds) % 2 else (long, short)
        took = {id(session): _timed(session, feed, repeats) for session in pair}
        rounds.append((took[id(short)], took[id(long)]))
        if clock() > end + seconds and len(rounds) >= 3:
            break  # a slow machine: few rounds of a long case say enough
    below, us, above = _differences(rounds, repeats * _LINKS)
    return Timing(
        us=round(us, 3),
        low_us=round(min(us, below, above), 3),
        high_us=round(max(us, below, above), 3),
        rounds=len(rounds),
    )


def call_overhead(engine: Engine, case: Case, clock: Callable[[], float]) -> float:
    """Microseconds of one call from Python, whatever the model does: a chain of one without its operator."""
    session, feed = engine.load(case.build(1)), case.feed()
    times = [_timed(session, feed, 1) * 1e6 for _ in range(200)]
    middle = _differences([(0.0, value / 1e6) for value in times], 1)[1]
    return max(_LEAST_US, middle - time_case(engine, case, _CASE_S, clock).us)


def _differences(rounds: Sequence[tuple[float, float]], operators: int) -> tuple[float, float, float]:
    """Microseconds of an operator by three quantiles of the rounds."""
    short, long = np.quantile(rounds, _QUANTILES, axis=0).T * 1e6
    # Below the clock's noise a difference can come out negative.
    low, middle, high = np.maximum((long - short) / operators, _LEAST_US).tolist()
    return low, middle, high


def _timed(session: Session, feed: Mapping[str, Array], repeats: int) -> float:
    """Seconds of the processor. The engine has no other thread than this one."""
    start = time.thread_time()
    for _ in range(repeats):
        session.run(feed)
    return time.thread_time() - start


def _reference() -> float:
    """Seconds of a fixed piece of work without an engine, the best of many: a throttled processor shows."""
    values = np.random.default_rng(0).uniform(-1, 1, (128, 128)).astype(np.float32)
    best = float("inf")
    for _ in range(50):
        start = time.thread_time()
        np.sort(values, axis=0)
        best = min(best, time.thread_time() - start)
    return max(best, 1e-9)
