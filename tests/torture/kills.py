"""Means 1: SIGKILL at every system call. Means 2: every system call fails, once or from then on."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from tests.torture.bench import Bench, Case
from tests.torture.forks import Done
from tests.torture.scenarios import SCENARIOS, Scenario
from tests.torture.tracing import CALLS, READS, traced

ERRORS: Final = ("EIO", "ENOSPC", "EROFS", "EINTR")
_INTERRUPTIONS: Final = 4
"""Interruptions in a row; Python tries an interrupted call again, so endless ones would end nothing."""
_SAID: Final = frozenset({"storage", "slot", "conflict", "not_found"})
"""Codes of errors that blame the disk, or follow from it: nothing is left to return to."""


def kill_cases(counts: Mapping[str, Counter[str]]) -> Iterator[Case]:
    """Before every single call of every deed."""
    for name, calls in counts.items():
        for call in sorted(calls.keys() & set(CALLS)):
            for when in range(1, calls[call] + 1):
                yield kill_case(SCENARIOS[name], call, when)


def kill_case(scenario: Scenario, call: str, when: int, mistake: str = "") -> Case:
    def run(bench: Bench) -> list[str]:
        bench.fresh(scenario)
        truth = bench.truth(scenario)
        inject = f"{call}:signal=KILL:when={when}"
        done, _ = traced(bench.forks, bench.order(scenario.order), [call], inject, mistake=mistake)
        if not done.killed:
            done.result  # noqa: B018 - raises
        return bench.judge(scenario, truth, done)

    return Case(name=f"kill/{scenario.name}/{call}/{when}", run=run)


def fault_cases(counts: Mapping[str, Counter[str]], seed: int, *, every: bool) -> Iterator[Case]:
    """Every call fails once, and from then on; the error is drawn, or each of them in turn (``every``)."""
    chance = random.Random(seed)
    for name, calls in counts.items():
        scenario = SCENARIOS[name]
        for call, times in sorted(calls.items()):
            errors = ("EIO",) if call in READS else ERRORS
            for when in range(1, times + 1):
                for lasting in (False, True):
                    for error in errors if every else (chance.choice(errors),):
                        yield fault_case(scenario, call, when, error, lasting=lasting)


def fault_case(scenario: Scenario, call: str, when: int, error: str, *, lasting: bool) -> Case:
    times = f"{when}"
    if lasting:
        times = f"{when}..{when + _INTERRUPTIONS}" if error == "EINTR" else f"{when}+"

    def run(bench: Bench) -> list[str]:
        bench.fresh(scenario)
        truth = bench.truth(scenario)
        inject = f"{call}:error={error}:when={times}"
        done, lines = traced(bench.forks, bench.order(scenario.order), [call], inject)
        faults = faults_of_refusal(scenario, done)
        if truth is not None and lasting and error == "EIO" and call in (*READS, "openat"):
            truth.rotten = True
        if "(INJECTED)" not in lines:
            faults.append("the fault was never met")
        return faults + bench.judge(scenario, truth, done)

    return Case(name=f"fault/{scenario.name}/{call}/{times}/{error}", run=run)


def faults_of_refusal(scenario: Scenario, done: Done) -> list[str]:
    """What is wrong with how a deed took a failing disk: a clear error, and the old model goes on."""
    end = done.end
    if end is None:
        return ["it died of an error"]
    faults = [f"a traceback: {fault}" for fault in end.get("faults", ())]
    codes = {*end.get("errors", ()), *([end["raised"]] if "raised" in end else ())}
    if scenario.name != "condemn" and (strange := codes - _SAID):
        faults.append(f"the disk failed, and the error says {sorted(strange)}: {end.get('message', '')}")
    if end.get("unclear"):
        faults.append("an error does not say what failed")
    if scenario.serving and end.get("answers") is None:
        faults.append("nothing answers any more")
    return faults
