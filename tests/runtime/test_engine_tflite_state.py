"""A model that keeps variables inside: its golden samples never disturb the stream that it listens to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import tflite_models
from tests.real_models import real_model
from tests.runtime.model_zoo import ZooModel, lay_out
from tests.runtime.worker_harness import ZygoteHarness, ask, connect, json_request, listen_unix

from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec
from skerry_runtime.ipc import Accept, Failed, Ready
from skerry_runtime.model import Model
from skerry_runtime.worker.engines import import_engine
from skerry_runtime.worker.generation import load_generation
from skerry_runtime.worker.loaded import load_model

WAKE = "pymicro_wakeword/pymicro_wakeword/models/hey_mycroft.tflite"
ONES = np.ones((1, 2), np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A generation whose answers were recorded each from a fresh state."""
    return lay_out(
        tmp_path / "g",
        ZooModel(
            data=tflite_models.running_sum().data(),
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(1, 2)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(1, 2)),),
            golden=({"x": 3 * ONES}, {"x": 5 * ONES}),
            spec=MonitoringSpec(rows=1, features=()),
            name="sum",
        ),
        engine="tflite",
        golden_outputs=[{"y": 3 * ONES}, {"y": 5 * ONES}],
    )


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteHarness]:
    with ZygoteHarness() as running:
        yield running


def test_golden_samples_run_from_a_fresh_state_in_any_order(folder: Path) -> None:
    model = load_model(load_generation(folder))
    for index in (0, 1, 1, 0):
        model.run_golden(index)


def test_the_canary_does_not_touch_the_stream(folder: Path) -> None:
    with Model.open(folder) as model:
        sums = []
        for step in range(4):
            sums.append(float(model.infer({"x": ONES})["y"][0, 0]))
            assert model._inference.canary(step)
        assert sums == [1, 2, 3, 4]


def test_a_model_without_a_state_is_loaded_once(tmp_path: Path) -> None:
    session = import_engine("tflite").load(tflite_models.dense().data())
    golden = {"x": np.ones((1, 64), np.float32)}
    folder = lay_out(
        tmp_path / "g",
        ZooModel(
            data=tflite_models.dense().data(),
            inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 64)),),
            outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 32)),),
            golden=(golden,),
            spec=MonitoringSpec(rows=1, features=()),
        ),
        engine="tflite",
        golden_outputs=[session.run(golden)],
    )
    loaded = load_model(load_generation(folder))
    assert loaded.proof is loaded.session
    loaded.run_golden(0)


def test_a_worker_proves_and_serves_it(zygote: ZygoteHarness, folder: Path, tmp_path: Path) -> None:
    """In the real processes: the self-test's 200 timed runs and the golden samples leave no trace."""
    zygote.spawn("preflight", folder).expect(Ready)
    listener = listen_unix(tmp_path / "s")
    worker = zygote.spawn("serve", folder, [listener])
    assert worker.expect(Ready).engine_version.startswith("2.")
    worker.send(Accept())
    client = connect(listener)
    for total in (1.0, 2.0, 3.0):
        status, answer, _ = ask(client, "POST", "/v2/models/sum/infer", json_request(x=ONES))
        assert status == 200, answer
        assert answer["outputs"][0]["data"] == [total, total]
    client.close()
    listener.close()


def test_an_answer_from_the_middle_of_a_stream_fails_the_self_test(
    zygote: ZygoteHarness, tmp_path: Path
) -> None:
    """What was recorded without a reset between the samples is noticed, not tolerated."""
    data = real_model(WAKE).read_bytes()
    session = import_engine("tflite").load(data)
    numbers = np.random.default_rng(125)
    golden = tuple({"input_audio": numbers.integers(-60, 128, (1, 3, 40)).astype(np.int8)} for _ in range(12))
    fresh, streamed = [], [session.run(sample) for sample in golden]
    for sample in golden:
        session.reset()
        fresh.append(session.run(sample))
    differ = [k for k in range(12) if int(fresh[k]["dense_1"][0, 0]) != int(streamed[k]["dense_1"][0, 0])]
    assert differ, "the samples must show the state"
    model = ZooModel(
        data=data,
        inputs=(TensorSpec(name="input_audio", datatype="INT8", shape=(1, 3, 40)),),
        outputs=(TensorSpec(name="dense_1", datatype="UINT8", shape=(1, 1)),),
        golden=golden,
        spec=MonitoringSpec(rows=1, features=()),
        name="wake",
    )
    good = lay_out(tmp_path / "good", model, engine="tflite", golden_outputs=fresh)
    zygote.spawn("preflight", good).expect(Ready)
    bad = lay_out(tmp_path / "bad", model, engine="tflite", golden_outputs=streamed)
    assert zygote.spawn("preflight", bad).expect(Failed).error.code == "selftest"
