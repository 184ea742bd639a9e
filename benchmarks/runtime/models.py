"""The models of the benchmark, made the same way on every machine, with the rows that judge them.

``digits`` reads scikit-learn's digits with one hidden layer and is trained here: some microseconds, so that
it shows what serving costs. ``conv`` is a small convolutional net on 12 KB of pixels, ``large`` has 34 MB of
weights; their weights are drawn, because only their cost matters here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

ROWS = 64
"""Of the drawn models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchModel:
    """A file with its data: ``rows`` is ``[rows, *input]``, ``labels`` ``[rows]`` or None."""

    name: str
    path: Path
    rows: np.ndarray
    labels: np.ndarray | None = None

    @property
    def data(self) -> Path:
        """As `skerry pack` takes it."""
        return self.path.with_suffix(".npz")


def digits(folder: Path, *, name: str = "digits", seed: int = 0) -> BenchModel:
    """64 pixels, 32 hidden units, ten classes."""
    source = load_digits()
    rows = (source.data / 16.0).astype(np.float32)
    fitted = MLPClassifier((32,), random_state=seed, max_iter=400, tol=1e-3).fit(rows, source.target)
    first, second = (weights.astype(np.float32) for weights in fitted.coefs_)
    one, other = (bias.astype(np.float32) for bias in fitted.intercepts_)
    nodes = [
        helper.make_node("Gemm", ["pixels", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    weights = {"w1": first, "b1": one, "w2": second, "b2": other}
    return _save(folder, name, nodes, ("pixels", [64]), ("probabilities", [10]), weights, rows, source.target)


def conv(folder: Path) -> BenchModel:
    """``[n, 3, 32, 32]``: two convolutions, pooling, ten classes; some 50 us on one core of a server."""
    rng = np.random.default_rng(1)
    weights = {
        "w1": rng.normal(0, 0.2, (24, 3, 3, 3)),
        "w2": rng.normal(0, 0.1, (24, 24, 3, 3)),
        "w3": rng.normal(0, 0.5, (24, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["pixels", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    rows = rng.random((ROWS, 3, 32, 32), np.float32)
    return _save(folder, "conv", nodes, ("pixels", [3, 32, 32]), ("probabilities", [10]), weights, rows)


def large(folder: Path) -> BenchModel:
    """Nine layers of 980 units: 34 MB of FP32 weights, read once an inference."""
    rng = np.random.default_rng(2)
    size, layers = 980, 9
    nodes, weights, last = [], {}, "x"
    for layer in range(layers):
        weights[f"w{layer}"] = rng.normal(0, (2 / size) ** 0.5, (size, size))
        nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"m{layer}"]))
        nodes.append(helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    rows = rng.random((ROWS, size), np.float32)
    return _save(folder, "large", nodes, ("x", [size]), ("y", [size]), weights, rows)


def _save(
    folder: Path,
    name: str,
    nodes: Sequence[onnx.NodeProto],
    taken: tuple[str, Sequence[int]],
    given: tuple[str, Sequence[int]],
    weights: Mapping[str, np.ndarray],
    rows: np.ndarray,
    labels: np.ndarray | None = None,
) -> BenchModel:
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(taken[0], TensorProto.FLOAT, ["n", *taken[1]])],
        [helper.make_tensor_value_info(given[0], TensorProto.FLOAT, ["n", *given[1]])],
        [numpy_helper.from_array(array.astype(np.float32), key) for key, array in weights.items()],
    )
    opset = [helper.make_opsetid("", 17)]
    model = BenchModel(name=name, path=folder / f"{name}.onnx", rows=rows, labels=labels)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), model.path)
    arrays = {taken[0]: rows} if labels is None else {taken[0]: rows, "labels": labels}
    np.savez(model.data, allow_pickle=False, **arrays)
    return model
