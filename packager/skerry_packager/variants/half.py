"""Arithmetic in fp16, for processors that have it: half the size and, there, faster.

onnxconverter-common writes the graph. What it is known to get wrong is kept in fp32 from the start
(subgraphs, whose values it mistypes; numbers that fp16 cannot hold), and whatever operator onnxruntime then
refuses is kept in fp32 too, one after another, until the model loads or nothing is left. Each attempt is
loaded and run in a fresh process: onnxruntime 1.32 dies of a segmentation fault on some LSTMs in fp16.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto
from onnxconverter_common import float16

from skerry_contract.errors import ModelError

from .. import graphs
from ..engine import Feed, brief
from ..memory import measure_memory
from ..results import Target
from .candidate import Candidate, Outcome, Skipped
from .edits import attributes_of, drop_unused

FP16: Final = "fp16"
_MOST_TRIES: Final = 8
_FP16_MAX: Final = 65504.0
_WORTH: Final = 0.95
"""Largest share of fp32's size: above, what matters has stayed in fp32."""
_BLOCKED: Final = (
    *float16.DEFAULT_OP_BLOCK_LIST,
    "If", "Loop", "Scan", "SequenceMap", "RandomNormalLike", "RandomNormal", "RandomUniform", "Multinomial",
    "DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip
_CONVERTER_ERRORS: Final = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, AssertionError, OverflowError,
)  # fmt: skip
"""What onnxconverter-common has been seen to raise on models that it does not expect."""
_COMPUTES: Final = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN", "Einsum"})
"""Operators whose arithmetic is worth the change."""


def wanted(targets: Sequence[Target]) -> str:
    """Why fp16 arithmetic is pointless on these targets; empty if one of them gains."""
    if any("fp16" in target.isa for target in targets):
        return ""
    names = ", ".join(target.name for target in targets)
    return f"no target has fp16 arithmetic ({names}): it would be slower than fp32 and take more RAM there"


def fp16_native(model: ModelProto, feed: Feed) -> Outcome:
    """The model in fp16, its inputs and outputs as they were, or why that fails.

    Args:
        feed: complete inputs, which every attempt is run on in a process of its own.
    """
    recipe: dict[str, Any] = {"kind": FP16, "keep_io_types": True}
    already = sum(map(graphs.is_quantized_operator, graphs.all_nodes(model)))
    if already:
        return _skip(f"already quantized ({already} operators); passed through", recipe)
    if not any(node.op_type in _COMPUTES for node in model.graph.node):
        return _skip(_why_nothing(model), recipe)
    unsuited = _unsuited_nodes(model)
    blocked: list[str] = []
    failure = ""
    for _ in range(_MOST_TRIES):
        try:
            converted = _convert(model, (*_BLOCKED, *blocked), unsuited)
            measure_memory(converted, feed, runs=1)
        except (ModelError, *_CONVERTER_ERRORS) as error:
            failure = (
                error.message.rpartition("Error: ")[2]
                if isinstance(error, ModelError)
                else f"the converter fails: {brief(error)}"
            )
            guilty = _guilty_operator(failure, model, (*_BLOCKED, *blocked)) or _next_suspect(model, blocked)
            if not guilty:
                break
            blocked.append(guilty)
            continue
        return _result(model, converted, blocked, unsuited, recipe)
    tried = f" with {', '.join(blocked)} in fp32 too" if blocked else ""
    return _skip(f"no fp16 model loads{tried}: {failure[:200]}", recipe)


def _skip(reason: str, recipe: dict[str, Any]) -> Skipped:
    return Skipped(name=FP16, reason=reason, recipe=recipe)


def _why_nothing(model: ModelProto) -> str:
    inside = [
        node.name or node.op_type
        for node in model.graph.node
        for body in graphs.node_subgraphs(node)
        if any(inner.op_type in _COMPUTES for graph in graphs.all_graphs(body) for inner in graph.node)
    ]
    if inside:
        return f"the operators are inside `{inside[0]}`, which the converter mistypes; fp16-store instead"
    return "no matrix product, convolution or recurrent layer in fp32: nothing would be faster in fp16"


def _result(
    model: ModelProto, data: bytes, blocked: list[str], unsuited: list[str], recipe: dict[str, Any]
) -> Outcome:
    half = onnx.load_model_from_string(data)
    kinds = Counter(tensor.data_type for tensor in graphs.all_tensors(half) if math.prod(tensor.dims) > 1)
    if not kinds[TensorProto.FLOAT16]:
        return _skip("the converter left every weight in fp32", recipe)
    before = model.ByteSize()
    if len(data) > _WORTH * before:
        kept = f"; the engine refused {', '.join(blocked)} in fp16" if blocked else ""
        return _skip(f"hardly smaller: {len(data)} bytes instead of {before}{kept}", recipe)
    note = "fp16 arithmetic"
    if blocked:
        note += f"; in fp32, because the engine refused them in fp16: {', '.join(blocked)}"
    if unsuited:
        note += f"; {len(unsuited)} nodes in fp32, because their numbers exceed fp16"
    recipe |= {"blocked": blocked, "nodes_in_fp32": len(unsuited)}
    return Candidate(name=FP16, data=data, recipe=recipe, note=note, quantized_compute=True)


def _convert(model: ModelProto, blocked: Sequence[str], unsuited: Sequence[str]) -> bytes:
    copy = ModelProto()
    copy.CopyFrom(model)
    _name_nodes(copy)
    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("ignore")  # about every number that underflows; the gate judges them
        half: ModelProto = float16.convert_float_to_float16(
            copy,
            keep_io_types=True,
            op_block_list=list(blocked),
            node_block_list=list(unsuited),
            max_finite_val=_FP16_MAX,
            check_fp16_ready=False,
        )
    del half.graph.value_info[:]
    _uncast_nothing(half.graph)
    drop_unused(half.graph)
    half.ir_version = model.ir_version
    data: bytes = half.SerializeToString(deterministic=True)
    return data


def _uncast_nothing(graph: GraphProto) -> None:
    """The converter casts optional inputs that are not there, which the engine does not survive."""
    nothing = {node.output[0] for node in graph.node if node.op_type == "Cast" and not node.input[0]}
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if node.output[0] in nothing:
            del graph.node[index]
            continue
        for position, name in enumerate(node.input):
            if name in nothing:
                node.input[position] = ""


def _name_nodes(model: ModelProto) -> None:
    """The converter finds nodes by name; exporters leave names empty or repeat them."""
    seen: set[str] = set()
    for graph in graphs.all_graphs(model.graph):
        for number, node in enumerate(graph.node):
            if not node.name or node.name in seen:
                node.name = graphs.fresh_name(f"{node.op_type}_{number}", seen)
            seen.add(node.name)


def _unsuited_nodes(model: ModelProto) -> list[str]:
    """Nodes that read a constant beyond the range of fp16, or would divide by one that underflows."""
    copy = ModelProto()
    copy.CopyFrom(model)
    _name_nodes(copy)
    wide = {
        tensor.name
        for tensor in copy.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and not _fits(graphs.array_of(tensor))
    }
    return [
        node.name for node in copy.graph.node if not wide.isdisjoint(node.input) or _extreme_attribute(node)
    ]


def _fits(array: np.ndarray) -> bool:
    if not array.size:
        return True
    if array.size > 1:  # an underflow among many is the gate's matter
        return bool(np.abs(array).max() <= _FP16_MAX)
    with np.errstate(over="ignore"):
        half = np.asarray(array, np.float16)
    return bool(np.isfinite(half).all() and ((half != 0) == (array != 0)).all())


def _extreme_attribute(node: NodeProto) -> bool:
    """An epsilon that becomes 0 in fp16, or a constant that becomes infinite."""
    values = attributes_of(node)
    epsilon = values.get("epsilon", 1.0)
    if isinstance(epsilon, float) and 0 < epsilon < 1e-7:
        return True
    return any(isinstance(value, float) and abs(value) > _FP16_MAX for value in values.values())


def _next_suspect(model: ModelProto, blocked: Sequence[str]) -> str:
    """What to suspect of a crash that names no operator: seen with a Transpose before an LSTM or a GRU."""
    present = {node.op_type for node in model.graph.node} - set(blocked)
    return next((operator for operator in ("LSTM", "GRU", "RNN", "Transpose") if operator in present), "")


def _guilty_operator(message: str, model: ModelProto, blocked: Sequence[str]) -> str:
    """The operator type that the engine complains of, if the model has it and it may be blocked."""
    present: set[str] = {node.op_type for node in model.graph.node} - set(blocked)
    by_type: list[str] = [word for word in re.findall(r"[A-Za-z0-9]+", message) if word in present]
    if by_type:
        return by_type[0]
    names: dict[str, str] = {
        node.name: node.op_type for node in model.graph.node if node.name and node.op_type in present
    }
    for name in sorted(names, key=len, reverse=True):
        if name in message:
            return names[name]
    outputs: dict[str, str] = {output: node.op_type for node in model.graph.node for output in node.output}
    for output in sorted(outputs, key=len, reverse=True):
        if len(output) > 2 and output in message and outputs[output] in present:
            return outputs[output]
    return ""
