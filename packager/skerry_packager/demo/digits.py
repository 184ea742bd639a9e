"""Three versions of a digit reader, trained here on scikit-learn's real digits (8 x 8 images, UCI).

Version 3 is the trap of the story: as accurate as the others and small on the bench, where one image at a
time is measured, it needs much memory when a device's application sends several images in one request.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from sklearn.neural_network import MLPClassifier

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

INPUT, OUTPUT = "image", "probabilities"
_OPSET = 17


@dataclass(frozen=True, slots=True)
class Digits:
    """Real images ``[N, 1, 8, 8]`` in 0..1 and their labels ``[N]``, disjoint."""

    train: tuple[Floats, Ints]
    calibration: tuple[Floats, Ints]
    evaluation: tuple[Floats, Ints]
    live: tuple[Floats, Ints]
    """What the cameras see during the demo; no model was trained or packed with them."""


def load() -> Digits:
    """The data set, shuffled once and cut into four."""
    digits = load_digits()
    images = (digits.images / 16.0).astype(np.float32)[:, None]
    order = np.random.default_rng(7).permutation(len(images))
    images, labels = images[order], digits.target[order].astype(np.int64)
    cuts = {"train": slice(0, 700), "calibration": slice(700, 1000), "evaluation": slice(1000, 1200)}
    parts = {name: (images[cut], labels[cut]) for name, cut in cuts.items()}
    return Digits(**parts, live=(images[1200:], labels[1200:]))


def write_data(digits: Digits, folder: Path) -> tuple[Path, Path]:
    """Calibration and evaluation data as ``skerry pack`` takes them."""
    paths = (folder / "calibration.npz", folder / "evaluation.npz")
    for path, (images, labels) in zip(paths, (digits.calibration, digits.evaluation), strict=True):
        np.savez(path, image=images, labels=labels)
    return paths


def train(version: int, digits: Digits, path: Path) -> float:
    """Train a version, write it as ONNX, and return its accuracy on the live images."""
    images, labels = digits.train
    if version == 3:
        model = _close_up_reader(images[:450], labels[:450])
    else:
        shown, hidden = {1: (350, 16), 2: (700, 96)}[version]
        pixels = images[:shown].reshape(shown, -1)
        reader = MLPClassifier(hidden, solver="lbfgs", max_iter=2000, random_state=version).fit(
            pixels, labels[:shown]
        )
        layers = list(zip(reader.coefs_, reader.intercepts_, strict=True))
        model = _model([helper.make_node("Flatten", [INPUT], ["x0"])], {}, layers)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    scores = _run(model, digits.live[0])
    return float((scores.argmax(1) == digits.live[1]).mean())


def _close_up_reader(images: Floats, labels: Ints) -> onnx.ModelProto:
    """Enlarges the image 16 times and looks at it through 112 edge filters, then reads the averages."""
    rng = np.random.default_rng(3)
    filters = rng.normal(0, 0.4, (112, 1, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Resize", [INPUT, "", "scales"], ["large"], mode="linear"),
        helper.make_node("Conv", ["large", "filters"], ["edges"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["strokes"]),
        helper.make_node("AveragePool", ["strokes"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["x0"]),
    ]
    constants = {"scales": np.array([1, 1, 16, 16], np.float32), "filters": filters}
    front = _model(nodes, constants, [])
    features = np.concatenate([_run(front, images[i : i + 10]) for i in range(0, len(images), 10)])
    reader = RidgeClassifier(alpha=0.05).fit(features, labels)
    return _model(nodes, constants, [(6 * reader.coef_.T, 6 * reader.intercept_)])


def _model(
    front: list[onnx.NodeProto], constants: dict[str, Floats], layers: list[tuple[Floats, Floats]]
) -> onnx.ModelProto:
    """``front`` ends in ``x0``; dense layers follow, with Relu between and Softmax last."""
    nodes, arrays, current = list(front), dict(constants), "x0"
    for number, (weights, bias) in enumerate(layers, 1):
        arrays |= {f"w{number}": weights.astype(np.float32), f"b{number}": bias.astype(np.float32)}
        nodes += [
            helper.make_node("MatMul", [current, f"w{number}"], [f"m{number}"]),
            helper.make_node("Add", [f"m{number}", f"b{number}"], [f"a{number}"]),
        ]
        last = number == len(layers)
        current = OUTPUT if last else f"x{number}"
        nodes.append(helper.make_node("Softmax" if last else "Relu", [f"a{number}"], [current]))
    classes = layers[-1][1].shape[0] if layers else None
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info(current, TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=8)


def _run(model: onnx.ModelProto, images: Floats) -> Floats:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {INPUT: images})[0])
