"""Fold BatchNormalization into the convolution before it, so that quantization sees one operator.

Standard inference-time identity: with s = scale / sqrt(var + epsilon), W' = W s and b' = (b - mean) s + bias.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, numpy_helper

from .. import graphs
from .edits import drop_unused

_EPSILON: Final = 1e-5


def fold_batch_norms(graph: GraphProto) -> int:
    """Fold in place, in this graph alone; how many were folded."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    uses = Counter(name for inner in graphs.all_graphs(graph) for node in inner.node for name in node.input)
    uses.update(value.name for value in graph.output)
    convolutions = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    taken = graphs.names_in(graph)
    gone: list[NodeProto] = []
    for node in graph.node:
        convolution = convolutions.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if (
            convolution is None
            or uses[convolution.output[0]] != 1
            or not _is_constant(node, convolution, weights)
        ):
            continue
        scale, bias, mean, variance = (
            numpy_helper.to_array(weights[name]).astype(np.float64) for name in node.input[1:5]
        )
        epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), _EPSILON)
        factor = scale / np.sqrt(variance + epsilon)
        kernel = numpy_helper.to_array(weights[convolution.input[1]]).astype(np.float64)
        old = numpy_helper.to_array(weights[convolution.input[2]]) if len(convolution.input) == 3 else 0.0
        kernel = (kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))).astype(np.float32)
        shift = ((old - mean) * factor + bias).astype(np.float32)
        names = [graphs.fresh_name(f"{convolution.input[1]}_{part}", taken) for part in ("folded", "bias")]
        graph.initializer.append(numpy_helper.from_array(kernel, names[0]))
        graph.initializer.append(numpy_helper.from_array(shift, names[1]))
        inputs = [convolution.input[0], *names]
        del convolution.input[:]
        convolution.input.extend(inputs)
        convolution.output[0] = node.output[0]
        gone.append(node)
    for node in gone:
        graph.node.remove(node)
    drop_unused(graph)
    return len(gone)


def _is_constant(node: NodeProto, convolution: NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    needed = [*node.input[1:5], *convolution.input[1:3]]
    return not training and len(node.output) == 1 and all(
        name in weights and weights[name].data_type == onnx.TensorProto.FLOAT for name in needed
    )  # fmt: skip
