"""Fold what only depends on constants, where that does not grow the file. In place.

Exporters assemble weights from pieces (Unsqueeze, Concat, Transpose); whoever looks for "a constant weight"
then finds none. Only operators whose result is bounded by their inputs are folded, each run in the engine
itself, and only if the result is no larger than the constants that go. (``quant_pre_process`` of onnxruntime
folds without a bound, and grew one model 8 times.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from skerry_contract.errors import ModelError

from . import graphs
from .engine import Session

MOST_FOLDED: Final = 2_000
"""Nodes; each costs about a millisecond."""
SMALL_BYTES: Final = 64
"""A constant up to this size binds no nodes that share it together."""
HEADER_BYTES: Final = 16
"""Of a stored tensor: its name, type and shape."""
MOST_BYTES: Final = 1 << 28
"""No larger result is computed at all."""
_MOVES: Final = frozenset(
    {"Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Transpose", "Concat", "Slice", "Cast"}
)
_ELEMENTWISE: Final = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Pow", "Exp"})


def fold_constants(model: ModelProto) -> int:
    """Fold in every graph; how many nodes went.

    Nodes that share a large constant, or feed each other, fold together or not at all: four slices of one
    weight and the Concat that puts them in another order are worth it, one slice that is kept beside the
    weight is not.
    """
    uses = Counter(
        name for graph in graphs.all_graphs(model.graph) for node in graph.node for name in node.input
    )
    uses.update(value.name for graph in graphs.all_graphs(model.graph) for value in graph.output)
    folded = 0
    for graph, seen in list(graphs.scopes(model.graph)):
        tried = _try_all(model, graph, seen, MOST_FOLDED - folded)
        gone: list[int] = []
        for group in _groups(graph, tried, seen):
            gone += _fold_group(graph, group, tried, seen, uses)
        for index in sorted(gone, reverse=True):
            del graph.node[index]
        folded += len(gone)
    if folded:
        drop_unread(model.graph, uses)
    return folded


def _try_all(
    model: ModelProto, graph: GraphProto, seen: Mapping[str, TensorProto], most: int
) -> dict[int, np.ndarray]:
    """Position of a node -> its constant result."""
    constants = dict(seen)
    results: dict[int, np.ndarray] = {}
    left = MOST_BYTES
    for index, node in enumerate(graph.node):
        if len(results) >= most:
            break
        if not _is_foldable(node, constants):
            continue
        result = _run(model, node, constants)
        if result is None or result.nbytes > left:
            continue
        left -= result.nbytes
        results[index] = result
        constants[node.output[0]] = numpy_helper.from_array(result, node.output[0])
    return results


def _groups(
    graph: GraphProto, tried: Mapping[int, np.ndarray], seen: Mapping[str, TensorProto]
) -> list[list[int]]:
    """Positions in `tried` that belong together, in the order of the graph."""
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    for index in tried:
        node = graph.node[index]
        for name in node.input:
            if name and not (name in seen and _bytes(seen[name]) <= SMALL_BYTES):
                leader[find(name)] = find(node.output[0])
    groups: dict[str, list[int]] = {}
    for index in tried:
        groups.setdefault(find(graph.node[index].output[0]), []).append(index)
    return list(groups.values())


def _fold_group(
    graph: GraphProto,
    group: Sequence[int],
    tried: Mapping[int, np.ndarray],
    seen: Mapping[str, TensorProto],
    uses: Counter[str],
) -> Sequence[int]:
    """Store what others read of the group's results; the positions of the nodes that may go."""
    within = Counter(name for index in group for name in graph.node[index].input)
    kept = {
        graph.node[index].output[0]: tried[index]
        for index in group
        if uses[graph.node[index].output[0]] > within[graph.node[index].output[0]]
    }
    freed = sum(_bytes(seen[name]) for name in within if name in seen and uses[name] == within[name])
    written = sum(graph.node[index].ByteSize() for index in group)
    if sum(array.nbytes + HEADER_BYTES for array in kept.values()) > freed + written:
        return []
    outputs = {value.name for value in graph.output}
    if not outputs.isdisjoint(kept):  # some engines refuse an initializer as an output
        return []
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in kept.items())
    uses.subtract(within)
    return group


def _is_foldable(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    if node.domain not in graphs.DEFAULT_DOMAINS or node.op_type not in _MOVES | _ELEMENTWISE:
        return False
    if len(node.output) != 1 or not node.input or not all(name in constants for name in node.input if name):
        return False
    tensors = [constants[name] for name in node.input if name]
    if any(tensor.data_type == TensorProto.STRING for tensor in tensors):
        return False
    if node.op_type in _MOVES:
        return sum(_bytes(tensor) for tensor in tensors) <= MOST_BYTES
    try:
        shape = np.broadcast_shapes(*(tuple(tensor.dims) for tensor in tensors))
    except ValueError:
        return False
    return math.prod(shape) * 8 <= MOST_BYTES


def _bytes(tensor: TensorProto) -> int:
    size = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(math.prod(tensor.dims) * size)


def _run(model: ModelProto, node: NodeProto, constants: Mapping[str, TensorProto]) -> np.ndarray | None:
    """The node's result by the engine; None if the engine cannot compute it alone."""
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [],
        [onnx.helper.make_empty_tensor_value_info(node.output[0])],
        [constants[name] for name in dict.fromkeys(node.input) if name],
    )
    alone = onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4)
    )
    try:
        [result] = Session(alone.SerializeToString()).run({})
    except ModelError:
        return None
    return result


def drop_unread(root: GraphProto, uses: Counter[str]) -> None:
    """Remove the initializers of which `uses` says that nothing reads them any more."""
    for graph in graphs.all_graphs(root):
        for index in reversed(range(len(graph.initializer))):
            name = graph.initializer[index].name
            if name in uses and uses[name] <= 0:
                del graph.initializer[index]
