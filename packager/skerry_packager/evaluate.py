"""Judge a candidate against fp32: is it sound, what does it lose, how fast is it?

Fidelity is the same on every run with the same inputs. Latency is a ratio within one process, the two models
taking turns, because nothing else is comparable on a machine that does other work too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from skerry_contract.errors import DataError, ModelError
from skerry_contract.limits import MIB

from .datasets import Dataset
from .engine import Feed, Session
from .metrics import Head, Metric, RowScore, choose_heads, combine, score_row
from .results import Fidelity, Latency, Verdict

_CACHE_BYTES: Final = 256 * MIB
_HEAD_SAMPLES: Final = 32
_PAIRS: Final = 9
_RUN_SECONDS: Final = 0.002
"""Each side of a pair runs at least this long, so that the clock and the caller do not count."""
_MOST_RUNS: Final = 64


class Unsound(Exception):
    """A candidate that needs no statistics: it crashes, or gives NaN or other shapes."""

    def __init__(self, verdict: Verdict, reason: str) -> None:
        super().__init__(reason)
        self.verdict = verdict
        self.reason = reason


class Reference:
    """fp32 over one split; its outputs are kept as long as they are small."""

    def __init__(self, session: Session, data: Dataset, split: str) -> None:
        self.session = session
        self.data = data
        self.split = split
        self._kept: dict[int, list[np.ndarray]] = {}
        self._bytes = 0

    def outputs(self, row: int) -> list[np.ndarray]:
        """fp32's outputs on a row, in the model's order."""
        if row in self._kept:
            return self._kept[row]
        outputs = self.session.run(self.data.feed(row))
        self._bytes += sum(output.nbytes for output in outputs)
        if self._bytes <= _CACHE_BYTES:
            self._kept[row] = outputs
        return outputs

    def heads(self, task: str | None) -> tuple[str, tuple[Head, ...]]:
        """The task and what is scored. Raises as `skerry_packager.metrics.choose_heads`."""
        rows = [row for row in range(len(self.data)) if self.data.finite(row)] or list(range(len(self.data)))
        samples = [self.outputs(row) for row in rows[:_HEAD_SAMPLES]]
        return choose_heads(samples, self.data.labels, self.session.output_names, task)


@dataclass(frozen=True, slots=True)
class Gate:
    """What a candidate must keep."""

    max_drop: float
    """Largest `Fidelity.drop_bound`."""

    def judge(self, fidelity: Fidelity) -> tuple[Verdict, str]:
        """The verdict on a sound candidate, with its sentence."""
        lost = f"{fidelity.metric} {fidelity.reference:.4f} -> {fidelity.candidate:.4f}"
        if fidelity.drop_bound <= self.max_drop:
            return Verdict.OK, f"{lost}, {fidelity.certainty}"
        return Verdict.ACCURACY, f"{lost}, {fidelity.certainty}; allowed {self.max_drop:.4f}"


def compare(reference: Reference, candidate: Session, heads: Sequence[Head], seed: int = 0) -> Fidelity:
    """Run a candidate over the reference's split.

    Raises:
        Unsound: it fails on a row, or gives NaN, Inf or other shapes or types there.
        DataError: fp32 gives nothing finite to compare with.
    """
    names = reference.session.output_names
    if candidate.output_names != names:
        raise Unsound(Verdict.SHAPE, f"outputs {candidate.output_names} instead of {names}")
    scores: list[list[RowScore]] = [[] for _ in heads]
    changed = False
    labels = reference.data.labels
    for row in range(len(reference.data)):
        wanted = reference.outputs(row)
        try:
            got = candidate.run(reference.data.feed(row))
        except ModelError as error:
            raise Unsound(Verdict.CRASH, error.message) from error
        for name, a, b in zip(names, wanted, got, strict=True):
            _check_sound(name, a, b, reference.data, row)
            changed = changed or a.tobytes() != b.tobytes()
        label = None if labels is None else labels[row]
        for head, rows in zip(heads, scores, strict=True):
            a, b = wanted[head.output], got[head.output]
            # Where fp32 itself gives NaN there is nothing to keep; SQNR leaves out the elements alone.
            if head.metric is Metric.SQNR or a.dtype.kind != "f" or bool(np.isfinite(a).all()):
                rows.append(score_row(head, a, b, label))
    if not all(_has_figures(head, rows) for head, rows in zip(heads, scores, strict=True)):
        raise not_finite(reference.data, reference.split)
    results = [combine(head, rows, labels, seed) for head, rows in zip(heads, scores, strict=True)]
    worst = max(range(len(heads)), key=lambda index: (results[index].drop_bound, -index))
    result = results[worst]
    return Fidelity(
        split=reference.split,
        metric=heads[worst].metric.value,
        samples=len(scores[worst]),
        output=names[heads[worst].output],
        reference=result.reference,
        candidate=result.candidate,
        drop=result.drop,
        drop_bound=result.drop_bound,
        mean_kl=result.mean_kl,
        sqnr_db=result.sqnr_db,
        max_abs_error=result.max_abs_error,
        changed=changed,
        exact_bound=result.exact_bound,
    )


def _has_figures(head: Head, rows: Sequence[RowScore]) -> bool:
    """Whether anything of fp32 could be compared with."""
    return any(row.count for row in rows) if head.metric is Metric.SQNR else bool(rows)


def not_finite(data: Dataset, split: str) -> DataError:
    """fp32 gives NaN or infinite values on every row: is it the data's fault, or the model's?"""
    blame = data.first_not_finite()
    if blame:
        return DataError(
            f"{blame}: fp32 answers every row of the {split} split with NaN or infinite values",
            hint="Leave such rows out, or fill in the missing values as in training.",
        )
    return DataError(
        f"fp32 gives NaN or infinite values on every row of the {split} split, though the data has none",
        hint="Check that the data is scaled as in training.",
    )


def _check_sound(name: str, wanted: np.ndarray, got: np.ndarray, data: Dataset, row: int) -> None:
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise Unsound(
            Verdict.SHAPE,
            f"output {name!r} is {got.dtype}{list(got.shape)} instead of {wanted.dtype}{list(wanted.shape)}",
        )
    if wanted.dtype.kind == "f" and bool((~np.isfinite(got) & np.isfinite(wanted)).any()):
        given = data.not_finite(row)
        raise Unsound(
            Verdict.NAN,
            f"output {name!r} has NaN or infinite values where fp32 has none"
            + (f" (the data itself: {given})" if given else ""),
        )


def measure_latency(
    reference: Session, candidate: Session, feeds: Sequence[Feed], pairs: int = _PAIRS
) -> Latency:
    """Time the two in turns, one thread, and give the median of the paired ratios.

    The order within a pair alternates, so that whatever the first run leaves in the caches favours neither.
    """
    for feed in feeds[:2]:
        reference.run(feed)
        candidate.run(feed)
    once = _seconds(reference, feeds[:1])
    repeats = int(np.clip(np.ceil(_RUN_SECONDS / max(once, 1e-6)), 1, _MOST_RUNS))
    ratios = []
    for pair in range(pairs):
        batch = [feeds[(pair + step) % len(feeds)] for step in range(repeats)]
        if pair % 2:
            ours = _seconds(candidate, batch)
            theirs = _seconds(reference, batch)
        else:
            theirs = _seconds(reference, batch)
            ours = _seconds(candidate, batch)
        ratios.append(ours / theirs)
    runs = max(pairs, min(_MOST_RUNS, int(0.5 / max(once, 1e-6))))
    single = np.array([_seconds(candidate, [feeds[run % len(feeds)]]) for run in range(runs)]) * 1e6
    return Latency(
        p50_us=round(float(np.quantile(single, 0.5)), 1),
        p95_us=round(float(np.quantile(single, 0.95)), 1),
        ratio=round(float(np.median(ratios)), 4),
        pairs=pairs,
    )


def _seconds(session: Session, feeds: Sequence[Feed]) -> float:
    start = time.perf_counter()
    for feed in feeds:
        session.run(feed)
    return time.perf_counter() - start
