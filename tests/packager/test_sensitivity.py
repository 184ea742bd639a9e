"""Sensitivity: what harms most is found, and nothing depends on the clock unless the time is up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.packager.quantized_models import FEEDS, fragile_model

from skerry_packager.calibrate import collect_ranges
from skerry_packager.variants import qdq
from skerry_packager.variants.insert import insert
from skerry_packager.variants.sensitivity import (
    MOST_INPUTS,
    MOST_PARTS,
    UNKNOWN,
    Noise,
    Part,
    pick_inputs,
    rank,
    relative_noise,
)


def ranked(seconds_left: float = 60.0) -> tuple[list[Noise], bool]:
    base = qdq.prepare(fragile_model())
    bounds = qdq.bounds_of(collect_ranges(base.model, base.tensors, FEEDS), qdq.Ranges.MINMAX)
    parts = [Part(op.node, float(base.weights[op.weight].size)) for op in base.quantizable]
    return rank(
        parts,
        base.model.SerializeToString(),
        lambda names: insert(base, names, bounds).SerializeToString(),
        FEEDS[:8],
        lambda: seconds_left,
    )


def test_the_planted_layer_is_the_most_harmful() -> None:
    """Its input has one value a hundred times as large as the others: 8 bits cannot hold both."""
    noises, complete = ranked()
    assert complete
    assert len(noises) == 4
    assert max(noises, key=lambda noise: noise.noise).part.name == "fragile"
    assert noises[-1].part.name == "fragile"
    assert noises[-1].noise > 10 * noises[-2].noise > 0


def test_the_same_inputs_give_the_same_order_and_figures() -> None:
    assert ranked() == ranked()


def test_without_time_nothing_is_measured_and_it_says_so() -> None:
    noises, complete = ranked(seconds_left=0.0)
    assert not complete
    assert {noise.noise for noise in noises} == {UNKNOWN}


def test_many_operators_are_measured_in_blocks_of_neighbours() -> None:
    base = qdq.prepare(fragile_model())
    seen: list[int] = []

    good: bytes = base.model.SerializeToString()

    def build(names: Sequence[str]) -> bytes:
        seen.append(len(names))
        return good

    parts = [Part(str(number), 1.0) for number in range(3 * MOST_PARTS)]
    noises, _ = rank(parts, good, build, FEEDS[:2], lambda: 60.0)
    assert seen == [3] * MOST_PARTS
    assert [noise.part for noise in noises] == parts


def test_a_draft_that_does_not_load_is_sorted_last() -> None:
    base = qdq.prepare(fragile_model())
    good = base.model.SerializeToString()
    parts = [Part("broken", 1.0), Part("fine", 1.0)]
    noises, _ = rank(parts, good, lambda names: b"?" if "broken" in names else good, FEEDS[:2], lambda: 60.0)
    assert [noise.part.name for noise in noises] == ["fine", "broken"]
    assert noises[1].noise == UNKNOWN


def test_the_number_of_inputs_follows_from_the_work() -> None:
    assert len(pick_inputs(FEEDS, 4, work=1e6)) == MOST_INPUTS
    assert len(pick_inputs(FEEDS, 60, work=1e10)) == 2
    assert len(pick_inputs(FEEDS[:1], 60, work=1e10)) == 1


def test_noise_is_relative_to_the_variance_of_the_signal() -> None:
    signal = np.random.default_rng(0).normal(5, 2, 10_000)
    noise = np.random.default_rng(1).normal(0, 0.2, 10_000)
    assert relative_noise([signal], [signal + noise]) == pytest.approx(0.01, rel=0.05)
    assert relative_noise([signal], [signal]) == 0
    assert relative_noise([signal], [np.full(10_000, np.nan)]) == UNKNOWN
    assert relative_noise([signal], [signal[:5]]) == UNKNOWN
    assert relative_noise([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 5])]) == 0.25
    with_gap = np.array([1.0, np.nan, 3.0])
    assert relative_noise([with_gap], [np.array([1.0, 7.0, 3.0])]) == 0
