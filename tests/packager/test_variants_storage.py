"""Storage variants: smaller files, the same arithmetic, inside subgraphs too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from skl2onnx import to_onnx  # type: ignore[import-untyped] # ships no stubs
from sklearn.linear_model import LogisticRegression
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model
from tests.real_models import real_model

from skerry_packager import graphs
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.variants.candidate import Candidate, Skipped
from skerry_packager.variants.encodings import (
    INT8_MAX_ERROR,
    Names,
    as_int8,
    as_int8_or_fp16,
    best_scale,
)
from skerry_packager.variants.storage import fp16_store, int4_store, int8_store


def ready(model: onnx.ModelProto) -> onnx.ModelProto:
    images, _ = digits()
    shape = (1, 1, 8, 8) if len(model.graph.input[0].type.tensor_type.shape.dim) == 4 else (1, 64)
    return normalize(model, [{"x": images[0].reshape(shape)}]).model


def accuracy(data: bytes, image: tuple[int, ...]) -> float:
    images, labels = digits()
    [scores] = Session(data).run({"x": images[1000:].reshape(-1, *image)})
    return float((scores.argmax(axis=1) == labels[1000:]).mean())


@pytest.mark.parametrize(("make", "image"), [(gemm_model, (64,)), (conv_model, (1, 8, 8)), (if_model, (64,))])
def test_storage_keeps_the_accuracy_at_a_fraction_of_the_size(make: object, image: tuple[int, ...]) -> None:
    assert callable(make)
    model = ready(make())
    plain = model.SerializeToString()
    for generate, share in ((fp16_store, 0.60), (int8_store, 0.40)):
        candidate = generate(model)
        assert isinstance(candidate, Candidate)
        assert len(candidate.data) < share * len(plain)
        onnx.checker.check_model(onnx.load_model_from_string(candidate.data), full_check=True)
        assert accuracy(candidate.data, image) == pytest.approx(accuracy(plain, image), abs=0.004)


def test_weights_inside_an_if_are_reached_and_counted() -> None:
    candidate = int8_store(ready(if_model()))
    assert isinstance(candidate, Candidate)
    assert candidate.note == "4 weights stored smaller, 4 of them inside subgraphs"
    model = onnx.load_model_from_string(candidate.data)
    for branch in graphs.subgraphs(model.graph):
        assert {TensorProto.INT8} <= {tensor.data_type for tensor in branch.initializer}
        assert not any(
            tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 640
            for tensor in branch.initializer
        )


def test_int8_rebuilds_by_cast_and_mul_never_by_dequantize() -> None:
    candidate = int8_store(ready(gemm_model()))
    assert isinstance(candidate, Candidate)
    operators = [node.op_type for node in onnx.load_model_from_string(candidate.data).graph.node]
    assert operators[:4] == ["Cast", "Mul", "Cast", "Mul"]
    assert "DequantizeLinear" not in operators


def test_the_same_model_gives_the_same_bytes() -> None:
    for generate in (fp16_store, int8_store):
        one, other = generate(ready(gemm_model())), generate(ready(gemm_model()))
        assert isinstance(one, Candidate)
        assert isinstance(other, Candidate)
        assert one.data == other.data


def test_nothing_to_store_is_said_and_never_a_silent_copy() -> None:
    tiny = build(
        [helper.make_node("MatMul", ["x", "w"], ["p"])], {"w": np.ones((64, 3), np.float32)},
        outputs=[Value("p", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip
    for generate in (fp16_store, int8_store):
        outcome = generate(tiny)
        assert isinstance(outcome, Skipped)
        assert "256 or more" in outcome.reason


def test_numbers_that_fp16_cannot_hold_stay_as_they_are() -> None:
    rng = np.random.default_rng(0)
    for scale in (1e6, 1e-9):
        weights = {"w": (rng.normal(0, 1, (64, 10)) * scale).astype(np.float32)}
        outcome = fp16_store(build([helper.make_node("MatMul", ["x", "w"], ["p"])], weights))
        assert isinstance(outcome, Skipped)
    weights = {"w": np.full((64, 10), np.inf, np.float32)}
    assert isinstance(int8_store(build([helper.make_node("MatMul", ["x", "w"], ["p"])], weights)), Skipped)


def test_scales_of_quantization_operators_are_left_alone() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
    ]
    weights: dict[str, Array] = {
        "q": np.ones((64, 300), np.int8),
        "scale": np.linspace(0.01, 0.02, 300).astype(np.float32),
        "zero": np.zeros(300, np.int8),
    }
    model = build(nodes, weights, outputs=[Value("p", TensorProto.FLOAT, ["N", 300])])
    assert isinstance(fp16_store(model), Skipped)


@pytest.mark.parametrize("shape", [(64, 32), (32, 1, 3, 3), (1, 96, 24)])
def test_scales_follow_the_axis_on_which_the_weights_differ(shape: tuple[int, ...]) -> None:
    """A channel a thousand times larger than its neighbours costs those nothing."""
    rng = np.random.default_rng(1)
    axis = int(np.argmax(shape))
    channels: NDArray[np.float64] = np.logspace(-2, 1, shape[axis])
    array = rng.normal(0, 1, shape) * channels.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    array = array.astype(np.float32)
    scale = best_scale(array)
    assert scale is not None
    assert scale.shape[axis] == shape[axis]
    rebuilt = np.rint(array / scale) * scale
    worst = np.abs(rebuilt - array).max(axis=tuple(i for i in range(len(shape)) if i != axis))
    peak = np.abs(array).max(axis=tuple(i for i in range(len(shape)) if i != axis))
    assert (worst <= peak / 127 / 2 * 1.001).all()


def silero() -> onnx.ModelProto:
    """All weights inside the branches of an If, one branch per sampling rate."""
    return onnx.load(real_model("silero_vad/silero_vad/data/silero_vad.onnx"))


def test_silero_is_stored_smaller_inside_its_branches() -> None:
    feed: dict[str, Array] = {
        "input": np.sin(np.arange(576, dtype=np.float32) / 9)[None] * np.float32(0.3),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    normal = normalize(silero(), [feed])
    for generate, share in ((fp16_store, 0.55), (int8_store, 0.35)):
        outcome = generate(normal.model)
        assert isinstance(outcome, Candidate)
        assert "18 of them inside subgraphs" in outcome.note
        assert len(outcome.data) < share * len(normal.data)
        wanted, got = (Session(data).run(feed)[0] for data in (normal.data, outcome.data))
        np.testing.assert_allclose(got, wanted, atol=0.05)


@pytest.mark.parametrize(("make", "image"), [(gemm_model, (1, 64)), (if_model, (1, 64))])
def test_nothing_that_rebuilds_a_weight_is_left_when_the_engine_has_loaded(
    make: object, image: tuple[int, ...], tmp_path: Path
) -> None:
    assert callable(make)
    model = normalize(make(), [{"x": digits()[0][0].reshape(image)}]).model
    plain = loaded_operators(model.SerializeToString(), tmp_path)
    for generate in (fp16_store, int8_store, int4_store):
        outcome = generate(model)
        assert isinstance(outcome, Candidate)
        assert loaded_operators(outcome.data, tmp_path) == plain


def loaded_operators(data: bytes, folder: Path) -> Counter[str]:
    """What the engine runs, bodies included, after it has optimized the graph."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(folder / "optimized.onnx")
    return Counter(node.op_type for node in graphs.all_nodes(optimized))


@pytest.mark.parametrize("generate", [fp16_store, int8_store])
def test_double_weights_stay_double_in_the_engine(generate: Callable[[onnx.ModelProto], object]) -> None:
    weights: dict[str, Array] = {"w": np.random.default_rng(0).normal(size=(64, 64))}
    model = typed_model(weights, TensorProto.DOUBLE)
    outcome = generate(model)
    assert isinstance(outcome, Candidate)
    assert len(outcome.data) < 0.3 * model.ByteSize()
    x = np.random.default_rng(1).normal(size=(4, 64))
    [wanted], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, wanted, atol=0.3)


def test_weights_in_half_precision_already_are_stored_as_int8_only() -> None:
    weights: dict[str, Array] = {"w": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float16)}
    model = typed_model(weights, TensorProto.FLOAT16)
    outcome = fp16_store(model)
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "1 weights: half precision already"
    small = int8_store(model)
    assert isinstance(small, Candidate)
    assert Session(small.data).outputs[0].datatype == "FP16"


def typed_model(weights: dict[str, Array], kind: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"])],
        "typed",
        [Value("x", kind, ["N", 64])],
        [Value("p", kind, ["N", 64])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_weight_with_outliers_gets_finer_scales_or_fp16() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(64, 64)).astype(np.float32)
    names = Names(set())
    usual = as_int8_or_fp16(flat, TensorProto.FLOAT, "w", names)
    assert usual is not None
    assert (usual.form, len(usual.nodes)) == ("int8", 2)
    flat[rng.integers(0, 64, 40), rng.integers(0, 64, 40)] *= 30
    finer = as_int8_or_fp16(flat, TensorProto.FLOAT, "w", names)
    assert finer is not None
    assert finer.error <= INT8_MAX_ERROR
    per_channel = as_int8(flat, TensorProto.FLOAT, "w", names)
    assert per_channel is not None
    assert per_channel.error > INT8_MAX_ERROR


def test_weights_that_are_outputs_stay() -> None:
    weights: dict[str, Array] = {"w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)}
    model = build([helper.make_node("MatMul", ["x", "w"], ["p"])], weights)
    model.graph.output.append(Value("w", TensorProto.FLOAT, [64, 10]))
    outcome = int8_store(model)
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "1 weights: they are outputs of the graph"


def test_numbers_in_attributes_are_said_to_be_there() -> None:
    images, labels = digits()
    linear = LogisticRegression(max_iter=500).fit(images[:300], labels[:300])
    outcome = int8_store(to_onnx(linear, images[:1], options={"zipmap": False}))
    assert isinstance(outcome, Skipped)
    assert outcome.reason == (
        "the numbers are attributes of `ai.onnx.ml:LinearClassifier`, which cannot be stored smaller"
    )


def test_a_column_of_zeros_has_a_harmless_scale() -> None:
    array = np.zeros((64, 8), np.float32)
    array[:, 0] = 1
    scale = best_scale(array)
    assert scale is not None
    assert np.isfinite(array / scale).all()
