"""Tensor files: named arrays as plain bytes, in the safetensors layout, without numpy.

Layout (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON object
``{name: {"dtype", "shape", "data_offsets": [begin, end]}}``, then the bytes, row-major, little-endian.
The reader is strict: offsets tile the data exactly, so nothing overlaps and nothing is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .errors import ManifestError
from .strict_json import Reader, canonical, loads

ITEM_SIZES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
DTYPE_OF_DATATYPE: Mapping[str, str] = {
    "BOOL": "BOOL", "UINT8": "U8", "INT8": "I8", "UINT16": "U16", "INT16": "I16", "FP16": "F16",
    "UINT32": "U32", "INT32": "I32", "FP32": "F32", "UINT64": "U64", "INT64": "I64", "FP64": "F64",
}  # fmt: skip
"""From the Open Inference Protocol's datatypes to this layout's."""
_METADATA: Final = "__metadata__"
_MAX_RANK: Final = 16


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array as bytes; ``numpy.frombuffer(data, dtype).reshape(shape)`` views it."""

    dtype: str
    """A key of `ITEM_SIZES`."""
    shape: tuple[int, ...]
    data: bytes


def write_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Serialize deterministically, ordered by name.

    Raises:
        ManifestError: bytes that do not fill the shape, or what the layout cannot hold.
    """
    header: dict[str, object] = {}
    offset = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        if name == _METADATA or tensor.dtype not in ITEM_SIZES or len(tensor.shape) > _MAX_RANK:
            raise ManifestError(f"tensor {name!r}: a name, dtype or rank that a tensor file cannot hold")
        if len(tensor.data) != math.prod(tensor.shape) * ITEM_SIZES[tensor.dtype]:
            raise ManifestError(f"tensor {name!r}: {len(tensor.data)} bytes do not fill shape {tensor.shape}")
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    head = canonical(header)
    head += b" " * (-len(head) % 8)
    return len(head).to_bytes(8, "little") + head + b"".join(tensors[name].data for name in sorted(tensors))


def read_tensors(data: bytes, *, max_header_bytes: int = 1 << 20) -> dict[str, Tensor]:
    """Read strictly.

    Raises:
        ManifestError: truncated, trailing bytes, overlaps, unknown dtype, a shape that does not match.
    """
    if len(data) < 8:
        raise ManifestError("a tensor file has at least 8 bytes")
    length = int.from_bytes(data[:8], "little")
    if length > min(max_header_bytes, len(data) - 8):
        raise ManifestError(f"tensor file: a header of {length} bytes does not fit")
    header = loads(data[8 : 8 + length], max_bytes=max_header_bytes, max_depth=4, what="tensor file header")
    if not isinstance(header, dict):
        raise ManifestError("tensor file header must be an object")
    body = memoryview(data)[8 + length :]
    found: dict[str, tuple[int, int, Tensor]] = {}
    for name, value in header.items():
        if name == _METADATA:
            continue
        reader = Reader(value, f"tensor {name[:80]!r}")
        dtype, shape = reader.take("dtype", str), reader.take("shape", list)
        offsets = reader.take("data_offsets", list)
        if dtype not in ITEM_SIZES:
            raise ManifestError(f"{reader.where}: dtype {dtype[:20]!r} is not known")
        if not all(type(number) is int and number >= 0 for number in shape + offsets) or len(offsets) != 2:
            raise ManifestError(f"{reader.where}: shape and data_offsets must be non-negative integers")
        begin, end = offsets
        if len(shape) > _MAX_RANK:
            raise ManifestError(f"{reader.where}: a tensor has at most {_MAX_RANK} dimensions")
        if not begin <= end <= len(body) or end - begin != math.prod(shape) * ITEM_SIZES[dtype]:
            raise ManifestError(f"{reader.where}: bytes {begin} to {end} do not fill shape {shape}")
        found[name] = (begin, end, Tensor(dtype, tuple(shape), bytes(body[begin:end])))
    position = 0
    for begin, end, _ in sorted(found.values(), key=lambda item: item[:2]):
        if begin != position:
            raise ManifestError("tensor file: the tensors overlap or leave a hole")
        position = end
    if position != len(body):
        raise ManifestError(f"tensor file: {len(body) - position} bytes belong to no tensor")
    return {name: tensor for name, (_, _, tensor) in found.items()}
