"""A tiny classifier and its data on disk, as an engineer brings them. Nothing is random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from skerry_packager.keys import init_keys

CLASSES, SIDE, HIDDEN = 4, 8, 64


@dataclass(frozen=True, slots=True)
class Inputs:
    """Paths of everything that packing takes."""

    folder: Path
    model: Path
    calibration: Path
    evaluation: Path
    key: Path
    public_key: Path

    def arguments(self, *more: object, version: str = "1.0.0") -> list[str]:
        """A command line of ``skerry pack`` that works."""
        fixed: list[object] = [
            "pack", self.model, "--name", "quadrants", "--version", version, "--key", self.key,
            "--calibration", self.calibration, "--evaluation", self.evaluation,
            "--run-log", self.folder / "runs.db",
        ]  # fmt: skip
        return [str(item) for item in (*fixed, *more)]


def write_inputs(folder: Path) -> Inputs:
    """Images of 8 x 8 with one bright quadrant, a network that finds it, and a key pair."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = _images(600)
    np.savez(folder / "calibration.npz", image=images[:200])
    np.savez(folder / "evaluation.npz", image=images[200:], y=labels[200:])
    (folder / "quadrants.onnx").write_bytes(_model().SerializeToString())
    pair = init_keys(folder, "engineer")
    return Inputs(
        folder=folder,
        model=folder / "quadrants.onnx",
        calibration=folder / "calibration.npz",
        evaluation=folder / "evaluation.npz",
        key=pair.private_path,
        public_key=pair.public_path,
    )


def _images(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, CLASSES, count)
    images = rng.uniform(0, 0.4, (count, 1, SIDE, SIDE)).astype(np.float32)
    half = SIDE // 2
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, row * half : (row + 1) * half, column * half : (column + 1) * half] += 0.5
    return images, labels.astype(np.int64)


def _model() -> onnx.ModelProto:
    rng = np.random.default_rng(6)
    masks = np.zeros((SIDE * SIDE, CLASSES), np.float32)
    half = SIDE // 2
    for pixel in range(SIDE * SIDE):
        row, column = divmod(pixel, SIDE)
        masks[pixel, 2 * (row // half) + column // half] = 0.5
    mix = rng.normal(0, 1, (CLASSES, HIDDEN)).astype(np.float32)
    weights = {"w1": masks @ mix, "w2": np.linalg.pinv(mix).astype(np.float32)}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "w1"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "w2"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
        ],
        "quadrants",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model
