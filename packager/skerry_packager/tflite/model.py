"""A TFLite file as objects, and back to bytes: the same objects always give the same bytes.

The classes come with the engine (``ai_edge_litert.schema_py_generated``), so the extra ``tflite`` must be
installed. Nothing is parsed that the device's own guard has not read first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from skerry_contract.errors import EngineError, ModelError
from skerry_runtime.worker.engines.tflite_guard import IDENTIFIER, check_tflite

if TYPE_CHECKING:
    from ..inspect import ModelInspection

_ALIGNMENT: Final = 16
"""Of weights in the file, as the schema wants it: kernels load them in vectors."""
_INDEX_LISTS: Final = ("inputs", "outputs", "intermediates")
"""Fields of a subgraph and of an operator that name tensors."""
_OLD_CODES: Final = 127
"""In files before 2020 a code has one byte; a greater one has this there."""
NUMPY_OF_TYPE: Final[Mapping[str, np.dtype[Any]]] = {
    "FLOAT32": np.dtype("<f4"), "FLOAT16": np.dtype("<f2"), "FLOAT64": np.dtype("<f8"),
    "INT8": np.dtype(np.int8), "UINT8": np.dtype(np.uint8), "INT16": np.dtype("<i2"),
    "UINT16": np.dtype("<u2"), "INT32": np.dtype("<i4"), "UINT32": np.dtype("<u4"),
    "INT64": np.dtype("<i8"), "UINT64": np.dtype("<u8"), "BOOL": np.dtype(np.bool_),
}  # fmt: skip


@cache
def schema() -> Any:
    """The classes of the file format.

    Raises:
        ModelError: the TFLite engine is not installed.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise ModelError(
            f"TFLite models need the TFLite engine, which is not installed: {error}",
            hint="pip install 'skerry[tflite]'",
        ) from error
    return schema_py_generated


@cache
def _names(enum: str) -> Mapping[int, str]:
    return {
        number: name for name, number in vars(getattr(schema(), enum)).items() if not name.startswith("_")
    }


def type_name(tensor: Any) -> str:
    """``FLOAT32``"""
    return _names("TensorType")[tensor.type]


def operator_name(code: Any) -> str:
    """``CONV_2D``, or the name of a custom operator. Takes an operator code."""
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = _names("BuiltinOperator").get(number, f"operator {number}")
    return code.customCode.decode() if name == "CUSTOM" else name


def check(data: bytes, name: str) -> None:
    """Raises `ModelError` if the device's guard refuses the file."""
    try:
        check_tflite(data)
    except EngineError as error:
        raise ModelError(f"{name}: {error.message}", hint=error.hint) from error


def read_approved(path: Path, inspection: ModelInspection) -> bytes:
    """The file that `inspection` describes; it must not have changed since. Raises `ModelError`."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != inspection.sha256:
        raise ModelError(f"{path.name} changed while it was being packed", hint="Run the command again.")
    return data


def parse(data: bytes) -> Any:
    """A file as objects (a ``ModelT``), to look at or to change.

    Raises:
        ModelError: the file is damaged, or the engine is not installed.
    """
    check(data, "the model")
    kinds = schema()
    model = kinds.ModelT.InitFromObj(kinds.Model.GetRootAs(data, 0))
    for buffer in model.buffers:
        if buffer.offset > 1:  # the weights lie behind the FlatBuffer, where older engines do not look
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def serialize(model: Any) -> bytes:
    """Objects as a file that old and new engines read alike.

    Buffers that hold the same bytes become one; what nothing uses is dropped; operator codes are written
    where files before 2020 and after have them (the LiteRT quantizer takes the former for additions).
    """
    import flatbuffers

    _tidy_tensors(model)
    _tidy_buffers(model)
    _tidy_codes(model)
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def content(model: Any, tensor: Any) -> bytes:
    """The bytes of a constant tensor; empty if it is none."""
    data = model.buffers[tensor.buffer].data
    return b"" if data is None else bytes(data)


def array_of(model: Any, tensor: Any) -> np.ndarray | None:
    """A constant tensor as an array, or None if it is no plain constant (or sparse, or of another type)."""
    dtype = NUMPY_OF_TYPE.get(type_name(tensor))
    data = model.buffers[tensor.buffer].data
    if dtype is None or tensor.sparsity is not None or data is None or not len(data):
        return None
    shape = [] if tensor.shape is None else [int(size) for size in tensor.shape]
    return np.frombuffer(bytes(data), dtype).reshape(shape)


def set_content(model: Any, tensor: Any, data: bytes) -> None:
    """Give a tensor a buffer of its own with these bytes; others that shared the old one keep it."""
    model.buffers.append(_buffer(data))
    tensor.buffer = len(model.buffers) - 1


def _buffer(data: bytes) -> Any:
    kind = _aligned_buffer()
    buffer = kind()
    buffer.data = np.frombuffer(data, np.uint8)
    return buffer


@cache
def _aligned_buffer() -> Any:
    kinds = schema()

    class AlignedBuffer(kinds.BufferT):  # type: ignore[misc,name-defined] # a class made at run time
        """The generated class forgets the alignment that the schema asks for."""

        def Pack(self, builder: Any) -> Any:
            place = None
            if self.data is not None and len(self.data):
                builder.StartVector(1, len(self.data), _ALIGNMENT)
                builder.head -= len(self.data)
                builder.Bytes[builder.head : builder.head + len(self.data)] = bytes(self.data)
                place = builder.EndVector()
            kinds.BufferStart(builder)
            if place is not None:
                kinds.BufferAddData(builder, place)
            return kinds.BufferEnd(builder)

    return AlignedBuffer


def numbers(values: Any) -> list[int]:
    """A list of integers as the generated classes may hold it: an array, a list or nothing."""
    return [] if values is None else [int(value) for value in values]


def _tidy_tensors(model: Any) -> None:
    """Tensors that nothing names are dropped, and the others numbered anew in their order."""
    for number, graph in enumerate(model.subgraphs):
        signed = [
            entry
            for signature in model.signatureDefs or ()
            if signature.subgraphIndex == number
            for entry in (*(signature.inputs or ()), *(signature.outputs or ()))
        ]
        lists = [graph, *(graph.operators or ())]
        used = {entry.tensorIndex for entry in signed}
        for holder in lists:
            for field in _INDEX_LISTS:
                used.update(numbers(getattr(holder, field, None)))
        kept = sorted(used - {-1})
        place = {old: new for new, old in enumerate(kept)} | {-1: -1}
        graph.tensors = [graph.tensors[old] for old in kept]
        for holder in lists:
            for field in _INDEX_LISTS:
                old = getattr(holder, field, None)
                if old is not None:
                    setattr(holder, field, np.array([place[index] for index in numbers(old)], np.int32))
        for entry in signed:
            entry.tensorIndex = place[entry.tensorIndex]


def _tidy_buffers(model: Any) -> None:
    """Buffer 0 stays the empty one, as readers expect."""
    contents: dict[bytes, int] = {b"": 0}
    kept = [_buffer(b"")]

    def place(index: int) -> int:
        data = model.buffers[index].data
        key = b"" if data is None else bytes(data)
        if key not in contents:
            contents[key] = len(kept)
            kept.append(_buffer(key))
        return contents[key]

    for graph in model.subgraphs:
        for tensor in graph.tensors or ():
            tensor.buffer = place(tensor.buffer)
    for entry in model.metadata or ():
        entry.buffer = place(entry.buffer)
    if model.metadataBuffer is not None and len(model.metadataBuffer):
        model.metadataBuffer = [place(int(index)) for index in model.metadataBuffer]
    model.buffers = kept


def _tidy_codes(model: Any) -> None:
    """Operator codes that no operator uses are dropped."""
    used = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators or ()})
    place = {old: new for new, old in enumerate(used)}
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            operator.opcodeIndex = place[operator.opcodeIndex]
    model.operatorCodes = [model.operatorCodes[old] for old in used]
    for code in model.operatorCodes:
        code.builtinCode = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.deprecatedBuiltinCode = min(code.builtinCode, _OLD_CODES)
