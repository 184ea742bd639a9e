"""`skerry_packager.datasets`: data as people have it, checked, and split without overlap."""

from __future__ import annotations

import numpy as np
import pytest

from skerry_contract.errors import DataError
from skerry_packager.datasets import Dataset, match_dataset
from skerry_packager.inspect import TensorInfo
from skerry_packager.splits import make_splits

IMAGE = TensorInfo(name="image", dtype="float32", shape=("N", 1, 8, 8))
STATE = TensorInfo(name="state", dtype="float32", shape=(2, None, 128))
VECTOR = TensorInfo(name="x", dtype="float32", shape=("N", 4))
RATE = TensorInfo(name="sr", dtype="int64", shape=())


def images(rows: int = 6) -> np.ndarray:
    return np.random.default_rng(0).random((rows, 1, 8, 8)).astype(np.float32)


def plain(rows: int, seed: int = 0) -> Dataset:
    values = np.random.default_rng(seed).random((rows, 4)).astype(np.float32)
    return match_dataset({"x": values}, [TensorInfo(name="x", dtype="float32", shape=("N", 4))])


@pytest.mark.parametrize("name", ["x", "X", "image"])
def test_a_single_input_may_be_called_x(name: str) -> None:
    assert set(match_dataset({name: images()}, [IMAGE]).inputs) == {"image"}


def test_inputs_of_every_kind_of_shape_make_complete_feeds() -> None:
    """Batched images, a state with its own batch axis inside, and a scalar."""
    arrays = {
        "image": images(3),
        "state": np.zeros((3, 2, 1, 128), np.float32),
        "sr": np.array([8000, 16000, 16000]),
    }
    feed = match_dataset(arrays, [IMAGE, STATE, RATE]).feed(1)
    assert {name: array.shape for name, array in feed.items()} == {
        "image": (1, 1, 8, 8), "state": (2, 1, 128), "sr": (),
    }  # fmt: skip
    assert isinstance(feed["sr"], np.ndarray)


def test_numbers_convert_where_nothing_is_lost() -> None:
    data = match_dataset({"x": images().astype(np.float64)}, [IMAGE])
    assert data.inputs["image"].dtype == np.float32
    whole = TensorInfo(name="x", dtype="int32", shape=("N", 2))
    assert match_dataset({"x": np.ones((3, 2), np.uint8)}, [whole]).inputs["x"].dtype == np.int32
    with pytest.raises(DataError, match="takes int32, and the array is float32"):
        match_dataset({"x": np.ones((3, 2), np.float32)}, [whole])
    with pytest.raises(DataError, match="takes int32"):
        match_dataset({"x": np.full((3, 2), 2**40)}, [whole])


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"picture": images(), "y": np.zeros(6)}, r"missing: \['image'\]; not an input: \['picture'\]"),
        ({"image": images(), "extra": images()}, r"not an input: \['extra'\]"),
        (
            {"image": images()[:, :, :4]},
            r"shape \[N, 1, 8, 8\] in the model, and the array has \[6, 1, 4, 8\]",
        ),
        ({"image": images(), "y": np.zeros(5)}, "differ in their number of rows"),
        ({"image": images(0)}, "no rows"),
        ({"image": images(), "y": np.array(3)}, "one entry per row"),
    ],
)
def test_data_that_does_not_fit_is_named(arrays: dict[str, np.ndarray], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        match_dataset(arrays, [IMAGE])
    assert caught.value.hint


def test_values_that_are_no_numbers_are_named_by_input_and_row() -> None:
    pictures = images(6)
    assert match_dataset({"image": pictures}, [IMAGE]).first_not_finite() == ""
    pictures[2, 0, 1, 1], pictures[4, 0, 0, 0] = np.nan, np.inf
    data = match_dataset({"image": pictures}, [IMAGE])
    assert data.first_not_finite() == "input 'image' has NaN or infinite values in row 2 and 1 more"
    assert [data.finite(row) for row in range(6)] == [True, True, False, True, False, True]
    part = data.take([0, 4]).take([1])
    assert part.not_finite(0) == "input 'image' has NaN or infinite values in row 4", (
        "numbered as in the source"
    )


def test_splits_are_disjoint_complete_and_the_same_every_time() -> None:
    data = plain(300)
    splits, again = make_splits(None, data, seed=1), make_splits(None, data, seed=1)
    parts = [splits.calibration, splits.search, splits.held_out]
    rows = [{part.row_digest(row) for row in range(len(part))} for part in parts]
    assert [len(part) for part in rows] == [60, 120, 120]
    assert not rows[0] & rows[1]
    assert not rows[0] & rows[2]
    assert not rows[1] & rows[2]
    assert splits.info == again.info
    assert len({info.sha256 for info in splits.info.values()}) == 3
    assert make_splits(None, data, seed=2).info != splits.info
    for position, row in enumerate(splits.held_out_rows):
        assert data.row_digest(row) == splits.held_out.row_digest(position)


def test_rows_that_evaluate_never_calibrate() -> None:
    evaluation, other = plain(100), plain(50, seed=9)
    mixed = match_dataset(
        {"x": np.concatenate([other.inputs["x"], evaluation.inputs["x"][:20]])},
        [TensorInfo(name="x", dtype="float32", shape=("N", 4))],
    )
    splits = make_splits(mixed, evaluation)
    assert len(splits.calibration) == 50
    assert any("20 calibration rows also evaluate" in note for note in splits.notes)


def test_equal_rows_stay_in_one_split() -> None:
    rows = np.repeat(plain(60).inputs["x"], 5, axis=0)
    splits = make_splits(None, match_dataset({"x": rows}, [VECTOR]))
    parts = (splits.calibration, splits.search, splits.held_out)
    seen = [{part.row_digest(row) for row in range(len(part))} for part in parts]
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert not seen[0] & seen[2]
    assert sum(map(len, parts)) == 300
    assert [len(part) for part in parts] == [60, 120, 120]
    assert any("240 evaluation rows repeat others" in note for note in splits.notes)


def test_rows_that_are_all_the_same_are_refused() -> None:
    with pytest.raises(DataError, match="200 evaluation rows, 1 of them different, do not divide"):
        make_splits(None, match_dataset({"x": np.ones((200, 4), np.float32)}, [VECTOR]))


def test_too_few_rows_are_refused_and_few_are_noted() -> None:
    with pytest.raises(DataError, match="do not divide"):
        make_splits(None, plain(2))
    with pytest.raises(DataError, match="all 40 calibration rows also are evaluation rows"):
        make_splits(plain(40), plain(40))
    assert any("only 8 held-out rows" in note for note in make_splits(None, plain(20)).notes)
