"""Fold constant factors and terms behind a convolution into it, as the engine does when it loads fp32.

In a quantized graph the engine cannot: the weights are integers then, and every factor would be a pass over
the data in fp32, between two roundings. Exporters write such chains (``Conv -> Mul -> Add`` in PP-OCRv4).
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .edits import drop_unused

_OPERATORS: Final = ("Mul", "Div", "Add", "Sub")


def fold_affine(graph: GraphProto) -> int:
    """Fold in place, in this graph alone; how many operators went away."""
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    uses = Counter(name for inner in graphs.all_graphs(graph) for node in inner.node for name in node.input)
    uses.update(value.name for inner in graphs.all_graphs(graph) for value in inner.output)
    convolutions: dict[str, NodeProto] = {}
    taken = graphs.names_in(graph)
    gone: list[int] = []
    for index, node in enumerate(graph.node):
        if node.op_type == "Conv" and all(name in stored for name in node.input[1:] if name):
            convolutions[node.output[0]] = node
        found = _operands(node, convolutions, stored)
        if found is None or uses[found[0].output[0]] != 1:
            continue
        convolution, constant = found
        kernel = numpy_helper.to_array(stored[convolution.input[1]]).astype(np.float64)
        vector = _per_channel(numpy_helper.to_array(stored[constant]), kernel.shape)
        if vector is None or (node.op_type == "Div" and not vector.all()):
            continue
        biased = len(convolution.input) > 2 and bool(convolution.input[2])
        bias = numpy_helper.to_array(stored[convolution.input[2]]) if biased else np.zeros(kernel.shape[0])
        kernel, bias = _folded(node.op_type, kernel, bias.astype(np.float64), vector)
        names = []
        for array, part in ((kernel, "folded"), (bias, "bias")):
            name = graphs.fresh_name(f"{convolution.input[1]}_{part}", taken)
            stored[name] = numpy_helper.from_array(array.astype(np.float32), name)
            graph.initializer.append(stored[name])
            names.append(name)
        inputs = [convolution.input[0], *names]
        del convolution.input[:]
        convolution.input.extend(inputs)
        convolution.output[0] = node.output[0]
        convolutions[node.output[0]] = convolution
        gone.append(index)
    for index in reversed(gone):
        del graph.node[index]
    if gone:
        drop_unused(graph)
    return len(gone)


def _operands(
    node: NodeProto, convolutions: dict[str, NodeProto], stored: dict[str, TensorProto]
) -> tuple[NodeProto, str] | None:
    """The convolution and the name of the constant that `node` combines."""
    if node.op_type not in _OPERATORS or node.domain not in graphs.DEFAULT_DOMAINS:
        return None
    first, second = node.input
    if first in convolutions and second in stored:
        return convolutions[first], second
    if second in convolutions and first in stored and node.op_type in ("Mul", "Add"):
        return convolutions[second], first
    return None


def _per_channel(constant: np.ndarray, kernel: tuple[int, ...]) -> np.ndarray | None:
    """One number per output channel; None if the constant differs within a channel or adds axes."""
    if constant.ndim > len(kernel):
        return None
    if constant.size == 1:
        return np.full(kernel[0], float(constant.reshape(-1)[0]))
    shape = (1,) * (len(kernel) - constant.ndim) + constant.shape
    if shape[1] != kernel[0] or constant.size != kernel[0]:
        return None
    return constant.reshape(-1).astype(np.float64)


def _folded(
    operator: str, kernel: np.ndarray, bias: np.ndarray, vector: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    if operator in ("Add", "Sub"):
        return kernel, bias + (vector if operator == "Add" else -vector)
    factor = vector if operator == "Mul" else 1 / vector
    return kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1)), bias * factor
