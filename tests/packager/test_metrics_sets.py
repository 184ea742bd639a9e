"""F1 and AUC: equal to scikit-learn's, weighted and with ties, and resampled in pairs by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from skerry_contract.errors import DataError
from skerry_packager.metrics import Form, Head, HeadResult, Metric, combine, score_row
from skerry_packager.metrics.custom import CustomMetric
from skerry_packager.metrics.scores import Kept
from skerry_packager.metrics.sets import auc_of, custom_result, f1_of


def rows_of(values: np.ndarray) -> list[np.ndarray]:
    return [np.atleast_1d(value) for value in values]


def judged(head: Head, reference: np.ndarray, candidate: np.ndarray, labels: np.ndarray) -> HeadResult:
    rows = [
        score_row(head, one[None], other[None], label)
        for one, other, label in zip(reference, candidate, labels, strict=True)
    ]
    return combine(head, rows, labels, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 60))
def test_f1_equals_scikit_learns(seed: int, classes: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    truth, answer = rng.integers(0, classes, (2, rows))
    weights = rng.integers(0, 3, (3, rows)).astype(float)
    weights[0] = 1
    weights[:, 0] += weights.sum(axis=1) == 0  # a resample draws something
    found = f1_of(rows_of(truth), rows_of(answer))[0](weights)
    for weight, value in zip(weights.astype(int), found, strict=True):
        drawn = np.repeat(np.arange(rows), weight)
        average = "binary" if max(truth.max(), answer.max()) <= 1 else "macro"
        want = f1_score(truth[drawn], answer[drawn], average=average, zero_division=0)
        assert value == pytest.approx(want, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 80), st.integers(1, 5))
def test_auc_equals_scikit_learns_with_ties(seed: int, rows: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(rows) % 2)
    scores = rng.integers(0, levels + 1, rows) / levels
    weights = np.stack([np.ones(rows), rng.integers(0, 3, rows).astype(float)])
    found = auc_of(rows_of(truth), [score.reshape(1, 1) for score in scores])[0](weights)
    for weight, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(rows), weight.astype(int))
        if len(set(truth[drawn])) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(truth[drawn], scores[drawn]), abs=1e-9)


@pytest.mark.parametrize("form", [Form.PROBABILITIES, Form.LOGITS])
def test_auc_of_more_classes_is_the_mean_of_one_against_the_rest(form: Form) -> None:
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 300)
    logits = rng.normal(0, 1, (300, 4)) + 2 * np.eye(4)[truth]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    given = p if form is Form.PROBABILITIES else logits
    found = judged(Head(0, Metric.AUC, form), given, given + rng.normal(0, 0.01, given.shape), truth)
    assert found.reference == pytest.approx(roc_auc_score(truth, p, multi_class="ovr"), abs=1e-9)
    assert found.drop == found.reference - found.candidate
    assert found.drop <= found.drop_bound < 0.02


@pytest.mark.parametrize("form", [Form.PROBABILITIES, Form.LOGITS, Form.BINARY_LOGIT])
def test_auc_of_two_classes_is_that_of_the_second(form: Form) -> None:
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 200)
    z = rng.normal(0, 1, 200) + truth
    p = 1 / (1 + np.exp(-z))
    outputs = {
        Form.PROBABILITIES: np.stack([1 - p, p], 1),
        Form.LOGITS: np.stack([-z, z], 1),
        Form.BINARY_LOGIT: z[:, None],
    }
    found = judged(Head(0, Metric.AUC, form), outputs[form], outputs[form], truth)
    assert found.reference == pytest.approx(roc_auc_score(truth, z), abs=1e-9)
    assert (found.drop, found.drop_bound) == (0, 0)


def test_f1_of_a_head_and_its_paired_bound() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 3, 400)
    reference = np.eye(3)[truth] + rng.normal(0, 0.3, (400, 3))
    candidate = reference + rng.normal(0, 0.2, reference.shape)
    found = judged(Head(0, Metric.F1, Form.LOGITS), reference, candidate, truth)
    want = [f1_score(truth, out.argmax(1), average="macro") for out in (reference, candidate)]
    assert (found.reference, found.candidate) == pytest.approx(tuple(want), abs=1e-9)
    assert found.drop < found.drop_bound < found.drop + 0.03, "pairs: what both get wrong cancels"


def test_the_steps_of_a_sequence_are_scored_together_and_resampled_together() -> None:
    """Ten sequences of 50 equal steps are ten independent things, not five hundred."""
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 2, 10)
    scores = rng.normal(0, 1, 10) + truth
    worse = scores - 0.8 * truth
    head = Head(0, Metric.AUC, Form.BINARY_LOGIT)

    def bound(steps: int) -> HeadResult:
        rows = [
            score_row(head, np.full((steps, 1), a), np.full((steps, 1), b), np.full(steps, label))
            for a, b, label in zip(scores, worse, truth, strict=True)
        ]
        return combine(head, rows, truth, 0)

    assert bound(50).drop == pytest.approx(bound(1).drop)
    assert bound(50).drop_bound == pytest.approx(bound(1).drop_bound)


def test_auc_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        judged(Head(0, Metric.AUC, Form.BINARY_LOGIT), np.ones((5, 1)), np.ones((5, 1)), np.ones(5, int))


def test_f1_without_any_flip_tells_the_exact_bound() -> None:
    labels = np.arange(40) % 2
    scores = np.where(labels, 0.9, 0.1).astype(np.float32)[:, None]
    found = judged(Head(0, Metric.F1, Form.BINARY_PROBABILITY), scores, scores * 0.99, labels)
    assert found.drop_bound == 0
    assert found.exact_bound == pytest.approx(1 - 0.05 ** (1 / 40))


def custom(function: Callable[..., float]) -> CustomMetric:
    return CustomMetric(name="mine:score", function=function, outputs=("scores",), lower_is_better=False)


def test_a_function_that_is_a_mean_over_rows_is_called_once_a_row_and_bounded_the_same() -> None:
    """Whole outputs may be gigabytes: resampling their numbers gives the same bound."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 4, 80)
    reference, candidate = rng.random((2, 80, 4))
    kept = [
        Kept(truth=np.array(label), reference=(one[None],), candidate=(other[None],))
        for label, one, other in zip(truth, reference, candidate, strict=True)
    ]
    calls = []

    def mean_hit(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
        calls.append(len(labels))
        return float((outputs["scores"].argmax(-1) == labels).mean())

    def not_a_mean(labels: np.ndarray, outputs: Mapping[str, np.ndarray]) -> float:
        # The same value wherever many rows are given, and none for one.
        if len(labels) == 1:
            raise ValueError("one row says nothing")
        return float((outputs["scores"].argmax(-1) == labels).mean())

    quick = custom_result(custom(mean_hit), kept, 0)
    assert len(calls) == 2 + 2 * 80, "once for all rows and once a row, for both models"
    assert quick == pytest.approx(custom_result(custom(not_a_mean), kept, 0))
