"""Writes small ONNX models without the onnx package: protocol buffers, only the fields that are needed.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from ..engines import Array

OPSET: Final = 17
IR: Final = 8
"""Every engine that Skerry runs on loads these."""
_ELEMENT: Final[Mapping[str, int]] = {
    "float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10,
}  # fmt: skip
_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7

Attribute = int | float | str | Sequence[int]
Shape = Sequence[int]


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute) -> bytes:
    """A NodeProto of the default domain."""
    return b"".join(
        (
            *(_text(1, name) for name in inputs),
            *(_text(2, name) for name in outputs),
            _text(4, operator),
            *(_field(5, _attribute(name, value)) for name, value in attributes.items()),
        )
    )


def model(
    nodes: Sequence[bytes],
    inputs: Mapping[str, tuple[str, Shape]],
    outputs: Mapping[str, tuple[str, Shape]],
    weights: Mapping[str, Array],
) -> bytes:
    """A ModelProto.

    Args:
        nodes: as `node` makes them, in order of execution.
        inputs: name -> (numpy's name of the type, shape).
        outputs: the same.
        weights: constants by name.
    """
    graph = b"".join(
        (
            *(_field(1, item) for item in nodes),
            _text(2, "bench"),
            *(_field(5, _tensor(name, array)) for name, array in weights.items()),
            *(_field(11, _value(name, *kind)) for name, kind in inputs.items()),
            *(_field(12, _value(name, *kind)) for name, kind in outputs.items()),
        )
    )
    return _number(1, IR) + _field(7, graph) + _field(8, _number(2, OPSET))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _number(20, _STRING)
    if isinstance(value, float):
        return _text(1, name) + _varint(2 << 3 | 5) + struct.pack("<f", value) + _number(20, _FLOAT)
    if isinstance(value, int):
        return _text(1, name) + _number(3, value) + _number(20, _INT)
    return _text(1, name) + b"".join(_number(8, item) for item in value) + _number(20, _INTS)


def _tensor(name: str, array: Array) -> bytes:
    dims = b"".join(_number(1, size) for size in array.shape)
    raw = np.ascontiguousarray(array).tobytes()
    return dims + _number(2, _ELEMENT[array.dtype.name]) + _text(8, name) + _field(9, raw)


def _value(name: str, element: str, shape: Shape) -> bytes:
    dims = b"".join(_field(1, _number(1, size)) for size in shape)
    tensor = _number(1, _ELEMENT[element]) + _field(2, dims)
    return _text(1, name) + _field(2, _field(1, tensor))


def _text(number: int, value: str) -> bytes:
    return _field(number, value.encode())


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value % (1 << 64))


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
