"""Dynamic quantization of matrix products: int8 weights per column, activations quantized as they come.

MatMul and Gemm with constant weights become DynamicQuantizeLinear, MatMulInteger, Cast and Mul, which
onnxruntime fuses; an LSTM becomes its DynamicQuantizeLSTM. Convolutions are left alone: ConvInteger does not
load on onnxruntime 1.23 and is 3 to 5 times slower than fp32. It needs no calibration, and reaches into the
bodies of If, Loop and Scan. What remains of the weights is stored as int8.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .candidate import Candidate, Outcome, Skipped
from .edits import attributes_of, drop_unused, import_domain
from .encodings import Names
from .storage import INT8_STORE, shrink_rest

INT8_DYNAMIC: Final = "int8-dynamic"
MIN_ELEMENTS: Final = 1024
"""Of a weight: below, quantizing the activation costs more than the product saves."""
OPSET_DYNAMIC: Final = 11
"""Lowest opset with DynamicQuantizeLinear."""
_LSTM_DEFAULTS: Final = frozenset({"direction", "hidden_size"})
_LSTM_INPUTS: Final = 8


@dataclass(slots=True)
class _Rewrite:
    """One pass over a model."""

    names: Names
    done: Counter[str] = field(default_factory=Counter)
    products: int = 0
    """MatMul, Gemm and LSTM seen."""
    inside: int = 0
    left: Counter[str] = field(default_factory=Counter)


def int8_dynamic(model: ModelProto) -> Outcome:
    """The model with its large matrix products in int8, or why there is nothing to gain."""
    name = INT8_DYNAMIC
    recipe: dict[str, Any] = {
        "kind": name,
        "weight": "int8",
        "per_channel": True,
        "min_elements": MIN_ELEMENTS,
    }
    already = sum(map(graphs.is_quantized_operator, graphs.all_nodes(model)))
    if already:
        return Skipped(
            name=name, reason=f"already quantized ({already} operators); passed through", recipe=recipe
        )
    opset = graphs.opset_of(model)
    if opset < OPSET_DYNAMIC:
        return Skipped(
            name=name,
            reason=f"opset {opset}: DynamicQuantizeLinear needs {OPSET_DYNAMIC} or later",
            recipe=recipe,
        )
    small = ModelProto()
    small.CopyFrom(model)
    rewrite = _Rewrite(Names(graphs.names_in(small.graph)))
    for number, (graph, weights) in enumerate(list(graphs.scopes(small.graph))):
        _rewrite_graph(graph, weights, rewrite, inside=number > 0)
    total = sum(rewrite.done.values())
    if not total:
        return Skipped(name=name, reason=_why_none(rewrite), recipe=recipe)
    if rewrite.done["LSTM"]:
        import_domain(small, "com.microsoft", 1)
    drop_unused(small.graph)
    rest = shrink_rest(small)
    data = small.SerializeToString(deterministic=True)
    kinds = ", ".join(f"{count} {operator}" for operator, count in sorted(rewrite.done.items()))
    note = f"{total} of {rewrite.products} matrix operators quantized ({kinds})"
    if rewrite.inside:
        note += f", {rewrite.inside} of them inside subgraphs"
    if rest.tensors:
        note += f"; {rest.tensors} other weights stored smaller"
    recipe |= {"quantized": dict(sorted(rewrite.done.items())), "stored": rest.tensors}
    return Candidate(name=name, data=data, recipe=recipe, note=note, quantized_compute=True)


def _why_none(rewrite: _Rewrite) -> str:
    if not rewrite.products:
        return f"0 operators quantized: the model has no MatMul, Gemm or LSTM; used {INT8_STORE} instead"
    why = "; ".join(f"{count} {reason}" for reason, count in sorted(rewrite.left.items()))
    return f"0 of {rewrite.products} operators quantized: {why}; used {INT8_STORE} instead"


def _rewrite_graph(
    graph: GraphProto, weights: dict[str, TensorProto], rewrite: _Rewrite, *, inside: bool
) -> None:
    quantized_inputs: dict[str, tuple[str, str, str]] = {}
    quantized_weights: dict[tuple[str, bool, float], tuple[str, str, str]] = {}
    position = 0
    while position < len(graph.node):
        node = graph.node[position]
        if node.op_type not in ("MatMul", "Gemm", "LSTM") or node.domain not in graphs.DEFAULT_DOMAINS:
            position += 1
            continue
        rewrite.products += 1
        operator = node.op_type
        obstacle = (
            _lstm_obstacle(node, weights)
            if operator == "LSTM"
            else product_obstacle(node, weights, MIN_ELEMENTS)
        )
        if obstacle:
            rewrite.left[obstacle] += 1
            position += 1
            continue
        if operator == "LSTM":
            _quantize_lstm(graph, node, weights, rewrite.names)
            position += 1
        else:
            nodes = _quantize_product(
                graph, node, weights, rewrite.names, quantized_inputs, quantized_weights
            )
            del graph.node[position]
            for new in nodes:
                graph.node.insert(position, new)
                position += 1
        rewrite.done[operator] += 1
        rewrite.inside += inside


def product_obstacle(node: NodeProto, weights: dict[str, TensorProto], least: int) -> str:
    """Why a MatMul or Gemm stays as it is; empty if it need not."""
    weight = weights.get(node.input[1])
    if weight is None or node.input[0] in weights:
        return "without a constant weight on the right"
    if weight.data_type != TensorProto.FLOAT:
        return "with a weight that is no fp32"
    if len(weight.dims) != 2:
        return "with a weight of more or less than two dimensions"
    if math.prod(weight.dims) < least:
        return f"with a weight of fewer than {least} numbers"
    if node.op_type == "Gemm" and attributes_of(node).get("transA", 0):
        return "with a transposed activation"
    if not np.isfinite(graphs.array_of(weight)).all():
        return "with a weight that is not finite"
    return ""


def _quantize_product(
    graph: GraphProto,
    node: NodeProto,
    weights: dict[str, TensorProto],
    names: Names,
    inputs: dict[str, tuple[str, str, str]],
    known: dict[tuple[str, bool, float], tuple[str, str, str]],
) -> list[NodeProto]:
    """The nodes that stand for a MatMul or a Gemm; each activation and weight is quantized once."""
    options = attributes_of(node)
    nodes: list[NodeProto] = []

    def add(operator: str, sources: list[str], outputs: int = 1, **attributes: Any) -> list[str]:
        results = [names.fresh() for _ in range(outputs)]
        nodes.append(onnx.helper.make_node(operator, sources, results, names.fresh(), **attributes))
        return results

    source = node.input[0]
    if source not in inputs:
        number, scale, zero = add("DynamicQuantizeLinear", [source], 3)
        inputs[source] = number, scale, zero
    number, scale, zero = inputs[source]
    key = (node.input[1], bool(options.get("transB", 0)), float(options.get("alpha", 1.0)))
    if key not in known:
        matrix = graphs.array_of(weights[node.input[1]])
        if key[1]:
            matrix = matrix.T
        known[key] = _store_columns(graph, matrix * np.float32(key[2]), names)
    weight, weight_scale, weight_zero = known[key]
    [wide] = add("MatMulInteger", [number, weight, zero, weight_zero])
    [cast] = add("Cast", [wide], to=TensorProto.FLOAT)
    [scales] = add("Mul", [scale, weight_scale])
    [result] = add("Mul", [cast, scales])
    if node.op_type == "Gemm" and len(node.input) == 3 and node.input[2] and options.get("beta", 1.0):
        bias = node.input[2]
        if options.get("beta", 1.0) != 1.0:
            factor = names.fresh()
            graph.initializer.append(numpy_helper.from_array(np.array(options["beta"], np.float32), factor))
            [bias] = add("Mul", [bias, factor])
        add("Add", [result, bias])
    nodes[-1].output[0] = node.output[0]
    nodes[-1].name = node.name or nodes[-1].name
    return nodes


def _store_columns(graph: GraphProto, matrix: np.ndarray, names: Names) -> tuple[str, str, str]:
    """Symmetric int8 with a scale per column: the names of numbers, scales and zero points."""
    numbers, scale = _columns(matrix)
    stored = (names.fresh(), names.fresh(), names.fresh())
    for array, name in zip((numbers, scale, np.zeros(scale.shape, np.int8)), stored, strict=True):
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return stored


def _columns(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    peak = np.abs(matrix).max(axis=-2)
    scale = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    numbers = np.clip(np.rint(matrix / scale[..., None, :]), -127, 127).astype(np.int8)
    return numbers, scale


def _lstm_obstacle(node: NodeProto, weights: dict[str, TensorProto]) -> str:
    if not set(attributes_of(node)) <= _LSTM_DEFAULTS:
        return "LSTM with options that DynamicQuantizeLSTM has not"
    for name in node.input[1:3]:
        weight = weights.get(name)
        if weight is None or weight.data_type != TensorProto.FLOAT:
            return "LSTM without constant fp32 weights"
        if not np.isfinite(graphs.array_of(weight)).all():
            return "LSTM with a weight that is not finite"
    return ""


def _quantize_lstm(graph: GraphProto, node: NodeProto, weights: dict[str, TensorProto], names: Names) -> None:
    """DynamicQuantizeLSTM takes both weights transposed, with scales per direction and column."""
    extra: list[str] = []
    inputs = [*node.input, *[""] * (_LSTM_INPUTS - len(node.input))]
    for index in (1, 2):
        matrix = graphs.array_of(weights[inputs[index]]).transpose(0, 2, 1)
        inputs[index], scale, zero = _store_columns(graph, matrix, names)
        extra += [scale, zero]
    del node.input[:]
    node.input.extend([*inputs, *extra])
    node.op_type, node.domain = "DynamicQuantizeLSTM", "com.microsoft"
