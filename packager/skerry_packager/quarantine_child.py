"""The disposable process that opens a model file for the first time. Started by `quarantine` alone.

It drops what it can before it imports anything that parses: memory, time, file sizes, descriptors and, where
the kernel lets it, the network. Its answer is one JSON object on standard output.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import onnx

    from .inspect import ModelInspection, TensorInfo
    from .quarantine import QuarantineLimits

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1


def main(request: dict[str, Any]) -> None:
    """Inspect ``request["path"]`` under ``request["limits"]`` and print the answer."""
    path = Path(request["path"])
    _confine(request["limits"], path.stat().st_size)
    import msgspec

    from skerry_contract.errors import SkerryError

    from .quarantine import QuarantineLimits

    answer: object
    try:
        answer = _inspect(path, QuarantineLimits(**request["limits"]))
    except SkerryError as error:
        answer = {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    except MemoryError:
        answer = {
            "error": {
                "code": "model",
                "message": f"{path.name} needs more memory to load or run than the limit of "
                f"{request['limits']['memory_bytes'] >> 20} MiB",
                "hint": "No small machine can run it: look for a huge constant or dimension.",
            }
        }
    sys.stdout.buffer.write(msgspec.json.encode(answer))
    sys.stdout.buffer.flush()
    os._exit(0)  # an engine with a damaged model in it is not asked to clean up


def _confine(limits: dict[str, Any], size: int) -> None:
    memory = limits["memory_bytes"] + limits["memory_per_model_byte"] * size
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 128),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # An administrator may leave the network directly; anyone else only through a user namespace, which
        # some kernels forbid. Without either, the other limits still hold.
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        # A packager that is killed leaves no hostile model running. Last, for a new user namespace resets it.
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _inspect(path: Path, limits: QuarantineLimits) -> ModelInspection:
    data = path.read_bytes()
    if data[4:8] == b"TFL3" or path.suffix == ".tflite":
        from .tflite.inspection import inspect_tflite

        return inspect_tflite(path, data, limits)
    return _inspect_onnx(path, data, limits)


def _inspect_onnx(path: Path, data: bytes, limits: QuarantineLimits) -> ModelInspection:
    import onnx

    from skerry_contract.errors import ModelError

    from . import graphs
    from .inspect import ModelInspection
    from .modelfile import parse_model, read_external_data

    model = parse_model(data, path.name, limits)
    external = read_external_data(model, path.parent, path.name, limits)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if not _is_tolerable(reason):
            raise ModelError(
                f"{path.name} breaks the ONNX rules: {reason}", hint="Export the model again."
            ) from error
    nodes = list(graphs.all_nodes(model))
    tensors = [tensor for tensor in graphs.all_tensors(model) if tensor.data_type != onnx.TensorProto.STRING]
    inputs = tuple(_describe(value) for value in graphs.real_inputs(model.graph))
    counted = Counter(graphs.operator_name(node) for node in nodes)
    return ModelInspection(
        file_name=path.name,
        format="onnx",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data) + sum(file.size_bytes for file in external),
        ir=model.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        producer=" ".join(part for part in (model.producer_name, model.producer_version) if part),
        inputs=inputs,
        outputs=tuple(_describe(value) for value in model.graph.output),
        nodes=len(nodes),
        operators=dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(_count(tensor) for tensor in tensors),
        weight_bytes=sum(_bytes(tensor) for tensor in tensors),
        subgraphs=sum(1 for _ in graphs.all_graphs(model.graph)) - 1,
        quantized_operators=sum(map(graphs.is_quantized_operator, nodes)),
        external_files=external,
        metadata={entry.key: entry.value[:4096] for entry in model.metadata_props},
        probe=_probe(model, inputs),
    )


def _is_tolerable(reason: str) -> bool:
    """What the checker refuses and engines load: onnxruntime's own operators, outputs without a shape."""
    own = "No Op registered for" in reason and "com.microsoft" in reason
    return own or "Field 'shape' of 'type' is required but missing" in reason


def _count(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _bytes(tensor: onnx.TensorProto) -> int:
    from .modelfile import stored_bytes

    return stored_bytes(tensor) or 0


def _describe(value: onnx.ValueInfoProto) -> TensorInfo:
    import onnx

    from .inspect import TensorInfo

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorInfo(
            name=value.name, dtype=(kind or "unknown").removesuffix("_type"), shape=(), ranked=False
        )
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        dtype = "string"
    else:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(
        int(size.dim_value)
        if size.HasField("dim_value") and size.dim_value >= 0
        else (size.dim_param or None)
        for size in tensor.shape.dim
    )
    return TensorInfo(name=value.name, dtype=dtype, shape=shape, ranked=tensor.HasField("shape"))


_WITHOUT_ZIPMAP: Final = "without its ZipMap: packing makes a plain tensor of the probabilities"


def _probe(model: onnx.ModelProto, inputs: tuple[TensorInfo, ...]) -> str:
    """Load the model and run it once on zeros, free dimensions as 1, as it will be packed: without ZipMap."""
    import numpy as np

    from skerry_contract.errors import MemoryBudgetError, ModelError

    from .normalize import load_repaired, remove_zipmap

    zipmaps = remove_zipmap(model.graph)
    try:
        session, _ = load_repaired(model)
    except ModelError as error:
        if isinstance(error.__cause__, MemoryBudgetError):
            raise MemoryError from error
        raise
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for info in inputs:
        if not info.ranked:
            return f"not run: the shape of input {info.name!r} is not declared"
        shape = tuple(size if isinstance(size, int) and size > 0 else 1 for size in info.shape)
        if info.dtype == "string":
            feed[info.name] = np.full(shape, "", dtype=object)
        else:
            feed[info.name] = np.zeros(shape, dtype=info.dtype)
    try:
        session.run(feed)
    except ModelError as error:
        if isinstance(error.__cause__, MemoryBudgetError):
            raise MemoryError from error
        return f"does not run on zeros: {error.message}"
    return f"ran, {_WITHOUT_ZIPMAP}" if zipmaps else "ran"
