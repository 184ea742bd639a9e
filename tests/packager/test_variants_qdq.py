"""Restricted QDQ: the traps of onnxruntime's quantizer, each seen, each handled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model

from skerry_packager.calibrate import RangeCollector, collect_ranges
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.results import Target
from skerry_packager.variants import qdq
from skerry_packager.variants.affine import fold_affine
from skerry_packager.variants.candidate import Candidate, Outcome, Skipped
from skerry_packager.variants.fold import fold_batch_norms


def feeds(shape: tuple[int, ...] = (64,), rows: int = 64) -> list[dict[str, Array]]:
    images, _ = digits()
    return [{"x": image.reshape(1, *shape)} for image in images[700 : 700 + rows]]


def quantized(model: onnx.ModelProto, scheme: qdq.QdqScheme, shape: tuple[int, ...] = (64,)) -> Outcome:
    base = qdq.prepare(normalize(model, feeds(shape)[:2]).model)
    ranges = {} if base.obstacle else dict(collect_ranges(base.model, base.tensors, feeds(shape)))
    return qdq.quantize(base, ranges, scheme)


def accuracy(data: bytes, shape: tuple[int, ...]) -> float:
    images, labels = digits()
    [scores] = Session(data).run({"x": images[1000:].reshape(-1, *shape)})
    return float((scores.argmax(axis=1) == labels[1000:]).mean())


@pytest.mark.parametrize("scheme", qdq.SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize(("make", "shape"), [(gemm_model, (64,)), (conv_model, (1, 8, 8))])
def test_quantized_models_keep_their_accuracy(
    make: Callable[[], onnx.ModelProto], shape: tuple[int, ...], scheme: qdq.QdqScheme
) -> None:
    """Gemm too: per-channel there raises "truth value of an array is ambiguous" with the tool's defaults."""
    candidate = quantized(make(), scheme, shape)
    assert isinstance(candidate, Candidate)
    assert candidate.note.startswith("2 of 2 operators quantized")
    assert candidate.quantized_compute
    assert len(candidate.data) < 0.5 * make().ByteSize()
    assert accuracy(candidate.data, shape) >= accuracy(make().SerializeToString(), shape) - 0.01
    onnx.checker.check_model(onnx.load_model_from_string(candidate.data), full_check=True)


def test_weights_are_per_channel() -> None:
    candidate = quantized(gemm_model(), qdq.SCHEMES[0])
    assert isinstance(candidate, Candidate)
    stored = {tensor.name: tensor for tensor in onnx.load_model_from_string(candidate.data).graph.initializer}
    scales = {
        tuple(stored[node.input[0]].dims): list(stored[node.input[1]].dims)
        for node in onnx.load_model_from_string(candidate.data).graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in stored
        and stored[node.input[0]].data_type == TensorProto.INT8
    }
    assert scales == {(64, 64): [64], (64, 10): [10]}


def test_an_old_opset_is_raised_first() -> None:
    """Per-channel below opset 13 writes an invalid graph."""
    normal = normalize(opset_11(), feeds()[:2])
    assert normal.notes == ("opset 11 raised to 17 (outputs equal to 1e-09)",)
    assert isinstance(quantized(opset_11(), qdq.SCHEMES[0]), Candidate)


def opset_11() -> onnx.ModelProto:
    return gemm_model(opset=11)


def test_an_opset_that_cannot_be_raised_is_a_reason() -> None:
    base = qdq.prepare(opset_11())
    outcome = qdq.quantize(base, {}, qdq.SCHEMES[0])
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "opset 11: per-channel needs 13 or later, and it could not be raised"


def test_weights_inside_a_subgraph_are_a_reason_and_no_silent_copy() -> None:
    outcome = quantized(if_model(), qdq.SCHEMES[0])
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "0 of 4 operators quantized: the weights are inside `If_0`"


def test_a_quantized_model_passes_through() -> None:
    first = quantized(gemm_model(), qdq.SCHEMES[0])
    assert isinstance(first, Candidate)
    base = qdq.prepare(onnx.load_model_from_string(first.data))
    assert base.obstacle.startswith("already quantized (")


def test_a_model_without_such_operators_is_a_reason() -> None:
    outcome = quantized(
        build(
            [helper.make_node("Softmax", ["x"], ["p"])],
            {},
            outputs=[Value("p", TensorProto.FLOAT, ["N", 64])],
        ),
        qdq.SCHEMES[0],
    )
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "0 operators quantized: the model has no Conv, MatMul or Gemm"


def test_an_activation_that_was_infinite_is_left_alone() -> None:
    """The tool's own calibration takes infinity for a range, and gives a scale of NaN."""
    model = gemm_model()
    model.graph.node[0].input[0] = "inv"
    model.graph.node.insert(0, helper.make_node("Log", ["x"], ["inv"]))
    outcome = quantized(model, qdq.SCHEMES[0])
    assert isinstance(outcome, Skipped)
    assert "NaN or infinite" in outcome.reason


def test_a_bias_that_operators_share_is_no_collision() -> None:
    """The tool copies it under ``bias + number``, which is the name of another value here."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b"], ["h"]),
        helper.make_node("Gemm", ["x", "w1", "b"], ["b2"]),
        helper.make_node("Gemm", ["x", "w1", "b"], ["b1"]),
        helper.make_node("Sum", ["h", "b2", "b1"], ["p"]),
    ]
    weights = {name: rng.normal(0, 0.1, (64, 10)).astype(np.float32) for name in ("w0", "w1")}
    model = build(nodes, weights | {"b": rng.normal(0, 1, 10).astype(np.float32)})
    outcome = quantized(model, qdq.SCHEMES[0])
    assert isinstance(outcome, Candidate)
    assert outcome.note.startswith("3 of 3")
    [got], [wanted] = (Session(data).run(feeds()[0]) for data in (outcome.data, model.SerializeToString()))
    assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_the_candidate_shows_no_trace_of_the_tool_and_is_the_same_every_time() -> None:
    one, other = (
        quantized(conv_model(), qdq.SCHEMES[0], (1, 8, 8)),
        quantized(conv_model(), qdq.SCHEMES[0], (1, 8, 8)),
    )
    assert isinstance(one, Candidate)
    assert isinstance(other, Candidate)
    assert one.data == other.data
    model = onnx.load_model_from_string(one.data)
    assert model.producer_name == ""
    assert [entry.domain for entry in model.opset_import] == [""]
    assert not model.metadata_props
    assert not model.graph.value_info


def optimized_operators(data: bytes, path: Path) -> list[str]:
    """What the engine makes of the graph."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_engine_calculates_a_convolution_and_its_relu_in_int8(tmp_path: Path) -> None:
    """Rounded once, behind the Relu: with a pair before it too, the engine runs the Relu in fp32."""
    candidate = quantized(conv_model(), qdq.SCHEMES[0], (1, 8, 8))
    assert isinstance(candidate, Candidate)
    operators = optimized_operators(candidate.data, tmp_path / "optimized.onnx")
    assert "QLinearConv" in operators
    assert "QGemm" in operators  # MatMul and Add of a vector
    assert not {"Conv", "FusedConv", "MatMul", "Gemm", "Relu", "BatchNormalization"} & set(operators)


def test_the_engine_calculates_gemm_in_int8(tmp_path: Path) -> None:
    candidate = quantized(gemm_model(), qdq.SCHEMES[1])
    assert isinstance(candidate, Candidate)
    operators = optimized_operators(candidate.data, tmp_path / "optimized.onnx")
    assert operators.count("QGemm") == 2
    assert "Relu" not in operators


def error_of(model: onnx.ModelProto, shape: tuple[int, ...] = (64,)) -> float:
    """Largest error of the quantized form over the largest output."""
    outcome = quantized(model, qdq.SCHEMES[0], shape)
    assert isinstance(outcome, Candidate)
    worst = 0.0
    for feed in feeds(shape, 8):
        [got], [wanted] = (Session(data).run(feed) for data in (outcome.data, model.SerializeToString()))
        worst = max(worst, float(np.abs(got - wanted).max() / np.abs(wanted).max()))
    return worst


def test_a_product_of_more_than_two_dimensions_gives_fp32(tmp_path: Path) -> None:
    """Its result is not rounded: the engine has a kernel for that."""
    weight = np.random.default_rng(1).normal(0, 0.1, (8, 10)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["p"])]
    model = build(
        nodes,
        {"w": weight, "b": np.ones(10, np.float32)},
        ("N", 8, 8),
        outputs=[Value("p", TensorProto.FLOAT, ["N", 8, 10])],
    )
    outcome = quantized(model, qdq.SCHEMES[0], (8, 8))
    assert isinstance(outcome, Candidate)
    operators = optimized_operators(outcome.data, tmp_path / "optimized.onnx")
    assert operators[:2] == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert error_of(model, (8, 8)) < 0.02


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_factors_and_a_row_to_add(transposed: int) -> None:
    """QGemm takes neither beta nor a matrix: both go into the constants."""
    rng = np.random.default_rng(1)
    weight = rng.normal(0, 0.1, (64, 10)).astype(np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["p"], alpha=0.5, beta=3.0, transB=transposed)
    arrays = {
        "w": weight.T.copy() if transposed else weight,
        "b": rng.normal(0, 1, (1, 10)).astype(np.float32),
    }
    assert error_of(build([node], arrays)) < 0.02


def test_a_bias_that_int32_cannot_hold_widens_the_scale_of_its_channel() -> None:
    weight = np.random.default_rng(1).normal(0, 0.1, (64, 10)).astype(np.float32)
    weight[:, 3] *= 1e-12
    weight[:, 4] = 0
    bias = np.full(10, 5, np.float32)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["p"])
    assert error_of(build([node], {"w": weight, "b": bias})) < 0.02


def test_a_clip_behind_a_convolution_and_an_output_that_others_read() -> None:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c", "zero", "six"], ["six_c"]),
        helper.make_node("Conv", ["six_c", "k2"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["g"]),
        helper.make_node("GlobalAveragePool", ["six_c"], ["h"]),
        helper.make_node("Concat", ["g", "h"], ["gh"], axis=1),
        helper.make_node("Flatten", ["gh"], ["p"]),
    ]
    arrays = {
        "k": rng.normal(0, 1, (5, 1, 3, 3)).astype(np.float32),
        "k2": rng.normal(0, 1, (5, 5, 3, 3)).astype(np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(2, np.float32),
    }
    assert error_of(build(nodes, arrays, ("N", 1, 8, 8)), (1, 8, 8)) < 0.03


def test_a_convolution_that_is_the_output_itself_keeps_its_name() -> None:
    kernel = np.random.default_rng(1).normal(0, 1, (10, 1, 8, 8)).astype(np.float32)
    model = build(
        [helper.make_node("Conv", ["x", "k"], ["p"])],
        {"k": kernel},
        ("N", 1, 8, 8),
        outputs=[Value("p", TensorProto.FLOAT, ["N", 10, 1, 1])],
    )
    assert error_of(model, (1, 8, 8)) < 0.02


def test_weights_have_7_bits_where_a_target_may_saturate() -> None:
    """VPMADDUBSW adds two products in 16 bits: 2 * 255 * 127 does not fit, 2 * 255 * 63 does."""
    assert qdq.needs_reduced_range([Target(name="old", arch="x86_64", isa=("avx2",))])
    assert not qdq.needs_reduced_range([Target(name="new", arch="x86_64", isa=("avx2", "vnni"))])
    assert not qdq.needs_reduced_range([Target(name="pi", arch="aarch64", isa=("neon",))])
    base = qdq.prepare(normalize(gemm_model(), feeds()[:2]).model)
    ranges = collect_ranges(base.model, base.tensors, feeds())
    outcome = qdq.quantize(base, ranges, qdq.SCHEMES[0], reduce_range=True)
    assert isinstance(outcome, Candidate)
    assert "7 bits" in outcome.note
    integers = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(outcome.data).graph.initializer
        if tensor.data_type == TensorProto.INT8
    ]
    assert max(int(np.abs(array).max()) for array in integers) == 63


def test_factors_and_terms_behind_a_convolution_fold_into_it() -> None:
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"]),
        helper.make_node("Mul", ["c", "factor"], ["m"]),
        helper.make_node("Add", ["term", "m"], ["a"]),
        helper.make_node("Div", ["a", "two"], ["d"]),
        helper.make_node("Mul", ["d", "image"], ["i"]),
        helper.make_node("Flatten", ["i"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["p"]),
    ]
    arrays = {
        "k": rng.normal(0, 1, (3, 1, 7, 7)).astype(np.float32),
        "factor": rng.normal(0, 1, (1, 3, 1, 1)).astype(np.float32),
        "term": rng.normal(0, 1, (3, 1, 1)).astype(np.float32),
        "two": np.array([2], np.float32),
        "image": rng.normal(0, 1, (1, 1, 2, 2)).astype(np.float32),
        "w": rng.normal(0, 1, (12, 10)).astype(np.float32),
    }
    model = build(nodes, arrays, ("N", 1, 8, 8))
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    assert fold_affine(folded.graph) == 3
    assert [node.op_type for node in folded.graph.node] == ["Conv", "Mul", "Flatten", "MatMul"]
    feed = feeds((1, 8, 8))[0]
    [a], [b] = (Session(m.SerializeToString()).run(feed) for m in (model, folded))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_batch_normalization_folds_into_the_convolution() -> None:
    model = conv_model()
    folded = onnx.ModelProto()
    folded.CopyFrom(model)
    assert fold_batch_norms(folded.graph) == 1
    assert [node.op_type for node in folded.graph.node][:2] == ["Conv", "Relu"]
    feed = feeds((1, 8, 8))[0]
    [a], [b] = (Session(m.SerializeToString()).run(feed) for m in (model, folded))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_convolution_that_others_read_too_is_not_folded() -> None:
    model = conv_model()
    model.graph.output.append(Value("c", TensorProto.FLOAT, ["N", 64, 1, 1]))
    assert fold_batch_norms(model.graph) == 0


def test_ranges_stream_and_do_not_depend_on_the_order_of_samples() -> None:
    rng = np.random.default_rng(0)
    chunks = [rng.normal(0, 10.0**k, 1000).astype(np.float32) for k in range(-3, 3)]
    forward, backward = RangeCollector(), RangeCollector()
    for chunk in chunks:
        forward.add(chunk)
    for chunk in reversed(chunks):
        backward.add(chunk)
    one, other = forward.range(), backward.range()
    values = np.concatenate(chunks)
    assert one.min_max() == (values.min(), values.max()) == other.min_max()
    assert int(one.counts.sum()) == int(other.counts.sum()) == len(values)
    assert one.half_width == other.half_width


def test_an_outlier_is_clipped_by_the_mse_range_alone() -> None:
    collector = RangeCollector()
    collector.add(np.random.default_rng(0).normal(0, 1, 1_000_000))
    collector.add(np.array([40.0]))
    found = collector.range()
    assert found.min_max()[1] == 40
    assert found.mse_range()[1] < 32


def test_not_finite_values_are_counted_and_never_widen_the_range() -> None:
    collector = RangeCollector()
    collector.add(np.array([1.0, np.nan, np.inf, -2.0]))
    found = collector.range()
    assert found.not_finite == 2
    assert found.min_max() == (-2.0, 1.0)
    empty = RangeCollector()
    empty.add(np.array([np.nan]))
    assert empty.range().min_max() == (0.0, 0.0)
    zeros = RangeCollector()
    zeros.add(np.zeros(5))
    assert zeros.range().min_max() == (0.0, 0.0)
