"""Restricted static quantization: Conv, MatMul and Gemm with constant weights, int8 per channel, as QDQ.

onnxruntime's quantizer writes the graph; the ranges are ours (`skerry_packager.calibrate`). Its traps that
are handled here: per-channel below opset 13 writes an invalid graph; per-channel Gemm raises "truth value of
an array is ambiguous" unless the int32 bias is left alone; operators inside subgraphs are silently left out;
a bias shared by several operators is copied under names that may be taken; an activation that was once
infinite gives a range of NaN. Its ``sympy`` and ``onnx-ir`` are undeclared needs of other entry points; this
one is driven directly and needs neither.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from .. import graphs
from ..calibrate import TensorRange
from ..engine import brief
from ..normalize import OPSET_PER_CHANNEL
from .candidate import Candidate, Outcome, Skipped
from .fold import fold_batch_norms
from .storage import shrink_rest

OPERATORS: Final = ("Conv", "MatMul", "Gemm")
_QUANTIZER_ERRORS: Final = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    RuntimeError,
    AssertionError,
)
"""What onnxruntime's quantizer has been seen to raise on models that it does not expect."""


class Ranges(StrEnum):
    """How a histogram becomes a range."""

    MINMAX = "minmax"
    MSE = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class QdqScheme:
    """One way to quantize."""

    name: str
    activation: str
    """``uint8`` or ``int8``."""
    ranges: Ranges


SCHEMES: Final = (
    QdqScheme(name="qdq-u8s8", activation="uint8", ranges=Ranges.MINMAX),
    QdqScheme(name="qdq-s8s8", activation="int8", ranges=Ranges.MINMAX),
    QdqScheme(name="qdq-u8s8-mse", activation="uint8", ranges=Ranges.MSE),
)


@dataclass(frozen=True, slots=True)
class QdqBase:
    """A copy of the model that is ready to be quantized, and what can be."""

    model: ModelProto
    nodes: tuple[str, ...]
    """Names of the operators that have constant weights."""
    tensors: tuple[str, ...]
    """Activations that must be calibrated."""
    operators: int
    """Conv, MatMul and Gemm in all graphs."""
    obstacle: str
    """Why nothing can be quantized; empty if `nodes` is not."""
    folded: int
    """BatchNormalizations that were folded into convolutions."""


def prepare(model: ModelProto) -> QdqBase:
    """Find what can be quantized; `model` is copied."""
    base = ModelProto()
    base.CopyFrom(model)
    folded = fold_batch_norms(base.graph)
    _name_nodes(base)
    everywhere = [node for node in graphs.all_nodes(base) if node.op_type in OPERATORS]
    weights = {tensor.name for tensor in base.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    already = sum(map(graphs.is_quantized_operator, graphs.all_nodes(base)))
    if already:
        return QdqBase(
            base, (), (), len(everywhere), f"already quantized ({already} operators); passed through", folded
        )
    opset = graphs.opset_of(base)
    if opset < OPSET_PER_CHANNEL:
        obstacle = (
            f"opset {opset}: per-channel needs {OPSET_PER_CHANNEL} or later, and it could not be raised"
        )
        return QdqBase(base, (), (), len(everywhere), obstacle, folded)
    chosen = [
        node for node in base.graph.node if node.op_type in OPERATORS and _has_constant_weight(node, weights)
    ]
    _own_biases(base, chosen)
    tensors = {name for node in chosen for name in (*_activations(node, weights), node.output[0])}
    return QdqBase(
        base,
        tuple(node.name for node in chosen),
        tuple(sorted(tensors)),
        len(everywhere),
        "" if chosen else _why_none(base, len(everywhere)),
        folded,
    )


def quantize(base: QdqBase, ranges: Mapping[str, TensorRange], scheme: QdqScheme) -> Outcome:
    """One candidate, or why there is none; whatever fp32 weights remain are stored as int8."""
    recipe = {
        "kind": "qdq", "operators": list(OPERATORS), "activation": scheme.activation, "weight": "int8",
        "per_channel": True, "ranges": scheme.ranges.value, "folded_batch_norms": base.folded,
    }  # fmt: skip
    if base.obstacle:
        return Skipped(name=scheme.name, reason=base.obstacle, recipe=recipe)
    weights = {tensor.name for tensor in base.model.graph.initializer}
    nodes = [node for node in base.model.graph.node if node.name in set(base.nodes)]
    usable = [node for node in nodes if _calibrated(node, weights, ranges)]
    if not usable:
        reason = f"0 of {base.operators} operators quantized: every one sees NaN or infinite values"
        return Skipped(name=scheme.name, reason=reason, recipe=recipe)
    try:
        model = _run_quantizer(base.model, [node.name for node in usable], ranges, scheme)
    except _QUANTIZER_ERRORS as error:
        return Skipped(
            name=scheme.name, reason=f"onnxruntime's quantizer failed: {brief(error)}", recipe=recipe
        )
    quantized = _count_quantized(model, {node.name for node in usable})
    if not quantized:
        reason = f"0 of {base.operators} operators quantized: onnxruntime's quantizer left them all"
        return Skipped(name=scheme.name, reason=reason, recipe=recipe)
    rest = shrink_rest(model)
    data = model.SerializeToString(deterministic=True)
    note = f"{quantized} of {base.operators} operators quantized"
    if len(usable) < len(nodes):
        note += f"; {len(nodes) - len(usable)} left: NaN or infinite values"
    if rest.tensors:
        note += f"; {rest.tensors} other weights stored as int8"
    recipe |= {"quantized": quantized, "stored_int8": rest.tensors}
    return Candidate(name=scheme.name, data=data, recipe=recipe, note=note, quantized_compute=True)


def _name_nodes(model: ModelProto) -> None:
    """The quantizer finds nodes by name; exporters leave names empty or repeat them."""
    seen: set[str] = set()
    for node in model.graph.node:
        node.name = graphs.fresh_name(node.name or node.op_type, seen)


def _own_biases(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """One bias per operator: the quantizer copies shared ones under names that may exist already."""
    taken = graphs.names_in(model.graph)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    owned: set[str] = set()
    for node in nodes:
        if node.op_type == "MatMul" or len(node.input) < 3 or not node.input[2]:
            continue
        if node.input[2] in owned:
            copy = TensorProto()
            copy.CopyFrom(stored[node.input[2]])
            copy.name = node.input[2] = graphs.fresh_name(f"{node.input[2]}_own", taken)
            model.graph.initializer.append(copy)
        owned.add(node.input[2])


def _has_constant_weight(node: NodeProto, weights: set[str]) -> bool:
    if node.op_type == "MatMul":
        return (node.input[0] in weights) != (node.input[1] in weights)
    biased = len(node.input) < 3 or not node.input[2] or node.input[2] in weights
    return node.input[1] in weights and node.input[0] not in weights and biased


def _activations(node: NodeProto, weights: set[str]) -> Iterator[str]:
    return (name for name in node.input[:2] if name not in weights)


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


def _calibrated(node: NodeProto, weights: set[str], ranges: Mapping[str, TensorRange]) -> bool:
    names = (*_activations(node, weights), node.output[0])
    return all(name in ranges and not ranges[name].not_finite for name in names)


def _run_quantizer(
    model: ModelProto, nodes: Sequence[str], ranges: Mapping[str, TensorRange], scheme: QdqScheme
) -> ModelProto:
    bounds = {}
    for name, found in ranges.items():
        low, high = found.min_max() if scheme.ranges is Ranges.MINMAX else found.mse_range()
        bounds[name] = TensorData(lowest=np.array(low, np.float32), highest=np.array(high, np.float32))
    copy = ModelProto()
    copy.CopyFrom(model)
    with _quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=False,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8 if scheme.activation == "uint8" else QuantType.QInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, bounds),
            nodes_to_quantize=list(nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=list(OPERATORS),
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    result: ModelProto = quantizer.model.model
    _tidy(result, model)
    return result


def _tidy(result: ModelProto, source: ModelProto) -> None:
    """Leave no trace of the tool: inferred shapes, unused domains, its own name."""
    del result.graph.value_info[:]
    result.graph.value_info.extend(source.graph.value_info)
    used = {node.domain or "ai.onnx" for node in graphs.all_nodes(result)} | {"ai.onnx"}
    imports = [entry for entry in result.opset_import if (entry.domain or "ai.onnx") in used]
    kept = {entry.domain or "ai.onnx": entry.version for entry in imports}
    del result.opset_import[:]
    result.opset_import.extend(
        onnx.helper.make_opsetid("" if domain == "ai.onnx" else domain, version)
        for domain, version in kept.items()
    )
    result.producer_name, result.producer_version = source.producer_name, source.producer_version
    result.ir_version = source.ir_version
    del result.metadata_props[:]
    result.metadata_props.extend(source.metadata_props)


def _count_quantized(model: ModelProto, names: set[str]) -> int:
    dequantized = {
        output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output
    }
    return sum(
        node.input[0] in dequantized and node.input[1] in dequantized
        for node in model.graph.node
        if node.name in names and node.op_type in OPERATORS
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer logs advice on the root logger that does not apply here."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        root.setLevel(before)
