"""A small convolutional network for scikit-learn's digits, trained here with numpy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .recipe import Data
from .tables import _halves

_WIDTHS = (16, 32)
_EPOCHS = 25


def _patches(x: np.ndarray) -> np.ndarray:
    """``[n, c, h, w]`` -> ``[n, h, w, c * 9]``: 3 x 3 neighbourhoods, zeros around."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(*x.shape[:1], *x.shape[2:], -1)


class _Convolution:
    """3 x 3 convolution, ReLU, 2 x 2 maximum."""

    def __init__(self, rng: np.random.Generator, inputs: int, outputs: int) -> None:
        self.weight = rng.standard_normal((inputs * 9, outputs)) * np.sqrt(2 / (inputs * 9))
        self.bias = np.zeros(outputs)

    def forward(self, x: np.ndarray) -> np.ndarray:
        n, _, h, w = x.shape
        self.seen = _patches(x)
        y = np.maximum(self.seen @ self.weight + self.bias, 0)
        blocks = y.reshape(n, h // 2, 2, w // 2, 2, -1)
        best = blocks.max(axis=(2, 4), keepdims=True)
        self.passing = (blocks == best) & (blocks > 0)
        return np.ascontiguousarray(best[:, :, 0, :, 0].transpose(0, 3, 1, 2))

    def backward(self, gradient: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        n, _, h, w = gradient.shape
        spread = self.passing * gradient.transpose(0, 2, 3, 1)[:, :, None, :, None]
        spread = spread.reshape(n, h * 2, w * 2, -1)
        flat, seen = spread.reshape(-1, spread.shape[-1]), self.seen.reshape(-1, self.seen.shape[-1])
        columns = (flat @ self.weight.T).reshape(n, h * 2, w * 2, -1, 3, 3)
        back = np.zeros((n, columns.shape[3], h * 2 + 2, w * 2 + 2))
        for dy in range(3):
            for dx in range(3):
                back[:, :, dy : dy + h * 2, dx : dx + w * 2] += columns[..., dy, dx].transpose(0, 3, 1, 2)
        return back[:, :, 1:-1, 1:-1], [seen.T @ flat, flat.sum(axis=0)]


def _train(x: np.ndarray, y: np.ndarray) -> tuple[list[_Convolution], np.ndarray, np.ndarray]:
    """Adam on the cross entropy."""
    rng = np.random.default_rng(52)
    layers = [_Convolution(rng, 1, _WIDTHS[0]), _Convolution(rng, *_WIDTHS)]
    features = _WIDTHS[1] * 4
    weight, bias = rng.standard_normal((features, 10)) / np.sqrt(features), np.zeros(10)
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)] + [weight, bias]
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    step = 0
    for _ in range(_EPOCHS):
        order = rng.permutation(len(x))
        for batch in np.array_split(order, len(x) // 32):
            step += 1
            hidden = layers[1].forward(layers[0].forward(x[batch]))
            flat = hidden.reshape(len(batch), -1)
            scores = flat @ weight + bias
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            chances[np.arange(len(batch)), y[batch]] -= 1
            error = chances / len(batch)
            back, second = layers[1].backward((error @ weight.T).reshape(hidden.shape))
            _, first = layers[0].backward(back)
            gradients = [*first, *second, flat.T @ error, error.sum(axis=0)]
            for parameter, gradient, (mean, square) in zip(parameters, gradients, moments, strict=True):
                mean += 0.1 * (gradient - mean)
                square += 0.001 * (gradient**2 - square)
                rate = 2e-3 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                parameter -= rate * mean / (np.sqrt(square) + 1e-8)
    return layers, weight, bias


def make_digits_convnet(folder: Path) -> Data:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_digits

    x, y, rest, labels = _halves(*load_digits(return_X_y=True))
    layers, weight, bias = _train(x.reshape(-1, 1, 8, 8) / 16, y)
    kernels = [
        layer.weight.reshape(-1, 3, 3, layer.weight.shape[1]).transpose(3, 0, 1, 2) for layer in layers
    ]
    arrays = {"k0": kernels[0], "b0": layers[0].bias, "k1": kernels[1], "b1": layers[1].bias}
    arrays |= {"weight": weight, "bias": bias}
    nodes, at = [], "image"
    for turn in range(2):
        nodes += [
            helper.make_node(
                "Conv", [at, f"k{turn}", f"b{turn}"], [f"c{turn}"], f"conv{turn}", pads=[1, 1, 1, 1]
            ),
            helper.make_node("Relu", [f"c{turn}"], [f"r{turn}"], f"relu{turn}"),
            helper.make_node(
                "MaxPool", [f"r{turn}"], [f"p{turn}"], f"pool{turn}", kernel_shape=[2, 2], strides=[2, 2]
            ),
        ]
        at = f"p{turn}"
    nodes += [
        helper.make_node("Flatten", [at], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["scores"], "classify"),
        helper.make_node("Softmax", ["scores"], ["chances"], "softmax"),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("chances", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(np.ascontiguousarray(a, dtype=np.float32), n) for n, a in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Data({"image": (rest / 16).reshape(-1, 1, 1, 8, 8).astype(np.float32)}, labels)
