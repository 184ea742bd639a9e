"""Judges a made model against its source on rows that no method saw; one process for each engine version.

``python -m benchmarks.packager.score PREPARED CANDIDATE [--loads-only]`` prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from .metrics import cosine, score_row
from .prepared import Prepared, read_prepared
from .sessions import Feed, Runner, first_feeds, open_runner, outputs_of

_PAIRS: Final = 15
_ATTEMPTS: Final = 3
_QUIET: Final = 0.03
"""The source against itself may differ by so much; a noisier attempt is made again."""
SECONDS: Final = 0.02
"""Each side of a pair runs at least this long."""
_RESAMPLES: Final = 2000


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of paired differences, by bootstrap over rows."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(differences), (_RESAMPLES, len(differences)))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _seconds(runner: Runner, feeds: list[Feed], runs: int) -> float:
    began = time.perf_counter()
    for turn in range(runs):
        runner.run(feeds[turn % len(feeds)])
    return time.perf_counter() - began


def latency(source: Runner, candidate: Runner, again: Runner, feeds: list[Feed]) -> dict[str, float]:
    """Paired ratios, the three taking turns; ``noise`` is the source against itself in a second session."""
    for runner in (source, candidate, again):
        _seconds(runner, feeds, len(feeds))
    once = max(_seconds(source, feeds, len(feeds)) / len(feeds), 1e-7)
    runs = max(1, min(5000, round(SECONDS / once)))
    attempts = []
    for _ in range(_ATTEMPTS):
        times = np.array(
            [[_seconds(runner, feeds, runs) for runner in (source, candidate, again)] for _ in range(_PAIRS)]
        )
        one, other, same = times.T
        # The source is on both sides of the candidate, so a drift of the clock rate cancels.
        found = {
            "ratio": float(np.median(2 * other / (one + same))),
            "noise": float(np.median(same / one)),
            "source_us": float(np.median(one) / runs * 1e6),
        }
        attempts.append(found)
        if abs(found["noise"] - 1) <= _QUIET:
            break
    return min(attempts, key=lambda found: abs(found["noise"] - 1))


def judge(prepared: Prepared, candidate: Path) -> dict[str, Any]:
    """Raises what the engine raises; NaN where the source has numbers, and other shapes, are findings."""
    facts, rows, labels = prepared.facts, prepared.rows("test"), prepared.labels("test")
    source, made = open_runner(prepared.model), open_runner(candidate)
    before, after, alike = [], [], []
    for row in range(len(next(iter(rows.values())))):
        true = outputs_of(source, rows, row, facts.sequences, facts.states)
        found = _renamed(outputs_of(made, rows, row, facts.sequences, facts.states), true)
        if problem := _unsound(true, found):
            return {"verdict": problem[0], "reason": f"row {row}: {problem[1]}"}
        label = None if labels is None else labels[row]
        before.append(score_row(facts.metric, facts.output, true, label, true))
        after.append(score_row(facts.metric, facts.output, found, label, true))
        alike.append(
            cosine(
                {k: v for k, v in found.items() if v.dtype.kind in "fiu"},
                {k: v for k, v in true.items() if v.dtype.kind in "fiu"},
            )
        )
    differences = np.array(before) - np.array(after)
    low, high = interval(differences)
    timed = first_feeds(source, rows, facts.sequences, facts.states, 8)
    return {
        "rows": len(before),
        "source": float(np.mean(before)),
        "made": float(np.mean(after)),
        "drop": float(differences.mean()),
        "drop_low": low,
        "drop_high": high,
        "cosine": float(np.mean(alike)),
        **latency(source, made, open_runner(prepared.model), timed),
    }


def _renamed(found: dict[str, np.ndarray], true: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by the source's names: a tool that only renames them has broken nothing."""
    if set(found) == set(true) or len(found) != len(true):
        return found
    return dict(zip(true, found.values(), strict=True))


def _unsound(true: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> tuple[str, str] | None:
    for name, array in true.items():
        if name not in found:
            return "crash", f"output {name!r} is gone"
        if found[name].shape != array.shape:
            return "crash", f"output {name!r} has shape {found[name].shape}, not {array.shape}"
        if array.dtype.kind == "f" and not np.isfinite(found[name][np.isfinite(array)]).all():
            return "nan", f"output {name!r} has NaN or infinity"
    return None


def loads(prepared: Prepared, candidate: Path) -> dict[str, Any]:
    """Load and run one row. Raises what the engine raises."""
    facts = prepared.facts
    outputs_of(open_runner(candidate), prepared.rows("test"), 0, facts.sequences, facts.states)
    return {"loads": True}


def examine(prepared: Prepared, candidate: Path, loads_only: bool = False) -> dict[str, Any]:
    """`judge` or `loads`, and what the engine raised as a verdict."""
    try:
        return loads(prepared, candidate) if loads_only else judge(prepared, candidate)
    except Exception as error:  # noqa: BLE001 - the boundary: whatever an engine raises is the finding
        text = " ".join(str(error).split())
        return {"verdict": "crash", "reason": f"{type(error).__name__}: {text[:300]}"}


def main(arguments: list[str]) -> None:
    prepared, candidate = read_prepared(Path(arguments[0])), Path(arguments[1])
    print(json.dumps(examine(prepared, candidate, "--loads-only" in arguments)))


if __name__ == "__main__":
    main(sys.argv[1:])
