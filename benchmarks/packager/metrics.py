"""What a row's outputs are worth, from 0 to 1 (``mae``: the negative error): the benchmark's own judge.

Nothing here comes from the packager: what is judged must not bring its own scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

Outputs = Mapping[str, np.ndarray]
"""Output name -> array; of a sequence ``[steps, *output]``."""

SPEECH: Final = 0.5
WAKE_CUTOFF: Final = 0.85
WAKE_WINDOW: Final = 5
NOTE: Final = 0.3
CENTS: Final = 50.0


def accuracy(found: np.ndarray, label: np.ndarray) -> float:
    """Whether the class is right; `found` holds one score per class, or the class itself."""
    answer = found.argmax() if found.size > 1 else found.reshape(())
    return float(int(answer) == int(label))


def text(found: np.ndarray, label: np.ndarray) -> float:
    """Share of characters that are right, by edit distance; classes per step as in CTC, 0 is the blank."""
    path = found.reshape(-1, found.shape[-1]).argmax(axis=1)
    read = [int(c) for i, c in enumerate(path) if c and (i == 0 or c != path[i - 1])]
    true = [int(c) for c in label if c >= 0]
    return max(0.0, 1 - _distance(read, true) / len(true))


def _distance(one: list[int], other: list[int]) -> int:
    before = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        now = [i]
        for j, b in enumerate(other, 1):
            now.append(min(before[j] + 1, now[-1] + 1, before[j - 1] + (a != b)))
        before = now
    return before[-1]


def frames(found: np.ndarray, label: np.ndarray) -> float:
    """Share of steps where speech is told from silence."""
    return float(((found.reshape(-1) > SPEECH) == (label > 0)).mean())


def wake(found: np.ndarray, label: np.ndarray) -> float:
    """Whether the wake word was heard exactly if it was said: mean of five steps over the cutoff."""
    # Engines give the integers themselves, or floats by their scale.
    steps = found.reshape(-1).astype(np.float64) / (1 if found.dtype.kind == "f" else 255)
    means = np.convolve(steps, np.ones(WAKE_WINDOW) / WAKE_WINDOW, mode="valid")
    return float(bool((means > WAKE_CUTOFF).any()) == bool(label))


def pitch(found: np.ndarray, label: np.ndarray) -> float:
    """Share of frames whose pitch is within half a semitone of the tone that was played (label: Hz)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cents = 1200 * np.abs(np.log2(found.reshape(-1).astype(np.float64) / float(label)))
    return float((cents < CENTS).mean())


def notes(found: np.ndarray, label: np.ndarray) -> float:
    """F1 of the notes that sound, over all frames; `label` is ``[88]``, 1 where a key was struck."""
    heard = found.reshape(-1, found.shape[-1]).mean(axis=0) > NOTE
    both = float((heard & (label > 0)).sum())
    return 2 * both / max(1.0, float(heard.sum() + (label > 0).sum()))


def mask(found: np.ndarray, label: np.ndarray) -> float:
    """Intersection over union of the region over 0.3, the threshold of PP-OCR."""
    seen, true = found.reshape(label.shape) > 0.3, label > 0
    return float((seen & true).sum() / max(1, (seen | true).sum()))


def mae(found: np.ndarray, label: np.ndarray) -> float:
    """Minus the absolute error; the labels are scaled to a mean absolute deviation of 1."""
    return -float(np.abs(found.reshape(-1).astype(np.float64) - label).mean())


def cosine(outputs: Outputs, reference: Outputs) -> float:
    """The worst output's cosine to the source's output."""

    def one(found: np.ndarray, true: np.ndarray) -> float:
        a, b = found.reshape(-1).astype(np.float64), true.reshape(-1).astype(np.float64)
        norms = float(np.linalg.norm(a) * np.linalg.norm(b))
        return 1.0 if np.array_equal(a, b) else float(a @ b) / norms if norms else 0.0

    return min(one(outputs[name], reference[name]) for name in reference)


Labelled = Callable[[np.ndarray, np.ndarray], float]
LABELLED: Final[Mapping[str, Labelled]] = {
    "accuracy": accuracy,
    "frames": frames,
    "mae": mae,
    "mask": mask,
    "notes": notes,
    "pitch": pitch,
    "text": text,
    "wake": wake,
}
METRICS: Final = (*LABELLED, "cosine")


def score_row(
    metric: str, output: str, outputs: Outputs, label: np.ndarray | None, reference: Outputs
) -> float:
    """Score one row. Raises KeyError for an unknown metric or output, ValueError for another shape."""
    if metric == "cosine":
        return cosine(outputs, reference)
    if label is None:
        raise ValueError(f"the metric {metric!r} needs labels")
    return LABELLED[metric](outputs[output], label)
