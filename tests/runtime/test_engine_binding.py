"""Small inputs and outputs are bound once to a session: faster, and the answers are the same."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.model_zoo import digit_images, digits, onnx_bytes, wide

from skerry_contract.errors import EngineError
from skerry_contract.manifest import Execution
from skerry_runtime.worker.engines import DTYPES, Signature
from skerry_runtime.worker.engines.onnx import OnnxSession
from skerry_runtime.worker.engines.onnx_bound import MOST_BYTES, buffers_for

F32 = np.float32


def load(data: bytes) -> OnnxSession:
    return OnnxSession(data, Execution())


def identity(datatype: int, shape: list[int | str]) -> OnnxSession:
    node = helper.make_node("Identity", ["x"], ["y"])
    return load(onnx_bytes([node], [("x", datatype, shape)], [("y", datatype, shape)]))


def test_the_second_call_of_a_shape_binds_and_answers_stay_right() -> None:
    images, labels = digit_images()
    session, right = load(digits().data), 0
    wanted = load(digits().data).run({"image": images[:300]})["probabilities"]
    for row in range(300):
        answer = session.run({"image": images[row : row + 1]})["probabilities"]
        np.testing.assert_allclose(answer, wanted[row : row + 1], atol=1e-6)
        right += int(answer.argmax()) == labels[row]
    assert session._bound is not None
    assert right > 285


def test_answers_belong_to_the_caller() -> None:
    session = identity(TensorProto.FLOAT, [1, 4])
    answers = [session.run({"x": np.full((1, 4), number, F32)})["y"] for number in range(5)]
    assert session._bound is not None
    assert [float(answer[0, 0]) for answer in answers] == [0, 1, 2, 3, 4]


def test_shapes_may_change_at_any_time() -> None:
    session = identity(TensorProto.FLOAT, ["n", 2])
    chance = np.random.default_rng(2)
    for _ in range(200):
        x = chance.normal(size=(int(chance.integers(1, 4)), 2)).astype(F32)
        np.testing.assert_array_equal(session.run({"x": x})["y"], x)
    np.testing.assert_array_equal(session.run({"x": np.ones((2, 4), F32).T[:, :2]})["y"], np.ones((4, 2)))


@pytest.mark.parametrize("name", ["BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64"])
def test_every_type_comes_through(name: str) -> None:
    dtype = DTYPES[name]
    session = identity(helper.np_dtype_to_tensor_dtype(dtype), [3])
    for value in (0, 1, 1, 0):
        x = np.array([value, 1, 0], dtype)
        answer = session.run({"x": x})["y"]
        assert answer.dtype == dtype
        np.testing.assert_array_equal(answer, x)
    assert session._bound is not None


def test_several_threads_get_their_own_answers() -> None:
    session = identity(TensorProto.FLOAT, [1, 8])
    wrong: list[int] = []

    def ask(number: int) -> None:
        x = np.full((1, 8), number, F32)
        for _ in range(300):
            if not np.array_equal(session.run({"x": x})["y"], x):
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_large_inputs_are_not_copied() -> None:
    session = load(wide().data)
    x = np.ones((4, 1000), F32)
    for _ in range(3):
        session.run({"x": x})
    assert x.nbytes < MOST_BYTES < x.nbytes + 4 * 2000 * 4
    assert session._bound is None


def test_a_size_that_depends_on_the_numbers_is_never_bound() -> None:
    node = helper.make_node("NonZero", ["x"], ["y"])
    session = load(
        onnx_bytes([node], [("x", TensorProto.FLOAT, [4])], [("y", TensorProto.INT64, [1, "found"])])
    )
    for x in ([1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]):
        answer = session.run({"x": np.array(x, F32)})["y"]
        assert answer.tolist() == [[place for place, value in enumerate(x) if value]]
    assert session._bound is None


def test_a_model_that_lies_about_its_output_gets_no_wrong_answer() -> None:
    """It says [n] for what is [2 n]: ONNX Runtime believes the kernel, and so do we."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=0)
    session = load(onnx_bytes([node], [("x", TensorProto.FLOAT, ["n"])], [("y", TensorProto.FLOAT, ["n"])]))
    for number in range(4):
        answer = session.run({"x": np.array([number, 9], F32)})["y"]
        assert answer.tolist() == [number, 9, number, 9]
    assert session._bound is None


def test_wrong_inputs_fail_as_without_binding() -> None:
    session = identity(TensorProto.FLOAT, [1, 4])
    good = {"x": np.ones((1, 4), F32)}
    session.run(good)
    session.run(good)
    for wrong in ({}, {"z": good["x"]}, {"x": np.ones((1, 5), F32)}, {"x": np.ones((1, 4))}):
        with pytest.raises(EngineError):
            session.run(wrong)
    assert session.run(good)["y"].tolist() == [[1, 1, 1, 1]]


def test_buffers() -> None:
    x, y = Signature("x", "FP32", (-1, 2)), Signature("y", "INT64", (-1,))
    feed = {"x": np.zeros((3, 2), F32)}
    found = buffers_for(feed, [(x, ("n", 2))], [(y, ("n",))])
    assert found is not None
    assert found[1]["y"].shape == (3,)
    assert buffers_for(feed, [(x, ("n", 2))], [(y, ("m",))]) is None
    assert buffers_for(feed, [(x, ("n", 2))], [(y, ("",))]) is None
    assert buffers_for(feed, [(x, ("n", 3))], [(y, ("n",))]) is None
    text = Signature("t", "BYTES", (1,))
    assert buffers_for(feed, [(x, ("n", 2))], [(text, (1,))]) is None


def test_a_scalar_weight_model_binds() -> None:
    weight = numpy_helper.from_array(np.array(2, F32), "two")
    node = helper.make_node("Mul", ["x", "two"], ["y"])
    session = load(
        onnx_bytes([node], [("x", TensorProto.FLOAT, [])], [("y", TensorProto.FLOAT, [])], [weight])
    )
    for number in range(3):
        assert float(session.run({"x": np.array(number, F32)})["y"]) == 2 * number
