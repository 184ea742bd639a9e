"""`int4-weights` and `int4-store`: four bits a weight, in memory or in the file alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model

from skerry_packager import graphs
from skerry_packager.engine import Session
from skerry_packager.variants.candidate import Candidate, Skipped
from skerry_packager.variants.encodings import INT4_BLOCK, Names, as_int4, int4_blocks
from skerry_packager.variants.int4 import int4_weights
from skerry_packager.variants.storage import int4_store


def wide_model(op: str = "MatMul", rows: int = 64) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {
        "w": rng.normal(size=(rows, 300)).astype(np.float32),
        "b": rng.normal(size=300).astype(np.float32),
    }
    if op == "Gemm":
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["p"], alpha=0.5, beta=2.0)]
    else:
        nodes = [helper.make_node("MatMul", ["x", "w"], ["p"])]
        del weights["b"]
    return build(nodes, weights, ("N", rows), outputs=[Value("p", TensorProto.FLOAT, ["N", 300])])


def embedding_model() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights: dict[str, Array] = {"table": rng.normal(size=(500, 64)).astype(np.float32)}
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "i"], ["p"]),
    ]
    return build(nodes, weights, ("N", 3), outputs=[Value("p", TensorProto.FLOAT, ["N", 3, 64])])


def noise(wanted: Array, got: Array) -> float:
    return float(np.square(wanted - got).mean() / np.square(wanted).mean())


@pytest.mark.parametrize("rows", [64, 70])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_large_products_run_in_four_bits(operator: str, rows: int) -> None:
    model = wide_model(operator, rows)
    outcome = int4_weights(model)
    assert isinstance(outcome, Candidate)
    assert outcome.note.startswith(f"1 of 1 matrix operators in int4 (1 {operator})")
    assert len(outcome.data) < 0.25 * model.ByteSize()
    x = np.random.default_rng(1).normal(size=(5, rows)).astype(np.float32)
    [wanted], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert noise(wanted, got) < 0.02


def test_embeddings_are_rebuilt_row_by_row() -> None:
    model = embedding_model()
    outcome = int4_weights(model)
    assert isinstance(outcome, Candidate)
    x = np.array([[0, 17, 499]], np.float32)
    [wanted], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert noise(wanted, got) < 0.02


def test_small_products_and_convolutions_are_told_why() -> None:
    outcome = int4_weights(gemm_model())
    assert isinstance(outcome, Skipped)
    assert "2 with a weight of fewer than 16384 numbers; used int4-store instead" in outcome.reason
    outcome = int4_weights(conv_model())
    assert isinstance(outcome, Skipped)


def test_a_block_is_nearest_to_its_numbers() -> None:
    rng = np.random.default_rng(0)
    line = rng.normal(size=(4, 2 * INT4_BLOCK)).astype(np.float32)
    numbers, scale = int4_blocks(line)
    assert numbers.min() >= -8
    assert numbers.max() <= 7
    plain = np.abs(line.reshape(4, 2, -1)).max(-1, keepdims=True) / 7
    naive = np.clip(np.rint(line.reshape(4, 2, -1) / plain), -7, 7) * plain
    assert noise(line.reshape(4, 2, -1), numbers * scale) < noise(line.reshape(4, 2, -1), naive)


@pytest.mark.parametrize("shape", [(64, 64), (64, 33), (17, 3, 7, 9)])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_what_is_unpacked_is_what_was_packed(shape: tuple[int, ...], kind: int) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stored = as_int4(array, kind, "w", Names(set()))
    assert stored is not None
    graph = helper.make_graph(
        list(stored.nodes), "unpack", [], [Value("w", kind, list(shape))], list(stored.initializers)
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    [rebuilt] = Session(model.SerializeToString()).run({})
    np.testing.assert_allclose(rebuilt, stored.rebuilt, rtol=1e-6)
    assert stored.error < 0.12


def test_int4_in_the_file_is_fp32_in_the_engine() -> None:
    model = wide_model()
    outcome = int4_store(model)
    assert isinstance(outcome, Candidate)
    assert not outcome.quantized_compute
    assert len(outcome.data) < 0.16 * model.ByteSize()
    x = digits()[0][:4]
    [wanted], [got] = (Session(data).run({"x": x}) for data in (model.SerializeToString(), outcome.data))
    assert noise(wanted, got) < 0.02
    assert not any(
        graphs.is_quantized_operator(node) for node in onnx.load_model_from_string(outcome.data).graph.node
    )


def test_int4_store_says_where_nothing_gains() -> None:
    weights = {"w": np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)}
    outcome = int4_store(build([helper.make_node("MatMul", ["x", "w"], ["p"])], weights))
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "no weight gains from int4; used int8-store instead"
