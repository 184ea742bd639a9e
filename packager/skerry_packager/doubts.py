"""Says when the original itself does not meet the labels: then the data want a look, not the variants."""

from __future__ import annotations

import numpy as np

from skerry_contract.errors import DataError

from .results import Fidelity

_CHANCE = {"accuracy": None, "auc": 0.5}
"""Metric -> what guessing reaches; of accuracy it is the share of the commonest class."""


def doubt_about_labels(metric: str, reference: float | None, labels: np.ndarray | None) -> tuple[str, ...]:
    """A note, or none where there is no reason to doubt.

    Args:
        metric: what judged.
        reference: fp32's figure.
        labels: one class for each row; others are not looked at.
    """
    if reference is None or labels is None or labels.ndim != 1 or metric not in _CHANCE:
        return ()
    often = float(np.unique(labels, return_counts=True)[1].max()) / len(labels)
    chance = _CHANCE[metric]
    if often == 1 or reference > (often if chance is None else chance):
        return ()
    always = "always answering the commonest class" if chance is None else "guessing"
    return (
        f"the original's {metric} is {reference:.3f}, no better than {always}: check that the labels have "
        "the order of its outputs, and that the data are prepared as in training",
    )


def refuse_useless_labels(original: Fidelity) -> None:
    """A gate that compares with nothing lets anything through.

    Raises:
        DataError: the original answers no labelled row right.
    """
    if original.metric in ("accuracy", "f1") and original.samples and not original.reference:
        raise DataError(
            f"the original answers none of {original.samples} labelled rows right: the labels are not "
            f"those of its output {original.output!r}",
            hint="Classes are numbers from 0 in the order of the output; --labels gives that order for "
            "words. Without labels agreement with the original judges.",
        )
