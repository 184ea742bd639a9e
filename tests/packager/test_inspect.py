"""`skerry_packager.inspect`: what a model file is, as plain data."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Value, gemm_model, if_model, zipmap_model

from skerry_contract.errors import ModelError
from skerry_packager.inspect import TensorInfo, inspect_model


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_a_model_is_described_completely(tmp_path: Path) -> None:
    model = gemm_model(opset=13)
    model.producer_name, model.producer_version = "trainer", "1.2"
    path = save(model, tmp_path)
    found = inspect_model(path)
    assert found.format == "onnx"
    assert (found.ir, found.opset, found.producer) == (8, 13, "trainer 1.2")
    assert found.inputs == (TensorInfo(name="x", dtype="float32", shape=("N", 64)),)
    assert found.outputs == (TensorInfo(name="p", dtype="float32", shape=("N", 10)),)
    assert found.operators == {"Gemm": 2, "Relu": 1, "Softmax": 1}
    assert found.parameters == 64 * 64 + 64 + 64 * 10 + 10
    assert found.weight_bytes == 4 * found.parameters
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.size_bytes == path.stat().st_size
    assert (found.nodes, found.subgraphs, found.quantized_operators) == (4, 0, 0)
    assert found.external_files == ()
    assert found.probe == "ran"


def test_nodes_and_weights_inside_subgraphs_count(tmp_path: Path) -> None:
    found = inspect_model(save(if_model(), tmp_path))
    assert found.subgraphs == 2
    assert found.operators["MatMul"] == 4
    assert found.parameters == 2 * (64 * 64 + 64 + 64 * 10 + 10) + 1


def test_free_dimensions_keep_their_names_and_specs_say_minus_one() -> None:
    info = TensorInfo(name="x", dtype="int32", shape=("N", None, 3))
    assert info.spec().shape == (-1, -1, 3)
    assert info.spec().datatype == "INT32"
    with pytest.raises(ModelError, match="sequence"):
        TensorInfo(name="x", dtype="sequence", shape=(), ranked=False).spec()


def test_external_data_beside_the_model_is_read_and_hashed(tmp_path: Path) -> None:
    onnx.save_model(
        gemm_model(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    found = inspect_model(tmp_path / "m.onnx")
    assert [file.location for file in found.external_files] == ["w.bin"]
    assert found.external_files[0].sha256 == hashlib.sha256((tmp_path / "w.bin").read_bytes()).hexdigest()
    assert found.size_bytes == sum((tmp_path / name).stat().st_size for name in ("m.onnx", "w.bin"))
    assert found.probe == "ran"


def test_a_model_that_cannot_run_on_zeros_is_still_inspected(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["pads"], value_ints=[0, 2, 0, 2]),
        helper.make_node("Pad", ["x", "pads"], ["p"], mode="reflect"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [Value("x", TensorProto.FLOAT, ["N", "T"])],
        [Value("p", TensorProto.FLOAT, ["N", None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    assert "does not run on zeros" in inspect_model(save(model, tmp_path)).probe


def test_a_classifier_as_skl2onnx_exports_it_runs(tmp_path: Path) -> None:
    found = inspect_model(save(zipmap_model(), tmp_path))
    assert found.outputs[0].dtype == "sequence"
    assert found.probe == "ran, without its ZipMap: packing makes a plain tensor of the probabilities"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no ONNX model"),
        (b"hello, this is a text file\n" * 20, "no ONNX model"),
        (b"PK\x03\x04" + b"\0" * 64, "PyTorch or Keras"),
        (b"\x80\x04\x95" + b"\0" * 64, "pickle"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 64, "TFLite"),
        (b"\0\0\0\0TFL3", "TFLite"),
    ],
)
def test_what_is_no_onnx_model_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "thing.bin"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=says) as caught:
        inspect_model(path)
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        inspect_model(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="no regular file"):
        inspect_model(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_model_is_refused(tmp_path: Path, keep: float) -> None:
    data = gemm_model().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ModelError):
        inspect_model(path)
