"""Judge a candidate against fp32: is it sound, what does it lose, how fast is it?

Fidelity is the same on every run with the same inputs, as long as there is time for all rows; else fewer are
judged, and always the same first ones of a fixed order. Rows of a stateful model are rolled out. Latency is a
ratio within one process, the two models taking turns, because nothing else is comparable on a machine that
does other work too.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from skerry_contract.errors import DataError, ModelError
from skerry_contract.limits import MIB

from .datasets import Dataset
from .engine import Feed, Session
from .metrics import Form, Head, Metric, RowScore, choose_heads, combine, score_row
from .results import Fidelity, Latency, Verdict
from .rollouts import AT_ONCE, Answer, Runner, scored_outputs

_CACHE_BYTES: Final = 256 * MIB
_HEAD_SAMPLES: Final = 32
_MOST_NOISE: Final = 0.25
"""Of an output that no label judges, over its power: a cosine of about .87."""
_LEAST_ROWS: Final = 16
"""These are judged however long it takes."""
_PAIRS: Final = 15
_LEAST_PAIRS: Final = 7
_PAIRED_SECONDS: Final = 0.5
"""What the pairs take together, about, unless the least number of them takes longer."""
_LOOKS_SLOWER: Final = 1.05
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
        self.scored = scored_outputs(session.output_names, data)
        """Positions of the outputs in the answers among the model's outputs."""
        self._order = sorted(range(len(data)), key=_rank)
        self._labels = _padded_labels(data)
        self._runner = Runner(session, data)
        self._kept: dict[int, Answer] = {}
        self._bytes = 0

    def rows(self, most_rows: int = 0) -> tuple[int, ...]:
        """The rows that are compared, in the order in which they are: a few of them are spread over all."""
        return tuple(self._order[: most_rows or len(self._order)])

    def settle(self, most_rows: int, seconds: float = math.inf) -> list[str]:
        """Keep at most so many rows, and a power of two of those that fp32 answers in that time.

        What a person should know of that.

        Raises:
            ModelError: fp32 fails on a row.
        """
        deadline = time.monotonic() + seconds
        done, given = 0, len(self._order)
        self._order = self._order[: max(most_rows, _LEAST_ROWS)]
        wanted = len(self._order)
        seen: list[set[bytes]] = [set() for _ in self.scored]
        strange = 0
        for done, answer in enumerate(self.answers(self._order), start=1):
            sound = all(output.dtype.kind != "f" or np.isfinite(output).all() for output in answer)
            strange += not sound and self.data.finite(self._order[done - 1])
            for values, output in zip(seen, answer, strict=True):
                if len(values) < 2 and output.size:
                    values.update((output.min().tobytes(), output.max().tobytes()))
            if time.monotonic() > deadline and done >= _LEAST_ROWS:
                break
        notes = [
            f"{self.split}: output {self.session.output_names[position]!r} is the same number everywhere: "
            "give data on which the model has something to say"
            for position, values in zip(self.scored, seen, strict=True)
            if len(values) == 1 and done > 1
        ]
        if strange:
            notes.append(
                f"{self.split}: fp32 gives NaN or infinite values on {strange} of {done} rows whose data has "
                "none: a device answers such inputs with an error"
            )
        if wanted < given:
            notes.append(
                f"{self.split}: {wanted} of {given} rows judge, for one inference takes much work: "
                "a longer --time-limit lets more of them judge"
            )
        if done < wanted:
            self._order = self._order[: _power_of_two(done)]
            notes.append(f"{self.split}: {len(self._order)} of {given} rows within the time of {seconds:g} s")
        return notes

    def answers(self, rows: Sequence[int]) -> Iterator[Answer]:
        """fp32's scored outputs on each of the rows, in their order. Raises `ModelError`."""
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            missing = [row for row in some if row not in self._kept]
            fresh = dict(zip(missing, self._runner.answers(missing), strict=True)) if missing else {}
            for row, answer in fresh.items():
                self._bytes += sum(output.nbytes for output in answer)
                if self._bytes <= _CACHE_BYTES:
                    self._kept[row] = answer
            for row in some:
                yield fresh[row] if row in fresh else self._kept[row]

    def heads(self, task: str | None, metric: str | None = None) -> tuple[str, tuple[Head, ...]]:
        """The task and what is scored. Raises as `skerry_packager.metrics.choose_heads`."""
        rows = ([row for row in self._order if self.data.finite(row)] or self._order)[:_HEAD_SAMPLES]
        names = [self.session.output_names[position] for position in self.scored]
        samples = list(self.answers(rows))
        labels = self._labels
        if self.data.step_labels and labels is not None:
            steps = labels.shape[1]
            samples = [[_padded(output, steps) for output in answer] for answer in samples]
        elif self.data.sequences and labels is not None:
            samples = [[output[-1] for output in answer] for answer in samples]
        found, heads = choose_heads(samples, labels, names, task, metric)
        return found, tuple(replace(head, output=self.scored[head.output]) for head in heads)

    def read(self, head: Head, output: np.ndarray) -> np.ndarray:
        """What of a row's output meets its label: all of it, or one step where a sequence has one label.

        A detector has fired if it did so once: its highest score counts. Else the last step does, which has
        seen the whole sequence.
        """
        if self._labels is None or not self.data.sequences or self.data.step_labels:
            return output
        if head.form in (Form.BINARY_PROBABILITY, Form.BINARY_LOGIT):
            return np.asarray(output.max(axis=0))
        return np.asarray(output[-1])

    def labels(self, rows: Sequence[int]) -> np.ndarray | None:
        """The labels of those rows as one array, those of short sequences repeated to the length of all."""
        return None if self._labels is None else self._labels[np.asarray(rows, dtype=np.int64)]


def _rank(row: int) -> bytes:
    return hashlib.sha256(str(row).encode()).digest()


def _padded_labels(data: Dataset) -> np.ndarray | None:
    """Padding may hold anything, so it is overwritten with real labels of the same sequence."""
    if data.labels is None or not data.step_labels:
        return data.labels
    steps = data.labels.shape[1]
    return np.stack([_padded(data.labels[row][: data.steps(row)], steps) for row in range(len(data))])


def _padded(steps: np.ndarray, wanted: int) -> np.ndarray:
    """As many steps as wanted, from the beginning again where they end."""
    return steps[np.arange(wanted) % len(steps)]


def _power_of_two(number: int) -> int:
    """The largest one that is not above: a little more or less time then changes nothing."""
    return 1 << (number.bit_length() - 1)


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


def compare(
    reference: Reference,
    candidate: Session,
    heads: Sequence[Head],
    seed: int = 0,
    most_rows: int = 0,
    seconds: float = math.inf,
) -> Fidelity:
    """Run a candidate over the reference's split.

    Args:
        most_rows: only the first ones of `Reference.rows`; 0 takes them all.
        seconds: no more rows after that time, down to a power of two, but at least `_LEAST_ROWS`.

    Raises:
        Unsound: it fails on a row, or gives NaN, Inf or other shapes or types there.
        DataError: fp32 gives nothing finite to compare with.
    """
    names = reference.session.output_names
    if candidate.output_names != names:
        raise Unsound(Verdict.SHAPE, f"outputs {candidate.output_names} instead of {names}")
    deadline = time.monotonic() + seconds
    rows = reference.rows(most_rows)
    scores: list[list[RowScore | None]] = []
    changed: list[bool] = []
    unjudged = _Unjudged(reference, heads)
    answers = _answers(candidate, reference.data, rows)
    for row, wanted, got in zip(rows, reference.answers(rows), answers, strict=True):
        for position, a, b in zip(reference.scored, wanted, got, strict=True):
            _check_sound(names[position], a, b, reference.data, row)
        changed.append(any(a.tobytes() != b.tobytes() for a, b in zip(wanted, got, strict=True)))
        scores.append([_score(reference, head, wanted, got, row) for head in heads])
        unjudged.add(wanted, got)
        if time.monotonic() > deadline and _LEAST_ROWS <= len(scores) < len(rows):
            judged = _power_of_two(len(scores))
            scores, changed, rows = scores[:judged], changed[:judged], rows[:judged]
            break
    unjudged.check()
    return _combined(reference, heads, rows, scores, any(changed), seed)


class _Unjudged:
    """Outputs that no label judges, such as a state beside the score: they must not be ruined unseen."""

    def __init__(self, reference: Reference, heads: Sequence[Head]) -> None:
        self._names = reference.session.output_names
        judged = {head.output for head in heads}
        custom = any(head.custom is not None for head in heads)  # a function is given all outputs
        self._places = [
            (place, position)
            for place, position in enumerate(reference.scored)
            if position not in judged and not custom
        ]
        self._sums = {position: np.zeros(4) for _, position in self._places}
        """Noise, squares, sum and number of the elements."""

    def add(self, wanted: Answer, got: Answer) -> None:
        for place, position in self._places:
            a, b = wanted[place], got[place]
            if a.dtype.kind == "f":
                finite = np.isfinite(a)
                a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
                self._sums[position] += np.square(b - a).sum(), np.square(a).sum(), a.sum(), a.size

    def check(self) -> None:
        """Raises `Unsound` where noise drowns an output."""
        for position, (noise, squares, total, count) in self._sums.items():
            power = squares - total * total / count if count else 0.0
            # A constant output has no power of its own but its size.
            share = noise / (power if power > 1e-12 * squares else squares or 1.0)
            if share > _MOST_NOISE:
                raise Unsound(
                    Verdict.ACCURACY,
                    f"output {self._names[position]!r}, which no label judges, is ruined: noise of "
                    f"{share:.2f} of its power, allowed {_MOST_NOISE:g}",
                )


def _answers(candidate: Session, data: Dataset, rows: Sequence[int]) -> Iterator[Answer]:
    try:
        yield from Runner(candidate, data).answers(rows)
    except ModelError as error:
        raise Unsound(Verdict.CRASH, error.message) from error


def _score(reference: Reference, head: Head, wanted: Answer, got: Answer, row: int) -> RowScore | None:
    """None where fp32 itself gives NaN: there is nothing to keep. SQNR leaves out the elements alone."""
    place = reference.scored.index(head.output)
    a = wanted[place]
    if head.metric is not Metric.SQNR and a.dtype.kind == "f" and not bool(np.isfinite(a).all()):
        return None
    here = replace(head, output=place)
    one, other = (here.pick([reference.read(head, output) for output in answer]) for answer in (wanted, got))
    return score_row(head, one, other, reference.data.label(row))


def _combined(
    reference: Reference,
    heads: Sequence[Head],
    rows: Sequence[int],
    scores: Sequence[Sequence[RowScore | None]],
    changed: bool,
    seed: int,
) -> Fidelity:
    """The head that loses most."""
    names = reference.session.output_names
    # Sums must not depend on the order in which the rows were judged.
    ascending = sorted(range(len(rows)), key=lambda place: rows[place])
    results, samples = [], []
    for index, head in enumerate(heads):
        places = [place for place in ascending if scores[place][index] is not None]
        counted = [score for place in places if (score := scores[place][index]) is not None]
        if not _has_figures(head, counted):
            raise not_finite(reference.data, reference.split)
        labels = reference.labels([rows[place] for place in places])
        results.append(combine(head, counted, labels, seed))
        samples.append(len(counted))
    worst = max(range(len(heads)), key=lambda index: (results[index].drop_bound, -index))
    result = results[worst]
    return Fidelity(
        split=reference.split,
        metric=heads[worst].name,
        samples=samples[worst],
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
        first = int(np.argwhere(~np.isfinite(got) & np.isfinite(wanted))[0][0]) if got.ndim else 0
        raise Unsound(
            Verdict.NAN,
            f"output {name!r} has NaN or infinite values where fp32 has none"
            + (f", first at step {first} of {data.steps(row)}" if data.sequences else "")
            + (f" (the data itself: {given})" if given else ""),
        )


def measure_latency(
    reference: Session, candidate: Session, feeds: Sequence[Feed], pairs: int = _PAIRS
) -> Latency:
    """Run the two in turns, one thread, and give the median of the paired ratios.

    Ratios are of processor time, which other work on the machine disturbs far less than the clock; the order
    within a pair alternates, so that whatever the first run leaves in the caches favours neither. What looks
    slower than the reference is measured up to three times as often before that is believed.

    Args:
        pairs: so many, fewer if a run takes long.
    """
    for feed in feeds[:2]:
        reference.run(feed)
        candidate.run(feed)
    once = _timed(reference, feeds[:1])[1]
    repeats = int(np.clip(np.ceil(_RUN_SECONDS / max(once, 1e-6)), 1, _MOST_RUNS))
    pairs = int(np.clip(_PAIRED_SECONDS / (2 * repeats * max(once, 1e-6)), min(_LEAST_PAIRS, pairs), pairs))
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []

    def best() -> float:
        return min(cpu for cpu, _ in ours) / min(cpu for cpu, _ in theirs)

    while not ours or (best() > _LOOKS_SLOWER and len(ours) < 3 * pairs):
        for pair in range(pairs):
            batch = [feeds[(pair + step) % len(feeds)] for step in range(repeats)]
            turns = ((reference, theirs), (candidate, ours))
            for session, times in turns[:: -1 if pair % 2 else 1]:
                times.append(_timed(session, batch))
    single = [wall for _, wall in ours]
    if repeats > 1:
        single = [_timed(candidate, [feeds[run % len(feeds)]])[1] for run in range(_MOST_RUNS)]
    return Latency(
        p50_us=round(float(np.quantile(single, 0.5)) * 1e6, 1),
        p95_us=round(float(np.quantile(single, 0.95)) * 1e6, 1),
        ratio=round(float(np.median([a / b for (a, _), (b, _) in zip(ours, theirs, strict=True)])), 4),
        best_ratio=round(best(), 4),
        pairs=len(ours),
    )


def _timed(session: Session, feeds: Sequence[Feed]) -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    start, cpu = time.perf_counter(), time.process_time()
    for feed in feeds:
        session.run(feed)
    return max(time.process_time() - cpu, 1e-9), time.perf_counter() - start
