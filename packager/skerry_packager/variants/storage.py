"""Storage variants: small in the file, fp32 in memory, so accuracy and speed stay as they were.

Weights are stored as fp16 or as int8 per channel and rebuilt by ``Cast [-> Mul]``, which onnxruntime folds
into plain fp32 weights when it loads the model. (``DequantizeLinear`` would not be folded, and costs up to
2.1 times the latency.) It reaches into the bodies of If, Loop and Scan, where quantizers do nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .candidate import Candidate, Outcome, Skipped

FP16_STORE: Final = "fp16-store"
INT8_STORE: Final = "int8-store"
MIN_ELEMENTS: Final = 256
"""Smaller tensors cost more in nodes than they save."""
MIN_SAVED_BYTES: Final = 128
OPSET_CAST: Final = 9
"""Lowest opset whose Cast and Mul (broadcasting) do what is needed here."""
_FP16_MAX_ERROR: Final = 1e-3
"""Largest root mean square error of a tensor in fp16, relative to its own: beyond, its numbers underflow."""
_MAX_SHARE: Final = {1: 0.45, 2: 0.27}
"""An int8 tensor with its scales, by number of channel axes, takes at most this share of fp32: finer scales
are always nearer, and must not eat up the savings."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What replaces one weight: new initializers and the nodes that rebuild it."""

    initializers: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    saved: int


_Encode = Callable[[np.ndarray, str, set[str]], "_Stored | None"]


@dataclass(slots=True)
class StorageCount:
    """What a storage pass did."""

    tensors: int = 0
    in_subgraphs: int = 0
    saved_bytes: int = 0


def fp16_store(model: ModelProto) -> Outcome:
    """fp32 weights as fp16, half the size."""
    return _variant(model, FP16_STORE, _as_fp16)


def int8_store(model: ModelProto) -> Outcome:
    """fp32 weights as symmetric int8 per channel, a quarter of the size; fp16 where int8 does not pay."""
    return _variant(model, INT8_STORE, _as_int8)


def shrink_rest(model: ModelProto) -> StorageCount:
    """Store the remaining fp32 weights of a (partly quantized) model as int8, in place."""
    return _shrink(model, _as_int8)


def _variant(model: ModelProto, name: str, encode: _Encode) -> Outcome:
    if graphs.opset_of(model) < OPSET_CAST:
        return Skipped(
            name=name, reason=f"opset {graphs.opset_of(model)} is too old: Cast needs {OPSET_CAST} or later"
        )
    before = model.ByteSize()
    small = ModelProto()
    small.CopyFrom(model)
    done = _shrink(small, encode)
    if not done.tensors:
        return Skipped(
            name=name, reason=f"no fp32 weight has {MIN_ELEMENTS} or more numbers: nothing to store smaller"
        )
    data = small.SerializeToString(deterministic=True)
    if len(data) >= before:
        return Skipped(name=name, reason=f"not smaller: {len(data)} bytes instead of {before}")
    recipe = {"kind": name, "min_elements": MIN_ELEMENTS, "tensors": done.tensors}
    inside = f", {done.in_subgraphs} of them inside subgraphs" if done.in_subgraphs else ""
    return Candidate(
        name=name, data=data, recipe=recipe, note=f"{done.tensors} weights stored smaller{inside}"
    )


def _shrink(model: ModelProto, encode: _Encode) -> StorageCount:
    count = StorageCount()
    taken = graphs.names_in(model.graph)
    for number, graph in enumerate(graphs.all_graphs(model.graph)):
        untouchable = _needed_as_they_are(graph)
        kept: list[TensorProto] = []
        added: list[NodeProto] = []
        for tensor in graph.initializer:
            stored = None
            if tensor.name not in untouchable and _is_worth_it(tensor):
                stored = encode(graphs.array_of(tensor), tensor.name, taken)
            if stored is None or stored.saved < MIN_SAVED_BYTES:
                kept.append(tensor)
                continue
            kept.extend(stored.initializers)
            added.extend(stored.nodes)
            count.tensors += 1
            count.in_subgraphs += number > 0
            count.saved_bytes += stored.saved
        if added:
            nodes = [*added, *graph.node]
            copies = [_copy(item) for item in nodes]
            tensors = [_copy_tensor(item) for item in kept]
            del graph.node[:]
            del graph.initializer[:]
            graph.node.extend(copies)
            graph.initializer.extend(tensors)
    return count


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _copy_tensor(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _needed_as_they_are(graph: GraphProto) -> set[str]:
    """Weights that are outputs, and inputs of quantization operators, whose scales must stay constants."""
    names = {value.name for value in graph.output}
    for inner in graphs.all_graphs(graph):
        for node in inner.node:
            if graphs.is_quantized_operator(node):
                names.update(node.input)
    return names


def _is_worth_it(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) >= MIN_ELEMENTS


def _as_fp16(array: np.ndarray, name: str, taken: set[str]) -> _Stored | None:
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not _keeps(half.astype(np.float32), array):
        return None
    stored = graphs.fresh_name(f"{name}_f16", taken)
    node = onnx.helper.make_node(
        "Cast", [stored], [name], name=graphs.fresh_name(f"{name}_cast", taken), to=TensorProto.FLOAT
    )
    saved = half.nbytes - 2 * len(name) - 40
    return _Stored((numpy_helper.from_array(half, stored),), (node,), saved)


def _keeps(rebuilt: np.ndarray, array: np.ndarray) -> bool:
    if not np.isfinite(array).all():
        return False
    if not np.isfinite(rebuilt).all():
        return False
    power = float(np.mean(np.square(array, dtype=np.float64)))
    noise = float(np.mean(np.square(rebuilt.astype(np.float64) - array)))
    return noise <= power * _FP16_MAX_ERROR**2


def _as_int8(array: np.ndarray, name: str, taken: set[str]) -> _Stored | None:
    scale = best_scale(array)
    if scale is None:
        return _as_fp16(array, name, taken)
    quantized = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
    stored = graphs.fresh_name(f"{name}_i8", taken)
    scales = graphs.fresh_name(f"{name}_scale", taken)
    wide = graphs.fresh_name(f"{name}_wide", taken)
    nodes = (
        onnx.helper.make_node(
            "Cast", [stored], [wide], name=graphs.fresh_name(f"{name}_cast", taken), to=TensorProto.FLOAT
        ),
        onnx.helper.make_node("Mul", [wide, scales], [name], name=graphs.fresh_name(f"{name}_mul", taken)),
    )
    saved = array.nbytes - quantized.nbytes - scale.nbytes - 6 * len(name) - 90
    return _Stored(
        (numpy_helper.from_array(quantized, stored), numpy_helper.from_array(scale, scales)), nodes, saved
    )


def best_scale(array: np.ndarray) -> np.ndarray | None:
    """The fp32 scales, broadcastable to `array`, whose symmetric int8 form is nearest to it.

    Every set of one or two axes is tried as the channels. None if int8 does not pay: a vector, numbers that
    are not finite, or so many channels that the scales eat up the savings.
    """
    if array.ndim < 2 or not np.isfinite(array).all():
        return None
    best: np.ndarray | None = None
    best_error = math.inf
    for channels in _channel_axes(array.ndim):
        count = math.prod(array.shape[axis] for axis in channels)
        if array.size + 4 * count > _MAX_SHARE[len(channels)] * array.nbytes:
            continue
        others = tuple(axis for axis in range(array.ndim) if axis not in channels)
        peak = np.abs(array).max(axis=others, keepdims=True)
        scale = np.where(peak > 0, peak / np.float32(127), np.float32(1)).astype(np.float32)
        scale = np.maximum(scale, np.finfo(np.float32).tiny)
        error = float(np.square(array - np.rint(array / scale) * scale, dtype=np.float64).sum())
        if error < best_error:
            best, best_error = scale, error
    return best


def _channel_axes(rank: int) -> Iterator[tuple[int, ...]]:
    yield from ((axis,) for axis in range(rank))
    if rank >= 3:
        yield from itertools.combinations(range(rank), 2)
