"""First load of hostile model files: attack IDs M1 to M7 and M9 to M11, at packaging."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.onnx_models import Value, gemm_model
from tests.waiting import wait_until

from skerry_contract.errors import ModelError
from skerry_packager.inspect import inspect_model
from skerry_packager.modelfile import load_approved
from skerry_packager.quarantine import QuarantineLimits

pytestmark = pytest.mark.attack

QUICK = QuarantineLimits(wall_seconds=60, cpu_seconds=4, memory_bytes=1 << 30)


def external(folder: Path, entries: Mapping[str, str], file: str = "w.bin") -> Path:
    """A model whose first weight lies outside, with the external-data entries of the attacker's choice."""
    model = gemm_model()
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w0")
    if file:
        (folder / file).write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_the_harness_itself_loads_external_data(tmp_path: Path) -> None:
    assert inspect_model(external(tmp_path, {"location": "w.bin"})).probe == "ran"


@pytest.mark.parametrize(
    "location", ["../w.bin", "/etc/passwd", "/proc/self/environ", "a/../../w.bin", ".", ""]
)
def test_m1_locations_outside_the_model_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "w.bin").write_bytes(b"\0" * 64 * 64 * 4)
    with pytest.raises(ModelError, match="leaves the model's directory"):
        inspect_model(external(tmp_path / "inner", {"location": location}))


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin"])
def test_m1_a_symbolic_link_is_refused(tmp_path: Path, location: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "w.bin").write_bytes(b"\0" * 64 * 64 * 4)
    inner = tmp_path / "inner"
    inner.mkdir()
    first = location.split("/")[0]
    (inner / first).symlink_to(outside if first == "sub" else outside / first)
    with pytest.raises(ModelError, match="link"):
        inspect_model(external(inner, {"location": location}, file=""))


def test_m2_a_hard_link_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 64 * 64 * 4)
    inner = tmp_path / "inner"
    inner.mkdir()
    os.link(secret, inner / "w.bin")
    with pytest.raises(ModelError, match="hard link"):
        inspect_model(external(inner, {"location": "w.bin"}, file=""))


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "-4096"},
        {"offset": "18446744073709551615"},
        {"offset": "16384"},
        {"length": "-1"},
        {"length": "9999999999"},
        {"length": "8"},
        {"offset": "0x10"},
        {"offset": "1e3"},
        {"allocator": "malloc"},
    ],
)
def test_m3_bad_offsets_lengths_and_unknown_keys_are_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    with pytest.raises(ModelError, match="external data of tensor 'w0' is refused"):
        inspect_model(external(tmp_path, {"location": "w.bin", **entries}))


def test_m3_tensors_that_overlap_in_part_are_refused(tmp_path: Path) -> None:
    model = gemm_model()
    (tmp_path / "w.bin").write_bytes(b"\0" * 65536)
    for tensor, offset in zip(model.graph.initializer, (0, 64, 32768, 60000), strict=True):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        size = 4 * int(np.prod(tensor.dims))
        for key, value in {"location": "w.bin", "offset": str(offset), "length": str(size)}.items():
            tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="overlap"):
        inspect_model(tmp_path / "m.onnx")


def test_m4_an_address_in_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="address in memory"):
        inspect_model(external(tmp_path, {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"}))


def test_m4_a_compiled_blob_is_refused(tmp_path: Path) -> None:
    node = helper.make_node(
        "EPContext", ["x"], ["p"], domain="com.microsoft", ep_cache_context="/etc/passwd", embed_mode=0
    )
    with pytest.raises(ModelError, match="EPContext"):
        inspect_model(write(tmp_path, [node]))


def test_m5_a_custom_operator_is_named(tmp_path: Path) -> None:
    node = helper.make_node("DecodeImage", ["x"], ["p"], domain="com.microsoft.extensions")
    with pytest.raises(ModelError, match=r"`com\.microsoft\.extensions:DecodeImage` is not registered"):
        inspect_model(write(tmp_path, [node]))


def write(folder: Path, nodes: list[onnx.NodeProto], name: str = "m.onnx") -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [Value("x", TensorProto.FLOAT, ["N", 4])],
        [Value("p", TensorProto.FLOAT, ["N", 4])],
    )
    opsets = [helper.make_opsetid("", 13), *(helper.make_opsetid(n.domain, 1) for n in nodes if n.domain)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def test_m6_a_tiny_model_that_asks_for_256_gib_is_refused(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1 << 18, 1 << 18], np.int64), "")
    nodes = [
        helper.make_node("Constant", [], ["shape"], value=shape),
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
        helper.make_node("Add", ["x", "top"], ["p"]),
    ]
    path = write(tmp_path, nodes)
    assert path.stat().st_size < 300
    with pytest.raises(ModelError, match="more memory"):
        inspect_model(path, QUICK)


def endless_model(folder: Path) -> Path:
    """A loop of 10^15 rounds."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["v", "v"], ["w"]),
        ],
        "body",
        [
            Value("i", TensorProto.INT64, []),
            Value("go", TensorProto.BOOL, []),
            Value("v", TensorProto.FLOAT, ["N", 4]),
        ],
        [Value("go_on", TensorProto.BOOL, []), Value("w", TensorProto.FLOAT, ["N", 4])],
    )
    count = numpy_helper.from_array(np.array(10**15, np.int64), "")
    nodes = [
        helper.make_node("Constant", [], ["count"], value=count),
        helper.make_node("Loop", ["count", "", "x"], ["p"], body=body),
    ]
    return write(folder, nodes)


def test_m7_an_endless_loop_ends_at_the_limit(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ModelError, match="did not load and run once"):
        inspect_model(endless_model(tmp_path), QuarantineLimits(wall_seconds=30, cpu_seconds=2))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("size", [8, 9, 64])
def test_m9_a_truncated_tflite_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes((b"\x1c\0\0\0TFL3" + b"\xff" * 64)[:size])
    with pytest.raises(ModelError, match="TFLite"):
        inspect_model(path)


@pytest.mark.parametrize("dims", [[-1, 4], [1 << 40, 1 << 40], [1] * 40])
def test_m11_impossible_shapes_are_refused(tmp_path: Path, dims: list[int]) -> None:
    model = gemm_model()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="impossible shape"):
        inspect_model(path)


def test_m11_a_tensor_with_fewer_bytes_than_its_shape_is_refused(tmp_path: Path) -> None:
    model = gemm_model()
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:100]
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="needs 16384 bytes and has 100"):
        inspect_model(path)


def test_caps_on_nodes_and_depth(tmp_path: Path) -> None:
    nodes = [helper.make_node("Neg", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(40)]
    nodes.append(helper.make_node("Neg", ["v40"], ["p"]))
    with pytest.raises(ModelError, match="41 nodes"):
        inspect_model(write(tmp_path, nodes), QuarantineLimits(nodes=40))
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y0"])], "b", [], [Value("y0", TensorProto.FLOAT, None)]
    )
    for level in range(1, 6):
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], f"b{level}", [], [Value(f"y{level}", TensorProto.FLOAT, None)])
    top = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["c"], ["p"], then_branch=inner, else_branch=inner),
    ]
    with pytest.raises(ModelError, match="deeper than 3"):
        inspect_model(write(tmp_path, top), QuarantineLimits(depth=3))


def test_the_child_inherits_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the child is an allow-list; the probe's process is gone afterwards."""
    monkeypatch.setenv("SKERRY_TEST_SECRET", "hunter2")
    seen: list[dict[str, str]] = []
    real = subprocess.Popen

    def spy(*args: object, **kwargs: object) -> object:
        seen.append(dict(kwargs["env"]))  # type: ignore[call-overload]
        return real(*args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr("skerry_packager.quarantine.subprocess.Popen", spy)
    path = tmp_path / "m.onnx"
    path.write_bytes(gemm_model().SerializeToString())
    inspect_model(path)
    assert seen
    assert "SKERRY_TEST_SECRET" not in seen[0]


def test_m7_a_packager_that_is_killed_leaves_no_endless_loop_behind(tmp_path: Path) -> None:
    path = endless_model(tmp_path)
    program = "import sys; from skerry_packager.inspect import inspect_model; inspect_model(sys.argv[1])"
    packager = subprocess.Popen([sys.executable, "-c", program, str(path)])
    children = Path(f"/proc/{packager.pid}/task/{packager.pid}/children")
    wait_until(lambda: children.read_text().split() != [], "the child starts")
    child = Path("/proc") / children.read_text().split()[0]
    wait_until(lambda: "onnxruntime" in (child / "maps").read_text(), "the child loads the engine")
    packager.kill()
    packager.wait()
    wait_until(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text(), "the child ends")


def test_a_file_that_changes_after_its_inspection_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(gemm_model().SerializeToString())
    approved = inspect_model(path)
    path.write_bytes(gemm_model(opset=14).SerializeToString())
    with pytest.raises(ModelError, match="changed while"):
        load_approved(path, approved)


def test_m10_mutated_models_never_take_the_caller_down(tmp_path: Path) -> None:
    """Byte flips either give a model that runs or one clear error."""
    data = bytearray(gemm_model().SerializeToString())
    rng = np.random.default_rng(5)
    refused = 0
    for number in range(12):
        mutant = bytearray(data)
        for place in rng.integers(0, 400, 4):
            mutant[place] ^= 1 << int(rng.integers(0, 8))
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(mutant)
        try:
            inspect_model(path, QUICK)
        except ModelError:
            refused += 1
    assert refused
