"""Lists of numbers in attributes, packed: one tag for all of them instead of one for each.

``AttributeProto`` declares ``floats`` and ``ints`` unpacked, and so libraries write them; but every reader of
protocol buffers takes both forms (https://protobuf.dev/programming-guides/encoding/#packed). It saves a byte
for each number, a fifth of a list of floats and half of a list of small whole numbers, and the reader's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

_CHILDREN: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {6: "graph", 11: "graph"},
}
"""By message: the fields in which lists are looked for, and the message in each."""
_LISTS: Final = {7: 5, 8: 0}
"""``floats`` and ``ints`` of an attribute, with the wire type of one number."""
_LEAST: Final = 3
"""Below, the length takes what the tags save."""


def pack_lists(model: bytes) -> bytes:
    """The same message, written shorter. `model` is well formed, as a library has written it."""
    return _packed(memoryview(model), "model")


def _packed(message: memoryview, kind: str) -> bytes:
    children = _CHILDREN[kind]
    parts: list[bytes | memoryview] = []
    lists: dict[int, list[memoryview]] = {number: [] for number in _LISTS}
    for start, number, wire, content, end in _fields(message):
        if kind == "attribute" and _LISTS.get(number) == wire:
            lists[number].append(message[content:end])
        elif number in children:
            inner = _packed(message[content:end], children[number])
            parts += (message[start : start + _tag_bytes(number)], _varint(len(inner)), inner)
        else:
            parts.append(message[start:end])
    for number, values in lists.items():
        if len(values) < _LEAST:
            tag = _varint(number << 3 | _LISTS[number])
            parts += [part for value in values for part in (tag, value)]
        else:
            joined = b"".join(values)
            parts += (_varint(number << 3 | 2), _varint(len(joined)), joined)
    return b"".join(parts)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """(where it starts, number, wire type, where its content starts, where it ends) of each field."""
    at = 0
    while at < len(message):
        start = at
        tag, at = _read_varint(message, at)
        wire = tag & 7
        content = at
        if wire == 0:
            _, at = _read_varint(message, at)
        elif wire == 2:
            size, content = _read_varint(message, at)
            at = content + size
        else:
            at += 8 if wire == 1 else 4
        yield start, tag >> 3, wire, content, at


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _tag_bytes(number: int) -> int:
    return len(_varint(number << 3))
