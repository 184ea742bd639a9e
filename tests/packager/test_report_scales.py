"""Axes and labels of the report's plot."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry_packager.report.scales import Axis, Box, axis_of, place_labels

WIDE = Box(66, 14, 840, 374)
NARROW = Box(62, 14, 268, 314)
spots = st.lists(st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)), min_size=1, max_size=25)


@given(spots, st.booleans())
def test_25_labels_find_a_place_each_and_never_overlap(shares: list[tuple[float, float]], wide: bool) -> None:
    area, width = (WIDE, 180.0) if wide else (NARROW, 19.0)
    points = [(area.x + x * area.width, area.y + y * area.height) for x, y in shares]
    boxes = place_labels(points, [(width, 15.0)] * len(points), area)
    placed = [box for box in boxes if box is not None]
    assert len(placed) == len(points)
    assert all(box.inside(area) for box in placed)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(placed, 2))
    marks = [Box(x - 9.9, y - 9.9, 19.8, 19.8) for x, y in points]
    assert not any(box.overlaps(mark) for box in placed for mark in marks)


def test_a_label_stays_beside_its_mark_where_there_is_room() -> None:
    (box,) = place_labels([(400, 200)], [(60, 15)], WIDE)
    assert box == Box(411, 192.5, 60, 15)


def test_where_there_is_no_room_there_is_no_label() -> None:
    assert place_labels([(5, 5)], [(60, 15)], Box(0, 0, 20, 20)) == [None]


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=25))
def test_every_figure_lies_inside_of_its_axis_and_every_tick_too(values: list[float]) -> None:
    axis = axis_of(values)
    assert all(0 <= axis.at(value) <= 1 for value in values)
    ticks = axis.ticks(5)
    assert 1 <= len(ticks) <= 12
    assert all(-1e-9 <= axis.at(tick) <= 1 + 1e-9 for tick in ticks)
    assert ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0.9, 120, True), [1, 2, 5, 10, 20, 50, 100]),
        (Axis(0.5, 2e6, True), [1, 10, 100, 1e3, 1e4, 1e5, 1e6]),
        (Axis(0.0, 1.0, False), [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (Axis(1900, 2100, False), [1900, 1950, 2000, 2050, 2100]),
    ],
)
def test_ticks_are_round(axis: Axis, ticks: list[float]) -> None:
    assert axis.ticks(5) == pytest.approx(ticks)
