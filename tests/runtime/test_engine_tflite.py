"""The TFLite engine: what it runs by either library, what it keeps and forgets, what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tests import tflite_models
from tests.real_models import ROOT, real_model
from tests.runtime import tflite_runs
from tests.runtime.model_zoo import digits

from skerry_contract.errors import EngineError, MemoryBudgetError
from skerry_contract.messages import EngineInfo
from skerry_runtime.agent import machine
from skerry_runtime.worker.engines import Signature, import_engine

LEGACY = ROOT / ".envs/tflite-legacy"
IRIS = "mediapipe/mediapipe/modules/iris_landmark/iris_landmark.tflite"
FACE = "mediapipe/mediapipe/modules/face_detection/face_detection_short_range.tflite"
SELFIE = "mediapipe/mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"
PITCH = "basic_pitch/basic_pitch/saved_models/icassp_2022/nmp.tflite"
WAKE = "pymicro_wakeword/pymicro_wakeword/models/okay_nabu.tflite"
ONES = np.ones((1, 2), np.float32)


def legacy(*arguments: str, path: str = "runtime") -> subprocess.CompletedProcess[str]:
    """Run the interpreter of the environment with tflite-runtime 2.14 and numpy 1."""
    if not LEGACY.is_dir():
        pytest.fail(".envs/tflite-legacy is missing: run '.ci/bootstrap env .ci/envs/tflite-legacy.lock'")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / path)}
    return subprocess.run(
        [str(LEGACY / "bin/python"), *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_both_libraries_give_the_same_answers_to_real_models(tmp_path: Path) -> None:
    models = [str(real_model(name)) for name in (IRIS, FACE, WAKE)]
    done = legacy(tflite_runs.__file__, str(tmp_path / "old.npz"), *models)
    assert done.returncode == 0, done.stderr
    tflite_runs.main(str(tmp_path / "new.npz"), *models)
    with np.load(tmp_path / "old.npz") as old, np.load(tmp_path / "new.npz") as new:
        assert str(old["library"]).startswith("tflite-runtime 2.14")
        assert str(new["library"]).startswith("ai-edge-litert 2.")
        assert set(old) == set(new)
        for name in set(old) - {"library"}:
            spread = max(1.0, float(np.abs(new[name]).max()))
            np.testing.assert_allclose(old[name], new[name], atol=1e-4 * spread, rtol=0, err_msg=name)


def test_the_signature_names_inputs_and_outputs_where_there_is_one() -> None:
    pitch = import_engine("tflite").load(real_model(PITCH).read_bytes())
    assert pitch.inputs == (Signature("input_2", "FP32", (-1, 43844, 1)),)
    assert [output.name for output in pitch.outputs] == ["onset", "note", "contour"]
    iris = import_engine("tflite").load(real_model(IRIS).read_bytes())
    assert iris.inputs == (Signature("input_1", "FP32", (1, 64, 64, 3)),)


def test_quantized_tensors_are_served_as_they_are() -> None:
    session = import_engine("tflite").load(real_model(WAKE).read_bytes())
    assert (session.inputs[0].datatype, session.outputs[0].datatype) == ("INT8", "UINT8")
    assert session.run({"input_audio": np.zeros((1, 3, 40), np.int8)})["dense_1"].dtype == np.uint8


def test_free_rows_follow_the_inputs() -> None:
    session = import_engine("tflite").load(tflite_models.dense().data())
    assert session.inputs == (Signature("x", "FP32", (-1, 64)),)
    rows = np.random.default_rng(1).normal(size=(7, 64)).astype(np.float32)
    whole = session.run({"x": rows})["y"]
    single = np.concatenate([session.run({"x": row[None]})["y"] for row in rows])
    np.testing.assert_allclose(whole, single, rtol=1e-5, atol=1e-5)


def test_answers_do_not_change_after_they_were_given() -> None:
    session = import_engine("tflite").load(tflite_models.dense().data())
    first = session.run({"x": np.ones((1, 64), np.float32)})["y"]
    kept = first.copy()
    session.run({"x": np.zeros((1, 64), np.float32)})
    np.testing.assert_array_equal(first, kept)


def test_a_variable_inside_lives_until_reset() -> None:
    session = import_engine("tflite").load(tflite_models.running_sum().data())
    assert session.stateful
    assert [float(session.run({"x": ONES})["y"][0, 0]) for _ in range(3)] == [1, 2, 3]
    session.reset()
    assert float(session.run({"x": ONES})["y"][0, 0]) == 1


def test_reset_is_more_than_what_the_libraries_call_so(tmp_path: Path) -> None:
    """`reset_all_variables` leaves the variables of a model as they are, in both of them."""
    (tmp_path / "sum.tflite").write_bytes(tflite_models.running_sum().data())
    program = (
        "import sys, numpy as np\n"
        "try: from ai_edge_litert.interpreter import Interpreter\n"
        "except ImportError: from tflite_runtime.interpreter import Interpreter\n"
        "i = Interpreter(model_path=sys.argv[1]); i.allocate_tensors()\n"
        "for step in range(3):\n"
        "    i.set_tensor(i.get_input_details()[0]['index'], np.ones((1, 2), np.float32)); i.invoke()\n"
        "    i.reset_all_variables()\n"
        "print(i.get_tensor(i.get_output_details()[0]['index'])[0, 0])\n"
    )
    arguments = ("-c", program, str(tmp_path / "sum.tflite"))
    new = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert (new.stdout.strip(), legacy(*arguments).stdout.strip()) == ("3.0", "3.0")


def test_models_without_variables_are_not_stateful() -> None:
    assert not import_engine("tflite").load(real_model(IRIS).read_bytes()).stateful
    assert not import_engine("onnx").load(digits().data).stateful


def test_threads_take_turns() -> None:
    session = import_engine("tflite").load(tflite_models.dense().data())
    rng = np.random.default_rng(3)
    feeds = [rng.normal(size=(1 + number % 3, 64)).astype(np.float32) for number in range(8)]
    expected = [session.run({"x": feed})["y"] for feed in feeds]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            if not np.array_equal(session.run({"x": feeds[number]})["y"], expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(feeds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.attack
@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({}, r"the inputs are \[\]"),
        ({"z": ONES}, r"the model's \['x'\]"),
        ({"x": np.ones((1, 64))}, "FLOAT64"),
        ({"x": np.ones((1, 63), np.float32)}, "cannot take inputs of these shapes"),
        ({"x": np.ones((0, 64), np.float32)}, "is empty"),
        ({"x": np.ones((1, 1, 64), np.float32)}, "cannot take inputs of these shapes"),
    ],
)
def test_m14_inputs_that_do_not_fit_are_errors_and_harm_nothing(
    inputs: dict[str, np.ndarray], says: str
) -> None:
    session = import_engine("tflite").load(tflite_models.dense().data())
    good = np.ones((2, 64), np.float32)
    before = session.run({"x": good})["y"]
    with pytest.raises(EngineError, match=says):
        session.run(inputs)
    np.testing.assert_array_equal(session.run({"x": good})["y"], before)


@pytest.mark.attack
@pytest.mark.parametrize("library", ["ai-edge-litert", "tflite-runtime"])
def test_m6_a_model_that_asks_for_256_gib(tmp_path: Path, library: str) -> None:
    (tmp_path / "m.tflite").write_bytes(tflite_models.hungry().data())
    program = (
        "import resource, sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from skerry_runtime.worker.engines import import_engine\n"
        "engine = import_engine('tflite')\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "try: engine.load(Path(sys.argv[1]).read_bytes()).run({'x': np.ones(1, np.float32)})\n"
        "except Exception as error: print(type(error).__name__, engine.library)\n"
    )
    arguments = ("-c", program, str(tmp_path / "m.tflite"))
    if library == "tflite-runtime":
        done = legacy(*arguments)
    else:
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [MemoryBudgetError.__name__, library], done.stderr


def test_an_operator_that_only_the_newer_library_has(tmp_path: Path) -> None:
    model = real_model(SELFIE)
    session = import_engine("tflite").load(model.read_bytes())
    assert session.run(tflite_runs.feed(session, 0))["activation_10"].shape == (1, 256, 256, 1)
    done = legacy(tflite_runs.__file__, str(tmp_path / "out.npz"), str(model))
    assert "EngineError: tflite-runtime 2.14" in done.stderr
    assert "Convolution2DTransposeBias" in done.stderr


def test_tflite_runtime_beside_numpy_2_says_what_to_do() -> None:
    program = (
        "import importlib.util as u, sys\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'ai_edge_litert' else find(name, package)\n"
        f"sys.path.append({str(LEGACY / 'lib/python3.11/site-packages')!r})\n"
        "from skerry_contract.errors import EngineError\n"
        "from skerry_runtime.worker.engines import import_available, import_engine\n"
        "try: import_engine('tflite')\n"
        "except EngineError as error: print(error, '|', error.hint)\n"
        "assert 'tflite' not in [engine.name for engine in import_available()]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tflite-runtime does not work with numpy 2" in done.stdout
    assert "pip install 'numpy<2'" in done.stdout
    assert "_ARRAY_API" not in done.stdout + done.stderr


def test_neither_library_names_the_extra_to_install() -> None:
    program = (
        "import importlib.util as u, sys\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'ai_edge_litert' else find(name, package)\n"
        "from skerry_runtime.worker.engines import import_engine\n"
        "try: import_engine('tflite')\n"
        "except Exception as error: print(type(error).__name__, error.hint)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "EngineError pip install 'skerry[tflite]'"


def test_the_library_starts_no_thread_and_writes_no_file(tmp_path: Path) -> None:
    """The zygote forks after the import: it must be single-threaded."""
    program = (
        "import os\nos.environ['OPENBLAS_NUM_THREADS'] = '1'\n"
        "from skerry_runtime.worker.engines import import_engine\nimport_engine('tflite')\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []


def test_the_agent_reports_the_library_that_a_worker_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("tflite_runtime-2.14.0.dist-info", "ai_edge_litert-2.3.0.dist-info"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert machine.engines() == (EngineInfo(name="tflite", version="2.3.0"),)
    (tmp_path / "ai_edge_litert-2.3.0.dist-info").rmdir()
    assert machine.engines() == (EngineInfo(name="tflite", version="2.14.0"),)
