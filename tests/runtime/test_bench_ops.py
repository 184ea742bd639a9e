"""``skerry-runtime bench-ops``: operators written without the onnx package, timed by the real engine."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from skerry_contract.errors import EngineError, StorageError
from skerry_runtime.worker.bench_ops import work
from skerry_runtime.worker.bench_ops.cases import Case, cases
from skerry_runtime.worker.bench_ops.describe import describe
from skerry_runtime.worker.bench_ops.measure import SCHEMA, collect, time_case
from skerry_runtime.worker.bench_ops.onnx_graphs import model, node
from skerry_runtime.worker.bench_ops.summary import summary
from skerry_runtime.worker.engines import import_engine

GRID = cases("onnx")
SMALL = [case for case in GRID if case.work.flops < 3e7]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "skerry_runtime.cli", "bench-ops", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)


# --- the models ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.operator}-{case.work.datatype}-{case.size}")
def test_each_chain_is_valid_and_runs_in_every_length(case: Case) -> None:
    engine = import_engine("onnx")
    for links in (1, 3):
        data = case.build(links)
        onnx.checker.check_model(onnx.load_model_from_string(data), full_check=True)
        (output,) = engine.load(data).run(case.feed()).values()
        assert np.isfinite(output.astype(np.float64)).all()
        assert output.shape == next(iter(case.feed().values())).shape


@pytest.mark.parametrize(
    "case",
    [case for case in cases("tflite") if case.work.flops < 3e7],
    ids=lambda case: f"{case.operator}-{case.work.datatype}-{case.size}",
)
def test_each_tflite_chain_passes_the_guard_and_runs(case: Case) -> None:
    engine = import_engine("tflite")
    for links in (1, 3):
        (output,) = engine.load(case.build(links)).run(case.feed()).values()
        assert np.isfinite(output.astype(np.float64)).all()
        assert output.shape == next(iter(case.feed().values())).shape


def test_a_longer_chain_has_more_operators_and_weights_of_its_own() -> None:
    case = next(case for case in GRID if case.work.kind == "matmul" and case.work.datatype == "fp32")
    graph = onnx.load_model_from_string(case.build(5)).graph
    assert [item.op_type for item in graph.node] == ["MatMul"] * 5
    assert len({tensor.raw_data for tensor in graph.initializer}) == 5


def test_attributes_of_all_kinds_are_written() -> None:
    data = model(
        [node("Concat", ["x"], ["y"], axis=-1, alpha=0.5, mode="nearest", pads=[0, 1])],
        {"x": ("float32", (2, 300))}, {"y": ("float32", (2, 300))}, {"w": np.arange(6).reshape(2, 3)},
    )  # fmt: skip
    read = onnx.load_model_from_string(data)
    found = {item.name: onnx.helper.get_attribute_value(item) for item in read.graph.node[0].attribute}
    assert found == {"axis": -1, "alpha": 0.5, "mode": b"nearest", "pads": [0, 1]}
    assert onnx.numpy_helper.to_array(read.graph.initializer[0]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [size.dim_value for size in read.graph.input[0].type.tensor_type.shape.dim] == [2, 300]


def test_a_run_that_is_cut_short_has_seen_every_family() -> None:
    families = {(case.operator, case.work.kind, case.work.datatype) for case in GRID}
    assert {(case.operator, case.work.kind, case.work.datatype) for case in GRID[: len(families)]} == families


# --- the load of an operator ---------------------------------------------------------------------------


def test_the_load_follows_from_shapes() -> None:
    dense = work.conv((1, 16, 8, 8), (32, 16, 3, 3), (1, 32, 8, 8), "fp32")
    assert (dense.kind, dense.flops) == ("conv-dense", 2 * 32 * 64 * 16 * 9)
    assert dense.bytes == 4 * (16 * 64 + 32 * 16 * 9 + 32 * 64)
    assert work.conv((1, 16, 8, 8), (16, 1, 3, 3), (1, 16, 8, 8), "int8").kind == "conv-depthwise"
    assert work.conv((1, 3, 8, 8), (16, 3, 3, 3), (1, 16, 8, 8), "fp32").kind == "conv-narrow"
    assert work.conv((1, 16, 8, 8), (4, 16, 1, 1), (1, 4, 8, 8), "fp32").kind == "conv-pointwise"
    assert work.matmul((1, 8), (8, 4), (1, 4), "fp32").kind == "matvec"
    product = work.matmul((2, 8), (8, 4), (2, 4), "int8")
    assert (product.kind, product.flops, product.bytes) == ("matmul", 2 * 8 * 8, 16 + 32 + 8)
    steps = work.recurrent("lstm", (5, 1, 8), (1, 16, 8), 4, "fp32")
    assert steps.flops == 2 * 5 * 16 * 12


# --- the table -----------------------------------------------------------------------------------------


def test_the_table_says_what_was_timed_refused_and_left_out() -> None:
    engine = import_engine("onnx")
    good = [case for case in SMALL if case.work.kind in ("unary", "matvec")][:3]
    unknown = replace(
        good[0],
        operator="Nonsense",
        build=lambda links: model(
            [node("Nonsense", ["x"], ["y"])], {"x": ("float32", (1,))}, {"y": ("float32", (1,))}, {}
        ),
    )
    seen: list[tuple[str, int, int]] = []
    table = collect(engine, [unknown, *good], 20, progress=lambda *step: seen.append(step))
    assert table["schema"] == SCHEMA
    assert table["engine"] == {"name": "onnx", "version": engine.version}
    assert [row["operator"] for row in table["missing"]] == ["Nonsense"]
    assert [row["operator"] for row in table["operators"]] == [case.operator for case in good]
    for row in table["operators"]:
        assert 0 < row["low_us"] <= row["us"] <= row["high_us"]
    assert seen[-1] == ("done", len(good) + 1, len(good) + 1)
    hurried = collect(engine, good, 0.01)
    assert len(hurried["left_out"]) == len(good)
    assert json.loads(json.dumps(table)) == table


def test_what_the_engine_refuses_is_an_error_of_the_case() -> None:
    case = replace(SMALL[0], build=lambda links: b"no model")
    with pytest.raises(EngineError):
        time_case(import_engine("onnx"), case, 0.05, lambda: 0.0)


def test_the_machine_is_described(tmp_path: Path) -> None:
    machine = describe(tmp_path)
    assert machine["arch"]
    assert 0 < machine["ram_available_bytes"] <= machine["ram_total_bytes"]
    assert 0 < machine["flash_free_bytes"] <= machine["flash_total_bytes"]
    assert "onnxruntime" in machine["packages"]
    with pytest.raises(StorageError, match="nowhere"):
        describe(tmp_path / "nowhere")


# --- the command ---------------------------------------------------------------------------------------


def test_the_command_writes_a_table_within_its_time(tmp_path: Path) -> None:
    done = run("--seconds", 2, "--out", tmp_path / "table.json", "--store", tmp_path)
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["schema"] == SCHEMA
    assert table["operators"]
    assert table["left_out"]
    assert "cases timed" in done.stdout
    assert f"skerry profile measure --from {tmp_path / 'table.json'}" in done.stdout
    assert "[0/" in done.stderr
    assert summary(table, "").endswith("--out FILE keeps the table")


def test_json_is_for_programs_alone() -> None:
    done = run("--seconds", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema"] == SCHEMA
    assert done.stderr == ""


def test_what_cannot_work_is_said_before_the_work(tmp_path: Path) -> None:
    assert run("--seconds", 0).returncode == 2
    assert run("--engine", "pytorch").returncode == 2
    done = run("--out", tmp_path / "no" / "table.json")
    assert done.returncode == 1
    assert "there is no folder" in done.stderr
