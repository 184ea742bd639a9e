"""Models with memory for the packager's tests: an average, an LSTM, and sounds for a voice detector."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tests.packager.onnx_models import Array, Value

KEEP = 0.98
"""What the average keeps of itself at each step: it remembers about 50 of them."""


def average_model(grid: float = 0.0, batch: str | int = "N", broken_after: float = 0.0) -> onnx.ModelProto:
    """``hn = KEEP * h + (1 - KEEP) * x`` and ``y = hn``, of four numbers.

    Args:
        grid: the state is rounded to multiples of it, as by coarse quantization; 0 does not.
        batch: the batch axis.
        broken_after: gives NaN as soon as a state is above it.
    """
    weights = {"keep": KEEP, "take": 1 - KEEP, "grid": grid or 1}
    nodes = [
        helper.make_node("Mul", ["h", "keep"], ["kept"]),
        helper.make_node("Mul", ["x", "take"], ["taken"]),
        helper.make_node("Add", ["kept", "taken"], ["sum"]),
    ]
    if grid:
        nodes += [
            helper.make_node("Div", ["sum", "grid"], ["scaled"]),
            helper.make_node("Round", ["scaled"], ["whole"]),
            helper.make_node("Mul", ["whole", "grid"], ["hn"]),
        ]
    elif broken_after:
        weights["limit"] = broken_after
        nodes += [
            helper.make_node("Sub", ["limit", "sum"], ["room"]),
            helper.make_node("Sqrt", ["room"], ["root"]),
            helper.make_node("Sub", ["root", "root"], ["zero"]),
            helper.make_node("Add", ["sum", "zero"], ["hn"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["sum"], ["hn"]))
    nodes.append(helper.make_node("Identity", ["hn"], ["y"]))
    shape: list[str | int | None] = [batch, 4]
    graph = helper.make_graph(
        nodes,
        "average",
        [Value("x", TensorProto.FLOAT, shape), Value("h", TensorProto.FLOAT, shape)],
        [Value("y", TensorProto.FLOAT, shape), Value("hn", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def lstm_model(size: int = 8, features: int = 6) -> onnx.ModelProto:
    """One LSTM cell and a sigmoid, called as a voice detector is: x, h, c -> prob, hn, cn."""
    rng = np.random.default_rng(5)

    def weight(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    weights: dict[str, Array] = {
        "w": weight(1, 4 * size, features), "r": weight(1, 4 * size, size), "b": weight(1, 8 * size),
        "o": weight(size, 1), "first": np.array([0], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["sequence"]),
        helper.make_node(
            "LSTM", ["sequence", "w", "r", "b", "", "h", "c"], ["", "hn", "cn"], hidden_size=size
        ),
        helper.make_node("Squeeze", ["hn", "first"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "o"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["prob"]),
    ]
    state: list[str | int | None] = [1, "N", size]
    graph = helper.make_graph(
        nodes,
        "detector",
        [Value("x", TensorProto.FLOAT, ["N", features]), Value("h", TensorProto.FLOAT, state),
         Value("c", TensorProto.FLOAT, state)],
        [Value("prob", TensorProto.FLOAT, ["N", 1]), Value("hn", TensorProto.FLOAT, state),
         Value("cn", TensorProto.FLOAT, state)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def sounds(rows: int, steps: int, context: int = 64, seed: int = 0) -> Array:
    """Frames ``[rows, steps, context + 512]`` of audio at 16 kHz: noise with bursts of voice-like tones.

    Each frame begins with the end of the one before, as silero's detector takes them.
    """
    rng = np.random.default_rng(seed)
    count = steps * 512
    audio = rng.normal(0, 0.003, (rows, count))
    for row in audio:
        at = int(rng.integers(2000, 6000))
        while at + 10_000 < count:
            time = np.arange(10_000) / 16_000
            pitch = rng.uniform(90, 220) * (1 + 0.03 * np.sin(2 * np.pi * 5 * time))
            phase = 2 * np.pi * np.cumsum(pitch) / 16_000
            formants = (rng.uniform(400, 800), rng.uniform(1000, 2000))
            voice = sum(
                np.sin(k * phase) * np.exp(-(((k * pitch.mean() - formant) / 250) ** 2))
                for k in range(1, 16)
                for formant in formants
            )
            voice = voice * np.sin(np.pi * np.arange(10_000) / 10_000)
            row[at : at + 10_000] += rng.uniform(0.1, 0.5) * voice / np.abs(voice).max()
            at += int(rng.integers(14_000, 24_000))
    frames = audio.reshape(rows, steps, 512)
    before = np.concatenate([np.zeros((rows, 1, context)), frames[:, :-1, -context:]], axis=1)
    return np.concatenate([before, frames], axis=2).astype(np.float32)
