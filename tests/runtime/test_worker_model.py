"""In-process use: the same engine, checks and windows without a server."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.runtime.model_zoo import digit_images, digits, lay_out, logarithm

from skerry_contract.errors import EngineError, InputError, SelfTestError
from skerry_contract.monitoring import spec_hash
from skerry_contract.summary import WindowSummary, check
from skerry_runtime import Model


def test_reads_digits_and_hands_out_windows(tmp_path: Path) -> None:
    images, labels = digit_images()
    windows: list[WindowSummary] = []
    with Model.open(lay_out(tmp_path / "g", digits()), on_window=windows.append, window_rows=100) as model:
        assert model.manifest.name == "digits"
        for start in range(0, 250, 50):
            answer = model.infer({"image": images[start : start + 50]})["probabilities"]
            assert (answer.argmax(axis=1) == labels[start : start + 50]).mean() > 0.9
        assert [window.rows for window in windows] == [100, 100]
    assert [(window.seq, window.rows) for window in windows] == [(1, 100), (2, 100), (3, 50)]
    spec = digits().spec
    for window in windows:
        check(window, spec, spec_hash(spec.to_bytes()))


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"photo": np.zeros((1, 1, 8, 8), np.float32)},
        {"image": np.zeros((1, 1, 8, 8), np.float64)},
        {"image": np.zeros((0, 1, 8, 8), np.float32)},
        {"image": np.zeros((1, 64), np.float32)},
        {"image": np.array([["a"]])},
        {"image": np.full((1, 1, 8, 8), np.nan, np.float32)},
    ],
)
def test_wrong_inputs_are_refused(tmp_path: Path, inputs: dict[str, np.ndarray]) -> None:
    with Model.open(lay_out(tmp_path / "g", digits())) as model:
        with pytest.raises(InputError):
            model.infer(inputs)


def test_a_model_that_gives_nan_fails(tmp_path: Path) -> None:
    windows: list[WindowSummary] = []
    with Model.open(lay_out(tmp_path / "g", logarithm()), on_window=windows.append) as model:
        with pytest.raises(EngineError, match="NaN"):
            model.infer({"x": np.array([[-1, 1]], np.float32)})
    assert [(window.rows, window.errors) for window in windows] == [(0, 1)]


def test_a_model_that_misbehaves_here_does_not_open(tmp_path: Path) -> None:
    uniform = [{"probabilities": np.full((1, 10), 0.1, np.float32)}] * 5
    with pytest.raises(SelfTestError):
        Model.open(lay_out(tmp_path / "g", digits(), golden_outputs=uniform))
