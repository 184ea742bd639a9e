"""Matrix products in the form that has an int8 kernel: Gemm without factors, its bias a vector.

QGemm takes neither beta nor a matrix to add. And ``MatMul -> Add`` of a vector must become Gemm *before* it
is quantized: the engine does the same when it loads the model, but on integers it would leave the bias in
fp32, and run the product in fp32 too, between conversions.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .edits import attributes_of, drop_unused


def plain_products(model: ModelProto) -> None:
    """Rewrite those of the top-level graph whose constants allow it, in place."""
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    taken = graphs.names_in(graph)
    _add_biases(model, stored, taken)
    for node in graph.node:
        if node.op_type == "Gemm" and node.domain in graphs.DEFAULT_DOMAINS:
            _plain_gemm(graph, node, stored, taken)
    drop_unused(graph)


def _add_biases(model: ModelProto, stored: dict[str, TensorProto], taken: set[str]) -> None:
    graph = model.graph
    uses = Counter(name for inner in graphs.all_graphs(graph) for node in inner.node for name in node.input)
    uses.update(value.name for inner in graphs.all_graphs(graph) for value in inner.output)
    products = {
        node.output[0]: node
        for node in graph.node
        if node.op_type == "MatMul"
        and node.domain in graphs.DEFAULT_DOMAINS
        and node.input[1] in stored
        and len(stored[node.input[1]].dims) == 2
        and uses[node.output[0]] == 1
    }
    if not products:
        return
    matrices = _matrices(model)
    gone: list[int] = []
    for index, node in enumerate(graph.node):
        if node.op_type != "Add" or node.domain not in graphs.DEFAULT_DOMAINS:
            continue
        product = next((products[name] for name in node.input if name in products), None)
        bias = next((name for name in node.input if name in stored), "")
        if product is None or not bias or product.output[0] not in matrices:
            continue
        columns = stored[product.input[1]].dims[1]
        array = numpy_helper.to_array(stored[bias])
        if array.ndim > 2 or array.size != columns or (array.ndim == 2 and array.shape[0] != 1):
            continue
        product.op_type = "Gemm"
        product.input.append(_store(graph, array.reshape(-1), bias, stored, taken))
        product.output[0] = node.output[0]
        gone.append(index)
    for index in reversed(gone):
        del graph.node[index]


def _matrices(model: ModelProto) -> set[str]:
    """Values that are known to have two dimensions."""
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        value.name
        for value in (*inferred.graph.value_info, *inferred.graph.output)
        if value.type.tensor_type.HasField("shape") and len(value.type.tensor_type.shape.dim) == 2
    }


def _plain_gemm(graph: GraphProto, node: NodeProto, stored: dict[str, TensorProto], taken: set[str]) -> None:
    attributes = attributes_of(node)
    biased = len(node.input) > 2 and bool(node.input[2])
    if node.input[1] not in stored or (biased and node.input[2] not in stored):
        return
    weight = numpy_helper.to_array(stored[node.input[1]])
    if (alpha := float(attributes.pop("alpha", 1.0))) != 1:
        node.input[1] = _store(graph, weight * np.float32(alpha), node.input[1], stored, taken)
    beta = float(attributes.pop("beta", 1.0))
    if biased:
        bias = numpy_helper.to_array(stored[node.input[2]])
        columns = weight.shape[0 if attributes.get("transB", 0) else 1]
        vector = bias.reshape(-1) if bias.ndim < 2 or bias.shape[0] == 1 else bias
        if vector.size == 1:
            vector = np.full(columns, vector.reshape(-1)[0], dtype=np.float32)
        if beta != 1 or vector.shape != bias.shape:
            node.input[2] = _store(graph, vector * np.float32(beta), node.input[2], stored, taken)
    for index in reversed(range(len(node.attribute))):
        if node.attribute[index].name not in attributes:
            del node.attribute[index]


def _store(
    graph: GraphProto, array: np.ndarray, name: str, stored: dict[str, TensorProto], taken: set[str]
) -> str:
    fresh = graphs.fresh_name(f"{name}_plain", taken)
    stored[fresh] = numpy_helper.from_array(np.ascontiguousarray(array, np.float32), fresh)
    graph.initializer.append(stored[fresh])
    return fresh
