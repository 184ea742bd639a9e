"""TFLite models from the file to answers of a device: packed, installed without a fleet, proved, served."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.e2e.conftest import Packed
from tests.e2e.stage import Device, Stage, program, run
from tests.real_models import real_model
from tests.waiting import wait_until

IRIS = "mediapipe/mediapipe/modules/iris_landmark/iris_landmark.tflite"
WAKE_WORD = "pymicro_wakeword/pymicro_wakeword/models/alexa.tflite"


def eyes(count: int) -> np.ndarray:
    """``[count, 64, 64, 3]``: a dark disc on a bright ground, at random places, as an iris lies in an eye."""
    rng = np.random.default_rng(3)
    rows, columns = np.mgrid[:64, :64]
    centres = rng.uniform(24, 40, (count, 2, 1, 1))
    distance = np.hypot(rows - centres[:, 0], columns - centres[:, 1])
    ground = 0.8 + 0.05 * rng.standard_normal((count, 64, 64))
    grey = np.clip(np.where(distance < rng.uniform(8, 14, (count, 1, 1)), 0.2, ground), 0, 1)
    return np.repeat(grey[..., None], 3, axis=-1).astype(np.float32)


def pack(packed: Packed, folder: Path, model: Path, name: str, evaluation: Path) -> Path:
    answer = run(
        program("skerry"), "pack", str(model), "--name", name, "--version", "1.0.0",
        "--evaluation", str(evaluation), "--profile", "x86-gateway", "--monitor", "none",
        "--max-drop", "5pt", "--key", str(packed.key), "--json", cwd=folder,
    )  # fmt: skip
    assert answer.code == 0, answer.out + answer.err
    return Path(folder / answer.json["bundle"])


def install(device: Device, bundle: Path, name: str) -> None:
    """As from a USB stick; its golden samples are proved before anything is asked of it."""
    device.start()
    wait_until(lambda: bool(device.status()), "the daemon answers")
    done = device.runtime("install", str(bundle))
    assert done.code == 0, done.out + done.err
    wait_until(lambda: state(device, name) in ("probation", "confirmed"), "the device has proved it")


def state(device: Device, name: str) -> str:
    return str(device.status().get("models", {}).get(name, {}).get("state", ""))


@pytest.mark.slow
def test_a_tflite_model_is_packed_smaller_and_answers_on_a_device(packed: Packed, stage: Stage) -> None:
    images = eyes(80)
    np.save(stage.folder / "eyes.npy", images)
    bundle = pack(packed, stage.folder, real_model(IRIS), "iris", stage.folder / "eyes.npy")
    manifest = stage.ok("inspect", str(bundle))["manifest"]
    assert {variant["engine"] for variant in manifest["variants"]} == {"tflite"}
    sizes = [variant["model"]["size"] for variant in manifest["variants"]]
    assert min(sizes) < 0.6 * real_model(IRIS).stat().st_size

    device = stage.device("gate")
    install(device, bundle, "iris")
    np.save(stage.folder / "one.npy", images[:1])
    answer = device.runtime("infer", "iris", "--input", str(stage.folder / "one.npy"), "--json")
    assert answer.code == 0, answer.out + answer.err
    outputs = {output["name"]: output for output in json.loads(answer.out)["outputs"]}
    landmarks = max(outputs.values(), key=lambda output: len(output["data"]))
    assert np.isfinite(np.array(landmarks["data"], float)).all()


@pytest.mark.slow
def test_a_wake_word_with_a_state_inside_is_rolled_out_and_proved_on_a_device(
    packed: Packed, stage: Stage
) -> None:
    rng = np.random.default_rng(5)
    sequences = rng.integers(-128, 127, (60, 20, 1, 3, 40)).astype(np.int8)
    np.save(stage.folder / "features.npy", sequences)
    bundle = pack(packed, stage.folder, real_model(WAKE_WORD), "alexa", stage.folder / "features.npy")
    device = stage.device("kitchen")
    install(device, bundle, "alexa")
    np.save(stage.folder / "step.npy", sequences[0, 0])
    answer = device.runtime("infer", "alexa", "--input", str(stage.folder / "step.npy"), "--json")
    assert answer.code == 0, answer.out + answer.err
