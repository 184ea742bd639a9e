"""Which operators of a model can be calculated in int8, on a copy that is ready for it.

onnxruntime's CPU kernels decide what is worth finding: Conv with its Relu or Clip inside (QLinearConv),
MatMul with a constant right side (MatMulIntegerToFloat) and Gemm (QGemm). There is none for ConvTranspose,
nor for 16-bit activations (those run in fp32 between two conversions: worse than leaving the operator alone).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from ..calibrate import TensorRange
from ..normalize import OPSET_PER_CHANNEL
from .affine import fold_affine
from .fold import fold_batch_norms
from .products import plain_products

OPERATORS: Final = ("Conv", "MatMul", "Gemm")
_CONVERSION: Final = 40.0
"""Multiplications that take as long as rounding one number and giving it back."""
_DISPATCH: Final = 100_000.0
"""Likewise for one more node in the graph, about 2 microseconds."""
_COPY: Final = 12.0
"""Output channels that a convolution needs before its gain pays for laying out its windows (im2col)."""
_ELSEWHERE: Final = 20.0
"""Multiplications that the operators around take, per number of a watched activation."""
_INSIDE: Final = ("Relu", "Clip")
"""What onnxruntime removes between a convolution and its rounding, where the range makes it redundant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizable:
    """One operator with a constant fp32 weight."""

    node: str
    operator: str
    source: str
    """Its activation."""
    weight: str
    bias: str
    """Empty if there is none."""
    axis: int
    """Of the weight's output channels."""
    output: str
    """What it writes itself."""
    result: str
    """What must be rounded behind it, its Relu included; empty where the kernel gives fp32."""
    groups: int = 1
    depthwise: bool = False


@dataclass(frozen=True, slots=True)
class QdqBase:
    """A copy of the model that is ready to be quantized, and what can be."""

    model: ModelProto
    quantizable: tuple[Quantizable, ...]
    operators: int
    """Conv, MatMul and Gemm in all graphs."""
    obstacle: str
    """Why nothing can be quantized; empty if something can."""
    folded: int = 0
    """Operators that were folded into convolutions: BatchNormalization, constant factors and terms."""
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The constant weights and biases of `quantizable`."""

    @property
    def tensors(self) -> tuple[str, ...]:
        """Activations that must be calibrated."""
        names = {name for op in self.quantizable for name in (op.source, op.result) if name}
        return tuple(sorted(names))


def prepare(model: ModelProto) -> QdqBase:
    """Find what can be quantized; `model` is copied."""
    base = ModelProto()
    base.CopyFrom(model)
    # Affine first and last: exporters write Conv -> Add -> BatchNormalization as well as the other order.
    folded = fold_affine(base.graph) + fold_batch_norms(base.graph)
    folded += fold_affine(base.graph)
    _name_nodes(base)
    everywhere = sum(node.op_type in OPERATORS for node in graphs.all_nodes(base))
    already = sum(map(graphs.is_quantized_operator, graphs.all_nodes(base)))
    if already:
        return QdqBase(
            base, (), everywhere, f"already quantized ({already} operators); passed through", folded
        )
    opset = graphs.opset_of(base)
    if opset < OPSET_PER_CHANNEL:
        obstacle = (
            f"opset {opset}: per-channel needs {OPSET_PER_CHANNEL} or later, and it could not be raised"
        )
        return QdqBase(base, (), everywhere, obstacle, folded)
    plain_products(base)
    stored = {
        tensor.name: tensor for tensor in base.graph.initializer if tensor.data_type == TensorProto.FLOAT
    }
    readers = _readers(base.graph)
    found = []
    for node in base.graph.node:
        operator = _quantizable(node, stored, readers)
        if operator is not None:
            found.append(operator)
    weights = {
        name: numpy_helper.to_array(stored[name]) for op in found for name in (op.weight, op.bias) if name
    }
    found = [
        op for op in found if all(np.isfinite(weights[name]).all() for name in (op.weight, op.bias) if name)
    ]
    obstacle = "" if found else _why_none(base, everywhere)
    return QdqBase(base, tuple(found), everywhere, obstacle, folded, weights)


def _name_nodes(model: ModelProto) -> None:
    """Operators are known by name; exporters leave names empty or repeat them."""
    seen: set[str] = set()
    for node in model.graph.node:
        node.name = graphs.fresh_name(node.name or node.op_type, seen)


def _readers(graph: GraphProto) -> dict[str, list[NodeProto | None]]:
    """Who reads a value: nodes of this graph; None stands for a subgraph or the model's output."""
    readers: dict[str, list[NodeProto | None]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
        for body in graphs.node_subgraphs(node):
            for name in graphs.names_in(body):
                readers.setdefault(name, []).append(None)
    for value in graph.output:
        readers.setdefault(value.name, []).append(None)
    return readers


def _attribute(node: NodeProto, name: str, default: float) -> float:
    for attribute in node.attribute:
        if attribute.name == name:
            return float(onnx.helper.get_attribute_value(attribute))
    return default


def _quantizable(
    node: NodeProto, stored: Mapping[str, TensorProto], readers: Mapping[str, list[NodeProto | None]]
) -> Quantizable | None:
    if node.op_type not in OPERATORS or node.domain not in graphs.DEFAULT_DOMAINS:
        return None
    source, weight = node.input[:2]
    bias = node.input[2] if len(node.input) > 2 else ""
    if weight not in stored or source in stored or (bias and bias not in stored):
        return None
    dims = list(stored[weight].dims)
    if node.op_type == "Conv":
        result = _behind(node, stored, readers)
        groups = int(_attribute(node, "group", 1))
        return Quantizable(
            node=node.name, operator="Conv", source=source, weight=weight, bias=bias, axis=0,
            output=node.output[0], result=result, groups=groups, depthwise=groups > 1 and dims[1] == 1,
        )  # fmt: skip
    if len(dims) != 2 or not all(dims):
        return None  # a stack of matrices has no kernel with scales per channel
    axis = 0 if node.op_type == "Gemm" and _attribute(node, "transB", 0) else 1
    if bias and list(stored[bias].dims) != [dims[axis]]:
        return None
    return Quantizable(
        node=node.name, operator=node.op_type, source=source, weight=weight, bias=bias, axis=axis,
        output=node.output[0], result="",
    )  # fmt: skip


def _behind(
    node: NodeProto, stored: Mapping[str, TensorProto], readers: Mapping[str, list[NodeProto | None]]
) -> str:
    """The value to round: behind a Relu or Clip that alone reads the convolution, else its own output."""
    own = str(node.output[0])
    users = readers.get(own, [])
    user = users[0] if len(users) == 1 else None
    if user is None or user.op_type not in _INSIDE:
        return own
    if user.op_type == "Clip":
        limits = [name for name in user.input[1:] if name]
        if any(name not in stored for name in limits) or len(user.input) < 2 or not user.input[1]:
            return own
        if float(numpy_helper.to_array(stored[user.input[1]])) != 0:
            return own
    return str(user.output[0])


def _why_none(model: ModelProto, operators: int) -> str:
    if not operators:
        return f"0 operators quantized: the model has no {', '.join(OPERATORS[:-1])} or {OPERATORS[-1]}"
    holders = [
        node.name
        for node in model.graph.node
        if any(
            inner.op_type in OPERATORS
            for body in graphs.node_subgraphs(node)
            for graph in graphs.all_graphs(body)
            for inner in graph.node
        )
    ]
    if holders:
        inside = ", ".join(f"`{name}`" for name in holders[:3])
        return f"0 of {operators} operators quantized: the weights are inside {inside}"
    return f"0 of {operators} operators quantized: none has constant fp32 weights"


def elements_of(ranges: Mapping[str, TensorRange], inferences: int) -> dict[str, float]:
    """Numbers in each watched tensor, per inference."""
    return {
        name: (int(found.counts.sum()) + found.not_finite) / max(inferences, 1)
        for name, found in ranges.items()
    }


def work(base: QdqBase, elements: Mapping[str, float]) -> dict[str, float]:
    """Multiplications of each operator in one inference, from the elements of its activations there."""
    macs = {}
    for op in base.quantizable:
        shape = base.weights[op.weight].shape
        if op.operator == "Conv":
            macs[op.node] = elements.get(op.result, 0.0) * (float(np.prod(shape)) / max(shape[0], 1))
        else:
            macs[op.node] = elements.get(op.source, 0.0) * shape[op.axis]
    return macs


def inference_work(macs: Mapping[str, float], elements: Mapping[str, float]) -> float:
    """What one inference takes, in multiplications: those of `work`, and some per number elsewhere."""
    return sum(macs.values()) + _ELSEWHERE * sum(elements.values())


def profitable(
    base: QdqBase, operators: Sequence[Quantizable], elements: Mapping[str, float]
) -> tuple[Quantizable, ...]:
    """Those of `operators` that save more time in int8 than the conversions at their borders cost.

    Counts instead of times, so that the answer is the same on every host: a conversion of one number costs
    about `_CONVERSION` multiplications, and every operator in the graph about `_DISPATCH`. Where two of them
    are neighbours nothing is converted between them.
    """
    macs = work(base, elements)
    readers = Counter(name for node in base.model.graph.node for name in node.input)
    readers.update(value.name for value in base.model.graph.output)
    # Bodies read from outside too; one more reader is enough to say that somebody else does.
    readers.update(
        name for node in base.model.graph.node for body in graphs.node_subgraphs(node)
        for name in graphs.names_in(body)
    )  # fmt: skip
    chosen = list(operators)
    while True:
        results = {op.result for op in chosen if op.result}
        sources = Counter(op.source for op in chosen)
        kept = []
        for op in chosen:
            cost = 0.0
            if op.source not in results:
                cost += (elements.get(op.source, 0.0) * _CONVERSION + _DISPATCH) / sources[op.source]
            if op.result and sources[op.result] < readers[op.result]:
                cost += elements.get(op.result, 0.0) * _CONVERSION + _DISPATCH
            if macs[op.node] * _gain(base, op) > cost:
                kept.append(op)
        if len(kept) == len(chosen):
            return tuple(kept)
        chosen = kept


def _gain(base: QdqBase, op: Quantizable) -> float:
    """Share of an operator's multiplications that int8 saves, from 0 to 1."""
    if op.operator != "Conv":
        return 1.0
    if op.depthwise:
        return 0.25
    shape = base.weights[op.weight].shape
    if all(size == 1 for size in shape[2:]):
        return 1.0
    return float(max(0.0, 1 - _COPY * op.groups / shape[0]))
