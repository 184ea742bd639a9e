"""`skerry_packager.normalize`: one clean form, every step proved on samples."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.onnx_models import Array, Value, build, digits, gemm_model, if_model, zipmap_model

from skerry_contract.errors import ModelError
from skerry_packager import graphs
from skerry_packager.engine import Session
from skerry_packager.modelfile import parse_model
from skerry_packager.normalize import normalize, relative_difference
from skerry_packager.variants.candidate import Candidate
from skerry_packager.variants.storage import fp16_store


def samples() -> list[dict[str, Array]]:
    return [{"x": image[None]} for image in digits()[0][:3]]


def test_constants_become_initializers_in_subgraphs_too() -> None:
    normal = normalize(if_model(), samples())
    assert not any(node.op_type == "Constant" for node in graphs.all_nodes(normal.model))
    assert [len(body.initializer) for body in graphs.subgraphs(normal.model.graph)] == [4, 4]


def test_the_outputs_stay_and_the_bytes_repeat() -> None:
    one, other = normalize(gemm_model(11), samples()), normalize(gemm_model(11), samples())
    assert one.data == other.data
    for feed in samples():
        [a], [b] = (Session(data).run(feed) for data in (one.data, gemm_model(11).SerializeToString()))
        assert relative_difference(a, b) < 1e-6


def test_a_newer_opset_stays_where_the_engine_loads_it() -> None:
    assert graphs.opset_of(normalize(gemm_model(19), samples(), max_opset=21, max_ir=10).model) == 19
    with pytest.raises(ModelError, match="opset 19; the profile's engine loads at most 17"):
        normalize(gemm_model(19), samples(), max_opset=17)


def test_the_ir_version_is_as_low_as_the_opset_lets_it() -> None:
    model = gemm_model(17)
    model.ir_version = 13
    assert normalize(model, samples(), max_ir=8).model.ir_version == 8
    with pytest.raises(ModelError, match="IR version 8; the profile's engine loads at most 7"):
        normalize(gemm_model(17), samples(), max_ir=7)


def test_initializers_that_could_be_overridden_become_constant() -> None:
    model = gemm_model()
    model.graph.input.append(Value("w0", TensorProto.FLOAT, [64, 64]))
    assert [value.name for value in normalize(model, samples()).model.graph.input] == ["x"]


def test_a_zipmap_becomes_a_plain_tensor() -> None:
    normal = normalize(zipmap_model(), samples())
    assert normal.notes[0].startswith("ZipMap removed")
    [wanted] = Session(gemm_model().SerializeToString()).run(samples()[0])
    np.testing.assert_allclose(Session(normal.data).run(samples()[0])[0], wanted, rtol=1e-6)


def test_a_false_output_shape_is_freed() -> None:
    model = gemm_model()
    model.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 7
    normal = normalize(model, samples())
    assert Session(normal.data).outputs[0].shape == (-1, 10)


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        (np.array([1.0, 2.0]), np.array([1.0, 4.0]), 0.5),
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), 0.0),
        (np.array([1.0, np.nan]), np.array([1.0, 1.0]), np.inf),
        (np.array([1, 2]), np.array([1, 3]), np.inf),
        (np.zeros(2), np.zeros(3), np.inf),
    ],
)
def test_relative_difference(one: Array, other: Array, difference: float) -> None:
    assert relative_difference(one, other) == difference


def sliced_model() -> onnx.ModelProto:
    """The weight is put together from slices of one constant, as PyTorch exports recurrent layers."""
    model = gemm_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.concatenate([array[32:], array[:32]]), "turned"))
    bounds: dict[str, Array] = {name: np.array([value]) for name, value in (("a", 0), ("b", 32), ("c", 64))}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in bounds.items())
    parts = [
        helper.make_node("Slice", ["turned", "b", "c", "a"], ["upper"]),
        helper.make_node("Slice", ["turned", "a", "b", "a"], ["lower"]),
        helper.make_node("Concat", ["upper", "lower"], ["w0"], axis=0),
    ]
    for node in reversed(parts):
        model.graph.node.insert(0, node)
    return model


def test_a_weight_made_of_pieces_becomes_one_constant() -> None:
    normal = normalize(sliced_model(), samples())
    assert "3 nodes that depend on constants alone folded" in normal.notes
    assert [node.op_type for node in normal.model.graph.node] == ["Gemm", "Relu", "Gemm", "Softmax"]
    assert "turned" not in {tensor.name for tensor in normal.model.graph.initializer}
    [wanted] = Session(gemm_model().SerializeToString()).run(samples()[0])
    np.testing.assert_allclose(Session(normal.data).run(samples()[0])[0], wanted, rtol=1e-6)


def test_folding_never_grows_the_file() -> None:
    """A weight that was stored as fp16 stays so: folding its Cast would double it."""
    stored = fp16_store(gemm_model())
    assert isinstance(stored, Candidate)
    again = normalize(onnx.load_model_from_string(stored.data), samples())
    assert len(again.data) < 1.02 * len(stored.data)


def test_local_functions_are_inlined() -> None:
    model = gemm_model()
    body = [node for node in model.graph.node if node.op_type == "Relu"]
    body[0].op_type, body[0].domain = "Bend", "local"
    model.functions.append(
        helper.make_function(
            "local", "Bend", ["u"], ["v"], [helper.make_node("Relu", ["u"], ["v"])],
            [helper.make_opsetid("", 13)],
        )
    )  # fmt: skip
    model.opset_import.append(helper.make_opsetid("local", 1))
    normal = normalize(model, samples())
    assert "1 local functions inlined" in normal.notes
    assert not normal.model.functions
    assert "Relu" in [node.op_type for node in normal.model.graph.node]


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 18, 22])
def test_opsets_old_and_new(opset: int) -> None:
    model = gemm_model()
    model.opset_import[0].version = opset
    model.ir_version = 3 if opset < 9 else 10
    if opset < 9:
        model.graph.input.extend(
            Value(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in model.graph.initializer
        )
    normal = normalize(model, samples())
    assert graphs.opset_of(normal.model) >= min(opset, 13)
    [wanted] = Session(gemm_model().SerializeToString()).run(samples()[0])
    np.testing.assert_allclose(Session(normal.data).run(samples()[0])[0], wanted, rtol=1e-5)


def test_nodes_without_names_and_outputs_without_types() -> None:
    model = gemm_model()
    for node in model.graph.node:
        node.ClearField("name")
    model.graph.output[0].ClearField("type")
    normal = normalize(model, samples())
    assert normal.model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_an_unknown_operator_is_named_with_its_domain() -> None:
    model = gemm_model()
    model.graph.node[1].op_type, model.graph.node[1].domain = "DecodeImage", "com.microsoft.extensions"
    with pytest.raises(ModelError, match=r"`com\.microsoft\.extensions:DecodeImage` is not registered"):
        parse_model(model.SerializeToString(), "m.onnx")


def test_domains_that_no_operator_uses_are_no_obstacle_and_go() -> None:
    model = gemm_model()
    for domain in ("ai.onnx.preview.training", "com.microsoft.nchwc", "com.example"):
        model.opset_import.append(helper.make_opsetid(domain, 1))
    data = model.SerializeToString()
    assert parse_model(data, "m.onnx") == model
    normal = normalize(model, samples())
    assert [entry.domain for entry in normal.model.opset_import] == [""]


def test_an_outer_product_is_not_folded_where_that_grows_the_file() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Mul", ["column", "row"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Add", ["h", "three"], ["p"]),
    ]
    weights: dict[str, Array] = {
        "column": rng.normal(size=(64, 1)).astype(np.float32),
        "row": rng.normal(size=(1, 10)).astype(np.float32),
        "one": np.ones(10, np.float32),
        "two": np.ones(10, np.float32),
    }
    normal = normalize(build(nodes, weights), samples())
    assert [node.op_type for node in normal.model.graph.node] == ["Mul", "MatMul", "Add"]
    assert "1 nodes that depend on constants alone folded" in normal.notes
