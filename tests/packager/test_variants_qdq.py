"""Restricted QDQ: the traps of onnxruntime's quantizer, each seen, each handled."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model

from skerry_packager.calibrate import RangeCollector, collect_ranges
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.variants import qdq
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
    model = onnx.load_model_from_string(candidate.data)
    sizes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert sizes["w0_scale"] == [64]
    assert sizes["w1_scale"] == [10]


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
