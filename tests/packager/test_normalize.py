"""`skerry_packager.normalize`: one clean form, every step proved on samples."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from tests.packager.onnx_models import Array, Value, digits, gemm_model, if_model, zipmap_model

from skerry_contract.errors import ModelError
from skerry_packager import graphs
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize, relative_difference


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
