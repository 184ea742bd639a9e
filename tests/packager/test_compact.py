"""`skerry_packager.compact`: the last step of every ONNX variant, bit for bit the same answers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx  # type: ignore[import-untyped] # ships no stubs
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tests.packager.onnx_models import Array, Value, build, conv_model, digits, gemm_model, if_model
from tests.real_models import real_model

from skerry_packager import graphs
from skerry_packager.compact import compact
from skerry_packager.engine import Session
from skerry_packager.normalize import normalize
from skerry_packager.packed import pack_lists


@pytest.mark.parametrize(("make", "shape"), [(gemm_model, (64,)), (conv_model, (1, 8, 8)), (if_model, (64,))])
def test_the_answers_stay_bit_for_bit_and_the_bytes_repeat(make: object, shape: tuple[int, ...]) -> None:
    assert callable(make)
    data = make().SerializeToString()
    small = compact(data)
    assert len(small) < len(data)
    assert compact(small) == small
    onnx.checker.check_model(onnx.load_model_from_string(small), full_check=True)
    feed = {"x": digits()[0][:1].reshape(1, *shape)}
    for wanted, got in zip(Session(data).run(feed), Session(small).run(feed), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_comments_and_inner_names_go_and_what_callers_see_stays() -> None:
    model = gemm_model()
    model.doc_string, model.producer_name = "how it was trained", "exporter"
    model.metadata_props.add(key="classes", value="zero, one")
    model.graph.node[0].doc_string = "model.py, line 7"
    small = onnx.load_model_from_string(compact(model.SerializeToString()))
    assert (small.doc_string, small.producer_name) == ("", "")
    assert [value.name for value in (*small.graph.input, *small.graph.output)] == ["x", "p"]
    assert [entry.value for entry in small.metadata_props] == ["zero, one"], "applications read them"
    assert not any(node.name or node.doc_string for node in small.graph.node)
    inner = graphs.names_in(small.graph) - {"x", "p", ""}
    assert max(map(len, inner)) == 1


def test_names_of_inputs_are_not_given_again() -> None:
    weights = {"w": np.ones((64, 10), np.float32), "v": np.ones((10, 10), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("MatMul", ["a", "v"], ["b"])]
    model = build(nodes, weights, outputs=[Value("b", TensorProto.FLOAT, ["N", 10])])
    assert Session(compact(model.SerializeToString())).run({"x": np.ones((1, 64), np.float32)})[0].shape == (
        1,
        10,
    )


def test_equal_constants_are_stored_once() -> None:
    eye = np.eye(64, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "one"], ["h"]),
        helper.make_node("MatMul", ["h", "other"], ["p"]),
    ]
    model = build(nodes, {"one": eye, "other": eye}, outputs=[Value("p", TensorProto.FLOAT, ["N", 64])])
    small = onnx.load_model_from_string(compact(model.SerializeToString()))
    assert len(small.graph.initializer) == 1


def test_a_small_classical_model_becomes_smaller_without_any_weight_changed() -> None:
    images, labels = digits()
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(images[:300], labels[:300])
    model = to_onnx(fitted, images[:1], options={"zipmap": False})
    small = compact(normalize(model, [{"X": images[:1]}]).data)
    assert len(small) < 0.85 * model.ByteSize()
    before, after = (Session(data).run({"X": images}) for data in (model.SerializeToString(), small))
    for wanted, got in zip(before, after, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_a_real_model_with_bodies_answers_as_before() -> None:
    data = real_model("silero_vad/silero_vad/data/silero_vad.onnx").read_bytes()
    rng = np.random.default_rng(0)
    feed: dict[str, Array] = {
        "input": rng.normal(0, 0.1, (1, 576)).astype(np.float32),
        "state": np.zeros((2, 1, 128), np.float32),
        "sr": np.array(16000, np.int64),
    }
    for wanted, got in zip(Session(data).run(feed), Session(compact(data)).run(feed), strict=True):
        np.testing.assert_array_equal(got, wanted)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=40),
    st.lists(st.floats(width=32, allow_nan=False), max_size=40),
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20),
)
def test_packed_lists_are_read_as_they_were(ints: list[int], floats: list[float], small: list[int]) -> None:
    node = helper.make_node("Any", ["x"], ["y"])
    if ints:
        node.attribute.append(helper.make_attribute("i", ints))
    if floats:
        node.attribute.append(helper.make_attribute("f", floats))
    if small:
        node.attribute.append(helper.make_attribute("t", numpy_helper.from_array(np.array(small, np.int32))))
    body = helper.make_graph([node], "b", [], [Value("y", TensorProto.FLOAT, [])])
    outer = helper.make_node("If", ["c"], ["z"], then_branch=body, else_branch=body)
    graph = helper.make_graph([outer, node], "g", [], [Value("z", TensorProto.FLOAT, [])])
    model = helper.make_model(graph)
    packed = pack_lists(model.SerializeToString())
    assert onnx.load_model_from_string(packed) == model
    assert len(packed) <= model.ByteSize()
