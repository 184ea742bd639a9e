"""The rule on few disagreements: what it accepts, what it refuses, and how often it is wrong (simulated)."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_packager.metrics import Form, Head, HeadResult, Metric, bootstrap_bound, combine, score_row
from skerry_packager.metrics.bounds import exact_bound, sparse_bound

HEAD = Head(0, Metric.ACCURACY, Form.BINARY_LOGIT)
LIMIT = 0.01


def judged(margins: np.ndarray, shifts: np.ndarray, right: np.ndarray, head: Head = HEAD) -> HeadResult:
    """fp32 names class 1 with these log-odds, the candidate's are shifted, `right` says where 1 is true."""
    rows = [
        score_row(head, np.array([[margin]]), np.array([[margin + shift]]), np.array(int(truth)))
        for margin, shift, truth in zip(margins, shifts, right, strict=True)
    ]
    return combine(head, rows, right.astype(int), 0)


def world(
    rng: np.random.Generator, rows: int, noise: float, confidence: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Margins as fp32 tells them, shifts by the candidate, the truth, and what the candidate really loses."""
    odds = np.abs(rng.normal(0, 4, rows))
    right = rng.random(rows) < 1 / (1 + np.exp(-odds))
    margins = confidence * odds
    shifts = rng.normal(0, noise, rows)
    return margins, shifts, right, float((np.tanh(odds / 2) * (shifts < -margins)).mean())


def accepted(rows: int, noise: float, confidence: float = 1.0, times: int = 40) -> float:
    """How often the bound stays under the limit."""
    rng = np.random.default_rng(7)
    return float(
        np.mean([judged(*world(rng, rows, noise, confidence)[:3]).drop_bound <= LIMIT for _ in range(times)])
    )


def noise_that_loses(loss: float, confidence: float = 1.0) -> float:
    """The noise at which a candidate really loses so much."""
    low, high = 1e-3, 30.0
    for _ in range(25):
        middle = float(np.sqrt(low * high))
        found = world(np.random.default_rng(0), 100_000, middle, confidence)[3]
        low, high = (middle, high) if found < loss else (low, middle)
    return low


def test_a_flip_near_a_tie_does_not_refuse_a_variant_on_few_rows() -> None:
    margins = np.append(np.full(159, 5.0), 0.05)
    shifts = np.append(np.full(159, -0.01), -0.1)
    found = judged(margins, shifts, np.ones(160, bool))
    assert found.drop == pytest.approx(1 / 160)
    assert found.drop_bound < 0.001
    assert found.exact_bound is None


def test_a_sure_answer_that_is_lost_does() -> None:
    margins, shifts = np.full(160, 5.0), np.zeros(160)
    shifts[3] = -9.0
    assert judged(margins, shifts, np.ones(160, bool)).drop_bound > 0.02


def test_where_fp32_is_less_sure_than_it_is_right_its_odds_are_not_believed() -> None:
    """A forest that says 55% and is always right: three flips are three rows lost."""
    margins, shifts = np.full(160, 0.2), np.zeros(160)
    shifts[:3] = -0.5
    found = judged(margins, shifts, np.ones(160, bool))
    assert found.drop_bound == pytest.approx(sparse_bound((shifts < 0).astype(float), 0), rel=0.1)


def test_labels_that_contradict_the_odds_count_alone() -> None:
    """Six flips of near ties, all of them lost: 1 in 64 by chance."""
    margins = np.append(np.tile([3.0, -3.0], 200), np.full(6, 0.02))
    shifts = np.append(np.zeros(400), np.full(6, -0.1))
    truth = np.append(np.tile([True, False], 200), np.ones(6, bool))
    truth[:20] = ~truth[:20]  # so that fp32 is as right as it says
    lost = np.append(np.zeros(400), np.ones(6))
    assert judged(margins, shifts, truth).drop_bound == sparse_bound(lost, 0) > LIMIT
    truth[-3:] = False
    assert judged(margins, shifts, truth).drop_bound < 0.001, "three lost, three won: no contradiction"


def test_from_25_disagreements_on_the_labels_count_alone() -> None:
    margins = np.full(400, 0.01)
    shifts = np.where(np.arange(400) < 30, -0.1, 0.1)
    truth = np.arange(400) % 2 == 0
    lost = np.where(shifts < 0, np.where(truth, 1.0, -1.0), 0.0)
    assert judged(margins, shifts, truth).drop_bound == sparse_bound(lost, 0)


def test_a_label_without_scores_is_counted() -> None:
    head = Head(0, Metric.ACCURACY, Form.LABEL)
    rows = [score_row(head, np.array([1]), np.array([int(row != 5)]), np.array(1)) for row in range(160)]
    found = combine(head, rows, np.ones(160, int), 0)
    assert found.drop == pytest.approx(1 / 160)
    assert 0.024 <= found.drop_bound <= 0.04


@pytest.mark.parametrize("events", [1, 2, 4, 8])
def test_the_bound_of_few_equal_losses_is_near_the_exact_one(events: int) -> None:
    """Garwood's limit of a Poisson count; the plain percentile gives 3, 5, 8, 13."""
    garwood = {1: 4.744, 2: 6.296, 4: 9.154, 8: 14.435}[events]
    losses = np.zeros(1000)
    losses[:events] = 1
    assert sparse_bound(losses, 0) * 1000 == pytest.approx(garwood, abs=1)
    assert sparse_bound(losses, 0) > bootstrap_bound(losses, 0)


@pytest.mark.parametrize("confidence", [1.0, 1.5, 0.6])
def test_a_variant_that_loses_the_limit_is_seldom_accepted(confidence: float) -> None:
    """Nominal 5%; fp32 may be sure of itself as it should be, too sure, or not sure enough."""
    noise = noise_that_loses(LIMIT, confidence)
    assert accepted(500, noise, confidence) <= 0.15
    assert accepted(160, noise, confidence) <= 0.20


def test_a_variant_that_loses_a_tenth_of_the_limit_is_nearly_always_accepted() -> None:
    noise = noise_that_loses(LIMIT / 10)
    assert accepted(160, noise) >= 0.9
    assert accepted(500, noise) >= 0.85
    rng = np.random.default_rng(7)
    by_labels = []
    for _ in range(40):
        margins, shifts, right, _ = world(rng, 160, noise)
        drops = np.where(shifts < -margins, np.where(right, 1.0, -1.0), 0.0)
        by_labels.append(bootstrap_bound(drops, 0) <= LIMIT)
    assert np.mean(by_labels) < 0.5, "by labels alone most harmless variants are refused"


def test_no_disagreement_has_an_exact_bound() -> None:
    found = judged(np.full(100, 3.0), np.full(100, -0.01), np.ones(100, bool))
    assert (found.drop, found.drop_bound, found.exact_bound) == (0, 0, exact_bound(100))
