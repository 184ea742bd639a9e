"""Hostile files given to ``skerry pack``: refused with cause, place and fix, and nothing is left behind.

The first load by itself is in test_quarantine.py and test_tflite_quarantine.py; here the command is tried.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests import tflite_models
from tests.packager.cli_runner import run
from tests.packager.onnx_models import Value, gemm_model
from tests.packager.packing_inputs import Inputs, write_inputs

pytestmark = pytest.mark.attack

Maker = Callable[[Path], None]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    return write_inputs(tmp_path_factory.mktemp("pack"))


def refused(inputs: Inputs, folder: Path, model: Path, says: str, *more: object) -> None:
    """The command ends with code 1, says so with a fix, and leaves nothing but the log and what was there."""
    before = {*folder.rglob("*"), folder / "runs.db"}
    arguments = inputs.arguments(
        "--profile",
        "x86-gateway",
        "--out",
        folder / "x.skerry",
        "--run-log",
        folder / "runs.db",
        "--json",
        *more,
    )
    arguments[1] = str(model)
    outcome = run(*arguments)
    error = outcome.json["error"]
    assert outcome.code == 1, outcome.text
    assert says in error["message"], error
    assert error["hint"]
    assert set(folder.rglob("*")) <= before


def external(folder: Path, location: str, **entries: str) -> None:
    model = gemm_model()
    weight = model.graph.initializer[0]
    if not (folder / "w.bin").exists():
        (folder / "w.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())


def linked(folder: Path) -> None:
    (folder / "secret").write_bytes(b"\0" * 64 * 64 * 4)
    os.link(folder / "secret", folder / "w.bin")
    external(folder, "w.bin")


def one_node(folder: Path, kind: str, domain: str) -> None:
    node = helper.make_node(kind, ["x"], ["p"], domain=domain)
    graph = helper.make_graph(
        [node], "g", [Value("x", TensorProto.FLOAT, ["N", 4])], [Value("p", TensorProto.FLOAT, ["N", 4])]
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())


def hungry(folder: Path) -> None:
    nodes = [
        helper.make_node("Constant", [], ["shape"], value_ints=[1 << 18, 1 << 18]),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["p"]),
    ]
    values = [Value(name, TensorProto.FLOAT, ["N", 4]) for name in "xp"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (folder / "m.onnx").write_bytes(model.SerializeToString())


def changed(change: Callable[[onnx.TensorProto], None]) -> Maker:
    def make(folder: Path) -> None:
        model = gemm_model()
        change(model.graph.initializer[0])
        (folder / "m.onnx").write_bytes(model.SerializeToString())

    return make


def cut(weight: onnx.TensorProto) -> None:
    weight.raw_data = weight.raw_data[:100]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda f: external(f, "../w.bin"), "leaves the model's directory", id="M1"),
        pytest.param(linked, "'w.bin' is a hard link (2 names)", id="M2"),
        pytest.param(lambda f: external(f, "w.bin", offset="-4096"), "offset is '-4096'", id="M3"),
        pytest.param(lambda f: external(f, "*/_ORT_MEM_ADDR_/*"), "address in memory", id="M4-address"),
        pytest.param(lambda f: one_node(f, "EPContext", "com.microsoft"), "EPContext", id="M4-context"),
        pytest.param(
            lambda f: one_node(f, "DecodeImage", "com.microsoft.extensions"),
            "`com.microsoft.extensions:DecodeImage` is not registered", id="M5",
        ),
        pytest.param(hungry, "needs more memory", id="M6"),
        pytest.param(changed(lambda w: w.dims.extend([1] * 40)), "impossible shape", id="M10"),
        pytest.param(changed(cut), "needs 16384 bytes and has 100", id="M11"),
    ],
)  # fmt: skip
def test_hostile_onnx_files(inputs: Inputs, tmp_path: Path, make: Maker, says: str) -> None:
    make(tmp_path)
    refused(inputs, tmp_path, tmp_path / "m.onnx", says)


def dangling(builder: tflite_models.Builder) -> None:
    builder.model.subgraphs[0].operators[0].inputs = [0, 99, -1]


def behind_the_file(builder: tflite_models.Builder) -> None:
    buffer = builder.model.buffers[1]
    buffer.data, buffer.offset, buffer.size = None, 1 << 40, 8192


def custom(builder: tflite_models.Builder) -> None:
    code = builder.model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = "DecodeImage"


def many_dimensions(builder: tflite_models.Builder) -> None:
    builder.model.subgraphs[0].tensors[1].shape = [1] * 40


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(behind_the_file, "bytes of weights at byte", id="M3"),
        pytest.param(custom, "custom operator 'DecodeImage'", id="M5"),
        pytest.param(dangling, "tensor 99 of 3", id="M8"),
        pytest.param(many_dimensions, "impossible shape", id="M10"),
    ],
)
def test_hostile_tflite_files(
    inputs: Inputs, tmp_path: Path, change: Callable[[tflite_models.Builder], None], says: str
) -> None:
    builder = tflite_models.dense()
    change(builder)
    (tmp_path / "m.tflite").write_bytes(builder.data())
    refused(inputs, tmp_path, tmp_path / "m.tflite", says)


def test_m6_a_tflite_file_that_asks_for_256_gib(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(tflite_models.hungry().data())
    refused(inputs, tmp_path, tmp_path / "m.tflite", "more memory")


def test_m9_a_tflite_file_of_a_few_bytes(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    refused(inputs, tmp_path, tmp_path / "m.tflite", "TFLite file")


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.4e38], ids=["nan", "inf", "3.4e38"])
def test_m13_data_without_usable_numbers(inputs: Inputs, tmp_path: Path, value: float) -> None:
    """Each row differs from the others, so that nothing else can be wrong with them."""
    with np.load(inputs.evaluation) as arrays:
        images, labels = arrays["image"], arrays["y"]
    images[:, :, ::2] = value
    np.savez(tmp_path / "bad.npz", image=images, y=labels)
    refused(inputs, tmp_path, inputs.model, "NaN or infinite values", "--evaluation", tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((40, 1, 8, 8), np.complex64), "takes float32, and the array is complex64"),
        (np.full((40, 1, 8, 8), "7"), "takes float32, and the array is <U1"),
        (np.zeros((0, 1, 8, 8), np.float32), "has no rows"),
        (np.zeros((40, 1, 8, 9), np.float32), "the array has [40, 1, 8, 9]"),
        (np.zeros((40, 8), np.float32), "the array has [40, 8]"),
    ],
    ids=["type", "text", "empty", "shape", "rank"],
)
def test_m14_data_of_another_type_or_shape(
    inputs: Inputs, tmp_path: Path, array: np.ndarray, says: str
) -> None:
    np.savez(tmp_path / "bad.npz", image=array)
    refused(inputs, tmp_path, inputs.model, says, "--evaluation", tmp_path / "bad.npz")
