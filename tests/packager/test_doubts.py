"""A model that is no better than a guess on the labels was fed or labelled wrongly: the notes say so."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_contract.errors import DataError
from skerry_packager.doubts import doubt_about_labels, refuse_useless_labels
from skerry_packager.results import Fidelity

BALANCED = np.array([0, 1] * 8)


@pytest.mark.parametrize(("metric", "figure"), [("accuracy", 0.5), ("accuracy", 0.2), ("auc", 0.5)])
def test_no_better_than_a_guess_is_told(metric: str, figure: float) -> None:
    (note,) = doubt_about_labels(metric, figure, BALANCED)
    assert f"the original's {metric} is {figure:.3f}" in note
    assert "check that the labels" in note


@pytest.mark.parametrize(
    ("metric", "figure", "labels"),
    [
        ("accuracy", 0.51, BALANCED),
        ("auc", 0.6, BALANCED),
        ("f1", 0.1, BALANCED),
        ("mae", 0.0, BALANCED),
        ("accuracy", 1.0, np.zeros(9, np.int64)),
        ("accuracy", 0.1, None),
        ("accuracy", None, BALANCED),
        ("accuracy", 0.3, np.zeros((4, 7), np.int64)),
    ],
)
def test_else_nothing_is_said(metric: str, figure: float | None, labels: np.ndarray | None) -> None:
    assert doubt_about_labels(metric, figure, labels) == ()


def test_the_commonest_class_is_the_measure_of_accuracy() -> None:
    labels = np.array([0] * 9 + [1])
    assert doubt_about_labels("accuracy", 0.9, labels)
    assert not doubt_about_labels("accuracy", 0.95, labels)


def original(metric: str, figure: float) -> Fidelity:
    return Fidelity(
        split="search", metric=metric, samples=40, output="p", reference=figure, candidate=figure, drop=0.0,
        drop_bound=0.0,
    )  # fmt: skip


def test_labels_that_the_original_never_meets_are_refused_for_they_let_anything_pass() -> None:
    with pytest.raises(DataError, match="none of 40 labelled rows right") as caught:
        refuse_useless_labels(original("accuracy", 0.0))
    assert "Classes are numbers from 0" in caught.value.hint
    refuse_useless_labels(original("accuracy", 0.025))
    refuse_useless_labels(original("mae", 0.0))
