"""`skerry_packager.memory`: bounds that hold on real models, and a measurement in a fresh process."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import build, conv_model, gemm_model
from tests.real_models import real_model

from skerry_contract.errors import ModelError
from skerry_contract.limits import MIB
from skerry_packager.memory import ENGINE_BASE_BYTES, measure_memory, memory_bounds, probe

RAPID = "rapidocr_onnxruntime/rapidocr_onnxruntime/models"
RANDOM = np.random.default_rng(0)


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.uniform(-1, 1, shape).astype(np.float32)


REAL: dict[str, dict[str, Any]] = {
    "magika/magika/models/standard_v3_3/model.onnx": {
        "bytes": RANDOM.integers(0, 256, (1, 2048)).astype(np.int32)
    },
    f"{RAPID}/ch_ppocr_mobile_v2.0_cls_infer.onnx": {"x": numbers(1, 3, 48, 192)},
    f"{RAPID}/ch_PP-OCRv4_rec_infer.onnx": {"x": numbers(1, 3, 48, 320)},
    "swift_f0/swift_f0/model.onnx": {
        "audio": numbers(1, 4096), "fmin": np.float32(46), "fmax": np.float32(2000),
    },
    "silero_vad/silero_vad/data/silero_vad.onnx": {
        "input": numbers(1, 576), "state": numbers(2, 1, 128), "sr": np.array(16000),
    },
}  # fmt: skip


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.rpartition("/")[2])
def test_real_models_stay_between_the_bounds(path: str) -> None:
    data, feed = real_model(path).read_bytes(), {key: np.asarray(value) for key, value in REAL[path].items()}
    found = probe(data, feed)
    lower, upper = memory_bounds(onnx.load_model_from_string(data), feed, found.sizes)
    assert lower <= found.memory.peak_rss_bytes <= upper
    assert found.operations


def chain(*operators: str, size: int = 1 << 20) -> onnx.ModelProto:
    """Operators behind each other on a vector of `size` floats; both ends are outside of the peak."""
    values = [f"v{number}" for number in range(len(operators) + 1)]
    nodes = [
        helper.make_node(name, [values[i], "shape"] if name == "Reshape" else [values[i]], [values[i + 1]])
        for i, name in enumerate(operators)
    ]
    nodes.insert(0, helper.make_node("Neg", ["x"], ["v0"]))
    nodes.append(helper.make_node("ReduceMax", [values[-1]], ["p"], keepdims=0))
    shape = {"shape": np.array([size], np.int64)}
    return build(nodes, shape, (size,), outputs=[helper.make_tensor_value_info("p", TensorProto.FLOAT, [])])


def activations(model: onnx.ModelProto) -> float:
    """MiB above the base, as the lower bound sees it."""
    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    return (memory_bounds(model, {"x": np.zeros(size, np.float32)})[0] - ENGINE_BASE_BYTES) / MIB


def test_views_and_operators_in_place_need_no_memory_of_their_own() -> None:
    plain = activations(chain())
    assert plain == pytest.approx(8, abs=0.1)  # the input, which is the caller's, and one result
    assert activations(chain("Reshape", "Identity", "Relu", "Sigmoid")) == pytest.approx(plain, abs=0.1)
    assert activations(chain("Transpose")) == pytest.approx(12, abs=0.1)


def test_what_is_read_again_is_not_written_over() -> None:
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("ReduceMax", ["c"], ["p"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, [])]
    model = build(nodes, {}, (1 << 20,), outputs=outputs)
    assert activations(model) == pytest.approx(12, abs=0.1)


def test_weights_count_as_what_they_become() -> None:
    kernel = np.ones((256, 1024), np.int8)
    nodes = [
        helper.make_node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wf"], ["p"]),
    ]
    model = build(nodes, {"w": kernel}, (1, 256), outputs=[
        helper.make_tensor_value_info("p", TensorProto.FLOAT, [1, 1024])
    ])  # fmt: skip
    lower, upper = memory_bounds(model, {"x": numbers(1, 256)})
    assert lower - ENGINE_BASE_BYTES == pytest.approx(1 * MIB, rel=0.02)
    assert upper > lower


def test_bounds_grow_with_the_input() -> None:
    small, large = (memory_bounds(conv_model(), {"x": numbers(rows, 1, 8, 8)}) for rows in (1, 64))
    assert small[0] < large[0]
    assert small[1] < large[1]


def test_shapes_that_depend_on_the_data_come_from_a_run() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"]),
        helper.make_node("Cast", ["where"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["c"], ["p"], keepdims=0),
    ]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, [])]
    model = build(nodes, {}, ("N",), outputs=outputs)
    found = probe(model.SerializeToString(), {"x": np.ones(1000, np.float32)}, runs=1)
    assert found.sizes is not None
    assert found.sizes["where"] == 8 * 1000
    assert found.sizes["c"] == 4 * 1000
    feed = {"x": np.ones(1000, np.float32)}
    assert memory_bounds(model, feed, found.sizes)[0] > memory_bounds(model, feed)[0]


def test_a_probe_tells_what_the_engine_executes_after_its_fusions() -> None:
    found = probe(gemm_model().SerializeToString(), {"x": numbers(1, 64)}, runs=1)
    kinds = [operation.kind for operation in found.operations]
    assert kinds.count("matvec") == 2
    assert "softmax" in kinds
    assert found.sizes is None
    assert found.operations[0].flops == 2 * 64 * 64


def test_quantized_operators_are_counted_as_integers() -> None:
    constants: dict[str, np.ndarray] = {
        "s": np.array(0.1, np.float32), "z": np.array(128, np.uint8), "wz": np.array(0, np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "s", "wz"], ["wd"]),
        helper.make_node("MatMul", ["d", "wd"], ["m"]),
        helper.make_node("QuantizeLinear", ["m", "s", "z"], ["mq"]),
        helper.make_node("DequantizeLinear", ["mq", "s", "z"], ["p"]),
    ]
    outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 64])]
    model = build(nodes, {**constants, "w": np.ones((64, 64), np.int8)}, outputs=outputs)
    found = probe(model.SerializeToString(), {"x": numbers(8, 64)}, runs=1)
    (product,) = [each for each in found.operations if each.kind == "matmul"]
    assert (product.datatype, product.flops) == ("int8", 2 * 8 * 64 * 64)


def test_a_model_that_the_engine_refuses_is_no_model() -> None:
    with pytest.raises(ModelError, match="fresh process"):
        measure_memory(b"\x08\x08", {"x": numbers(1, 64)})
    with pytest.raises(ModelError, match="fresh process"):
        measure_memory(gemm_model().SerializeToString(), {"x": numbers(1, 64)}, engine="pytorch")
