"""Reading an ONNX file with suspicion: no library checks everything, so this does.

`parse_model` refuses what is no ONNX model and what breaks a cap; `read_external_data` pulls weights from
files beside the model into the model itself, and never reads outside the model's own directory, through a
link, or twice. Both run in the quarantine child first; the parent repeats them only on bytes whose digest
the child has approved (`load_approved`).
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # ships no stubs
from onnx import ModelProto, TensorProto

from skerry_contract.errors import ModelError

from . import graphs
from .inspect import ExternalFile, ModelInspection
from .quarantine import DEFAULT_QUARANTINE, QuarantineLimits

_STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators every onnxruntime build registers."""
_EXTERNAL_KEYS: Final = frozenset({"location", "offset", "length", "checksum"})
_PACKED: Final = {TensorProto.UINT4: 2, TensorProto.INT4: 2, TensorProto.FLOAT4E2M1: 2} | {
    kind: 4 for name, kind in TensorProto.DataType.items() if name in ("UINT2", "INT2")
}
"""Types that store several numbers in a byte."""
_SIGNATURES: Final = (
    (
        b"PK\x03\x04",
        "a ZIP archive, perhaps a PyTorch or Keras file",
        "Export it: torch.onnx.export or tf2onnx.",
    ),
    (b"\x89HDF", "an HDF5 file, perhaps from Keras", "Export it with tf2onnx."),
    (b"\x80\x02", "a Python pickle", "Never load a pickle that you do not trust; export the model to ONNX."),
    (b"\x80\x04", "a Python pickle", "Never load a pickle that you do not trust; export the model to ONNX."),
    (b"GGUF", "a GGUF file", "Only ONNX models can be packed in this version."),
    (b"ORTM", "an .ort file", "Give the .onnx file that it was made from."),
)


def parse_model(data: bytes, name: str, limits: QuarantineLimits = DEFAULT_QUARANTINE) -> ModelProto:
    """Bytes to a model whose structure is within the caps; external data stays outside.

    Raises:
        ModelError: no ONNX model, truncated, too large, undeclared operators, EPContext.
    """
    for signature, what, hint in _SIGNATURES:
        if data.startswith(signature):
            raise ModelError(f"{name} is no ONNX model: it looks like {what}", hint=hint)
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise _no_model(name, "it cannot be parsed") from error
    if model.ir_version < 1 or not model.HasField("graph") or not model.graph.output:
        raise _no_model(name, "it has no graph with outputs")
    _check_caps(model, name, limits)
    _check_operators(model, name)
    return model


def _no_model(name: str, why: str) -> ModelError:
    return ModelError(
        f"{name} is no ONNX model, or a truncated one: {why}",
        hint="Check the file's size and digest against where it came from, or export it again.",
    )


def _check_caps(model: ModelProto, name: str, limits: QuarantineLimits) -> None:
    if graphs.depth(model.graph, limits.depth) > limits.depth:
        raise ModelError(
            f"{name} nests If, Loop or Scan deeper than {limits.depth}", hint="Simplify the model."
        )
    nodes = sum(1 for _ in graphs.all_nodes(model))
    if nodes > limits.nodes:
        raise ModelError(
            f"{name} has {nodes} nodes; at most {limits.nodes} are accepted", hint="Simplify it."
        )
    for number, tensor in enumerate(graphs.all_tensors(model)):
        if number >= limits.initializers:
            raise ModelError(
                f"{name} stores more than {limits.initializers} tensors", hint="Simplify the model."
            )
        if len(tensor.dims) > limits.rank or any(not 0 <= size <= limits.dimension for size in tensor.dims):
            raise ModelError(
                f"{name}: tensor {tensor.name!r} has the impossible shape {list(tensor.dims)[:20]}",
                hint="The file is damaged or hostile: export it again.",
            )
        if tensor.data_location != TensorProto.EXTERNAL and tensor.HasField("raw_data"):
            expected = stored_bytes(tensor)
            if expected is not None and expected != len(tensor.raw_data):
                raise ModelError(
                    f"{name}: tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} bytes "
                    f"and has {len(tensor.raw_data)}",
                    hint="The file is damaged or truncated: export it again.",
                )


def stored_bytes(tensor: TensorProto) -> int | None:
    """How many raw bytes the tensor's shape and type ask for; None if the type has no fixed size."""
    count: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    if tensor.data_type in _PACKED:
        per_byte: int = _PACKED[tensor.data_type]
        return (count + per_byte - 1) // per_byte
    try:
        return count * int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    except KeyError as error:
        raise ModelError(
            f"tensor {tensor.name!r} has the unknown type {tensor.data_type}",
            hint="The file is damaged, or newer than this packager's onnx package.",
        ) from error


def _check_operators(model: ModelProto, name: str) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for node in graphs.all_nodes(model):
        if node.op_type == "EPContext":
            raise ModelError(
                f"{name} holds an EPContext node: a compiled blob for one accelerator, loaded from a path",
                hint="Give the model before it was compiled for the accelerator.",
            )
        if node.domain not in _STANDARD_DOMAINS and (node.domain, node.op_type) not in local:
            raise ModelError(
                f"`{node.domain}:{node.op_type}` is not registered: {name} needs a custom operator library",
                hint="Replace the operator by standard ones, or move it to pre-processing outside the model.",
            )


@dataclass(frozen=True, slots=True)
class _Region:
    offset: int
    length: int


def read_external_data(
    model: ModelProto, folder: Path, name: str, limits: QuarantineLimits = DEFAULT_QUARANTINE
) -> tuple[ExternalFile, ...]:
    """Pull every external tensor into `model`, in place; the files that were read, by name.

    Raises:
        ModelError: a location outside `folder`, a link, a bad offset or length, an unknown key, overlaps.
    """
    files: dict[str, bytes] = {}
    regions: dict[str, set[_Region]] = {}
    room = limits.file_bytes
    for tensor in graphs.all_tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key not in _EXTERNAL_KEYS or entry.key in entries:
                raise _bad_external(name, tensor, f"unknown or repeated key {entry.key[:40]!r}")
            entries[entry.key] = entry.value
        location = entries.get("location", "")
        if location not in files:
            files[location] = _read_beside(folder, location, name, tensor, room)
            room -= len(files[location])
        blob = files[location]
        offset = _number(entries.get("offset", "0"), name, tensor, "offset")
        length = _number(entries.get("length", str(max(0, len(blob) - offset))), name, tensor, "length")
        if offset + length > len(blob):
            raise _bad_external(name, tensor, f"bytes {offset} to {offset + length} of a file of {len(blob)}")
        if length != stored_bytes(tensor):
            raise _bad_external(name, tensor, f"{length} bytes for shape {list(tensor.dims)}")
        regions.setdefault(location, set()).add(_Region(offset, length))
        tensor.raw_data = blob[offset : offset + length]
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
    for location, used in regions.items():
        _refuse_overlaps(used, location, name)
    return tuple(
        ExternalFile(location=location, size_bytes=len(blob), sha256=hashlib.sha256(blob).hexdigest())
        for location, blob in sorted(files.items())
    )


def _bad_external(name: str, tensor: TensorProto, why: str) -> ModelError:
    return ModelError(
        f"{name}: external data of tensor {tensor.name[:80]!r} is refused: {why}",
        hint="Weights must lie in ordinary files inside the model's own directory; save the model again with "
        "onnx.save(..., save_as_external_data=True).",
    )


def _number(text: str, name: str, tensor: TensorProto, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _bad_external(name, tensor, f"{what} is {text[:40]!r}")
    return int(text)


def _refuse_overlaps(used: set[_Region], location: str, name: str) -> None:
    """Two tensors may share one region; regions that overlap in part are a trick."""
    end = 0
    for region in sorted(used, key=lambda item: (item.offset, item.length)):
        if region.offset < end and region.length:
            raise ModelError(
                f"{name}: tensors in {location!r} overlap at byte {region.offset}",
                hint="The file is damaged or hostile: save the model again.",
            )
        end = max(end, region.offset + region.length)


def _read_beside(folder: Path, location: str, name: str, tensor: TensorProto, room: int) -> bytes:
    """The whole file `location` inside `folder`, following no link of any kind."""
    parts = location.split("/")
    if location.startswith("*/") or "_ORT_MEM_ADDR_" in location:
        raise _bad_external(name, tensor, "the location is a marker for an address in memory")
    if not location or any(part in ("", ".", "..") for part in parts) or set(location) & set("\\:\0"):
        raise _bad_external(name, tensor, f"location {location[:80]!r} leaves the model's directory")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
            inner = os.open(part, flags, dir_fd=handle)
            os.close(handle)
            handle = inner
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise _bad_external(name, tensor, f"{location!r} is no regular file")
        if found.st_nlink != 1:
            raise _bad_external(name, tensor, f"{location!r} is a hard link ({found.st_nlink} names)")
        if found.st_size > room:
            raise _bad_external(name, tensor, f"{location!r} has {found.st_size} bytes; {room} are left")
        with os.fdopen(os.dup(handle), "rb") as stream:
            return stream.read(found.st_size)
    except OSError as error:
        raise _bad_external(name, tensor, f"{location!r}: {error.strerror}, or a link") from error
    finally:
        os.close(handle)


def load_approved(path: Path, inspection: ModelInspection) -> ModelProto:
    """The model that `inspection` describes, external data inside; the file must not have changed since.

    Raises:
        ModelError: the file or its external data differ from what was inspected.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != inspection.sha256:
        raise _changed(path)
    model = parse_model(data, path.name)
    if read_external_data(model, path.parent, path.name) != inspection.external_files:
        raise _changed(path)
    return model


def _changed(path: Path) -> ModelError:
    return ModelError(f"{path.name} changed while it was being packed", hint="Run the command again.")
