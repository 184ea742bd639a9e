"""First load of TFLite files: what they are, and the attacks M3 to M10 at packaging."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests import tflite_models
from tests.real_models import real_model

from skerry_contract.errors import ModelError
from skerry_packager.inspect import TensorInfo, inspect_model
from skerry_packager.quarantine import QuarantineLimits
from skerry_packager.tflite.model import read_approved

WAKE = "pymicro_wakeword/pymicro_wakeword/models/okay_nabu.tflite"
PITCH = "basic_pitch/basic_pitch/saved_models/icassp_2022/nmp.tflite"
FACE = "mediapipe/mediapipe/modules/face_detection/face_detection_short_range.tflite"
ATTENTION = "mediapipe/mediapipe/modules/face_landmark/face_landmark_with_attention.tflite"
QUICK = QuarantineLimits(wall_seconds=60, cpu_seconds=4, memory_bytes=2 << 30)


def save(folder: Path, model: tflite_models.Builder | bytes) -> Path:
    path = folder / "m.tflite"
    path.write_bytes(model if isinstance(model, bytes) else model.data())
    return path


def test_a_float_model_is_described_completely() -> None:
    path = real_model(PITCH)
    found = inspect_model(path)
    assert (found.format, found.producer, found.ir, found.opset) == ("tflite", "MLIR Converted.", 0, 0)
    assert found.inputs == (TensorInfo(name="input_2", dtype="float32", shape=(None, 43844, 1)),)
    assert [output.name for output in found.outputs] == ["onset", "note", "contour"]
    assert found.operators["CONV_2D"] == 32
    assert (found.nodes, found.subgraphs, found.quantized_operators) == (222, 0, 0)
    assert 142_000 < found.weight_bytes < 145_000
    assert found.metadata["min_runtime_version"] == "2.2.0"
    assert found.metadata["CONVERSION_METADATA"] == "84 bytes"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size_bytes == path.stat().st_size
    assert (found.stateful, found.probe) == (False, "ran")


def test_a_quantized_model_with_variables_is_recognized() -> None:
    found = inspect_model(real_model(WAKE))
    assert found.stateful
    assert found.quantized_operators > 40
    assert found.inputs[0].spec().datatype == "INT8"
    assert found.subgraphs == 1
    assert found.probe == "ran"


def test_weights_stored_as_fp16_are_not_called_quantized() -> None:
    found = inspect_model(real_model(FACE))
    assert found.operators["DEQUANTIZE"] == 74
    assert found.quantized_operators == 0


def test_m5_a_custom_operator_is_named() -> None:
    with pytest.raises(ModelError, match="custom operator 'Landmarks2TransformMatrix'") as caught:
        inspect_model(real_model(ATTENTION))
    assert "standard operators" in caught.value.hint


@pytest.mark.attack
def test_m6_a_tiny_model_that_asks_for_256_gib(tmp_path: Path) -> None:
    path = save(tmp_path, tflite_models.hungry())
    assert path.stat().st_size < 1000
    with pytest.raises(ModelError, match="more memory"):
        inspect_model(path, QUICK)


@pytest.mark.attack
def test_m7_an_endless_loop_ends_at_the_limit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="did not load and run once"):
        inspect_model(
            save(tmp_path, tflite_models.endless()), QuarantineLimits(wall_seconds=30, cpu_seconds=2)
        )


@pytest.mark.attack
@pytest.mark.parametrize("share", [0.0005, 0.01, 0.5, 0.999])
def test_m9_a_truncated_file(tmp_path: Path, share: float) -> None:
    data = real_model(WAKE).read_bytes()
    with pytest.raises(ModelError, match="TFLite file"):
        inspect_model(save(tmp_path, data[: int(len(data) * share)]))


@pytest.mark.attack
def test_m10_impossible_shapes(tmp_path: Path) -> None:
    b = tflite_models.dense()
    b.model.subgraphs[0].tensors[0].shape = [1] * 40
    with pytest.raises(ModelError, match="impossible shape"):
        inspect_model(save(tmp_path, b))


@pytest.mark.attack
def test_m8_mutants_never_take_the_caller_down(tmp_path: Path) -> None:
    data = real_model(WAKE).read_bytes()
    rng = np.random.default_rng(9)
    refused = 0
    for _ in range(8):
        mutant = bytearray(data)
        for place in rng.integers(8, len(data), 6):
            mutant[place] ^= 1 << int(rng.integers(0, 8))
        try:
            inspect_model(save(tmp_path, bytes(mutant)), QUICK)
        except ModelError:
            refused += 1
    assert refused


def test_a_cap_on_nodes() -> None:
    with pytest.raises(ModelError, match="222 nodes; at most 100"):
        inspect_model(real_model(PITCH), QuarantineLimits(nodes=100))


def test_text_with_the_ending_of_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no TFLite file"):
        inspect_model(save(tmp_path, b"<html>404 not found</html>" * 9))


def test_a_file_that_changes_after_its_inspection_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, tflite_models.dense())
    approved = inspect_model(path)
    assert read_approved(path, approved) == path.read_bytes()
    save(tmp_path, tflite_models.dense(outputs=16))
    with pytest.raises(ModelError, match="changed while"):
        read_approved(path, approved)


def test_without_the_engine_the_error_says_what_to_install(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['ai_edge_litert'] = None\n"
        "from skerry_packager.tflite.model import parse\n"
        "try: parse(open(sys.argv[1], 'rb').read())\n"
        "except Exception as error: print(type(error).__name__, error.hint)\n"
    )
    path = save(tmp_path, tflite_models.dense())
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "ModelError pip install 'skerry[tflite]'"
