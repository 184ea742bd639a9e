"""What a TFLite model needs in RAM, from its graph alone: the same on every run and every machine.

The lower bound is what must be there at once: the process with its engine, the file, constants that the
engine rebuilds, and the largest sum of live activations. The upper bound adds what engines pack and copy, by
factors measured on the models of the tests with ai-edge-litert 2.3 and tflite-runtime 2.14 on x86_64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from skerry_contract.limits import MIB
from skerry_runtime.worker.engines.tflite_guard import TYPES, check_tflite

from .floats import name_of
from .model import content, numbers, parse

BASE_BYTES: Final = (28 * MIB, 48 * MIB)
"""Python, numpy and the engine without a model: least and most."""
_REBUILDS: Final = frozenset({"DEQUANTIZE", "DENSIFY"})
_UPPER_WEIGHTS, _UPPER_ACTIVATIONS = 3.0, 4.0
_WINDOWS: Final = frozenset({"CONV_2D", "TRANSPOSE_CONV"})
_POINTER, _NUMBER = 8, 4
_UPPER_OPERATOR: Final = 16 * 1024
"""Bytes that an operator costs beside its tensors, at most."""


def predict_memory(data: bytes, shapes: Mapping[str, tuple[int, ...]] | None = None) -> tuple[int, int]:
    """Lower and upper bound of the peak resident memory of a process that runs the model, in bytes.

    The upper one is 0, not known, where the sizes of tensors inside follow from the data: such a file says 1
    for each free dimension.

    Args:
        shapes: of the inputs by name; without it free dimensions are 1.

    Raises:
        ModelError: the file is damaged, or the TFLite engine is not installed.
    """
    model = parse(data)
    growth = _growth(data, shapes or {})
    rebuilt = peak = scratch = operators = 0
    for graph in model.subgraphs:
        constants, activations = _peak(model, graph)
        rebuilt += constants
        peak = max(peak, activations)
        scratch += _scratch(model, graph)
        operators += len(graph.operators or ())
    live = math.ceil(peak * growth)
    constants = rebuilt + sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    lower = BASE_BYTES[0] + len(data) + rebuilt + live
    upper = (
        BASE_BYTES[1]
        + len(data)
        + math.ceil(_UPPER_WEIGHTS * constants + _UPPER_ACTIVATIONS * live + scratch * growth)
        + _UPPER_OPERATOR * operators
    )
    return lower, upper if _knows_its_shapes(model) else 0


def _knows_its_shapes(model: Any) -> bool:
    """Whether only the number of rows is free."""
    return not any(
        -1 in numbers(tensor.shapeSignature)[1:] for graph in model.subgraphs for tensor in graph.tensors
    )


def _scratch(model: Any, graph: Any) -> int:
    """What convolutions lay out beside tensors: a pointer and a number for each place of each window."""
    total = 0
    for operator in graph.operators or ():
        if name_of(model, operator) not in _WINDOWS:
            continue
        window = numbers(graph.tensors[operator.inputs[1]].shape)[1:]
        places = math.prod(numbers(graph.tensors[operator.outputs[0]].shape)[:-1])
        if math.prod(window[:-1]) > 1:
            total += places * (_POINTER * math.prod(window[:-1]) + _NUMBER * math.prod(window))
    return total


def _growth(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """How many times larger the inputs are than the file says."""
    ratios = [
        math.prod(shapes[port.name]) / max(1, math.prod(abs(size) for size in port.shape))
        for port in check_tflite(data).inputs
        if port.name in shapes
    ]
    return max(ratios, default=1.0)


def _peak(model: Any, graph: Any) -> tuple[int, int]:
    """(bytes of constants that are rebuilt when the model is loaded, peak bytes of live activations)"""
    constant = {index for index, tensor in enumerate(graph.tensors) if content(model, tensor)}
    sizes = [_size(tensor) for tensor in graph.tensors]
    running, rebuilt = [], 0
    for operator in graph.operators or ():
        taken, given = numbers(operator.inputs), numbers(operator.outputs)
        if name_of(model, operator) in _REBUILDS and constant.issuperset(taken):
            constant.update(given)
            rebuilt += sum(sizes[index] for index in given)
        else:
            running.append(([index for index in taken if index >= 0], given))
    last = {index: step for step, (taken, given) in enumerate(running) for index in (*taken, *given)}
    last |= dict.fromkeys(numbers(graph.outputs), len(running))
    live = peak = sum(sizes[index] for index in numbers(graph.inputs))
    for step, (taken, given) in enumerate(running):
        live += sum(sizes[index] for index in given)
        peak = max(peak, live)
        ended = {index for index in (*taken, *given) if last[index] == step and index not in constant}
        live -= sum(sizes[index] for index in ended)
    return rebuilt, peak


def _size(tensor: Any) -> int:
    return (math.prod(numbers(tensor.shape)) * TYPES[tensor.type][1] + 7) // 8
