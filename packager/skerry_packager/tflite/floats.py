"""Floating-point weights of a TFLite model: found, unpacked to fp32, and stored smaller.

A stored weight is a constant of another type and a DEQUANTIZE, as TFLite's own float16 quantization writes
it: both libraries rebuild fp32 once, when the model is loaded, so accuracy and speed stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .model import array_of, numbers, operator_name, schema, set_content, type_name

_LAST_AXIS: Final = frozenset({"DEPTHWISE_CONV_2D"})
"""Operators whose weights have their output channels last; elsewhere they come first."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant fp32 tensor."""

    graph: Any
    index: int
    array: np.ndarray
    channels: int
    """Axis of the output channels of the operators that read it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What takes a weight's place in the file."""

    type: str
    data: bytes
    version: int
    """Of the operator DEQUANTIZE that knows this type."""
    scales: np.ndarray | None = None
    axis: int = 0


Encode = Callable[[Weight], "Stored | None"]


def name_of(model: Any, operator: Any) -> str:
    return operator_name(model.operatorCodes[operator.opcodeIndex])


def unpack_fp16(model: Any) -> int:
    """fp16 constants and their DEQUANTIZE become fp32 constants, in place; how many."""
    count = 0
    for graph in model.subgraphs:
        kept = []
        outputs = set(numbers(graph.outputs))
        for operator in graph.operators or ():
            array = None
            if name_of(model, operator) == "DEQUANTIZE" and operator.outputs[0] not in outputs:
                array = array_of(model, graph.tensors[operator.inputs[0]])
            if array is None or array.dtype != np.float16:
                kept.append(operator)
                continue
            set_content(model, graph.tensors[operator.outputs[0]], array.astype("<f4").tobytes())
            count += 1
        graph.operators = kept
    return count


def weights(model: Any, least: int) -> Iterator[Weight]:
    """fp32 constants of at least `least` numbers that operators read and that are no output."""
    for graph in model.subgraphs:
        channels: dict[int, int] = {}
        for operator in graph.operators or ():
            for index in _inputs(operator):
                axis = -1 if name_of(model, operator) in _LAST_AXIS else 0
                channels.setdefault(index, axis)
        untouchable = {*numbers(graph.inputs), *numbers(graph.outputs)}
        for index, axis in sorted(channels.items()):
            tensor = graph.tensors[index]
            if index in untouchable or tensor.isVariable or type_name(tensor) != "FLOAT32":
                continue
            array = array_of(model, tensor)
            if array is not None and array.size >= least and np.isfinite(array).all():
                yield Weight(graph, index, array, axis % max(1, array.ndim))


def store(model: Any, least: int, encode: Encode) -> int:
    """Store weights smaller, in place; how many."""
    made: dict[int, list[Any]] = {}
    found = [(weight, stored) for weight in weights(model, least) if (stored := encode(weight)) is not None]
    for weight, stored in found:
        operator = _stored(model, weight, stored)
        made.setdefault(id(weight.graph), []).append(operator)
    for graph in model.subgraphs:
        graph.operators = [*made.get(id(graph), ()), *(graph.operators or ())]
    return len(found)


def as_fp16(weight: Weight) -> Stored | None:
    """None where fp16 has no room for the numbers."""
    with np.errstate(over="ignore"):
        half = weight.array.astype("<f2")
    if not np.isfinite(half).all():
        return None
    return Stored("FLOAT16", half.tobytes(), version=3)


def as_int8(weight: Weight) -> Stored | None:
    """Symmetric, a scale per output channel. None for vectors and where the scales eat up the savings."""
    array = weight.array
    if array.ndim < 2 or array.shape[weight.channels] * 16 > array.size * 3:
        return None
    others = tuple(axis for axis in range(array.ndim) if axis != weight.channels)
    peaks = np.abs(array).max(axis=others, keepdims=True)
    scales = np.where(peaks > 0, peaks / np.float32(127), np.float32(1)).astype("<f4")
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    small = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
    return Stored("INT8", small.tobytes(), version=5, scales=scales.ravel(), axis=weight.channels)


def _stored(model: Any, weight: Weight, stored: Stored) -> Any:
    """Add the small tensor; the operator that rebuilds the old one from it."""
    kinds = schema()
    old = weight.graph.tensors[weight.index]
    small = kinds.TensorT()
    small.name = (old.name or b"weight") + b"/stored"
    small.shape, small.hasRank = np.asarray(weight.array.shape, np.int32), True
    small.type = getattr(kinds.TensorType, stored.type)
    if stored.scales is not None:
        small.quantization = kinds.QuantizationParametersT()
        small.quantization.scale = stored.scales
        small.quantization.zeroPoint = np.zeros(len(stored.scales), np.int64)
        small.quantization.quantizedDimension = stored.axis
    set_content(model, small, stored.data)
    old.buffer = 0
    weight.graph.tensors.append(small)
    operator = kinds.OperatorT()
    operator.opcodeIndex = _dequantize(model, stored.version)
    operator.inputs = np.array([len(weight.graph.tensors) - 1], np.int32)
    operator.outputs = np.array([weight.index], np.int32)
    operator.builtinOptionsType = kinds.BuiltinOptions.DequantizeOptions
    operator.builtinOptions = kinds.DequantizeOptionsT()
    return operator


def _dequantize(model: Any, version: int) -> int:
    """Index of the code of DEQUANTIZE in this or a later version."""
    for index, code in enumerate(model.operatorCodes):
        if operator_name(code) == "DEQUANTIZE":
            code.version = max(code.version, version)
            return index
    kinds = schema()
    code = kinds.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = kinds.BuiltinOperator.DEQUANTIZE
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _inputs(operator: Any) -> list[int]:
    return [index for index in numbers(operator.inputs) if index >= 0]
