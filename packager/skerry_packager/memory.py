"""What a variant needs in RAM: bounds from the graph, and a measurement in a fresh process.

The *lower bound* is base + weights as they are in memory + the peak of live activations, where views and
operators that work in place share their buffers: what is over a budget by it cannot fit. The *upper bound*
adds what engines copy, pack and fragment, by factors found on real models. Both are the same on every run.
The measurement is the truth of this host.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from skerry_contract.errors import ModelError
from skerry_contract.limits import MIB
from skerry_runtime.worker.bench_ops.work import Work

from . import graphs
from .engine import ENGINE, Feed
from .modelfile import stored_bytes
from .operations import from_profile
from .requirements import is_ort
from .results import Memory
from .scratch import scratch

ENGINE_BASE_BYTES: Final = 40 * MIB
"""Python, numpy and onnxruntime 1.32 without a model: 44.6 MiB measured on x86_64, rounded down."""
_UPPER_BASE_BYTES: Final = 68 * MIB
"""The same rounded up, with the runtime's own code and what the first session allocates for any model."""
_WEIGHTS_COPIED, _WEIGHTS_KEPT, _ACTIVATIONS_KEPT = 3.5, 1.5, 4.5
"""Upper bound: weights of models with convolutions, those of models with products only, activations."""
_BODIES_KEPT: Final = 2.0
"""Constants inside If, Loop and Scan are held so much more often: as nodes, and as values."""
_RUNS: Final = 20
"""The heap grows over the first runs: what an allocator gets back it keeps, in pieces that do not fit."""
_READ: Final = 1024
"""Numbers of the largest constant that shapes may follow from."""
_SECONDS: Final = 300
_NAME: Final = "skerry-node-"
_VIEWS: Final = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "DequantizeLinear")
)
"""Outputs that share the memory of the first input; DequantizeLinear is fused into what follows it."""
_IN_PLACE: Final = frozenset(
    name
    for line in (
        "Add Sub Mul Div Max Min Sum PRelu Relu Clip LeakyRelu Abs Neg Floor Ceil Round Sqrt Reciprocal",
        "HardSigmoid HardSwish Not Sign Sigmoid Tanh Exp Log Erf Gelu Softplus Elu Selu Mish Pow Swish",
        "Softmax LogSoftmax BatchNormalization LayerNormalization InstanceNormalization Where Cast",
        "QuantizeLinear",
    )
    for name in line.split()
)
"""May write over an input that nobody reads any more, or are fused into the operator before."""
_REORDERED: Final = frozenset(("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "LSTM", "GRU", "RNN"))
"""Their weights are packed in another layout beside the original."""
_BOOT: Final = (
    "import json, sys; args = json.loads(sys.stdin.readline()); sys.path[:] = args.pop('sys_path'); "
    "from skerry_packager.memory_child import main; main(args)"
)


@dataclass(frozen=True, slots=True)
class Probe:
    """What one fresh process said of a model."""

    memory: Memory
    operations: tuple[Work, ...] = ()
    """What the engine executes; of TFLite what the file says, before fusions; of a mapped form nothing."""
    sizes: Mapping[str, int] | None = None
    """Bytes of values whose shape no inference knows, as they were in that run; only of ONNX."""


def probe(model: bytes, feed: Feed, engine: str = ENGINE.name, runs: int = _RUNS) -> Probe:
    """Measure a model as `measure_memory` does, and ask the engine what it executed. Raises the same."""
    if engine != ENGINE.name:
        from .tflite_operations import from_tflite  # only where the extra is installed

        return Probe(measure_memory(model, feed, runs, engine), from_tflite(model))
    if is_ort(model):
        return Probe(measure_memory(model, feed, runs, engine))
    plain = onnx.load_model_from_string(model)
    named = b""
    if _unknown(_bound(plain, feed).graph):
        for number, node in enumerate(plain.graph.node):
            node.name = f"{_NAME}{number}"
        named = plain.SerializeToString()
    answer = _in_fresh_process(model, feed, engine, runs, named)
    return Probe(
        _memory(answer),
        from_profile(answer["fused"]),
        _sizes_in_run(plain.graph, answer["plain"]) if named else None,
    )


def measure_memory(model: bytes, feed: Feed, runs: int = _RUNS, engine: str = ENGINE.name) -> Memory:
    """Load and run a model in a fresh process, with the device's engine and nothing else.

    Raises:
        ModelError: the process crashed, or the engine refused the model or the input.
    """
    return _memory(_in_fresh_process(model, feed, engine, runs))


def _memory(answer: Mapping[str, Any]) -> Memory:
    return Memory(
        peak_rss_bytes=int(answer["peak"]),
        base_rss_bytes=int(answer["base"]),
        load_ms=float(answer["load_ms"]),
    )


def _in_fresh_process(
    model: bytes, feed: Feed, engine: str, runs: int, named: bytes | None = None
) -> dict[str, Any]:
    """The answer of `memory_child`. With `named` profiles are made, too: of it, if it is not empty."""
    profiles = [] if named is None else ["fused", "plain"] if named else ["fused"]
    with scratch("memory") as folder:
        (folder / "model").write_bytes(model)
        if named:
            (folder / "named").write_bytes(named)
        arrays = {f"input{number}": array for number, array in enumerate(feed.values())}
        np.savez(folder / "feed.npz", **arrays)  # type: ignore[arg-type] # numpy's stub mistakes them for allow_pickle
        request = {
            "sys_path": sys.path, "folder": str(folder), "names": list(feed), "runs": runs, "engine": engine,
            "profiles": profiles,
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-c", _BOOT],
                input=json.dumps(request).encode() + b"\n",
                capture_output=True,
                timeout=_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ModelError(f"it did not load and run {runs} times in {_SECONDS} s") from error
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][:300]
        raise ModelError(f"a fresh process that loads and runs it ended with {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def memory_bounds(model: ModelProto, feed: Feed, sizes: Mapping[str, int] | None = None) -> tuple[int, int]:
    """Lower and upper bound of the peak in bytes, for inputs of the shapes in `feed`.

    Args:
        sizes: bytes of values that no inference finds, from `Probe.sizes`; without them they count nothing,
            and the bounds are lower than they might be.
    """
    bound = _bound(model, feed)
    known = {**(sizes or {}), **_sizes(bound.graph)}
    _, inner = _constants(bound)
    weights, plain, shared = _liveness(bound.graph, known)
    kept = _WEIGHTS_COPIED if _reorders(bound) else _WEIGHTS_KEPT
    lower = ENGINE_BASE_BYTES + weights + inner + shared
    upper = _UPPER_BASE_BYTES + kept * (weights + inner) + _BODIES_KEPT * inner + _ACTIVATIONS_KEPT * plain
    return lower, max(lower, int(upper))


def weight_bytes(model: ModelProto) -> int:
    """What the constants take in memory, those of bodies included."""
    return sum(_constants(_bound(model, {})))


def mapped_bounds(model: ModelProto, lower: int, upper: int) -> tuple[int, int]:
    """What is left of a model's bounds where its constants are mapped from the file."""
    weights, inner = _constants(_bound(model, {}))
    kept = _WEIGHTS_COPIED if _reorders(model) else _WEIGHTS_KEPT
    lower = max(ENGINE_BASE_BYTES, lower - weights - inner)
    return lower, max(lower, int(upper - kept * (weights + inner)), _UPPER_BASE_BYTES)


def _constants(bound: ModelProto) -> tuple[int, int]:
    """Bytes of the constants that are read, and of those in bodies."""
    inner = sum(_stored(graph) for body in graphs.subgraphs(bound.graph) for graph in graphs.all_graphs(body))
    return _liveness(bound.graph, _sizes(bound.graph))[0], inner


def _stored(graph: GraphProto) -> int:
    """Bytes of the constants of one body, however they are written."""
    constants = (a.t for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
    return sum(stored_bytes(tensor) or 0 for tensor in (*graph.initializer, *constants))


def _reorders(model: ModelProto) -> bool:
    return any(node.op_type in _REORDERED for node in graphs.all_nodes(model))


def _bound(model: ModelProto, feed: Feed) -> ModelProto:
    """A copy with the inputs' shapes as fed, and every other shape that follows from them.

    The numbers of large constants are left out: no shape follows from them, and the inference would take 300
    bytes for each.
    """
    bound = ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    graph = bound.graph
    graph.name = "bound"
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    large = []
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _READ:
            graph.initializer.append(tensor)
        else:
            large.append(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
    for value in graph.input:
        if value.name in feed:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            for size in feed[value.name].shape:
                shape.dim.add().dim_value = size
    inputs = len(graph.input)
    graph.input.extend(onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in large)
    with suppress(onnx.shape_inference.InferenceError, RuntimeError):  # unknown shapes: a looser lower bound
        bound = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    del bound.graph.input[inputs:]
    bound.graph.initializer.extend(large)
    return bound


def _sizes(graph: GraphProto) -> dict[str, int]:
    """Bytes of every tensor whose shape is known."""
    sizes = {tensor.name: stored_bytes(tensor) or 0 for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        kind = value.type.tensor_type
        dims = kind.shape.dim
        if kind.elem_type in (0, onnx.TensorProto.STRING) or not all(
            size.HasField("dim_value") for size in dims
        ):
            continue
        width = int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)).itemsize)
        sizes[value.name] = width * math.prod(max(0, size.dim_value) for size in dims)
    return sizes


def _unknown(graph: GraphProto) -> bool:
    sizes = _sizes(graph)
    return any(name and name not in sizes for node in graph.node for name in node.output)


def _sizes_in_run(graph: GraphProto, events: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Bytes of every value in a run whose nodes were named by their number."""
    found: dict[str, int] = {}
    for event in events:
        name = str(event["name"]).removesuffix("_kernel_time")
        number = name.removeprefix(_NAME)
        if name == number or not number.isdecimal():  # a body's node, or one that the engine made
            continue
        outputs = [name for name in graph.node[int(number)].output if name]
        shapes = [pair for entry in event["args"]["output_type_shape"] for pair in entry.items()]
        if len(outputs) == len(shapes):
            for name, (kind, shape) in zip(outputs, shapes, strict=True):
                found[name] = _WIDTHS.get(kind, 0) * math.prod(shape)
    return found


_WIDTHS: Final = {
    "float": 4, "float16": 2, "bfloat16": 2, "double": 8, "bool": 1,
    "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8, "uint64": 8,
}  # fmt: skip
"""Bytes of an element, by the name of its type in onnxruntime's profile."""


def _liveness(graph: GraphProto, sizes: Mapping[str, int]) -> tuple[int, int, int]:
    """(bytes of constants that are read, peak of live activations, the same with buffers shared).

    What follows from constants alone is folded by the engine when it loads, so a stored int8 weight counts
    as the fp32 weight that it becomes. Only DequantizeLinear is left as it is.
    """
    constant = {tensor.name for tensor in graph.initializer}
    running = []
    for node in graph.node:
        if node.op_type != "DequantizeLinear" and all(name in constant for name in node.input if name):
            constant.update(node.output)
        else:
            running.append(node)
    uses = Counter(name for node in running for name in _reads(node))
    outputs = {value.name for value in graph.output}
    resident = sum(sizes.get(name, 0) for name in constant if uses[name] or name in outputs)
    plain = _peak(graph, running, sizes, constant, {})
    shared = _peak(graph, running, sizes, constant, _buffers(graph, running, constant, uses))
    return resident, plain, shared


def _buffers(
    graph: GraphProto, running: Sequence[NodeProto], constant: set[str], uses: Counter[str]
) -> dict[str, str]:
    """Value -> the value whose memory it shares, as far as it may share any."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    buffers: dict[str, str] = {}
    for node in running:
        inputs = [name for name in node.input if name and name not in constant]
        if node.op_type in _VIEWS and inputs:
            first = node.input[0]
            if first not in constant:
                buffers[node.output[0]] = first
        elif node.op_type in _IN_PLACE and len(node.output) == 1:
            free = next((name for name in inputs if uses[name] == 1 and name not in fixed), "")
            if free:
                buffers[node.output[0]] = free
    return {value: _root(value, buffers) for value in buffers}


def _root(value: str, buffers: Mapping[str, str]) -> str:
    while value in buffers:
        value = buffers[value]
    return value


def _peak(
    graph: GraphProto,
    running: Sequence[NodeProto],
    sizes: Mapping[str, int],
    constant: set[str],
    buffers: Mapping[str, str],
) -> int:
    """Most bytes that live at once, in order. A shared buffer is as small as its smallest user."""
    need: dict[str, int] = {}
    for name in (*(value.name for value in graph.input), *(out for node in running for out in node.output)):
        buffer = buffers.get(name, name)
        if name not in constant and name in sizes:
            need[buffer] = min(need.get(buffer, sizes[name]), sizes[name])
    # Inputs and outputs are the caller's, who keeps them to the end.
    kept = {value.name for value in (*graph.input, *graph.output)}
    uses = Counter(buffers.get(name, name) for node in running for name in _reads(node))
    uses.update(buffers.get(name, name) for name in kept)
    live = {value.name for value in graph.input if value.name not in constant}
    total = peak = sum(need.get(name, 0) for name in live)
    for node in running:
        made = {buffers.get(name, name) for name in node.output if name} - live
        total += sum(need.get(name, 0) for name in made)
        live |= made
        peak = max(peak, total)
        for name in _reads(node):
            buffer = buffers.get(name, name)
            uses[buffer] -= 1
            if not uses[buffer] and buffer in live:
                live.discard(buffer)
                total -= need.get(buffer, 0)
    return peak


def _reads(node: NodeProto) -> list[str]:
    """What a node reads, the names inside its bodies included."""
    inside = [
        name
        for body in graphs.node_subgraphs(node)
        for graph in graphs.all_graphs(body)
        for inner in graph.node
        for name in inner.input
    ]
    return [name for name in (*node.input, *inside) if name]
