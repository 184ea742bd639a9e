"""What the observer keeps: every row, in bounded memory, and nothing of a request's body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.model_zoo import digit_images, digits, lay_out

from skerry_runtime.worker.generation import Generation, load_generation
from skerry_runtime.worker.golden import finite
from skerry_runtime.worker.observer import WINDOWS, Observer


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    folder: Path = tmp_path_factory.mktemp("observer")
    return load_generation(lay_out(folder / "g", digits()))


def answer(rows: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return {"image": digit_images()[0][:rows]}, {"probabilities": np.full((rows, 10), 0.1, np.float32)}


def test_it_keeps_no_part_of_a_requests_body(generation: Generation) -> None:
    """A view of 256 bytes would keep a body of 32 MB."""
    observer = Observer(generation)
    body = bytearray(1 << 20)
    image = np.frombuffer(body, np.float32, count=64).reshape(1, 1, 8, 8)
    observer.answered({"image": image}, answer(1)[1], 100.0)
    del image
    body.clear()  # a BufferError, were any of it still in use
    observer.close_window()
    (window,) = observer.take()
    assert window.rows == 1


def test_windows_that_nobody_takes_are_bounded_and_lose_nothing(generation: Generation) -> None:
    observer = Observer(generation, rows=1)
    for _ in range(10 * WINDOWS):
        observer.answered(*answer(1), 100.0)
        observer.tick()
    waiting = observer.take()
    assert len(waiting) == WINDOWS
    observer.tick()
    rest = observer.take()
    assert sum(window.rows for window in (*waiting, *rest)) == 10 * WINDOWS
    assert [window.seq for window in (*waiting, *rest)] == list(range(1, WINDOWS + 2))


def test_requests_count_before_their_rows_are_in_a_window(generation: Generation) -> None:
    observer = Observer(generation)
    for count in range(1, 200):
        observer.answered(*answer(1), 100.0)
        assert observer.totals().requests == count
    observer.failed(fault_of_model=True)
    assert (observer.totals().requests, observer.totals().failures) == (200, 1)
    observer.close_window()
    assert observer.totals().requests == 200
    (window,) = observer.take()
    assert (window.rows, window.errors, sum(window.health.latency)) == (199, 1, 199)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_the_quick_look_for_nan_and_infinity_is_never_wrong(dtype: str) -> None:
    largest = float(np.finfo(dtype).max)
    ordinary = np.linspace(-1, 1, 24).astype(dtype).reshape(2, 3, 4)
    assert finite(ordinary)
    assert finite(np.full((2, 3), largest, dtype))  # the sum of their squares is not
    assert finite(np.empty((0, 3), dtype))
    assert finite(np.array(1.5, dtype))
    assert finite(ordinary[:, ::2])
    for bad in (np.nan, np.inf, -np.inf):
        for place in range(ordinary.size):
            spoilt = ordinary.copy()
            spoilt.flat[place] = bad
            assert not finite(spoilt)
        assert not finite(np.array(bad, dtype))
    assert not finite(np.array([np.inf, -np.inf], dtype))
    assert finite(np.array([0, 255], np.uint8))
