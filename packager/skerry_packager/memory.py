"""What a variant needs in RAM: a bound from the graph, and a measurement in a fresh process.

The bound is base + weights as they are in memory + the peak of live activations, and is the same on every
run. It is a lower bound: engines copy, pack and fragment. The measurement is the truth of this host.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import GraphProto, ModelProto

from skerry_contract.errors import ModelError
from skerry_contract.limits import MIB

from . import graphs
from .engine import Feed
from .modelfile import stored_bytes
from .results import Memory

ENGINE_BASE_BYTES: Final = 40 * MIB
"""Python, numpy and onnxruntime 1.32 without a model: 44.6 MiB measured on x86_64, rounded down."""
_RUNS: Final = 20
"""The heap grows over the first runs: what an allocator gets back it keeps, in pieces that do not fit."""
_SECONDS: Final = 300
_BOOT: Final = (
    "import json, sys; args = json.loads(sys.stdin.readline()); sys.path[:] = args.pop('sys_path'); "
    "from skerry_packager.memory_child import main; main(args)"
)


def measure_memory(model: bytes, feed: Feed, runs: int = _RUNS) -> Memory:
    """Load and run a model in a fresh process, with the device's engine and nothing else.

    Raises:
        ModelError: the process crashed, or the engine refused the model or the input.
    """
    with tempfile.TemporaryDirectory(prefix="skerry-memory-") as scratch:
        folder = Path(scratch)
        (folder / "model.onnx").write_bytes(model)
        arrays = {f"input{number}": array for number, array in enumerate(feed.values())}
        np.savez(folder / "feed.npz", **arrays)  # type: ignore[arg-type] # numpy's stub mistakes them for allow_pickle
        request = {"sys_path": sys.path, "folder": scratch, "names": list(feed), "runs": runs}
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
    answer = json.loads(done.stdout)
    return Memory(
        peak_rss_bytes=int(answer["peak"]),
        base_rss_bytes=int(answer["base"]),
        load_ms=float(answer["load_ms"]),
    )


def predict_memory(model: ModelProto, feed: Feed) -> int:
    """Lower bound of the peak memory in bytes, for inputs of the shapes in `feed`."""
    bound = ModelProto()
    bound.CopyFrom(model)
    for value in bound.graph.input:
        if value.name in feed:
            info = onnx.helper.make_tensor_value_info(
                value.name, value.type.tensor_type.elem_type, list(feed[value.name].shape)
            )
            value.CopyFrom(info)
    with suppress(onnx.shape_inference.InferenceError, RuntimeError):  # unknown shapes: a looser lower bound
        bound = onnx.shape_inference.infer_shapes(bound, data_prop=True)
    sizes = _sizes(bound.graph)
    inner = sum(
        sum(stored_bytes(tensor) or 0 for tensor in graph.initializer)
        for body in graphs.subgraphs(bound.graph)
        for graph in graphs.all_graphs(body)
    )
    resident, peak = _liveness(bound.graph, sizes)
    return ENGINE_BASE_BYTES + resident + inner + peak


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


def _liveness(graph: GraphProto, sizes: dict[str, int]) -> tuple[int, int]:
    """(bytes of constants that the nodes read, peak bytes of live activations), in the graph's order.

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
    live = peak = sum(sizes.get(value.name, 0) for value in graph.input)
    for node in running:
        live += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, live)
        for name in _reads(node):
            uses[name] -= 1
            if not uses[name] and name not in constant and name not in outputs:
                live -= sizes.get(name, 0)
    return resident, peak


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, the names inside its bodies included."""
    inside = [
        name
        for body in graphs.node_subgraphs(node)
        for graph in graphs.all_graphs(body)
        for inner in graph.node
        for name in inner.input
    ]
    return [name for name in (*node.input, *inside) if name]
