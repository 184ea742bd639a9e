"""Write the int8 form of chosen operators into a graph as QuantizeLinear and DequantizeLinear.

Only what the integer kernels need is rounded: the input of every chosen operator, for its own use alone, and
the result of a convolution, for all who read it. Everything else stays as it was. Weights are symmetric int8
per output channel, biases int32 with the product of both scales, as QLinearConv and QGemm take them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .edits import drop_unused
from .encodings import Names
from .quantizable import QdqBase, Quantizable

_TINY: Final = np.float32(1e-30)
_MOST_BIAS: Final = 2.0**30
"""Largest bias in steps: beyond, the channel's weight scale grows, as int32 would overflow."""

Range = tuple[float, float]


class _Writer:
    """Collects the new nodes and initializers of one model."""

    def __init__(self, model: ModelProto, activation: str, weight_limit: int) -> None:
        self.taken = graphs.names_in(model.graph)
        self.names = Names(self.taken)
        self.stored: dict[tuple[str, bytes], str] = {}
        self.activation = np.dtype(activation)
        self.weight_limit = weight_limit
        self.initializers: list[TensorProto] = []
        self.before: dict[str, list[NodeProto]] = {}
        self.after: dict[str, list[NodeProto]] = {}

    def store(self, array: np.ndarray) -> str:
        """The name of a stored array; equal ones are stored once."""
        key = (f"{array.dtype}{array.shape}", array.tobytes())
        if key not in self.stored:
            self.stored[key] = self.names.fresh()
            self.initializers.append(
                numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), self.stored[key])
            )
        return self.stored[key]

    def round_trip(self, bounds: Range, source: str, target: str) -> tuple[list[NodeProto], float]:
        """The pair from `source` to `target`, and its scale."""
        scale, zero = step_of(bounds, self.activation)
        parts = [self.store(scale), self.store(zero)]
        middle = self.names.fresh()
        return [
            onnx.helper.make_node("QuantizeLinear", [source, *parts], [middle]),
            onnx.helper.make_node("DequantizeLinear", [middle, *parts], [target]),
        ], float(scale)

    def constant(self, array: np.ndarray, scale: np.ndarray, axis: int) -> tuple[NodeProto, str]:
        """The zero point is written out, though 0 is the default: without it QGemm is not recognized."""
        target = self.names.fresh()
        inputs = [self.store(array), self.store(scale), self.store(np.zeros(scale.shape, array.dtype))]
        return onnx.helper.make_node("DequantizeLinear", inputs, [target], axis=axis), target


def insert(
    base: QdqBase,
    chosen: Collection[str],
    ranges: Mapping[str, Range],
    activation: str = "uint8",
    reduce_range: bool = False,
) -> ModelProto:
    """A copy of the base in which the operators named in `chosen` are int8.

    Args:
        ranges: low and high of `base.tensors`, as far as the chosen operators need them.
        activation: ``uint8`` or ``int8``.
        reduce_range: weights of 7 bits: x86 without VNNI adds pairs of products in 16 bits that saturate.
    """
    model = ModelProto()
    model.CopyFrom(base.model)
    nodes = {node.name: node for node in model.graph.node}
    makers = {output: node for node in model.graph.node for output in node.output}
    writer = _Writer(model, activation, 63 if reduce_range else 127)
    operators = [op for op in base.quantizable if op.node in set(chosen)]
    scales: dict[str, float] = {}
    rounded: dict[str, str] = {}
    for op in operators:  # results first: whoever reads one reads its rounded form
        if op.result:
            maker = makers[op.result]
            raw = writer.names.fresh()
            maker.output[list(maker.output).index(op.result)] = raw
            pair, scales[op.result] = writer.round_trip(ranges[op.result], raw, op.result)
            writer.after.setdefault(maker.name, []).extend(pair)
            rounded[op.result] = op.result
    weights: dict[tuple[str, int, bytes], str] = {}
    for op in operators:
        before = writer.before.setdefault(op.node, [])
        if op.source not in rounded:
            target = writer.names.fresh()
            pair, scales[op.source] = writer.round_trip(ranges[op.source], op.source, target)
            before.extend(pair)
            rounded[op.source] = target
        node = nodes[op.node]
        node.input[0] = rounded[op.source]
        _write_constants(writer, base, op, node, scales[op.source], weights, before)
    _assemble(model, writer)
    return model


def step_of(bounds: Range, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of an asymmetric range that holds zero."""
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    lowest = int(np.iinfo(dtype).min)
    # Rounded down, so that a range that ends where a Clip does stays inside of it.
    scale = np.nextafter(np.float32((high - low) / 255), np.float32(0)) if high > low else np.float32(1)
    scale = np.maximum(scale, _TINY)
    zero = int(np.clip(np.rint(lowest - low / float(scale)), lowest, lowest + 255))
    return np.asarray(scale, np.float32), np.asarray(zero, dtype)


def quantize_weight(
    array: np.ndarray, axis: int, limit: int, source_scale: float, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 per channel: the integers and their scales, none so small that the bias overflows."""
    others = tuple(index for index in range(array.ndim) if index != axis)
    scale = np.abs(array).max(axis=others).astype(np.float64) / limit
    scale[scale == 0] = 1.0
    if bias is not None:
        scale = np.maximum(scale, np.abs(bias).astype(np.float64) / (source_scale * _MOST_BIAS))
    scale = np.maximum(scale, max(float(_TINY), float(_TINY) / source_scale)).astype(np.float32)
    shape = [-1 if index == axis else 1 for index in range(array.ndim)]
    return np.clip(np.rint(array / scale.reshape(shape)), -limit, limit).astype(np.int8), scale


def _write_constants(
    writer: _Writer,
    base: QdqBase,
    op: Quantizable,
    node: NodeProto,
    source_scale: float,
    weights: dict[tuple[str, int, bytes], str],
    before: list[NodeProto],
) -> None:
    bias = base.weights[op.bias] if op.bias else None
    integers, scale = quantize_weight(
        base.weights[op.weight], op.axis, writer.weight_limit, source_scale, bias
    )
    key = (op.weight, op.axis, scale.tobytes())
    if key not in weights:
        made, weights[key] = writer.constant(integers, scale, op.axis)
        before.append(made)
    node.input[1] = weights[key]
    if bias is not None:
        steps = (scale.astype(np.float64) * source_scale).astype(np.float32)
        rounded = np.rint(bias.astype(np.float64) / steps).astype(np.int32)
        made, node.input[2] = writer.constant(rounded, steps, 0)
        before.append(made)


def _assemble(model: ModelProto, writer: _Writer) -> None:
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        kept = NodeProto()
        kept.CopyFrom(node)
        nodes.extend((*writer.before.get(node.name, ()), kept, *writer.after.get(node.name, ())))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(writer.initializers)
    drop_unused(model.graph)
