"""Means 5: the order of system calls is judged, whatever came of them (see `tests.runtime.durable_order`).

Beside that order: a file whose fsync failed is written anew before it gets a name, for the kernel forgets
what it could not write, and the next fsync says yes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from tests.runtime.durable_order import CALLS, Order, check_order
from tests.torture.bench import Bench, Case
from tests.torture.scenarios import SCENARIOS, Scenario
from tests.torture.tracing import traced

_FAILED = re.compile(r"\bf(?:data)?sync\(\d+<([^>]*)>\) += -1")
_OPENED = re.compile(r'\bopenat\([^,]*, "([^"]*)", [^)]*O_(?:EXCL|TRUNC)')
_NAMED = re.compile(r'\b(?:rename|renameat2?|linkat)\((?:[^",]*, )?"([^"]*)"')


def order_cases(counts: Mapping[str, Counter[str]], mistake: str = "") -> Iterator[Case]:
    for name, calls in counts.items():
        scenario = SCENARIOS[name]
        if scenario.outbox:
            continue  # SQLite's own order; the power cuts judge it
        yield order_case(scenario, mistake=mistake)
        for when in range(1, calls["fsync"] + 1):
            yield order_case(scenario, when, mistake)


def order_case(scenario: Scenario, failing: int = 0, mistake: str = "") -> Case:
    """The deed's calls in order; with ``failing``, when that fsync fails."""

    def run(bench: Bench) -> list[str]:
        bench.fresh(scenario)
        trace = bench.own / "trace"
        inject = f"fsync:error=EIO:when={failing}" if failing else ""
        done, _ = traced(
            bench.forks, bench.order(scenario.order), CALLS.split(","), inject, mistake=mistake, trace=trace
        )
        if done.end is None or done.end.get("faults"):
            return [f"a traceback: {done.end}"]
        order = check_order(trace, bench.data)
        if not failing:
            return order.faults + _nothing_seen(order, scenario)
        # What an fsync has refused stays unsafe, and the deed ends there: only its use is a fault.
        return names_after_failed_fsync(trace.read_text())

    return Case(name=f"order/{scenario.name}" + (f"/fsync-fails/{failing}" if failing else ""), run=run)


def _nothing_seen(order: Order, scenario: Scenario) -> list[str]:
    renames = 0 if scenario.name in ("collect", "offline-roll-back") else 2
    return [] if order.renames >= renames else [f"only {order.renames} renames were seen"]


def names_after_failed_fsync(trace: str) -> list[str]:
    """Files that got a name although the disk had refused their content."""
    lost: set[str] = set()
    faults = []
    for line in trace.splitlines():
        if match := _FAILED.search(line):
            lost.add(match[1])
        elif match := _OPENED.search(line):
            lost.discard(match[1])
        elif (match := _NAMED.search(line)) and match[1] in lost and "= 0" in line:
            faults.append(f"{match[1].rpartition('/')[2]} got a name after its fsync had failed")
    return faults
