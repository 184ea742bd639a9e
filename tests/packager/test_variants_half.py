"""`fp16`: half-precision arithmetic where a device has it, and a reason wherever it cannot be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model
from tests.real_models import real_model

from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.results import Target
from skerry_packager.variants.candidate import Candidate, Skipped
from skerry_packager.variants.half import fp16_native, wanted


def test_it_is_wanted_only_where_a_target_has_fp16_arithmetic() -> None:
    new, old = Target(name="new", isa=("neon", "fp16")), Target(name="old", isa=("neon",))
    assert wanted([old, new]) == ""
    assert "no target has fp16 arithmetic (old)" in wanted([old])


@pytest.mark.parametrize(("make", "shape"), [(gemm_model, (1, 64)), (conv_model, (1, 1, 8, 8))])
def test_inputs_and_outputs_stay_fp32(make: object, shape: tuple[int, ...]) -> None:
    assert callable(make)
    images = digits()[0]
    feed = {"x": images[0].reshape(shape)}
    model = normalize(make(), [feed]).model
    outcome = fp16_native(model, feed)
    assert isinstance(outcome, Candidate)
    assert len(outcome.data) < 0.7 * model.ByteSize()
    half = onnx.load_model_from_string(outcome.data)
    kinds = {tensor.data_type for tensor in half.graph.initializer if np.prod(tensor.dims) >= 640}
    assert kinds == {TensorProto.FLOAT16}
    session = Session(outcome.data)
    assert [signature.datatype for signature in (*session.inputs, *session.outputs)] == ["FP32", "FP32"]
    batch = {"x": images[1000:1100].reshape(-1, *shape[1:])}
    [expected], [got] = Session(model.SerializeToString()).run(batch), session.run(batch)
    assert (expected.argmax(axis=1) == got.argmax(axis=1)).mean() >= 0.99


def test_constants_beyond_fp16_keep_their_node_in_fp32() -> None:
    weights: dict[str, Array] = {
        "w": np.full((64, 64), 1e-3, np.float32),
        "big": np.array(1e9, np.float32),
        "small": np.array(1e-12, np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Mul", ["a", "big"], ["b"]),
        helper.make_node("Add", ["b", "small"], ["c"]),
        helper.make_node("Div", ["c", "big"], ["p"]),
    ]
    model = build(nodes, weights, outputs=[Value("p", TensorProto.FLOAT, ["N", 64])])
    outcome = fp16_native(model, {"x": digits()[0][:1]})
    assert isinstance(outcome, Candidate)
    assert outcome.recipe["nodes_in_fp32"] == 3
    x = np.ones((2, 64), np.float32)
    [expected], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert np.isfinite(expected).all()
    assert got.shape == expected.shape


def test_operators_inside_subgraphs_are_said_to_be_there() -> None:
    model = normalize(if_model(), [{"x": digits()[0][:1]}]).model
    outcome = fp16_native(model, {"x": digits()[0][:1]})
    assert isinstance(outcome, Skipped)
    assert (
        outcome.reason == "the operators are inside `If_0`, which the converter mistypes; fp16-store instead"
    )


def test_a_model_without_arithmetic_worth_it_is_skipped() -> None:
    model = build(
        [helper.make_node("Softmax", ["x"], ["p"])], {}, outputs=[Value("p", TensorProto.FLOAT, ["N", 64])]
    )
    outcome = fp16_native(model, {"x": digits()[0][:1]})
    assert isinstance(outcome, Skipped)
    assert "nothing would be faster" in outcome.reason


def test_an_lstm_without_lengths_keeps_its_answers() -> None:
    """Its fifth input is left out: nothing may be cast there."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.normal(0, 0.2, (2, 512, 40)).astype(np.float32),
        "r": rng.normal(0, 0.2, (2, 512, 128)).astype(np.float32),
        "b": rng.normal(0, 0.2, (2, 1024)).astype(np.float32),
        "h0": np.zeros((2, 1, 128), np.float32),
        "m": rng.normal(0, 0.2, (128, 12)).astype(np.float32),
    }
    nodes = [
        helper.make_node(
            "LSTM", ["x", "w", "r", "b", "", "h0", "h0"], ["y"], hidden_size=128, direction="bidirectional"
        ),
        helper.make_node("MatMul", ["y", "m"], ["p"]),
    ]
    model = build(
        nodes, weights, ("T", 1, 40), opset=17,
        outputs=[Value("p", TensorProto.FLOAT, ["T", 2, 1, 12])],
    )  # fmt: skip
    feed = {"x": rng.normal(size=(20, 1, 40)).astype(np.float32)}
    outcome = fp16_native(model, feed)
    assert isinstance(outcome, Candidate)
    [expected], [got] = (Session(data).run(feed) for data in (model.SerializeToString(), outcome.data))
    np.testing.assert_allclose(got, expected, atol=0.02)


def recurrent_model() -> onnx.ModelProto:
    """As PyTorch exports an LSTM with the batch first: turned around it, its state made at run time."""
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.normal(0, 0.2, (1, 512, 40)).astype(np.float32),
        "r": rng.normal(0, 0.2, (1, 512, 128)).astype(np.float32),
        "b": rng.normal(0, 0.2, (1, 1024)).astype(np.float32),
        "m": rng.normal(0, 0.2, (128, 12)).astype(np.float32),
        "size": np.array([1, 1, 128]),
        "flat": np.array([0, 0, -1]),
    }
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["h0"]),
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("LSTM", ["t", "w", "r", "b", "", "h0", "h0"], ["y"], hidden_size=128),
        helper.make_node("Transpose", ["y"], ["z"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["z", "flat"], ["f"]),
        helper.make_node("Transpose", ["f"], ["back"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["back", "m"], ["p"]),
    ]
    return build(nodes, weights, (1, 30, 40), opset=17, outputs=[Value("p", TensorProto.FLOAT, [1, 30, 12])])


def test_a_model_that_kills_the_engine_in_fp16_kills_no_packager() -> None:
    """onnxruntime 1.32 ends in a segmentation fault when it loads this with the Transpose in fp16."""
    feed = {"x": np.random.default_rng(0).normal(size=(1, 30, 40)).astype(np.float32)}
    outcome = fp16_native(recurrent_model(), feed)
    assert isinstance(outcome, Skipped)
    assert outcome.reason.startswith("hardly smaller: ")
    assert outcome.reason.endswith("the engine refused LSTM, Transpose in fp16")


def test_a_real_model_that_the_plain_converter_breaks_loads() -> None:
    """magika: the converter's own result does not load; the operators at fault stay in fp32."""
    model = onnx.load(real_model("magika/magika/models/standard_v3_3/model.onnx"))
    feed = {"bytes": np.random.default_rng(0).integers(0, 256, (2, 2048)).astype(np.int32)}
    normal = normalize(model, [feed])
    outcome = fp16_native(normal.model, feed)
    assert isinstance(outcome, Candidate)
    [expected], [got] = (Session(data).run(feed) for data in (normal.data, outcome.data))
    np.testing.assert_allclose(got, expected, atol=0.02)
