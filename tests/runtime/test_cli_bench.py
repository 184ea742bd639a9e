"""``skerry-runtime bench`` and ``profile`` on a device that serves."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.agent_world import Device, make_bundle, running
from tests.runtime.model_zoo import digits, lay_out
from tests.tflite_models import dense
from tests.waiting import wait_until

from skerry_contract.errors import EngineError, UnavailableError
from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.bench_client import golden_requests, measure
from skerry_runtime.cli_profile import describe
from skerry_runtime.profile_child import profile, summarise
from skerry_runtime.worker.engines import import_engine


def run(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skerry_runtime.cli", *words, "--config", str(device.config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def parsed(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def serving(tmp_path: Path, signer: EcdsaSigner) -> Iterator[Device]:
    device = Device(tmp_path, signer)
    with running(device):
        device.install(make_bundle(signer).write(tmp_path))
        yield device


def test_bench_measures_both_kinds_of_tensors(serving: Device) -> None:
    found = parsed(run(serving, "bench", "--requests", "60", "--connections", "3", "--json"))
    assert (found["model"], found["version"], found["engine"]) == ("digits", "1.0.0", "onnx")
    assert [figure["kind"] for figure in found["figures"]] == ["json", "binary"]
    for figure in found["figures"]:
        assert 0 < figure["p50_us"] <= figure["p95_us"] <= figure["p99_us"]
        assert figure["per_second"] > 0
        assert (figure["requests"], figure["connections"]) == (60, 3)
    # Warm-up, one client, then three clients, for each kind: it was really asked.
    asked = 2 * (20 + 60 + 60)
    wait_until(lambda: serving.model()["health"]["requests"] == asked, "the requests")
    assert serving.model()["health"]["failures"] == 0
    table = run(serving, "bench", "digits", "--requests", "10")
    assert table.stdout.splitlines()[1].split()[:4] == ["tensors", "p50", "ms", "p95"]


def test_bench_without_a_model_says_which_there_are(loner: Device) -> None:
    done = run(loner, "bench")
    assert done.returncode == 1
    assert "Installed: none" in done.stderr
    assert run(loner, "bench", "letters").returncode == 1
    assert run(loner, "bench", "--connections", "0").returncode == 2


def test_a_failing_request_ends_the_measurement(serving: Device) -> None:
    folder = serving.data / "models" / "digits" / "gens" / "1"
    requests = golden_requests(folder, "letters")["json"]
    path = serving.model()["socket"]
    with pytest.raises(EngineError, match="404"):
        measure(path, "json", requests, 1, 1)
    with pytest.raises(UnavailableError):
        measure(path + "x", "json", requests, 1, 1)


def test_profile_names_the_operators_of_the_active_model(serving: Device) -> None:
    worker = serving.workers("serve")
    found = parsed(run(serving, "profile", "digits", "--seconds", "1", "--json"))
    assert found["runs"] > 0
    operators = {row["operator"]: row for row in found["operators"]}
    assert {"Gemm", "Softmax"} <= set(operators)
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1.0)
    assert sum(row["us"] for row in found["operators"]) == pytest.approx(found["kernels_us"])
    assert found["kernels_us"] < found["profiled_us"]
    times = found["latency_us"]
    assert 0 < times["min"] <= times["p50"] <= times["p95"] <= times["p99"] <= times["max"]
    assert times["min"] <= found["run_us"] <= times["max"]
    assert serving.workers("serve") == worker, "the worker that answers knows nothing of it"
    text = run(serving, "profile", "--seconds", "1", "--top", "1").stdout
    assert "operator  nodes" in text


def test_of_a_tflite_model_whole_inferences_are_timed_and_what_else_to_do_is_said(tmp_path: Path) -> None:
    x = np.arange(64, dtype=np.float32)[None]
    data = dense().data()
    (output,) = import_engine("tflite").load(data).run({"x": x}).items()
    nothing = MonitoringSpec(rows=1, features=())
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 64))
    result = TensorSpec(name="y", datatype="FP32", shape=(-1, 32))
    model = replace(
        digits(),
        data=data,
        inputs=(spec,),
        outputs=(result,),
        golden=({"x": x},),
        spec=nothing,
    )
    folder = lay_out(tmp_path / "gen", model, engine="tflite", golden_outputs=[{output[0]: output[1]}])
    found = profile(folder, 0.1, tmp_path)
    assert found["engine"].startswith(("ai-edge-litert", "tflite-runtime"))
    assert (found["operators"], found["nodes"], found["kernels_us"]) == ([], [], None)
    assert found["runs"] >= 1
    text = describe({"model": "sums", "version": "1.0.0", "variant": "fp32", **found}, 10)
    assert "has no profiler of operators" in text
    assert "bench-ops --engine tflite" in text
    assert f"p99 {found['latency_us']['p99']:.1f}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_damaged_generation_is_not_profiled(serving: Device) -> None:
    description = serving.data / "models" / "digits" / "gens" / "1" / "generation.json"
    description.unlink()
    done = run(serving, "profile", "--seconds", "1")
    assert done.returncode == 1
    assert "damaged" in done.stderr


def test_a_trace_is_summed_by_operator_and_node() -> None:
    def kernel(name: str, operator: str, microseconds: int) -> dict[str, Any]:
        args = {"op_name": operator}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": args}

    events = [kernel("a", "Conv", 30), kernel("b", "Conv", 10), kernel("c", "Relu", 10)] * 2
    events += [
        {"cat": "Session", "name": "model_run", "dur": 500},
        {"cat": "Node", "name": "a_fence", "dur": 9},
    ]
    found = summarise(events, runs=2)
    assert found["kernels_us"] == 50
    assert found["operators"] == [
        {"operator": "Conv", "nodes": 2, "us": 40.0, "share": 0.8},
        {"operator": "Relu", "nodes": 1, "us": 10.0, "share": 0.2},
    ]
    assert [row["node"] for row in found["nodes"]] == ["a", "b", "c"]
