"""Walking ONNX graphs: every node, tensor and subgraph of a model, in a fixed order. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

DEFAULT_DOMAINS: Final = ("", "ai.onnx")
QUANTIZED_OPS: Final = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger",
        "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
        "DynamicQuantizeLSTM",
    }
)  # fmt: skip


def subgraphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The bodies directly inside `graph`."""
    for node in graph.node:
        yield from node_subgraphs(node)


def node_subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The bodies of one node."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """`graph` and every body below it, outermost first."""
    yield graph
    for inner in subgraphs(graph):
        yield from all_graphs(inner)


def scopes(
    graph: GraphProto, around: Mapping[str, TensorProto] | None = None
) -> Iterator[tuple[GraphProto, dict[str, TensorProto]]]:
    """As `all_graphs`, each with the initializers that its nodes see: its own and those around it."""
    seen = {**(around or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    yield graph, seen
    for inner in subgraphs(graph):
        yield from scopes(inner, seen)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Every node, subgraphs and local functions included."""
    for graph in all_graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        for node in function.node:
            yield node
            for inner in node_subgraphs(node):
                for graph in all_graphs(inner):
                    yield from graph.node


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers, sparse ones, and tensors in attributes, wherever they are."""
    for graph in all_graphs(model.graph):
        yield from _graph_tensors(graph)
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
            elif attribute.type == AttributeProto.SPARSE_TENSOR:
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            elif attribute.type == AttributeProto.SPARSE_TENSORS:
                for sparse in attribute.sparse_tensors:
                    yield from (sparse.values, sparse.indices)
    for function in model.functions:
        for node in function.node:
            for inner in node_subgraphs(node):
                for graph in all_graphs(inner):
                    yield from _graph_tensors(graph)
    for training in model.training_info:
        for root in (training.initialization, training.algorithm):
            for graph in all_graphs(root):
                yield from _graph_tensors(graph)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)


def depth(graph: GraphProto, most: int) -> int:
    """How deep bodies nest (0: none); stops counting above `most`."""
    if most < 0:
        return 0
    return max((1 + depth(inner, most - 1) for inner in subgraphs(graph)), default=0)


def operator_name(node: NodeProto) -> str:
    """``Conv``, or ``com.microsoft:FusedConv`` outside the default domain."""
    return node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}:{node.op_type}"


def is_quantized_operator(node: NodeProto) -> bool:
    """Also true for onnxruntime's own integer operators (``com.microsoft:QAttention`` and the like)."""
    ours = node.domain == "com.microsoft" and node.op_type[:1] == "Q" and node.op_type[1:2].isupper()
    return ours or node.op_type in QUANTIZED_OPS or node.op_type.startswith("QLinear")


def opset_of(model: ModelProto) -> int:
    """Version of the default domain; 0 if it is not imported."""
    return max((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)


def real_inputs(graph: GraphProto) -> list[onnx.ValueInfoProto]:
    """Inputs that a caller must feed: those without an initializer."""
    stored = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in stored]


def array_of(tensor: TensorProto) -> np.ndarray:
    """The tensor as an array; external data must be inside already."""
    return onnx.numpy_helper.to_array(tensor)


def names_in(graph: GraphProto) -> set[str]:
    """Every value and node name in the graph and its bodies: what a new name must avoid."""
    names: set[str] = set()
    for inner in all_graphs(graph):
        names.update(value.name for value in (*inner.input, *inner.output, *inner.value_info))
        names.update(tensor.name for tensor in inner.initializer)
        for node in inner.node:
            names.add(node.name)
            names.update(node.input)
            names.update(node.output)
    return names


def fresh_name(base: str, taken: set[str]) -> str:
    """`base`, or `base` with a number, not in `taken`; it is added there."""
    name, number = base, 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name
