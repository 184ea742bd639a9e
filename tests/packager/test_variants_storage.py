"""Storage variants: smaller files, the same arithmetic, inside subgraphs too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model

from skerry_packager import graphs
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.variants.candidate import Candidate, Skipped
from skerry_packager.variants.storage import best_scale, fp16_store, int8_store


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


def test_a_column_of_zeros_has_a_harmless_scale() -> None:
    array = np.zeros((64, 8), np.float32)
    array[:, 0] = 1
    scale = best_scale(array)
    assert scale is not None
    assert np.isfinite(array / scale).all()
