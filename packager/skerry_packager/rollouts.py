"""Runs a model over rows: one inference, or a whole sequence of them in which it feeds on its own states.

Nobody corrects a candidate on the way: what it gets wrong in its state stays in its state, as on a device.
Sequences run side by side where the model's batch axis is free and that was seen to change nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Final

import numpy as np

from skerry_contract.errors import ModelError

from .datasets import Dataset
from .engine import Feed, Session

Answer = list[np.ndarray]
"""The scored outputs of one row; of a sequence with time on a new first axis."""

_ABREAST: Final = 16
"""Sequences that run side by side."""
_ABREAST_BYTES: Final = 4 << 20
"""The inputs of one step, of all sequences side by side, stay below this: only small models gain by it."""
AT_ONCE: Final = 32
"""Rows that are divided among the threads. Whoever runs the same rows in these portions has the same batches,
and so the same last bits."""
_THREADS: Final = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2)
_PROOF_ROWS: Final = 2
_PROOF_STEPS: Final = 64
_SAME_RELATIVE: Final = 1e-5
"""Kernels sum in another order when they have more rows; a scale taken over all rows shows far above it."""
_MOST_STEPS: Final = 4096
"""Steps that are rolled out to pick some of them."""
_MOST_FEEDS: Final = 512
"""Inferences that calibrate."""
_MOST_FEED_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Moment:
    """One inference out of a rollout."""

    row: int
    step: int
    feed: Feed
    """With the states as the model had made them by then."""
    outputs: list[np.ndarray]
    """All of the model's outputs, in its order."""


def scored_outputs(names: Sequence[str], data: Dataset) -> tuple[int, ...]:
    """Positions of the outputs that are compared: of a rollout those that are no states."""
    states = data.memory.loops if data.memory is not None and data.sequences else {}
    return tuple(position for position, name in enumerate(names) if name not in states)


def roll(session: Session, data: Dataset, row: int, most_steps: int = 0) -> Iterator[Moment]:
    """Step by step through one row; a row that is no sequence is one step.

    Raises:
        ModelError: the engine failed on a step.
    """
    memory = data.memory
    if memory is not None and memory.inner:
        session.reset()
    states: dict[str, np.ndarray] = {}
    steps = min(data.steps(row), most_steps or data.steps(row))
    for step in range(steps):
        feed = {**data.feed(row, step), **states}
        outputs = session.run(feed)
        yield Moment(row, step, feed, outputs)
        if memory is not None:
            states = {
                memory.loops[name]: output
                for name, output in zip(session.output_names, outputs, strict=True)
                if name in memory.loops
            }


class Runner:
    """One session over the rows of one data set."""

    def __init__(self, session: Session, data: Dataset) -> None:
        self.session = session
        self.data = data
        self._scored = scored_outputs(session.output_names, data)
        self._axes: Mapping[str, int | None] | None = None
        self._proved = False
        if data.sequences and not self._keeps_inside:
            self._axes = _batch_axes(session, data)

    @property
    def _keeps_inside(self) -> bool:
        return self.data.memory is not None and self.data.memory.inner

    @property
    def abreast(self) -> bool:
        """Whether sequences run side by side."""
        return self._axes is not None

    def answers(self, rows: Sequence[int]) -> Iterator[Answer]:
        """What the model answers on each of the rows, in their order.

        Raises:
            ModelError: the engine failed on one of them.
        """
        if self._axes is not None and not self._proved and len(rows) >= _PROOF_ROWS:
            self._prove(rows[:_ABREAST])
        for start in range(0, len(rows), AT_ONCE):
            chunks = self._chunks(rows[start : start + AT_ONCE])
            # No pool is open while others read the answers: who stops reading leaves nothing behind.
            with ThreadPoolExecutor(1 if self._keeps_inside else _THREADS) as pool:
                found = list(chain.from_iterable(pool.map(self._chunk, chunks)))
            yield from found

    def _chunks(self, rows: Sequence[int]) -> list[Sequence[int]]:
        """Equal parts for the threads, none larger than what runs side by side."""
        size = -(-len(rows) // _THREADS)
        if self._axes is not None:
            size = -(-size // -(-size // self._width(rows)))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _width(self, rows: Sequence[int]) -> int:
        one = sum(array.nbytes for array in self.data.feed(rows[0]).values())
        return int(np.clip(_ABREAST_BYTES // max(one, 1), 1, _ABREAST))

    def _chunk(self, rows: Sequence[int]) -> list[Answer]:
        if self._axes is None or len(rows) == 1:
            return [self._alone(row) for row in rows]
        # Rows that are not the same in what all of them share cannot run together.
        return self._abreast(rows, self._axes) or [self._alone(row) for row in rows]

    def _alone(self, row: int, most_steps: int = 0) -> Answer:
        found = [moment.outputs for moment in roll(self.session, self.data, row, most_steps)]
        if not self.data.sequences:
            return found[0]
        return [_over_time([outputs[position] for outputs in found]) for position in self._scored]

    def _prove(self, rows: Sequence[int]) -> None:
        """Rows alone and side by side must agree, or they run alone."""
        self._proved = True
        axes, self._axes = self._axes, None
        if axes is None:
            return
        try:
            together = self._abreast(rows, axes, _PROOF_STEPS)
        except (ModelError, ValueError):  # it takes one row only, whatever it declares
            return
        alone = [self._alone(row, _PROOF_STEPS) for row in rows[:_PROOF_ROWS]]
        if together and all(map(_agree, together[:_PROOF_ROWS], alone)):
            self._axes = axes

    def _abreast(
        self, rows: Sequence[int], axes: Mapping[str, int | None], most_steps: int = 0
    ) -> list[Answer]:
        """Sequences side by side, those that end early padded; nothing where what they must share differs."""
        memory = self.data.memory
        if memory is None:
            return []
        index = list(rows)
        lengths = [min(self.data.steps(row), most_steps or self.data.steps(row)) for row in rows]
        first = [self.data.feed(row) for row in rows]
        fixed: dict[str, np.ndarray] = {}
        for name, axis in axes.items():
            arrays = [feed[name] for feed in first]
            if axis is not None:
                fixed[name] = np.concatenate(arrays, axis)
            elif name not in memory.stepped and all(np.array_equal(arrays[0], other) for other in arrays):
                fixed[name] = arrays[0]
            else:
                return []
        states: dict[str, np.ndarray] = {}
        kept: list[list[np.ndarray]] = [[] for _ in self._scored]
        for step in range(max(lengths)):
            moving = {}
            for name in memory.stepped:
                axis = axes[name]
                block = self.data.inputs[name][index, step]
                moving[name] = block if self.data.batched[name] else _merged(block, axis or 0)
            outputs = self.session.run({**fixed, **moving, **states})
            for name, output in zip(self.session.output_names, outputs, strict=True):
                if name in memory.loops:
                    states[memory.loops[name]] = output
            for place, position in enumerate(self._scored):
                kept[place].append(outputs[position])
        return [
            [_over_time([_only(output, number, len(index)) for output in steps[:length]]) for steps in kept]
            for number, length in enumerate(lengths)
        ]


def _batch_axes(session: Session, data: Dataset) -> Mapping[str, int | None] | None:
    """Input -> its batch axis, None for what rows share; None if the rows cannot run side by side.

    A batch axis is the only one that the model leaves free and that has one entry in a single inference.
    """
    memory = data.memory
    if memory is None or session.engine != "onnx":
        return None
    feed = data.feed(0)
    axes: dict[str, int | None] = {}
    for signature in session.inputs:
        shape = feed[signature.name].shape
        free = [
            axis
            for axis, (want, size) in enumerate(zip(signature.shape, shape, strict=False))
            if want == -1 and size == 1
        ]
        moves = signature.name in memory.stepped or signature.name in memory.loops.values()
        if len(free) > 1 or (moves and not free):
            return None
        if signature.name in memory.stepped and data.batched[signature.name] and free != [0]:
            return None
        axes[signature.name] = free[0] if free else None
    return axes


def _merged(block: np.ndarray, axis: int) -> np.ndarray:
    """``[rows, *one input]`` as one input with the rows on its batch axis."""
    return np.moveaxis(block.squeeze(axis + 1), 0, axis)


def _only(output: np.ndarray, number: int, count: int) -> np.ndarray:
    """One row's part of a scored output. Raises ValueError if the rows are not on the first axis."""
    if output.ndim == 0 or output.shape[0] != count:
        raise ValueError("the rows are not on the output's first axis")
    return output[number : number + 1]


def _over_time(steps: Sequence[np.ndarray]) -> np.ndarray:
    """The steps of one output on a new first axis; steps of different shape one after another."""
    if len({step.shape for step in steps}) == 1:
        return np.stack(steps)
    if len({step.shape[1:] for step in steps}) == 1 and all(step.ndim for step in steps):
        return np.concatenate(steps)
    return np.concatenate([step.ravel() for step in steps])


def _agree(one: Answer, other: Answer) -> bool:
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.dtype.kind != "f":
            if not np.array_equal(a, b):
                return False
            continue
        room = _SAME_RELATIVE * float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        if not np.allclose(a, b, rtol=0.0, atol=room, equal_nan=True):
            return False
    return True


def moments(session: Session, data: Dataset, most: int, first_only: bool = False) -> Iterator[Moment]:
    """At most `most` inferences, evenly spread over all steps of all rows, in their order.

    Args:
        first_only: only the first step of each row, which needs no state from before.

    Raises:
        ModelError: the engine failed on a step.
    """
    wanted: dict[int, list[int]] = {}
    for row, step in _spread(data, most, first_only):
        wanted.setdefault(row, []).append(step)
    for row, steps in wanted.items():
        for moment in roll(session, data, row, steps[-1] + 1):
            if moment.step in steps:
                yield moment


def sample_feeds(session: Session, data: Dataset, most: int = _MOST_FEEDS) -> list[Feed]:
    """Complete sets of inputs, evenly spread; states are those of the session's own rollouts.

    Of a model that keeps its state inside they are the steps of the first rows, one after another: only so
    does it come into the states that belong to them.

    Raises:
        ModelError: the engine failed on a step.
    """
    one = sum(array.nbytes for array in data.feed(0).values())
    most = max(1, min(most, _MOST_FEED_BYTES // max(one, 1)))
    if not data.sequences:
        return [data.feed(row) for row, _ in _spread(data, most)]
    if data.memory is not None and data.memory.inner:
        places = ((row, step) for row in range(len(data)) for step in range(data.steps(row)))
        return [data.feed(row, step) for (row, step), _ in zip(places, range(most), strict=False)]
    return [moment.feed for moment in moments(session, data, most)]


def _spread(data: Dataset, most: int, first_only: bool = False) -> list[tuple[int, int]]:
    """Rows and steps, evenly spread and ascending, from the middle of equal parts."""
    rows = list(range(len(data)))
    total = sum(map(data.steps, rows))
    if total > _MOST_STEPS and data.sequences and not first_only:
        rows = rows[:: -(-total // _MOST_STEPS)]
    counts = [1 if first_only else data.steps(row) for row in rows]
    ends = np.cumsum(counts)
    most = min(most, int(ends[-1]))
    picks = ((np.arange(most) + 0.5) * (int(ends[-1]) / most)).astype(np.int64)
    owners = np.searchsorted(ends, picks, side="right")
    return [
        (rows[owner], int(pick - (ends[owner] - counts[owner])))
        for owner, pick in zip(owners.tolist(), picks.tolist(), strict=True)
    ]
