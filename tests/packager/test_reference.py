"""`skerry_packager.reference`: the monitoring spec, against the runtime's own features and counts."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model

from skerry_contract.monitoring import CategoryFeature, FloatFeature, MonitoringSpec, parse_spec, spec_hash
from skerry_packager.datasets import Dataset, match_dataset
from skerry_packager.engine import Session
from skerry_packager.inspect import TensorInfo
from skerry_packager.metrics import Form, Head, Metric
from skerry_packager.reference import BINS, build_spec, isotonic_bins
from skerry_runtime.worker.features import extract
from skerry_runtime.worker.windows import count_plain

HEAD = Head(0, Metric.ACCURACY, Form.PROBABILITIES)


def learn(
    model: object, arrays: dict[str, Array], shape: tuple[int | str, ...], head: Head = HEAD
) -> MonitoringSpec:
    data: Dataset = match_dataset(arrays, [TensorInfo(name="x", dtype="float32", shape=shape)])
    return build_spec(Session(model.SerializeToString()), [data], head)  # type: ignore[attr-defined]


def columns_spec() -> tuple[MonitoringSpec, Array]:
    images, labels = digits()
    return learn(gemm_model(), {"x": images[:600], "y": labels[:600]}, ("N", 64)), images[:600]


def test_images_are_watched_by_brightness_contrast_and_sharpness() -> None:
    images, labels = digits()
    images = images.reshape(-1, 1, 8, 8)
    spec = learn(conv_model(), {"x": images[:500], "y": labels[:500]}, ("N", 1, 8, 8))
    assert [feature.name for feature in spec.features] == ["x.brightness", "x.contrast", "x.sharpness"]
    assert spec.rows == 500
    brightness = spec.features[0]
    assert isinstance(brightness, FloatFeature)
    per_image = images[:500].mean(axis=(1, 2, 3), dtype=np.float64)
    assert brightness.mean == pytest.approx(per_image.mean())
    assert brightness.sd == pytest.approx(per_image.std())
    assert (brightness.edges[0], brightness.edges[-1]) == pytest.approx((per_image.min(), per_image.max()))


def test_the_spec_survives_the_wire_and_has_a_hash() -> None:
    spec, _ = columns_spec()
    data = spec.to_bytes()
    assert parse_spec(data) == spec
    assert len(spec_hash(data)) == 8
    assert columns_spec()[0].to_bytes() == data


def test_reference_probabilities_are_the_runtimes_own_counts_of_the_reference() -> None:
    spec, images = columns_spec()
    table = extract([feature.source for feature in spec.features], {"x": images}, {})
    for index, feature in enumerate(spec.features):
        counts = count_plain(feature, table[:, index].tolist()).counts
        np.testing.assert_allclose(np.array(counts) / len(images), feature.probabilities, atol=1e-12)
        assert counts[:6] == counts[-6:] == (0,) * 6


def test_edges_are_equal_mass_and_atoms_have_a_bin_of_their_own() -> None:
    spec, images = columns_spec()
    busy = max(
        (feature for feature in spec.features if isinstance(feature, FloatFeature)),
        key=lambda feature: len(feature.edges),
    )
    column = images[:, busy.source.index].astype(np.float64)
    zeros = float((column == 0).mean())
    assert zeros > 1 / BINS
    cell = busy.edges.index(0.0)
    assert busy.edges[cell + 1] == math.nextafter(0.0, math.inf)
    assert busy.probabilities[6 + cell] == pytest.approx(zeros)


def test_a_smooth_feature_has_31_quantiles_and_the_tails() -> None:
    rng = np.random.default_rng(0)
    model = build(
        [helper.make_node("MatMul", ["x", "w"], ["p"])], {"w": np.ones((3, 1), np.float32)}, ("N", 3),
        outputs=[Value("p", TensorProto.FLOAT, ["N", 1])],
    )  # fmt: skip
    rows = rng.normal(5, 2, (2000, 3)).astype(np.float32)
    spec = learn(model, {"x": rows}, ("N", 3), Head(0, Metric.SQNR))
    assert [feature.name for feature in spec.features] == ["x[0]", "x[1]", "x[2]", "p[0]"]
    first = spec.features[0]
    assert isinstance(first, FloatFeature)
    assert len(first.edges) == 31 + 4 + 2
    middle = [p for p in first.probabilities if p > 0.02]
    assert len(middle) >= 29
    assert max(middle) < 1.2 / BINS
    assert first.iqr == pytest.approx(2 * 1.349, rel=0.1)


def test_a_constant_feature_still_has_a_scale() -> None:
    spec, images = columns_spec()
    corner = spec.features[0]
    assert isinstance(corner, FloatFeature)
    assert set(images[:, 0]) == {0.0}
    assert corner.sd > 0
    assert corner.iqr > 0
    assert sum(count_plain(corner, [1.0]).counts[-6:]) == 1


def test_whole_numbers_with_few_values_are_categories() -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["x"], ["p"], to=TensorProto.FLOAT)], "g",
        [Value("x", TensorProto.INT64, ["N", 2])], [Value("p", TensorProto.FLOAT, ["N", 2])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    rows = np.stack([np.arange(200) % 3, np.arange(200)], axis=1)
    data = match_dataset({"x": rows}, [TensorInfo(name="x", dtype="int64", shape=("N", 2))])
    spec = build_spec(Session(model.SerializeToString()), [data], Head(0, Metric.SQNR))
    assert isinstance(spec.features[0], CategoryFeature)
    assert spec.features[0].values == (0.0, 1.0, 2.0)
    assert spec.features[0].probabilities == pytest.approx((67 / 200, 67 / 200, 66 / 200, 0))
    assert isinstance(spec.features[1], FloatFeature)


def test_predictions_carry_class_frequencies_and_an_isotonic_table() -> None:
    spec, images = columns_spec()
    prediction = spec.prediction
    assert prediction is not None
    assert (prediction.output, prediction.form, prediction.classes) == ("p", "probabilities", 10)
    scores = Session(gemm_model().SerializeToString()).run({"x": images})[0]
    np.testing.assert_allclose(prediction.probabilities, np.bincount(scores.argmax(1), minlength=10) / 600)
    assert len(prediction.calibration) == 64
    assert list(prediction.calibration) == sorted(prediction.calibration)


def test_rows_without_a_finite_answer_are_not_in_the_calibration() -> None:
    images, labels = digits()
    broken = images[:600].copy()
    broken[::3, 0] = np.inf
    session = Session(gemm_model().SerializeToString())
    data = match_dataset(
        {"x": broken, "y": labels[:600]}, [TensorInfo(name="x", dtype="float32", shape=("N", 64))]
    )
    head = Head(0, Metric.ACCURACY, Form.PROBABILITIES)
    prediction = build_spec(session, [data], head).prediction
    assert prediction is not None
    assert all(0 <= share <= 1 for share in prediction.calibration)
    assert list(prediction.calibration) == sorted(prediction.calibration)


def test_isotonic_bins_pool_what_falls() -> None:
    scores = np.array([0.1] * 10 + [0.5] * 10 + [0.9] * 10)
    correct = np.array([True] * 6 + [False] * 4 + [True] * 2 + [False] * 8 + [True] * 9 + [False])
    table = isotonic_bins(scores, correct)
    assert table[0] == table[6] == table[32] == pytest.approx(0.4)
    assert table[57] == table[63] == pytest.approx(0.9)


def test_embeddings_carry_fourier_means_and_norms() -> None:
    images, _ = digits()
    spec = learn(gemm_model(), {"x": images[:100]}, ("N", 64), Head(0, Metric.COSINE))
    assert spec.embedding is not None
    assert spec.embedding.dimensions == 64
    assert max(map(abs, spec.embedding.mean)) <= 1
    assert sum(spec.embedding.norm_probabilities) == pytest.approx(1)
    assert parse_spec(spec.to_bytes()) == spec


def product(columns: int) -> tuple[object, Array]:
    """``p = x w``, and w."""
    weights = np.random.default_rng(0).normal(size=(64, columns)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["p"])
    return build([node], {"w": weights}, outputs=[Value("p", TensorProto.FLOAT, ["N", columns])]), weights


def learnt_in(model: object, rows: Array) -> tuple[MonitoringSpec, int]:
    """What is learnt of the cosine of the output, and the peak of bytes that it takes."""
    tracemalloc.start()
    spec = learn(model, {"x": rows}, ("N", 64), Head(0, Metric.COSINE))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return spec, peak


def test_a_dense_output_is_no_embedding() -> None:
    """All pairs of 256 such vectors would be 4 GiB."""
    model, _ = product(8192)
    spec, peak = learnt_in(model, np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32))
    assert spec.embedding is None
    assert peak < 64 << 20
    assert spec.features


def test_the_distances_of_embeddings_are_not_all_kept_at_once() -> None:
    rows = np.random.default_rng(1).normal(size=(256, 64)).astype(np.float32)
    model, weights = product(1024)
    spec, peak = learnt_in(model, rows)
    assert peak < 64 << 20, "all pairs together are half a gigabyte"
    assert spec.embedding is not None
    vectors = (rows @ weights).astype(np.float64)
    pairs = [np.linalg.norm(vectors[row + 1 :] - vectors[row], axis=1) for row in range(255)]
    assert spec.embedding.bandwidth == pytest.approx(float(np.median(np.concatenate(pairs))), rel=1e-5)


def test_nan_in_the_data_is_a_null_rate() -> None:
    images, _ = digits()
    rows = images[:100].copy()
    rows[:25, 20] = np.nan
    spec = learn(
        build(
            [helper.make_node("Identity", ["x"], ["p"])],
            {},
            outputs=[Value("p", TensorProto.FLOAT, ["N", 64])],
        ),
        {"x": rows},
        ("N", 64),
        Head(0, Metric.SQNR),
    )
    assert spec.features[20].null_rate == pytest.approx(0.25)
