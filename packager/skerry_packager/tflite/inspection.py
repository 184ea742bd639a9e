"""What a TFLite file is; runs in the quarantine child, see `skerry_packager.quarantine_child`."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skerry_contract.errors import EngineError, MemoryBudgetError, ModelError
from skerry_runtime.worker.engines import DTYPES, import_engine
from skerry_runtime.worker.engines.tflite_guard import Port, check_tflite

from .floats import name_of
from .model import NUMPY_OF_TYPE, content, numbers, parse, type_name

if TYPE_CHECKING:
    from ..inspect import ModelInspection, TensorInfo
    from ..quarantine import QuarantineLimits

_INTEGERS: Final = frozenset({"INT8", "UINT8", "INT16", "INT4", "INT2", "UINT4"})
_CONVERTERS: Final = frozenset({"QUANTIZE", "DEQUANTIZE"})
_TEXT: Final = 4096


def inspect_tflite(path: Path, data: bytes, limits: QuarantineLimits) -> ModelInspection:
    """Everything that is known of the file after one inference on zeros.

    Raises:
        ModelError: damaged, hostile, over a limit, or operators that no engine here brings.
        MemoryError: it needs more than there is.
    """
    from ..inspect import ModelInspection

    try:
        outline = check_tflite(data)
    except EngineError as error:
        raise ModelError(f"{path.name}: {error.message}", hint=error.hint) from error
    model = parse(data)
    operators = [(graph, operator) for graph in model.subgraphs for operator in graph.operators or ()]
    if len(operators) > limits.nodes:
        raise ModelError(
            f"{path.name} has {len(operators)} nodes; at most {limits.nodes} are accepted",
            hint="Simplify it.",
        )
    counted = Counter(name_of(model, operator) for _, operator in operators)
    constants = {
        tensor.buffer: tensor
        for graph in model.subgraphs
        for tensor in graph.tensors
        if content(model, tensor)
    }
    return ModelInspection(
        file_name=path.name,
        format="tflite",
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        ir=0,
        opsets={},
        producer=_text(model.description),
        inputs=tuple(map(_describe, outline.inputs)),
        outputs=tuple(map(_describe, outline.outputs)),
        nodes=len(operators),
        operators=dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))),
        parameters=sum(_count(model, tensor) for tensor in constants.values()),
        weight_bytes=sum(len(content(model, tensor)) for tensor in constants.values()),
        subgraphs=len(model.subgraphs) - 1,
        quantized_operators=sum(_calculates_in_integers(model, *pair) for pair in operators),
        external_files=(),
        metadata=_metadata(model),
        stateful=outline.stateful,
        probe=_probe(data, outline.inputs),
    )


def _describe(port: Port) -> TensorInfo:
    from ..inspect import TensorInfo

    dtype = "string" if port.datatype == "BYTES" else port.datatype.lower()
    if port.datatype in DTYPES:
        dtype = DTYPES[port.datatype].name
    return TensorInfo(
        name=port.name, dtype=dtype, shape=tuple(size if size >= 0 else None for size in port.shape)
    )


def _count(model: Any, tensor: Any) -> int:
    """Numbers that are stored; of a sparse tensor those that are not left out."""
    dtype = NUMPY_OF_TYPE.get(type_name(tensor))
    if dtype is None:
        return int(np.prod(numbers(tensor.shape), dtype=np.int64))
    return len(content(model, tensor)) // dtype.itemsize


def _calculates_in_integers(model: Any, graph: Any, operator: Any) -> bool:
    if name_of(model, operator) in _CONVERTERS:
        return False
    tensors = [graph.tensors[index] for index in numbers(operator.inputs) if index >= 0]
    return any(
        type_name(tensor) in _INTEGERS
        and tensor.quantization is not None
        and tensor.quantization.scale is not None
        and len(tensor.quantization.scale) > 0
        for tensor in tensors
    )


def _metadata(model: Any) -> dict[str, str]:
    """Text as text; anything else by its size."""
    found = {}
    for entry in model.metadata or ():
        data = model.buffers[entry.buffer].data
        raw = b"" if data is None else bytes(data)
        text = raw.rstrip(b"\0")
        printable = text.isascii() and text.decode("ascii", "replace").isprintable()
        found[_text(entry.name)] = text[:_TEXT].decode("ascii") if printable else f"{len(raw)} bytes"
    return found


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _probe(data: bytes, inputs: tuple[Port, ...]) -> str:
    """Load the model with the device's engine and run it once on zeros, free dimensions as 1."""
    try:
        session = import_engine("tflite").load(data)
    except MemoryBudgetError as error:
        raise MemoryError from error
    except EngineError as error:
        raise ModelError(f"the engine does not load it: {error.message}", hint=error.hint) from error
    feed: dict[str, np.ndarray] = {}
    for port in inputs:
        if port.datatype not in DTYPES:
            return f"not run: input {port.name!r} is of type {port.datatype}"
        feed[port.name] = np.zeros(
            [max(1, size) if size < 0 else size for size in port.shape], DTYPES[port.datatype]
        )
    try:
        session.run(feed)
    except MemoryBudgetError as error:
        raise MemoryError from error
    except EngineError as error:
        return f"does not run on zeros: {error.message}"
    return "ran"
