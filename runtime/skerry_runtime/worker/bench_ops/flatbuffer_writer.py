"""Writes FlatBuffers without the library: tables, vectors and texts, parents before their children.

Layout: https://flatbuffers.dev/internals/.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_ALIGNMENT = 16
"""Of vectors of bytes: kernels load weights from them as they lie there."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number in place, by its kind in `struct`."""

    kind: str
    value: float


@dataclass(frozen=True, slots=True)
class Numbers:
    """A vector of numbers of one kind."""

    kind: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Table:
    """Fields by their slot; those that are missing read as their defaults."""

    fields: Mapping[int, Scalar | Numbers | bytes | str | Table | Sequence[Table]]


def write(root: Table, identifier: bytes) -> bytes:
    """A whole file."""
    out = bytearray(struct.pack("<I", 0) + identifier)
    struct.pack_into("<I", out, 0, append(out, root))
    return bytes(out)


def append(out: bytearray, table: Table) -> int:
    """Append a table and all below it to a file; the place of the table."""
    slots = max(table.fields, default=-1) + 1
    places, inline = {}, 4
    for slot, value in sorted(table.fields.items()):
        size = struct.calcsize(value.kind) if isinstance(value, Scalar) else 4
        inline += -inline % size
        places[slot] = inline
        inline += size
    _pad(out, 4)
    layout = len(out)
    out += struct.pack(f"<HH{slots}H", 4 + 2 * slots, inline, *(places.get(slot, 0) for slot in range(slots)))
    _pad(out, 8)  # for the widest scalar
    start = len(out)
    out += struct.pack("<i", start - layout) + bytes(inline - 4)
    for slot, place in places.items():
        value, at = table.fields[slot], start + place
        if isinstance(value, Scalar):
            number = value.value if value.kind in "fd" else int(value.value)
            struct.pack_into(f"<{value.kind}", out, at, number)
        else:
            struct.pack_into("<I", out, at, _child(out, value) - at)
    return start


def _child(out: bytearray, value: Numbers | bytes | str | Table | Sequence[Table]) -> int:
    if isinstance(value, Table):
        return append(out, value)
    if isinstance(value, Numbers):
        packed = struct.pack(f"<{len(value.values)}{value.kind}", *value.values)
        return _vector(out, len(value.values), packed, struct.calcsize(value.kind))
    if isinstance(value, str):
        data = value.encode()
        return _vector(out, len(data), data + b"\0", 1)
    if isinstance(value, bytes):
        return _vector(out, len(value), value, _ALIGNMENT)
    start = _vector(out, len(value), bytes(4 * len(value)), 4)
    for index, table in enumerate(value):
        at = start + 4 + 4 * index
        struct.pack_into("<I", out, at, append(out, table) - at)
    return start


def _vector(out: bytearray, count: int, data: bytes, alignment: int) -> int:
    _pad(out, 4)
    while (len(out) + 4) % max(4, alignment):
        out += bytes(4)
    start = len(out)
    out += struct.pack("<I", count) + data
    return start


def _pad(out: bytearray, alignment: int) -> None:
    out += bytes(-len(out) % alignment)
