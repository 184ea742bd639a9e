"""Writing a TFLite file: the same model, the same bytes, in a form that old and new engines read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tests import tflite_models
from tests.real_models import MODELS
from tests.runtime.tflite_runs import feed

from skerry_packager.tflite.floats import unpack_fp16
from skerry_packager.tflite.model import array_of, content, parse, serialize
from skerry_runtime.worker.engines import import_engine

REAL = [path for path in sorted(MODELS.rglob("*.tflite")) if "attention" not in path.name]


def answers(data: bytes) -> dict[str, np.ndarray]:
    session = import_engine("tflite").load(data)
    return session.run(feed(session, 0))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_are_the_same_after_reading_and_writing(path: Path) -> None:
    source = path.read_bytes()
    written = serialize(parse(source))
    assert written == serialize(parse(source)) == serialize(parse(written))
    engine = import_engine("tflite")
    before, after = engine.load(source), engine.load(written)
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    expected, found = answers(source), answers(written)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_buffers_with_the_same_bytes_become_one_and_unused_ones_none() -> None:
    b = tflite_models.dense()
    twin = bytes(b.model.buffers[1].data)
    graph = b.model.subgraphs[0]
    for name in ("twin", "nobody"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [32, 64], 0, b.buffer(twin)
        graph.tensors.append(tensor)
    b.buffer(b"forgotten" * 100)
    read = schema.OperatorT()
    read.opcodeIndex, read.inputs, read.outputs = b.code("NEG", None), [3], [5]
    negative = schema.TensorT()
    negative.name, negative.shape, negative.type, negative.buffer = "negative", [32, 64], 0, 0
    graph.tensors.append(negative)
    graph.operators.append(read)
    graph.outputs = [2, 5]
    before = b.data()
    small = parse(serialize(parse(before)))
    assert len(small.buffers) == 2
    assert [tensor.name for tensor in small.subgraphs[0].tensors] == [b"x", b"w", b"y", b"twin", b"negative"]
    found, expected = answers(serialize(small)), answers(before)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_weights_start_at_multiples_of_16_bytes() -> None:
    data = serialize(parse(REAL[0].read_bytes()))
    model = schema.Model.GetRootAs(data, 0)
    seen = 0
    for number in range(model.BuffersLength()):
        buffer = model.Buffers(number)
        if buffer.DataLength():
            place = buffer._tab.Vector(buffer._tab.Offset(4))
            assert place % 16 == 0
            seen += 1
    assert seen > 10


def test_weights_behind_the_flatbuffer_come_inside() -> None:
    b = tflite_models.dense()
    weights = bytes(b.model.buffers[1].data)
    b.model.buffers[1].data, b.model.buffers[1].offset, b.model.buffers[1].size = None, 4096, len(weights)
    packed = b.data().ljust(4096, b"\0") + weights
    written = serialize(parse(packed))
    model = parse(written)
    assert content(model, model.subgraphs[0].tensors[1]) == weights
    assert all(schema.Model.GetRootAs(written, 0).Buffers(k).Offset() == 0 for k in range(2))


def test_operator_codes_are_written_in_the_old_and_in_the_new_place() -> None:
    """The LiteRT quantizer reads only the new one, and takes an old file's convolutions for additions."""
    path = MODELS / "mediapipe/mediapipe/modules/iris_landmark/iris_landmark.tflite"
    old = schema.Model.GetRootAs(path.read_bytes(), 0)
    assert {old.OperatorCodes(k).BuiltinCode() for k in range(old.OperatorCodesLength())} == {0}
    new = parse(serialize(parse(path.read_bytes())))
    assert {code.builtinCode for code in new.operatorCodes} == {
        old.OperatorCodes(k).DeprecatedBuiltinCode() for k in range(old.OperatorCodesLength())
    }


def test_fp16_weights_are_unpacked_exactly() -> None:
    path = MODELS / "mediapipe/mediapipe/modules/face_landmark/face_landmark.tflite"
    model = parse(path.read_bytes())
    assert unpack_fp16(model) == 113
    data = serialize(model)
    unpacked = parse(data)
    arrays = [array_of(unpacked, tensor) for tensor in unpacked.subgraphs[0].tensors]
    assert not any(array is not None and array.dtype == np.float16 for array in arrays)
    expected, found = answers(path.read_bytes()), answers(data)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
