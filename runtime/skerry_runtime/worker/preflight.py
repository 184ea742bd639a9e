"""Role ``preflight``: prove in a process that may die that a model is right, quick and small enough here.

A model that crashes or hangs is the agent's to notice: this process then ends without a word.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import numpy as np

from skerry_contract.errors import LatencyBudgetError, MemoryBudgetError, SkerryError
from skerry_contract.limits import MIB
from skerry_contract.messages import ErrorReport

from ..ipc import Channel, Failed, Ready, Spawn
from .generation import load_generation
from .loaded import LoadedModel, load_model
from .process import PeakMemory

_ROUNDS: Final = 3
"""The best of so many is judged: another process' burst is not the model's fault."""
_RUNS: Final = 200
_ROUND_S: Final = 2.0
_LEAST_RUNS: Final = 20


def preflight(channel: Channel, spawn: Spawn) -> int:
    """Run the self-test and report; the process' exit status."""
    try:
        channel.send(self_test(Path(spawn.generation)))
    except SkerryError as error:
        channel.send(Failed(error=ErrorReport.of(error)))
        return 1
    return 0


def self_test(folder: Path) -> Ready:
    """Load a generation and judge it.

    Raises:
        SlotError: the store is damaged.
        EngineError: the engine is missing or refuses the model.
        SelfTestError: a golden answer is wrong.
        LatencyBudgetError, MemoryBudgetError: it is over a budget.
    """
    memory = PeakMemory()
    generation = load_generation(folder)
    budgets = generation.budgets
    model = load_model(generation)
    # Peaks of their own: pages of a mapped model come into memory with the first inferences.
    memory.droppable = model.session.mapped_bytes
    peaks = [memory.take()]
    if budgets.load_ms and model.load_ms > budgets.load_ms:
        raise LatencyBudgetError(
            f"loading took {model.load_ms:.0f} ms; the budget is {budgets.load_ms} ms",
            hint="Choose a smaller variant, or raise the budget.",
        )
    for index in range(len(generation.golden.samples)):
        model.run_golden(index)
    peaks.append(memory.take())
    p50, p95 = _latency(model, budgets.latency_p95_us)
    if budgets.latency_p95_us and p95 > budgets.latency_p95_us:
        raise LatencyBudgetError(
            f"95% of inferences take up to {p95:.0f} us here; the budget is {budgets.latency_p95_us} us",
            hint="Choose a quicker variant, or raise the budget.",
        )
    peak = max(*peaks, memory.take())
    if budgets.ram_bytes and peak > budgets.ram_bytes:
        raise MemoryBudgetError(
            f"it peaked at {peak / MIB:.1f} MiB here; the budget is {budgets.ram_bytes / MIB:.1f} MiB",
            hint="Choose a smaller variant, or raise the budget.",
        )
    return Ready(
        load_ms=model.load_ms,
        latency_p50_us=p50,
        latency_p95_us=p95,
        rss_bytes=peak,
        engine_version=model.engine.version,
        execution=model.session.execution,
    )


def _latency(model: LoadedModel, budget_us: int) -> tuple[float, float]:
    """p50 and p95 in microseconds, of the best round; one is enough if it is within the budget."""
    best = (float("inf"), float("inf"))
    for _ in range(_ROUNDS):
        p50, p95 = np.quantile(_round(model), (0.5, 0.95)).tolist()
        best = min(best, (p50, p95), key=lambda pair: pair[1])
        if not budget_us or best[1] <= budget_us:
            break
    return best


def _round(model: LoadedModel) -> list[float]:
    samples = model.generation.golden.samples
    end = time.monotonic() + _ROUND_S
    times: list[float] = []
    while len(times) < _RUNS and (len(times) < _LEAST_RUNS or time.monotonic() < end):
        _, microseconds = model.run(samples[len(times) % len(samples)].inputs)
        times.append(microseconds)
    return times
