"""Weights in four bits that stay so in memory: MatMulNBits and GatherBlockQuantized of onnxruntime.

Blocks of 32 along the summed axis, each with a scale of its own (GPTQ's and llama.cpp's layout, rounding to
nearest). Only matrix products and embeddings have such operators; what remains is stored as int8.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .candidate import Candidate, Outcome, Skipped
from .dynamic import product_obstacle
from .edits import attributes_of, drop_unused, import_domain
from .encodings import INT4_BLOCK, Names, int4_blocks
from .storage import INT4_STORE, shrink_rest

INT4_WEIGHTS: Final = "int4-weights"
MIN_ELEMENTS: Final = 16_384
"""Of a weight: below, int8 storage costs nothing at run time and loses less."""
_DOMAIN: Final = "com.microsoft"
_INT8_COMPUTE: Final = 4
"""``accuracy_level``: activations in int8 per block, the fast kernels of every processor."""


def int4_weights(model: ModelProto) -> Outcome:
    """The model with its large matrices in int4, or why there is nothing to gain."""
    recipe: dict[str, Any] = {"kind": INT4_WEIGHTS, "block": INT4_BLOCK, "min_elements": MIN_ELEMENTS}
    already = sum(map(graphs.is_quantized_operator, graphs.all_nodes(model)))
    if already:
        return Skipped(
            name=INT4_WEIGHTS,
            reason=f"already quantized ({already} operators); passed through",
            recipe=recipe,
        )
    small = ModelProto()
    small.CopyFrom(model)
    names = Names(graphs.names_in(small.graph))
    done: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for graph, weights in list(graphs.scopes(small.graph)):
        _rewrite_graph(graph, weights, names, done, left)
    total = sum(done.values())
    if not total:
        why = "; ".join(f"{count} {reason}" for reason, count in sorted(left.items()))
        return Skipped(
            name=INT4_WEIGHTS,
            reason=f"0 of {sum(left.values())} matrix operators in int4"
            + (f": {why}" if why else ": the model has no MatMul, Gemm or embedding")
            + f"; used {INT4_STORE} instead",
            recipe=recipe,
        )
    import_domain(small, _DOMAIN, 1)
    drop_unused(small.graph)
    rest = shrink_rest(small)
    data = small.SerializeToString(deterministic=True)
    kinds = ", ".join(f"{count} {operator}" for operator, count in sorted(done.items()))
    note = f"{total} of {total + sum(left.values())} matrix operators in int4 ({kinds})"
    if rest.tensors:
        note += f"; {rest.tensors} other weights stored smaller"
    recipe |= {"quantized": dict(sorted(done.items())), "stored": rest.tensors}
    return Candidate(name=INT4_WEIGHTS, data=data, recipe=recipe, note=note, quantized_compute=True)


def _rewrite_graph(
    graph: GraphProto,
    weights: dict[str, TensorProto],
    names: Names,
    done: Counter[str],
    left: Counter[str],
) -> None:
    known: dict[tuple[str, str], tuple[str, ...]] = {}
    position = 0
    while position < len(graph.node):
        node = graph.node[position]
        position += 1
        if node.domain not in graphs.DEFAULT_DOMAINS or node.op_type not in ("MatMul", "Gemm", "Gather"):
            continue
        if node.op_type == "Gather":
            if _is_embedding(node, weights):
                _quantize_gather(graph, node, weights, names, known)
                done["Gather"] += 1
            continue
        obstacle = product_obstacle(node, weights, MIN_ELEMENTS)
        if obstacle:
            left[obstacle] += 1
            continue
        nodes = _quantize_product(graph, node, weights, names, known)
        done[node.op_type] += 1
        del graph.node[position - 1]
        for new in reversed(nodes):
            graph.node.insert(position - 1, new)
        position += len(nodes) - 1


def _is_embedding(node: NodeProto, weights: dict[str, TensorProto]) -> bool:
    table = weights.get(node.input[0])
    return (
        table is not None
        and table.data_type == TensorProto.FLOAT
        and len(table.dims) == 2
        and math.prod(table.dims) >= MIN_ELEMENTS
        and table.dims[1] % INT4_BLOCK == 0
        and attributes_of(node).get("axis", 0) == 0
        and node.input[1] not in weights
        and bool(np.isfinite(graphs.array_of(table)).all())
    )


def _quantize_product(
    graph: GraphProto,
    node: NodeProto,
    weights: dict[str, TensorProto],
    names: Names,
    known: dict[tuple[str, str], tuple[str, ...]],
) -> list[NodeProto]:
    options = attributes_of(node)
    matrix = graphs.array_of(weights[node.input[1]])
    if options.get("transB", 0):
        matrix = matrix.T
    matrix = matrix * np.float32(options.get("alpha", 1.0))
    rows, columns = matrix.shape
    key = (node.input[1], f"{node.op_type} {options.get('transB', 0)} {options.get('alpha', 1.0)}")
    if key not in known:
        known[key] = _keep(graph, names, *_pack(matrix.T))
    product = onnx.helper.make_node(
        "MatMulNBits",
        [node.input[0], *known[key]],
        [node.output[0]],
        node.name or names.fresh(),
        domain=_DOMAIN,
        K=rows,
        N=columns,
        bits=4,
        block_size=INT4_BLOCK,
        accuracy_level=_INT8_COMPUTE,
    )
    beta = options.get("beta", 1.0)
    if node.op_type == "MatMul" or len(node.input) < 3 or not node.input[2] or not beta:
        return [product]
    product.output[0] = names.fresh()
    nodes, bias = [product], node.input[2]
    if beta != 1.0:
        [factor] = _keep(graph, names, np.array(beta, np.float32))
        scaled = names.fresh()
        nodes.append(onnx.helper.make_node("Mul", [bias, factor], [scaled], names.fresh()))
        bias = scaled
    nodes.append(onnx.helper.make_node("Add", [product.output[0], bias], [node.output[0]], names.fresh()))
    return nodes


def _keep(graph: GraphProto, names: Names, *arrays: np.ndarray) -> tuple[str, ...]:
    kept = []
    for array in arrays:
        kept.append(names.fresh())
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), kept[-1]))
    return tuple(kept)


def _pack(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lines ``[N, K]`` as bytes ``[N, blocks, 16]``, low half first, and fp32 scales ``[N, blocks]``."""
    short = -lines.shape[1] % INT4_BLOCK
    numbers, scale = int4_blocks(np.pad(lines, ((0, 0), (0, short))))
    shifted = (numbers + 8).astype(np.uint8)
    return shifted[..., 0::2] | shifted[..., 1::2] << 4, scale[..., 0].astype(np.float32)


def _quantize_gather(
    graph: GraphProto,
    node: NodeProto,
    weights: dict[str, TensorProto],
    names: Names,
    known: dict[tuple[str, str], tuple[str, ...]],
) -> None:
    """In place: an embedding of which each row is rebuilt when it is looked up."""
    key = (node.input[0], "Gather")
    if key not in known:
        packed, scale = _pack(graphs.array_of(weights[node.input[0]]))
        known[key] = _keep(graph, names, packed.reshape(packed.shape[0], -1), scale)
    table, scales = known[key]
    indices = node.input[1]
    replaced = onnx.helper.make_node(
        "GatherBlockQuantized",
        [table, indices, scales],
        list(node.output),
        node.name or names.fresh(),
        domain=_DOMAIN,
        bits=4,
        block_size=INT4_BLOCK,
        gather_axis=0,
        quantize_axis=1,
    )
    node.CopyFrom(replaced)
