"""Three disjoint sets of rows: to calibrate, to search, and to have the last word.

They depend on the seed and the row number alone, so the same data gives the same splits everywhere.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from skerry_contract.errors import DataError

from .datasets import Dataset
from .results import SplitInfo

_FEW_SEQUENCES: Final = 30
"""With fewer, long sequences are cut into about that many pieces, so that there is something to split."""
_LEAST_PIECE: Final = 64
"""Steps of the shortest piece."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """Three disjoint sets of rows; a generator sees the first two, only the last word sees the third."""

    calibration: Dataset
    search: Dataset
    held_out: Dataset
    held_out_rows: tuple[int, ...]
    """Row numbers of `held_out` in the evaluation data; a sequence that was cut comes once for each piece."""
    info: Mapping[str, SplitInfo]
    notes: tuple[str, ...]


def make_splits(
    calibration: Dataset | None,
    evaluation: Dataset,
    seed: int = 0,
    most_calibration: int = 128,
    most_rows: int = 1024,
) -> Splits:
    """Divide rows by the hash of their number and the seed.

    With its own calibration data, evaluation rows are halved into search and held-out, and calibration rows
    whose inputs also occur there are dropped. Without it, a fifth of the evaluation rows calibrates. Rows
    with equal inputs stay in one split: what was searched on has no last word.

    Few long sequences are cut into pieces first; the pieces of one sequence stay together as far as possible.

    Raises:
        DataError: too few rows that differ for three splits, or every calibration row also evaluates.
    """
    notes = [note for data in (evaluation, calibration) if data is not None for note in data.notes]
    evaluation, pieces = cut_sequences(evaluation)
    notes += [pieces] if pieces else []
    source_of = evaluation.numbers if pieces else range(len(evaluation))
    digests = [evaluation.row_digest(row) for row in range(len(evaluation))]
    first: dict[bytes, int] = {}
    alike = [first.setdefault(digest, row) for row, digest in enumerate(digests)]
    if len(first) < len(evaluation):
        notes.append(
            f"{len(evaluation) - len(first)} evaluation rows repeat others: equal rows stay in one split"
        )
    order = sorted(
        range(len(evaluation)), key=lambda row: (_rank(seed, source_of[alike[row]]), _rank(seed, alike[row]))
    )
    if calibration is None:
        used = _border(order, min(most_calibration, max(1, len(order) // 5)), alike)
        calibration_rows, order = order[:used], order[used:]
        source = evaluation
    else:
        source = calibration
        fresh = [row for row in range(len(calibration)) if calibration.row_digest(row) not in first]
        if not fresh:
            raise DataError(
                f"all {len(calibration)} calibration rows also are evaluation rows",
                hint="Calibrate on other rows, or leave --calibration out: then a fifth of the evaluation "
                "rows calibrates and the others judge.",
            )
        if len(fresh) < len(calibration):
            notes.append(
                f"{len(calibration) - len(fresh)} calibration rows also evaluate, and were not calibrated on"
            )
        calibration_rows = sorted(fresh, key=lambda row: _rank(seed, row))[:most_calibration]
    half = _border(order, len(order) // 2, alike)
    search_rows, held_rows = order[:half][:most_rows], order[half:][:most_rows]
    if not calibration_rows or not search_rows:
        broken = evaluation.first_not_finite()
        raise DataError(
            f"{len(evaluation)} evaluation rows, {len(first)} of them different, do not divide into "
            f"calibration, search and held-out data{broken and ': '}{broken}",
            hint="Give more samples: hundreds are good.",
        )
    if len(held_rows) < 100:
        what = "sequence" if evaluation.sequences else "row"
        notes.append(
            f"only {len(held_rows)} held-out {what}s: a small loss cannot be told from chance; give hundreds"
        )
    parts = {
        "calibration": (source, sorted(calibration_rows)),
        "search": (evaluation, sorted(search_rows)),
        "held-out": (evaluation, sorted(held_rows)),
    }
    taken = {name: data.take(rows) for name, (data, rows) in parts.items()}
    return Splits(
        calibration=taken["calibration"],
        search=taken["search"],
        held_out=taken["held-out"],
        held_out_rows=tuple(taken["held-out"].numbers),
        info={
            name: SplitInfo(rows=len(rows), sha256=_digest(taken[name], rows))
            for name, (_, rows) in parts.items()
        },
        notes=tuple(notes),
    )


def cut_sequences(data: Dataset) -> tuple[Dataset, str]:
    """Pieces of few long sequences, and the note that says so; without one the data is as it was.

    Each piece begins as a sequence does, with zeros as states, and is as long as the splits allow, because a
    drift that takes longer is not seen. Sequences with a label or an initial state of their own stay whole.
    """
    memory = data.memory
    if memory is None or memory.lengths is None or len(data) >= _FEW_SEQUENCES:
        return data, ""
    longest = int(memory.lengths.max())
    if longest < 2 * _LEAST_PIECE or (data.labels is not None and not data.step_labels):
        return data, ""
    if any(name in data.inputs for name in memory.loops.values()):
        return data, ""
    goal = max(_LEAST_PIECE, int(memory.lengths.sum()) // _FEW_SEQUENCES)
    places: list[tuple[int, int, int]] = []
    for row, length in enumerate(memory.lengths.tolist()):
        borders = np.linspace(0, length, max(1, length // goal) + 1).astype(int).tolist()
        places += [(row, start, end) for start, end in itertools.pairwise(borders)]
    if len(places) == len(data):
        return data, ""
    steps = max(end - start for _, start, end in places)

    def pieces(array: np.ndarray) -> np.ndarray:
        cut = np.zeros((len(places), steps, *array.shape[2:]), dtype=array.dtype)
        for number, (row, start, end) in enumerate(places):
            cut[number, : end - start] = array[row, start:end]
        return cut

    rows = [row for row, _, _ in places]
    parts = replace(
        data,
        inputs={
            name: pieces(array) if name in memory.stepped else array[rows]
            for name, array in data.inputs.items()
        },
        labels=None if data.labels is None else pieces(data.labels),
        numbers=tuple(rows),
        memory=replace(memory, lengths=np.array([end - start for _, start, end in places])),
    )
    return parts, (
        f"{len(data)} sequences were cut into {len(places)} pieces of up to {steps} steps, each begun "
        "without memory, to have something to split; more recordings give figures that are surer"
    )


def _border(order: Sequence[int], wanted: int, alike: Sequence[int]) -> int:
    """The place nearest to `wanted` where `order` is cut between rows that differ; 0 if there is none.

    Args:
        alike: for each row the first one with the same inputs.
    """
    for step in range(len(order)):
        for place in (wanted + step, wanted - step):
            if 0 < place < len(order) and alike[order[place]] != alike[order[place - 1]]:
                return place
    return 0


def _rank(seed: int, row: int) -> bytes:
    return hashlib.sha256(f"{seed}:{row}".encode()).digest()


def _digest(data: Dataset, rows: Sequence[int]) -> str:
    digest = hashlib.sha256(",".join(map(str, rows)).encode())
    for position in range(len(data)):
        digest.update(data.row_digest(position))
        if (label := data.label(position)) is not None:
            digest.update(np.ascontiguousarray(label).tobytes())
    return digest.hexdigest()
