"""`int8-dynamic`: large matrix products in int8, everywhere in the model, and never a convolution."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model
from tests.real_models import real_model

from skerry_packager import graphs
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.variants.candidate import Candidate, Skipped
from skerry_packager.variants.dynamic import int8_dynamic


def ready(model: onnx.ModelProto, shape: tuple[int, ...] = (1, 64)) -> onnx.ModelProto:
    return normalize(model, [{"x": digits()[0][0].reshape(shape)}]).model


def agreement(data: bytes, model: onnx.ModelProto) -> float:
    images = digits()[0][1000:]
    [got], [wanted] = (Session(file).run({"x": images}) for file in (data, model.SerializeToString()))
    return float((got.argmax(axis=1) == wanted.argmax(axis=1)).mean())


def operators(data: bytes) -> list[str]:
    return [node.op_type for node in graphs.all_nodes(onnx.load_model_from_string(data))]


def test_a_gemm_becomes_an_integer_product_with_its_bias() -> None:
    model = ready(gemm_model())
    outcome = int8_dynamic(model)
    assert isinstance(outcome, Candidate)
    assert outcome.quantized_compute
    assert outcome.note.startswith("1 of 2 matrix operators quantized (1 Gemm)")
    assert operators(outcome.data).count("MatMulInteger") == 1
    assert operators(outcome.data).count("Gemm") == 1, "640 numbers are too few"
    assert len(outcome.data) < 0.5 * model.ByteSize()
    assert agreement(outcome.data, model) >= 0.99
    onnx.checker.check_model(onnx.load_model_from_string(outcome.data), full_check=True)


@pytest.mark.parametrize(
    ("alpha", "beta", "transposed"), [(0.5, 2.0, True), (1.0, 0.0, False), (3.0, 1.0, True)]
)
def test_every_attribute_of_gemm_is_kept(alpha: float, beta: float, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(64, 40)).astype(np.float32)
    weights: dict[str, Array] = {
        "w": np.ascontiguousarray(matrix.T) if transposed else matrix,
        "b": rng.normal(size=40).astype(np.float32),
    }
    node = helper.make_node(
        "Gemm", ["x", "w", "b"], ["p"], alpha=alpha, beta=beta, transB=int(transposed), name="g"
    )
    model = build([node], weights, outputs=[Value("p", TensorProto.FLOAT, ["N", 40])])
    outcome = int8_dynamic(model)
    assert isinstance(outcome, Candidate)
    x = rng.normal(size=(8, 64)).astype(np.float32)
    [wanted], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert np.abs(got - wanted).max() < 0.03 * np.abs(wanted).max()


def test_products_inside_an_if_are_reached() -> None:
    model = ready(if_model())
    outcome = int8_dynamic(model)
    assert isinstance(outcome, Candidate)
    assert "2 of 4 matrix operators quantized (2 MatMul), 2 of them inside subgraphs" in outcome.note
    images = digits()[0][1000:1050]
    for image in images:
        [got], [wanted] = (
            Session(data).run({"x": image[None]}) for data in (outcome.data, model.SerializeToString())
        )
        assert got.argmax() == wanted.argmax()


def test_two_products_of_one_activation_share_its_quantization() -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {name: rng.normal(size=(64, 64)).astype(np.float32) for name in ("a", "b")}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["u"]),
        helper.make_node("MatMul", ["x", "b"], ["v"]),
        helper.make_node("Add", ["u", "v"], ["p"]),
    ]
    outcome = int8_dynamic(build(nodes, weights, outputs=[Value("p", TensorProto.FLOAT, ["N", 64])]))
    assert isinstance(outcome, Candidate)
    assert operators(outcome.data).count("DynamicQuantizeLinear") == 1


def test_an_lstm_becomes_its_quantized_form() -> None:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.normal(0, 0.2, (1, 256, 32)).astype(np.float32),
        "r": rng.normal(0, 0.2, (1, 256, 64)).astype(np.float32),
        "b": rng.normal(0, 0.2, (1, 512)).astype(np.float32),
    }
    node = helper.make_node("LSTM", ["x", "w", "r", "b"], ["y", "h"], hidden_size=64)
    model = build(
        [node], weights, ("T", 1, 32), opset=14,
        outputs=[Value("h", TensorProto.FLOAT, [1, 1, 64])],
    )  # fmt: skip
    outcome = int8_dynamic(model)
    assert isinstance(outcome, Candidate)
    assert "DynamicQuantizeLSTM" in operators(outcome.data)
    x = rng.normal(size=(20, 1, 32)).astype(np.float32)
    [wanted], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert np.abs(got - wanted).max() < 0.05


def test_a_model_of_convolutions_is_left_alone_and_told_so() -> None:
    outcome = int8_dynamic(ready(conv_model(), (1, 1, 8, 8)))
    assert isinstance(outcome, Skipped)
    assert outcome.reason == (
        "0 of 1 operators quantized: 1 with a weight of fewer than 1024 numbers; used int8-store instead"
    )


def test_a_model_quantized_already_passes_through() -> None:
    quantized = int8_dynamic(ready(gemm_model()))
    assert isinstance(quantized, Candidate)
    outcome = int8_dynamic(onnx.load_model_from_string(quantized.data))
    assert isinstance(outcome, Skipped)
    assert outcome.reason.startswith("already quantized (2 operators)")


def test_magika_keeps_its_answers() -> None:
    model = onnx.load(real_model("magika/magika/models/standard_v3_3/model.onnx"))
    feed = {"bytes": np.random.default_rng(0).integers(0, 256, (4, 2048)).astype(np.int32)}
    normal = normalize(model, [feed])
    outcome = int8_dynamic(normal.model)
    assert isinstance(outcome, Candidate)
    assert len(outcome.data) < 0.3 * len(normal.data)
    [wanted], [got] = (Session(data).run(feed) for data in (normal.data, outcome.data))
    np.testing.assert_allclose(got, wanted, atol=0.02)
