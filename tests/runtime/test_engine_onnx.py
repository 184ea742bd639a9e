"""The ONNX engine: what it runs, what it refuses, what it must never do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.model_zoo import counting_loop, digit_images, digits, hungry, onnx_bytes

from skerry_contract.errors import EngineError, MemoryBudgetError
from skerry_runtime.worker.engines import Signature, import_available, import_engine
from skerry_runtime.worker.engines.onnx_guard import check_self_contained

FLOAT = TensorProto.FLOAT


def add_model(
    weight: onnx.TensorProto, *, node: onnx.NodeProto | None = None, domains: tuple[str, ...] = ("",)
) -> bytes:
    nodes = [node or helper.make_node("Add", ["x", "w"], ["y"])]
    return onnx_bytes(nodes, [("x", FLOAT, [2])], [("y", FLOAT, [2])], [weight], domains=domains)


def external(location: str, **more: str) -> onnx.TensorProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


WEIGHT = numpy_helper.from_array(np.ones(2, np.float32), "w")


def test_runs_a_real_model() -> None:
    images, labels = digit_images()
    session = import_engine("onnx").load(digits().data)
    assert session.inputs == (Signature("image", "FP32", (-1, 1, 8, 8)),)
    assert session.outputs == (Signature("probabilities", "FP32", (-1, 10)),)
    answers = session.run({"image": images[:200]})["probabilities"]
    assert (answers.argmax(axis=1) == labels[:200]).mean() > 0.95


def test_an_unknown_engine_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="not known") as caught:
        import_engine("torch")
    assert "onnx" in caught.value.hint
    assert [engine.name for engine in import_available()] == ["onnx", "tflite"]


def test_a_missing_library_names_the_extra_to_install() -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "from skerry_runtime.worker.engines import import_engine, import_available\n"
        "assert [engine.name for engine in import_available()] == ['tflite']\n"
        "try: import_engine('onnx')\n"
        "except Exception as error: print(type(error).__name__, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "EngineError pip install 'skerry[onnx]'"


def test_the_library_phones_nobody_and_starts_no_thread(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "os.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "from skerry_runtime.worker.engines import import_engine\n"
        "import_engine('onnx')\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.attack
@pytest.mark.parametrize(
    "tensor",
    [
        external("../../etc/passwd"),
        external("/proc/self/environ"),
        external("link"),
        external("weights.bin", offset="-8", length="9999999999999999999"),
        external("*/_ORT_MEM_ADDR_/*", offset="4096", length="8"),
    ],
    ids=["M1-dots", "M1-proc", "M2-link", "M3-range", "M4-memory"],
)
def test_data_outside_the_model_s_bytes_is_refused(
    tensor: onnx.TensorProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights.bin").write_bytes(np.ones(2, np.float32).tobytes())
    (tmp_path / "link").hardlink_to(tmp_path / "weights.bin")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EngineError, match="other files"):
        import_engine("onnx").load(add_model(tensor))


@pytest.mark.attack
def test_external_data_deep_in_a_subgraph_is_refused() -> None:
    constant = helper.make_node("Constant", [], ["deep"], value=external("x"))
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("deep", FLOAT, [2])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    data = onnx_bytes([node], [("c", TensorProto.BOOL, [])], [("y", FLOAT, [2])])
    with pytest.raises(EngineError, match="other files"):
        check_self_contained(data)


@pytest.mark.attack
def test_m4_a_compiled_context_is_refused() -> None:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="../x.so")
    with pytest.raises(EngineError, match="compiled"):
        check_self_contained(add_model(WEIGHT, node=node, domains=("", "com.microsoft")))


@pytest.mark.attack
def test_m5_operators_of_other_libraries_are_refused() -> None:
    node = helper.make_node("Steal", ["x"], ["y"], domain="evil.example")
    with pytest.raises(EngineError, match=r"evil\.example"):
        import_engine("onnx").load(add_model(WEIGHT, node=node, domains=("", "evil.example")))


@pytest.mark.attack
def test_m5_inside_a_body_and_under_the_name_of_another_function_too() -> None:
    thief = helper.make_node("Steal", [], ["deep"], domain="evil.example")
    branch = helper.make_graph([thief], "b", [], [helper.make_tensor_value_info("deep", FLOAT, [2])])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    data = onnx_bytes([node], [("c", TensorProto.BOOL, [])], [("y", FLOAT, [2])])
    with pytest.raises(EngineError, match=r"`evil\.example:Steal`"):
        check_self_contained(data)
    model = onnx.load_model_from_string(data)
    body = [helper.make_node("Identity", ["a"], ["b"])]
    model.functions.append(
        helper.make_function("evil.example", "Other", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    )
    with pytest.raises(EngineError, match=r"`evil\.example:Steal`"):
        check_self_contained(model.SerializeToString())


def test_a_domain_that_no_operator_uses_is_harmless() -> None:
    domains = ("", "ai.onnx.preview.training", "com.microsoft.nchwc")
    session = import_engine("onnx").load(add_model(WEIGHT, domains=domains))
    np.testing.assert_array_equal(session.run({"x": np.zeros(2, np.float32)})["y"].shape, (2,))


def test_functions_inside_the_model_are_no_other_library() -> None:
    function = helper.make_function(
        "mine",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="mine")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [2])],
        [helper.make_tensor_value_info("y", FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[function])
    session = import_engine("onnx").load(model.SerializeToString())
    np.testing.assert_array_equal(session.run({"x": np.array([1, 2], np.float32)})["y"], [2, 4])


@pytest.mark.parametrize(
    "data", [b"", b"no model at all", b"\x08", digits().data[:-40]], ids=["empty", "text", "tag", "cut"]
)
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(EngineError):
        import_engine("onnx").load(data)


@pytest.mark.attack
def test_m6_a_model_that_asks_for_256_gib_is_refused_memory() -> None:
    session = import_engine("onnx").load(hungry().data)
    with pytest.raises(MemoryBudgetError):
        session.run({"size": np.array([1 << 36], np.int64)})
    assert session.run({"size": np.array([8], np.int64)})["total"][0] == 0


def test_a_failing_run_is_an_engine_error() -> None:
    session = import_engine("onnx").load(hungry().data)
    with pytest.raises(EngineError):
        session.run({"size": np.array([-4], np.int64)})
    with pytest.raises(EngineError):
        session.run({"other": np.array([4], np.int64)})


def test_a_loop_runs_as_often_as_it_is_told() -> None:
    session = import_engine("onnx").load(counting_loop().data)
    assert session.run({"times": np.array([41], np.int64)})["count"][0] == 41
