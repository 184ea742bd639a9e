"""The guard before the TFLite engine: attacks M3 to M5 and M8 to M10, and whatever chance makes of a file."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tflite_models
from tests.real_models import MODELS, ROOT, real_model
from tests.tflite_models import Builder

from skerry_contract.errors import EngineError
from skerry_runtime.worker.engines import import_engine
from skerry_runtime.worker.engines.tflite_guard import check_tflite

pytestmark = pytest.mark.attack

REAL = sorted(MODELS.rglob("*.tflite"))
WAKE = "pymicro_wakeword/pymicro_wakeword/models/alexa.tflite"
SPARSE = "mediapipe/mediapipe/modules/pose_detection/pose_detection.tflite"
ATTENTION = "face_landmark_with_attention.tflite"


def refused(builder: Builder | bytes, says: str) -> None:
    data = builder if isinstance(builder, bytes) else builder.data()
    with pytest.raises(EngineError, match=says):
        check_tflite(data)
    with pytest.raises(EngineError, match=says):
        import_engine("tflite").load(data)


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_models_pass(path: Path) -> None:
    if path.name == ATTENTION:
        refused(path.read_bytes(), "custom operator 'Landmarks2TransformMatrix'")
    else:
        assert check_tflite(path.read_bytes()).outputs


def test_there_are_real_models() -> None:
    assert len(REAL) >= 19


@pytest.mark.parametrize("size", [0, 1, 7, 8, 15])
def test_m9_files_of_a_few_bytes(size: int) -> None:
    refused((b"\x1c\0\0\0TFL3" + b"\xff" * 8)[:size], f"no TFLite file: {size} bytes")


def test_m9_another_kind_of_file() -> None:
    refused(b"\x1c\0\0\0ORTM" + b"\0" * 64, "without the mark TFL3")


@pytest.mark.parametrize("offset", [0, 4, 0x7FFFFFFF, 0xFFFFFFFF])
def test_m10_the_root_outside_of_the_file(offset: int) -> None:
    refused(struct.pack("<I", offset) + tflite_models.dense().data()[4:], "damaged or hostile")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_m9_truncated_real_models(share: float) -> None:
    for path in REAL:
        data = path.read_bytes()
        with pytest.raises(EngineError):
            check_tflite(data[: int(len(data) * share)])


def test_m3_weights_behind_the_file() -> None:
    for offset, size in ((1 << 40, 8192), (64, 1 << 62), (2**64 - 8, 64), (2, 8)):
        b = tflite_models.dense()
        b.model.buffers[1].data, b.model.buffers[1].offset, b.model.buffers[1].size = None, offset, size
        refused(b, "bytes of weights at byte")


def test_weights_packed_behind_the_flatbuffer_are_read() -> None:
    """As the LiteRT quantizer writes larger models."""
    plain = tflite_models.dense()
    weights = bytes(plain.model.buffers[1].data)
    b = tflite_models.dense()
    b.model.buffers[1].data, b.model.buffers[1].offset, b.model.buffers[1].size = None, 4096, len(weights)
    data = b.data().ljust(4096, b"\0") + weights
    feed = {"x": np.ones((1, 64), np.float32)}
    engine = import_engine("tflite")
    np.testing.assert_array_equal(engine.load(data).run(feed)["y"], engine.load(plain.data()).run(feed)["y"])


def test_m3_external_buffers() -> None:
    b = tflite_models.dense()
    group, buffer = schema.ExternalBufferGroupT(), schema.ExternalBufferT()
    group.name, buffer.id = "/etc/passwd", 1
    b.model.externalBufferGroups, b.model.externalBuffers = [group], [buffer]
    refused(b, "other files")
    b = tflite_models.dense()
    b.model.subgraphs[0].tensors[1].externalBuffer = 1
    refused(b, "other files")


@pytest.mark.parametrize("name", ["FlexMatMul", "DISPATCH_OP", "DecodeImage", ""])
def test_m5_custom_operators_that_no_engine_brings(name: str) -> None:
    b = tflite_models.dense()
    b.model.operatorCodes[0] = schema.OperatorCodeT()
    b.model.operatorCodes[0].builtinCode = b.model.operatorCodes[0].deprecatedBuiltinCode = 32
    b.model.operatorCodes[0].customCode = name
    refused(b, f"custom operator '{name}'")


def test_m4_a_delegate_inside_the_file() -> None:
    b = tflite_models.dense()
    b.model.operatorCodes[0].builtinCode = schema.BuiltinOperator.DELEGATE
    refused(b, "only an engine itself may make")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ([-1, 64], "impossible shape"),
        ([1] * 9, "impossible shape"),
        ([1 << 20, 1 << 20], "bytes; at most"),
        ([2**31 - 1] * 8, "bytes; at most"),
        ([32, 65], "needs 8320 bytes and has 8192"),
        ([1 << 16, 1 << 16, 1 << 16, 1 << 16], "bytes; at most"),
    ],
)
def test_m10_impossible_shapes(shape: list[int], says: str) -> None:
    b = tflite_models.dense()
    b.model.subgraphs[0].tensors[1].shape = shape
    refused(b, says)


def test_m8_indices_that_lead_nowhere() -> None:
    for field, value, says in (
        ("inputs", [0, 99, -1], "tensor 99 of 3"),
        ("inputs", [0, -2, -1], "tensor -2 of 3"),
        ("outputs", [1], "not its own"),
        ("outputs", [0], "not its own"),
        ("outputs", [-1], "not its own"),
        ("opcodeIndex", 7, "operator code 7 of 1"),
    ):
        b = tflite_models.dense()
        setattr(b.model.subgraphs[0].operators[0], field, value)
        refused(b, says)
    for field in ("inputs", "outputs"):
        b = tflite_models.dense()
        setattr(b.model.subgraphs[0], field, [5])
        refused(b, "tensor 5 of 3")
    b = tflite_models.dense()
    b.model.subgraphs[0].tensors[1].buffer = 9
    refused(b, "buffer 9 of 2")
    b = tflite_models.dense()
    b.model.subgraphs[0].tensors[1].type = 77
    refused(b, "unknown type 77")


def test_m8_a_tensor_is_read_before_it_is_written() -> None:
    b = tflite_models.dense()
    graph = b.model.subgraphs[0]
    graph.operators = [*graph.operators, *graph.operators]
    refused(b, "not its own")
    b = tflite_models.dense()
    b.model.subgraphs[0].inputs = []
    refused(b, "nothing has written")
    b = tflite_models.dense()
    b.model.subgraphs[0].operators = []
    refused(b, "an output that nothing writes")


def test_m7_subgraphs_that_call_themselves() -> None:
    b = tflite_models.endless()
    b.model.subgraphs[0].operators[0].builtinOptions.bodySubgraphIndex = 0
    refused(b, "in a circle")
    b = tflite_models.endless()
    b.model.subgraphs[0].operators[0].builtinOptions.bodySubgraphIndex = 3
    refused(b, "not there")
    b = tflite_models.endless()
    b.model.subgraphs[0].operators[0].builtinOptions = None
    refused(b, "a call without options")


def test_m10_many_subgraphs() -> None:
    b = tflite_models.dense()
    b.model.subgraphs = b.model.subgraphs * 65
    refused(b, "more than 64 subgraphs")


def test_names_are_unique() -> None:
    b = tflite_models.dense()
    b.model.subgraphs[0].outputs = [2, 2]
    refused(b, "the same name")


def test_metadata_without_its_buffer() -> None:
    b = tflite_models.dense()
    entry = schema.MetadataT()
    entry.name, entry.buffer = "TFLITE_METADATA", 40
    b.model.metadata = [entry]
    refused(b, "metadata in a buffer that is not there")


def test_scales_that_do_not_fit_the_tensor() -> None:
    b = tflite_models.dense()
    tensor = b.model.subgraphs[0].tensors[1]
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = np.ones(32, np.float32)
    tensor.quantization.zeroPoint = np.zeros(32, np.int64)
    tensor.quantization.quantizedDimension = 1
    refused(b, "32 scales along axis 1")
    tensor.quantization.zeroPoint = np.zeros(7, np.int64)
    refused(b, "32 scales and 7 zero points")


def test_sparse_weights_that_point_outside() -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(real_model(SPARSE).read_bytes(), 0))
    b = Builder()
    b.model = model
    tensor = next(tensor for tensor in model.subgraphs[0].tensors if tensor.sparsity is not None)
    indices = next(d.arrayIndices for d in tensor.sparsity.dimMetadata if d.arrayIndices is not None)
    kept, indices.values = indices.values, np.full_like(indices.values, 255)
    refused(b, "an index outside of it")
    indices.values = kept[:-1]
    refused(b, "wrong segments")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=600), st.integers(min_value=8, max_value=600))
def test_any_bytes_are_read_or_refused(data: bytes, root: int) -> None:
    survives(root.to_bytes(4, "little") + b"TFL3" + data)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(["dense", "running_sum", "endless", "hungry"]), st.data())
def test_any_change_of_a_small_model_is_read_or_refused(name: str, draw: st.DataObject) -> None:
    data = bytearray(getattr(tflite_models, name)().data())
    for _ in range(draw.draw(st.integers(1, 4))):
        place = draw.draw(st.integers(8, len(data) - 1))
        data[place] = draw.draw(st.integers(0, 255))
    survives(bytes(data))


def test_flipped_bits_of_real_models_are_read_or_refused() -> None:
    rng = np.random.default_rng(7)
    for path in REAL:
        data = bytearray(path.read_bytes())
        structure = min(len(data), 60_000)
        for _ in range(6):
            mutant = bytearray(data)
            for place in rng.integers(0, structure, 8):
                # Half from the front, half from the end: there the offsets are.
                place = int(place) if rng.random() < 0.5 else len(data) - 1 - int(place)
                mutant[place] ^= 1 << int(rng.integers(0, 8))
            survives(bytes(mutant))


def survives(data: bytes) -> bool:
    """Whether the guard passes it; anything but an `EngineError` fails the test."""
    try:
        check_tflite(data)
    except EngineError:
        return False
    return True


_LOAD = """
import os, signal, sys
import numpy as np
from skerry_contract.errors import SkerryError
from skerry_runtime.worker.engines import DTYPES, import_engine
engine = import_engine("tflite")
source = open(sys.argv[1], "rb").read()
rng = np.random.default_rng(11)
for number in range(int(sys.argv[2])):
    mutant = bytearray(source)
    for place in rng.integers(8, len(source), 6):
        mutant[place] ^= 1 << int(rng.integers(0, 8))
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            session = engine.load(bytes(mutant))
            shapes = {p.name: ([max(1, s) for s in p.shape], DTYPES[p.datatype]) for p in session.inputs}
            session.run({name: np.zeros(*shape) for name, shape in shapes.items()})
        except (SkerryError, KeyError):
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("library", ["ai-edge-litert", "tflite-runtime"])
def test_m8_what_still_crashes_an_engine_does_so_in_the_disposable_process(library: str) -> None:
    """Mutants of a real model, each in a process of its own: it runs, refuses or dies, and we see which."""
    legacy = ROOT / ".envs/tflite-legacy/bin/python"
    python = sys.executable if library == "ai-edge-litert" else str(legacy)
    done = subprocess.run(
        [python, "-c", _LOAD, str(real_model(WAKE)), "120"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = Counter(int(line) for line in done.stdout.split())
    assert ended.total() == 120
    assert ended[0] > 0  # flipped weights: only the golden samples can tell
    assert ended[1] > 0  # refused
    died = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGBUS, -signal.SIGALRM}
    assert set(ended) <= {0, 1} | died
