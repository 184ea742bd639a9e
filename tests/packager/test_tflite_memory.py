"""Bounds of the RAM of a TFLite model, against what a fresh process really takes by either library."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from tests import tflite_models
from tests.real_models import ROOT, real_model

from skerry_contract.limits import MIB
from skerry_packager.memory import probe
from skerry_packager.tflite.memory import predict_memory

MODULES = "mediapipe/mediapipe/modules"
MODELS = [
    f"{MODULES}/iris_landmark/iris_landmark.tflite",
    f"{MODULES}/hand_landmark/hand_landmark_full.tflite",
    f"{MODULES}/pose_landmark/pose_landmark_full.tflite",
    f"{MODULES}/pose_detection/pose_detection.tflite",
    "pymicro_wakeword/pymicro_wakeword/models/alexa.tflite",
    # Windows of 256 samples: 170 MB of scratch beside 11 MB of tensors.
    "basic_pitch/basic_pitch/saved_models/icassp_2022/nmp.tflite",
]
_RUN = """
import sys
import numpy as np
from skerry_runtime.worker.engines import DTYPES, import_engine
session = import_engine("tflite").load(open(sys.argv[1], "rb").read())
feed = {p.name: np.zeros([max(1, size) for size in p.shape], DTYPES[p.datatype]) for p in session.inputs}
for _ in range(5):
    session.run(feed)
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("environment", ["", ".envs/tflite-legacy/bin/python"])
def test_what_is_measured_lies_between_the_bounds(name: str, environment: str) -> None:
    model = real_model(name)
    lower, upper = predict_memory(model.read_bytes())
    done = subprocess.run(
        [str(ROOT / environment) if environment else sys.executable, "-c", _RUN, str(model)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "OPENBLAS_NUM_THREADS": "1"},
        check=True,
    )
    assert lower <= int(done.stdout) <= upper


def test_rows_cost_activations() -> None:
    data = tflite_models.dense(columns=1024, outputs=1024).data()
    one, most_one = predict_memory(data)
    many, most_many = predict_memory(data, {"x": (1024, 1024)})
    assert many - one == pytest.approx(8 * MIB, rel=0.01)
    assert most_many - most_one == pytest.approx(32 * MIB, rel=0.01)


def test_stored_weights_count_as_what_they_become() -> None:
    """A file of fp16 weights is half of the fp32 weights that the engine rebuilds from it."""
    model = real_model(f"{MODULES}/hand_landmark/hand_landmark_full.tflite")
    lower, _ = predict_memory(model.read_bytes())
    assert lower > 28 * MIB + 3 * model.stat().st_size


def test_no_upper_bound_where_the_file_does_not_know_its_shapes() -> None:
    """Inside this model sizes follow from the data: its file says 1 for them."""
    lower, upper = predict_memory(tflite_models.hungry().data())
    assert 28 * MIB < lower < 29 * MIB
    assert upper == 0


def test_what_it_executes_is_known_so_that_the_number_of_judging_rows_is() -> None:
    """Not how many this machine manages in a given time."""
    source = real_model(MODELS[0]).read_bytes()
    found = probe(source, {"input_1": np.zeros((1, 64, 64, 3), np.float32)}, "tflite", runs=1)
    assert 5e7 < sum(each.flops for each in found.operations) < 5e8
