"""Runs a model file, one thread, with whatever engine its suffix asks for: rows in, outputs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Feed = Mapping[str, np.ndarray]


class Runner(Protocol):
    def run(self, feed: Feed) -> dict[str, np.ndarray]: ...

    def reset(self) -> None:
        """Forget what the engine keeps between two inferences."""


class OnnxRunner:
    def __init__(self, model: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]
        self._types = {given.name: given.type for given in self._session.get_inputs()}

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        # A converter may have changed the inputs' type; its user would convert too.
        halves = {
            name: array.astype(np.float16) if self._types.get(name) == "tensor(float16)" else array
            for name, array in feed.items()
        }
        return dict(zip(self._names, self._session.run(None, halves), strict=True))

    def reset(self) -> None:
        """onnxruntime keeps nothing."""


class TfliteRunner:
    def __init__(self, model: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter: Any = Interpreter(model_path=str(model), num_threads=1)
        self._interpreter.allocate_tensors()
        self._inputs = {item["name"]: item for item in self._interpreter.get_input_details()}
        self._outputs = self._interpreter.get_output_details()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        for name, array in feed.items():
            item = self._inputs[name]
            self._interpreter.set_tensor(item["index"], _to_integers(array, item))
        self._interpreter.invoke()
        return {
            item["name"]: _to_floats(self._interpreter.get_tensor(item["index"]), item)
            for item in self._outputs
        }

    def reset(self) -> None:
        self._interpreter.reset_all_variables()


def _to_integers(array: np.ndarray, item: Mapping[str, Any]) -> np.ndarray:
    """A float for an input that a quantizer has made an integer, as its user would convert it."""
    if array.dtype.kind != "f" or np.dtype(item["dtype"]).kind == "f":
        return array
    scale, zero = item["quantization"]
    bounds = np.iinfo(item["dtype"])
    quantized = np.clip(np.round(array / scale + zero), bounds.min, bounds.max)
    return np.asarray(quantized, dtype=item["dtype"])


def _to_floats(array: np.ndarray, item: Mapping[str, Any]) -> np.ndarray:
    """An integer output by its scale; those of models that were integers before are compared as they are."""
    scale, zero = item["quantization"]
    if array.dtype.kind == "f" or not scale:
        return array
    return np.asarray((array.astype(np.float32) - zero) * scale, dtype=np.float32)


def open_runner(model: Path) -> Runner:
    """Raises whatever the engine raises."""
    return OnnxRunner(model) if model.suffix == ".onnx" else TfliteRunner(model)


def feeds(rows: Mapping[str, np.ndarray], row: int) -> Feed:
    return {name: np.asarray(array[row]) for name, array in rows.items()}


def first_feeds(
    runner: Runner, rows: Mapping[str, np.ndarray], sequences: bool, states: Mapping[str, str], most: int
) -> list[Feed]:
    """Complete sets of inputs, of a stateful model from its own rollouts: what quantizers calibrate on."""
    found: list[Feed] = []
    for row in range(len(next(iter(rows.values())))):
        for feed, _ in roll(runner, rows, row, sequences, states):
            found.append(feed)
            if len(found) >= most:
                return found
    return found


def outputs_of(
    runner: Runner, rows: Mapping[str, np.ndarray], row: int, sequences: bool, states: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Outputs of one row; of a sequence stacked step by step, without the states."""
    steps = [outputs for _, outputs in roll(runner, rows, row, sequences, states)]
    if not sequences:
        return steps[0]
    return {name: np.stack([step[name] for step in steps]) for name in steps[0] if name not in states}


def roll(
    runner: Runner, rows: Mapping[str, np.ndarray], row: int, sequences: bool, states: Mapping[str, str]
) -> Iterator[tuple[Feed, dict[str, np.ndarray]]]:
    """Each step's inputs and outputs; zeros are the first state, of the shape that the outputs have."""
    given = feeds(rows, row)
    if not sequences:
        yield given, runner.run(given)
        return
    runner.reset()
    # silero-vad: [2, 1, 128]. The benchmark has no other explicit state, so none is guessed.
    state: dict[str, np.ndarray] = {name: np.zeros((2, 1, 128), np.float32) for name in states.values()}
    for step in range(len(next(iter(given.values())))):
        feed = {name: np.asarray(array[step]) for name, array in given.items()} | state
        outputs = runner.run(feed)
        state = {name: outputs[output].astype(np.float32) for output, name in states.items()}
        yield feed, outputs
