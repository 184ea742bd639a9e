"""Floating-point weights of a TFLite model: found, unpacked to fp32, and stored smaller.

A stored weight is a constant of another type and a DEQUANTIZE, as TFLite's own float16 quantization writes
it: both libraries rebuild fp32 once, when the model is loaded, so accuracy and speed stay as they were.
A sparse weight keeps its places and gets a DENSIFY before that.

XNNPACK takes a graph as a whole only if no operator reads one constant from int8 and another from fp16: each
one that does tears the graph at up to 2.9 times the latency. Different operators may differ.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from .model import NUMPY_OF_TYPE, array_of, content, numbers, operator_name, schema, set_content, type_name

_LAST_AXIS: Final = frozenset({"DEPTHWISE_CONV_2D"})
"""Operators whose weights have their output channels last; elsewhere they come first."""


@dataclass(frozen=True, slots=True)
class Sparse:
    """How a sparse tensor is laid out."""

    layout: Any
    """As the file has it."""
    shape: tuple[int, ...]
    places: np.ndarray
    """Of the numbers that are stored, among all of the tensor's."""

    def filled(self, values: np.ndarray) -> np.ndarray:
        """All numbers of the tensor, from those that are stored."""
        full = np.zeros(math.prod(self.shape), values.dtype)
        full[self.places] = values
        return full.reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant fp32 tensor."""

    name: str
    """Differs from those of all others."""
    graph: Any
    index: int
    array: np.ndarray
    channels: int
    """Axis of the output channels of the operators that read it."""
    sparse: Sparse | None = None

    @property
    def numbers(self) -> int:
        """How many are stored."""
        return self.array.size if self.sparse is None else len(self.sparse.places)


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
    """fp16 constants and their DEQUANTIZE become fp32 constants, in place; how many. Sparse ones stay."""
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


def unpack_sparse(model: Any, dense: bool = False) -> int:
    """Sparse fp16 or fp32 constants, with their DENSIFY and DEQUANTIZE, become fp32 constants; how many.

    Args:
        dense: give them their zeros. Otherwise they stay sparse, and only `store` makes of the model one that
            runs.
    """
    count = 0
    for graph in model.subgraphs:
        gone: set[int] = set()
        for chain in _sparse_chains(model, graph):
            tensor, result = graph.tensors[chain[0].inputs[0]], graph.tensors[chain[-1].outputs[0]]
            sparse = _sparse(tensor)
            data = content(model, tensor)
            values = np.frombuffer(data, NUMPY_OF_TYPE[type_name(tensor)]).astype("<f4")
            if sparse is None or len(values) != len(sparse.places):
                continue
            set_content(model, result, (sparse.filled(values) if dense else values).tobytes())
            result.sparsity = None if dense else sparse.layout
            gone.update(map(id, chain))
            count += 1
        graph.operators = [operator for operator in graph.operators or () if id(operator) not in gone]
    return count


def _sparse_chains(model: Any, graph: Any) -> Iterator[list[Any]]:
    """DENSIFY of each sparse constant, and DEQUANTIZE behind it if it is fp16."""
    operators = graph.operators or ()
    readers = Counter(index for operator in operators for index in _inputs(operator))
    rebuilt = {int(o.inputs[0]): o for o in operators if name_of(model, o) == "DEQUANTIZE"}
    outputs = set(numbers(graph.outputs))
    for operator in operators:
        if name_of(model, operator) != "DENSIFY":
            continue
        kind, middle = type_name(graph.tensors[operator.inputs[0]]), int(operator.outputs[0])
        chain = [operator]
        if kind == "FLOAT16" and middle in rebuilt and readers[middle] == 1 and middle not in outputs:
            chain.append(rebuilt[middle])
        elif kind != "FLOAT32":
            continue
        if int(chain[-1].outputs[0]) not in outputs:
            yield chain


def _sparse(tensor: Any) -> Sparse | None:
    """None unless all axes are dense but the last, as TFLite's converter writes it."""
    layout, shape = tensor.sparsity, numbers(tensor.shape)
    if layout is None or not shape or len(numbers(layout.blockMap)):
        return None
    axes = list(layout.dimMetadata or ())
    if numbers(layout.traversalOrder) != list(range(len(shape))) or len(axes) != len(shape):
        return None
    if any(axis.format for axis in axes[:-1]) or not axes[-1].format:
        return None
    if axes[-1].arraySegments is None or axes[-1].arrayIndices is None:
        return None
    borders = np.asarray(axes[-1].arraySegments.values, np.int64)
    columns = np.asarray(axes[-1].arrayIndices.values, np.int64)
    rows = math.prod(shape[:-1])
    counts = np.diff(borders)
    fits = len(counts) == rows and not borders[:1].any() and borders[-1] == len(columns)
    if not fits or (counts < 0).any() or ((columns < 0) | (columns >= shape[-1])).any():
        return None
    return Sparse(layout, tuple(shape), np.repeat(np.arange(rows), counts) * shape[-1] + columns)


def weights(model: Any, least: int) -> Iterator[Weight]:
    """fp32 constants of at least `least` stored numbers that operators read and that are no output."""
    names = Counter(tensor.name for graph in model.subgraphs for tensor in graph.tensors)
    for number, graph in enumerate(model.subgraphs):
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
            sparse = _sparse(tensor)
            array = array_of(model, tensor) if sparse is None else _filled(model, tensor, sparse)
            if array is None or not np.isfinite(array).all():
                continue
            name = (tensor.name or b"").decode("utf-8", "replace")
            if names[tensor.name] > 1 or not name:
                name += f"#{number}.{index}"
            weight = Weight(name, graph, index, array, axis % max(1, array.ndim), sparse)
            if weight.numbers >= least:
                yield weight


def _filled(model: Any, tensor: Any, sparse: Sparse) -> np.ndarray | None:
    """A sparse tensor that `unpack_sparse` made, with its zeros; None of any other."""
    values = np.frombuffer(content(model, tensor), "<f4")
    return sparse.filled(values) if len(values) == len(sparse.places) else None


def store(model: Any, least: int, small: Encode, large: Encode | None = None) -> dict[str, str]:
    """Store weights smaller, in place; name -> type of those that are.

    Args:
        small: what is tried first.
        large: for weights that `small` has no form for, and that no operator reads beside one that it has.
    """
    chosen = [(weight, small(weight)) for weight in weights(model, least)]
    taken = {(id(weight.graph), weight.index) for weight, stored in chosen if stored is not None}
    beside = {
        (id(graph), index)
        for graph in model.subgraphs
        for operator in graph.operators or ()
        for index in _inputs(operator)
        if any((id(graph), other) in taken for other in _inputs(operator))
    }
    made: dict[int, list[Any]] = {}
    kinds: dict[str, str] = {}
    for weight, first in chosen:
        stored = first
        if stored is None and large is not None and (id(weight.graph), weight.index) not in beside:
            stored = large(weight)
        if stored is not None:
            made.setdefault(id(weight.graph), []).extend(_stored(model, weight, stored))
            kinds[weight.name] = stored.type
    for graph in model.subgraphs:
        rebuild = [*made.get(id(graph), ()), *_left_sparse(model, graph)]
        graph.operators = [*rebuild, *(graph.operators or ())]
    return kinds


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
    if array.ndim < 2 or array.shape[weight.channels] * 16 > weight.numbers * 3:
        return None
    others = tuple(axis for axis in range(array.ndim) if axis != weight.channels)
    peaks = np.abs(array).max(axis=others, keepdims=True)
    scales = np.where(peaks > 0, peaks / np.float32(127), np.float32(1)).astype("<f4")
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    small = np.clip(np.rint(array / scales), -127, 127).astype(np.int8)
    return Stored("INT8", small.tobytes(), version=5, scales=scales.ravel(), axis=weight.channels)


def _stored(model: Any, weight: Weight, stored: Stored) -> list[Any]:
    """Add the small tensor; the operators that rebuild the old one from it."""
    old = weight.graph.tensors[weight.index]
    small = _tensor(weight, stored.type, "stored")
    data = stored.data
    if weight.sparse is not None:
        data = np.frombuffer(data, NUMPY_OF_TYPE[stored.type])[weight.sparse.places].tobytes()
    set_content(model, small, data)
    old.buffer, old.sparsity = 0, None
    weight.graph.tensors.append(small)
    operators, last = [], small
    if weight.sparse is not None:
        small.sparsity = weight.sparse.layout
        last = _tensor(weight, stored.type, "dense")
        place = len(weight.graph.tensors)
        operators.append(_operator(model, "DENSIFY", place - 1, place))
        weight.graph.tensors.append(last)
    if stored.scales is not None:
        last.quantization = schema().QuantizationParametersT()
        last.quantization.scale = stored.scales
        last.quantization.zeroPoint = np.zeros(len(stored.scales), np.int64)
        last.quantization.quantizedDimension = stored.axis
    place = len(weight.graph.tensors) - 1
    return [*operators, _operator(model, "DEQUANTIZE", place, weight.index, stored.version)]


def _left_sparse(model: Any, graph: Any) -> Iterator[Any]:
    """What rebuilds the sparse fp32 tensors that were unpacked and did not become smaller."""
    read = {index for operator in graph.operators or () for index in _inputs(operator)}
    rebuilt = {int(o.inputs[0]) for o in graph.operators or () if name_of(model, o) == "DENSIFY"}
    for index in sorted(read - rebuilt):
        tensor = graph.tensors[index]
        if tensor.sparsity is None or type_name(tensor) != "FLOAT32":
            continue
        small = copy(tensor)
        small.name = (tensor.name or b"weight") + b"/sparse"
        tensor.buffer, tensor.sparsity = 0, None
        graph.tensors.append(small)
        yield _operator(model, "DENSIFY", len(graph.tensors) - 1, index)


def _tensor(weight: Weight, kind: str, what: str) -> Any:
    """A tensor of the weight's shape, without content."""
    made = schema().TensorT()
    made.name = (weight.graph.tensors[weight.index].name or b"weight") + f"/{what}".encode()
    made.shape, made.hasRank = np.asarray(weight.array.shape, np.int32), True
    made.type, made.buffer = getattr(schema().TensorType, kind), 0
    return made


def _operator(model: Any, name: str, taken: int, given: int, version: int = 1) -> Any:
    """DENSIFY or DEQUANTIZE of one tensor."""
    kinds = schema()
    options = {"DENSIFY": "DensifyOptions", "DEQUANTIZE": "DequantizeOptions"}[name]
    made = kinds.OperatorT()
    made.opcodeIndex = _code(model, name, version)
    made.inputs, made.outputs = np.array([taken], np.int32), np.array([given], np.int32)
    made.builtinOptionsType = getattr(kinds.BuiltinOptions, options)
    made.builtinOptions = getattr(kinds, f"{options}T")()
    return made


def _code(model: Any, name: str, version: int) -> int:
    """Index of an operator's code, in this or a later version."""
    for index, code in enumerate(model.operatorCodes):
        if operator_name(code) == name:
            code.version = max(code.version, version)
            return index
    kinds = schema()
    code = kinds.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = getattr(kinds.BuiltinOperator, name)
    code.version = version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _inputs(operator: Any) -> list[int]:
    return [index for index in numbers(operator.inputs) if index >= 0]
