"""`skerry_packager.golden`: the samples of the self-test, read back by the runtime's own reader."""

from __future__ import annotations

import numpy as np
import pytest
from tests.packager.onnx_models import Array, digits, gemm_model

from skerry_contract.errors import DataError
from skerry_contract.tensors import read_tensors
from skerry_packager.datasets import match_dataset
from skerry_packager.engine import Session
from skerry_packager.golden import choose_samples, golden_inputs, golden_outputs, tolerances
from skerry_packager.inspect import TensorInfo
from skerry_packager.metrics import Form, Head, Metric

HEAD = Head(0, Metric.ACCURACY, Form.PROBABILITIES)
PLAIN = Head(0, Metric.SQNR)


def answers(rows: int = 200) -> list[list[Array]]:
    session = Session(gemm_model().SerializeToString())
    return [session.run({"x": image[None]}) for image in digits()[0][1000 : 1000 + rows]]


def test_samples_are_spread_over_the_classes_and_the_same_every_time() -> None:
    outputs = answers()
    chosen = choose_samples(outputs, HEAD, 10)
    assert chosen == choose_samples(outputs, HEAD, 10)
    assert len(chosen) == len({int(outputs[row][0].argmax()) for row in chosen}) == 10


def test_samples_near_a_tie_are_never_golden() -> None:
    outputs = answers()
    margins = [float(np.diff(np.sort(row[0][0])[-2:])[0]) for row in outputs]
    limit = np.quantile(margins, 0.09)
    assert all(margins[row] > limit for row in choose_samples(outputs, HEAD, 40))


def test_few_rows_odd_shapes_and_nan() -> None:
    good = [[np.ones((1, 3), np.float32)] for _ in range(4)]
    other = [[np.ones((1, 5), np.float32)]]
    bad = [[np.full((1, 3), np.nan, np.float32)]]
    assert choose_samples([*bad, *other, *good], PLAIN, 8) == (2, 3, 4, 5)
    with pytest.raises(DataError, match="NaN or infinite"):
        choose_samples(bad, PLAIN, 8)


def test_files_hold_complete_inputs_and_outputs() -> None:
    images, _ = digits()
    data = match_dataset({"x": images[1000:1020]}, [TensorInfo(name="x", dtype="float32", shape=("N", 64))])
    feeds = [data.feed(row) for row in (3, 5, 11)]
    inputs = read_tensors(golden_inputs(feeds))
    assert inputs["inputs/x"].shape == (3, 1, 64)
    stored = np.frombuffer(inputs["inputs/x"].data, "<f4").reshape(3, 1, 64)
    np.testing.assert_array_equal(stored[:, 0], images[[1003, 1005, 1011]])
    blob, recorded = golden_outputs(Session(gemm_model().SerializeToString()), feeds)
    outputs = read_tensors(blob)
    assert outputs["outputs/p"].shape == (3, 1, 10)
    assert outputs["outputs/p"].data == np.stack([row[0] for row in recorded]).tobytes()


def test_tolerances_are_narrow_for_fp32_and_wider_for_int8() -> None:
    outputs = answers(20)
    noisy = [[row[0] + np.float32(1e-3)] for row in outputs]
    exact = tolerances(["p"], outputs, outputs, HEAD, quantized_compute=False)["p"]
    wide = tolerances(["p"], noisy, outputs, HEAD, quantized_compute=True)["p"]
    assert exact.rtol == 2e-4
    assert exact.atol <= 2.2e-4
    assert wide.rtol == 2e-2
    assert wide.atol > 2e-2
    assert tolerances(["n"], [[np.array([3])]] * 2, [[np.array([3])]] * 2, PLAIN, False)["n"].atol == 0


def test_the_largest_must_stay_the_largest_only_where_the_tolerance_cannot_flip_it() -> None:
    clear = [[np.array([[0.9, 0.1]], np.float32)]] * 2
    close = [[np.array([[0.502, 0.498]], np.float32)]] * 2
    assert tolerances(["p"], clear, clear, HEAD, True)["p"].top1
    assert not tolerances(["p"], close, clear, HEAD, True)["p"].top1
    assert tolerances(["p"], close, close, HEAD, False)["p"].top1
    assert not tolerances(["p"], clear, clear, PLAIN, False)["p"].top1
