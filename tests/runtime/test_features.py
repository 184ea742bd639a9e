"""Features against naive formulas, row by row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skerry_contract.errors import InputError
from skerry_contract.monitoring import IMAGE_STATISTICS, TENSOR_STATISTICS, ClassPrediction, Source
from skerry_runtime.worker.features import extract, fourier_basis, predictions

pixels = st.floats(-100, 100, width=32)


def naive_image(statistic: str, gray: np.ndarray) -> float:
    """Of one image ``[height, width]``, pixel by pixel."""
    height, width = gray.shape
    if statistic == "brightness":
        return float(sum(gray[i, j] for i in range(height) for j in range(width)) / (height * width))
    if statistic == "contrast":
        mean = naive_image("brightness", gray)
        return float(np.sqrt(sum((value - mean) ** 2 for value in gray.flat) / gray.size))
    responses = [
        gray[i - 1, j] + gray[i + 1, j] + gray[i, j - 1] + gray[i, j + 1] - 4 * gray[i, j]
        for i in range(1, height - 1)
        for j in range(1, width - 1)
    ]
    mean = sum(responses) / len(responses) if responses else 0.0
    return float(sum((value - mean) ** 2 for value in responses) / len(responses)) if responses else 0.0


def to_grays(batch: np.ndarray, layout: str) -> np.ndarray:
    batch = batch.astype(np.float64)
    if layout == "NCHW":
        return np.stack([sum(image) / len(image) for image in batch])
    if layout == "NHWC":
        return np.stack(
            [sum(image[:, :, c] for c in range(image.shape[2])) / image.shape[2] for image in batch]
        )
    return batch


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NHW"])
@given(data=st.data())
def test_image_statistics(layout: str, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*(st.integers(1, 6) for _ in layout)))
    batch = data.draw(hnp.arrays(np.float32, shape, elements=pixels))
    sources = [Source(kind="image", tensor="x", statistic=name, layout=layout) for name in IMAGE_STATISTICS]
    got = extract(sources, {"x": batch}, {})
    wanted = [[naive_image(name, gray) for name in IMAGE_STATISTICS] for gray in to_grays(batch, layout)]
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-6)


@given(hnp.arrays(np.float32, st.tuples(*(st.integers(1, 5) for _ in range(3))), elements=pixels))
def test_tensor_statistics(batch: np.ndarray) -> None:
    sources = [Source(kind="tensor", tensor="x", statistic=name) for name in TENSOR_STATISTICS]
    got = extract(sources, {"x": batch}, {})
    for row, values in zip(batch.astype(np.float64), got, strict=True):
        flat = row.ravel()
        mean = flat.sum() / flat.size
        sd = np.sqrt(((flat - mean) ** 2).sum() / flat.size)
        rms = np.sqrt((flat * flat).sum() / flat.size)
        np.testing.assert_allclose(values, [mean, sd, min(flat), max(flat), rms], rtol=1e-6, atol=1e-6)


def test_columns_of_inputs_and_outputs_beside_each_other() -> None:
    inputs = {"x": np.arange(12, dtype=np.int64).reshape(2, 2, 3)}
    outputs = {"x": np.array([[0.5, 1.5], [2.5, np.nan]], np.float32)}
    sources = [
        Source(kind="column", tensor="x", index=4),
        Source(kind="output", tensor="x", index=1),
        Source(kind="column", tensor="x", index=0),
    ]
    got = extract(sources, inputs, outputs)
    assert got.dtype == np.float64
    np.testing.assert_array_equal(got, [[4, 1.5, 0], [10, np.nan, 6]])


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int8, np.float16, np.float64])
def test_every_datatype_becomes_float64(dtype: type) -> None:
    batch: np.ndarray = np.array([[0, 1], [1, 1]], dtype)
    got = extract([Source(kind="tensor", tensor="x", statistic="mean")], {"x": batch}, {})
    np.testing.assert_array_equal(got, [[0.5], [1.0]])


def test_no_features_still_count_the_rows() -> None:
    assert extract([], {"x": np.zeros((3, 2), np.float32)}, {}).shape == (3, 0)


def test_extreme_values_warn_nobody() -> None:
    batch = np.array([[np.inf, -np.inf], [3.4e38, 3.4e38], [np.nan, 0]], np.float32)
    sources = [Source(kind="tensor", tensor="x", statistic=name) for name in TENSOR_STATISTICS]
    got = extract(sources, {"x": batch}, {})
    assert np.isnan(got[0, 0])
    assert got[1, 0] == pytest.approx(3.4e38)


@pytest.mark.parametrize(
    ("source", "inputs"),
    [
        (Source(kind="column", tensor="y"), {"x": np.zeros((1, 2))}),
        (Source(kind="column", tensor="x", index=2), {"x": np.zeros((1, 2))}),
        (Source(kind="image", tensor="x", statistic="contrast", layout="NCHW"), {"x": np.zeros((1, 2))}),
        (Source(kind="tensor", tensor="x", statistic="max"), {"x": np.zeros((1, 0))}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(source: Source, inputs: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError):
        extract([source], inputs, {})


def test_tensors_of_different_rows_are_refused() -> None:
    sources = [Source(kind="column", tensor="x"), Source(kind="column", tensor="y")]
    with pytest.raises(InputError, match="rows"):
        extract(sources, {"x": np.zeros((2, 1)), "y": np.zeros((3, 1))}, {})


def spec(form: str, classes: int = 3) -> ClassPrediction:
    return ClassPrediction(output="y", form=form, classes=classes, probabilities=(1 / classes,) * classes)


def test_probabilities_and_logits_and_labels() -> None:
    logits = np.array([[1.0, 3.0, 2.0], [1000.0, -1000.0, 0.0]], np.float32)
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    predicted, scores = predictions(spec("logits"), {"y": logits})
    np.testing.assert_array_equal(predicted, [1, 0])
    np.testing.assert_allclose(scores, [shares[1], 1.0])
    predicted, scores = predictions(spec("probabilities"), {"y": np.array([[0.2, 0.3, 1.5]], np.float32)})
    assert (predicted[0], scores[0]) == (2, 1.0)
    predicted, scores = predictions(spec("label"), {"y": np.array([2, 0], np.int64)})
    np.testing.assert_array_equal(predicted, [2, 0])
    assert not scores.any()


def test_an_output_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match="not 3"):
        predictions(spec("logits"), {"y": np.zeros((1, 4), np.float32)})
    with pytest.raises(InputError, match="label"):
        predictions(spec("label"), {"y": np.zeros((1, 4), np.int64)})


def test_a_seed_means_the_same_numbers_everywhere() -> None:
    frequencies, phases = fourier_basis(7, 2, 2.0, 2)
    np.testing.assert_allclose(frequencies, [[0.84526285, -0.23296869], [0.01641008, 0.20375813]], atol=1e-8)
    np.testing.assert_allclose(phases, [3.14863273, 0.45271062], atol=1e-8)
