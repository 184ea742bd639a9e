"""A reader of FlatBuffers that checks every offset before it follows it, without a library.

Layout: https://flatbuffers.dev/internals/. Whatever the bytes are, reading ends with a value or with
`Damaged`; it never reads outside the file, and `Budget` ends it where offsets form a bomb.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from . import Content

_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_I32: Final = struct.Struct("<i")
_SCALARS: Final = {name: struct.Struct(f"<{name}") for name in "bBhHiIqQf"}


class Damaged(ValueError):
    """The bytes are no FlatBuffer of the expected kind."""


class Budget:
    """How many tables and vectors may still be read: shared sub-tables could be followed without end."""

    def __init__(self, reads: int) -> None:
        self.reads = reads

    def spend(self) -> None:
        self.reads -= 1
        if self.reads < 0:
            raise Damaged("it has more parts than any real model")


class Vector:
    """Numbers or offsets in a row; its bytes lie inside the file."""

    __slots__ = ("_budget", "_data", "_start", "count", "width")

    def __init__(self, data: Content, at: int, width: int, budget: Budget) -> None:
        budget.spend()
        if at + 4 > len(data) or at % 4:
            raise Damaged(f"a vector at byte {at}")
        self.count: int = _U32.unpack_from(data, at)[0]
        self.width = width
        self._data, self._start, self._budget = data, at + 4, budget
        if self.count * width > len(data) - self._start:
            raise Damaged(f"a vector of {self.count} items at byte {at} ends behind the file")

    @property
    def bytes(self) -> memoryview:
        return memoryview(self._data)[self._start : self._start + self.count * self.width]

    def numbers(self, kind: str) -> tuple[int, ...]:
        """All items as integers of a `struct` kind."""
        return struct.unpack(f"<{self.count}{kind}", self.bytes)

    def tables(self) -> Iterator[Table]:
        for index in range(self.count):
            yield Table(self._data, _follow(self._data, self._start + 4 * index), self._budget)


class Table:
    """One table. A field that is absent reads as its default, as the format wants."""

    __slots__ = ("_budget", "_data", "_end", "_fields", "_start")

    def __init__(self, data: Content, at: int, budget: Budget) -> None:
        budget.spend()
        if at + 4 > len(data) or at % 4:
            raise Damaged(f"a table at byte {at}")
        vtable = at - _I32.unpack_from(data, at)[0]
        if not 0 <= vtable <= len(data) - 4 or vtable % 2:
            raise Damaged(f"the table at byte {at} has its layout at {vtable}")
        size, inline = _U16.unpack_from(data, vtable)[0], _U16.unpack_from(data, vtable + 2)[0]
        if size < 4 or size % 2 or vtable + size > len(data) or inline < 4 or at + inline > len(data):
            raise Damaged(f"the layout of the table at byte {at}")
        self._data, self._start, self._end, self._budget = data, at, at + inline, budget
        self._fields: tuple[int, ...] = struct.unpack_from(f"<{(size - 4) // 2}H", data, vtable + 4)
        if any(field >= inline or 0 < field < 4 for field in self._fields):
            raise Damaged(f"a field outside of the table at byte {at}")

    def has(self, slot: int) -> bool:
        return slot < len(self._fields) and self._fields[slot] != 0

    def scalar(self, slot: int, kind: str, default: int = 0) -> int:
        if not self.has(slot):
            return default
        reader = _SCALARS[kind]
        number: int = reader.unpack_from(self._data, self._place(slot, reader.size))[0]
        return number

    def table(self, slot: int) -> Table | None:
        if not self.has(slot):
            return None
        return Table(self._data, _follow(self._data, self._place(slot, 4)), self._budget)

    def vector(self, slot: int, width: int) -> Vector | None:
        if not self.has(slot):
            return None
        return Vector(self._data, _follow(self._data, self._place(slot, 4)), width, self._budget)

    def numbers(self, slot: int, kind: str = "i") -> tuple[int, ...]:
        """A vector of integers; empty if absent."""
        vector = self.vector(slot, _SCALARS[kind].size)
        return () if vector is None else vector.numbers(kind)

    def tables(self, slot: int) -> Iterator[Table]:
        vector = self.vector(slot, 4)
        return iter(()) if vector is None else vector.tables()

    def text(self, slot: int) -> str:
        """A string; engines take it up to its zero byte, so there must be one. Empty if absent."""
        vector = self.vector(slot, 1)
        if vector is None:
            return ""
        end = vector._start + vector.count
        if end >= len(self._data) or self._data[end]:
            raise Damaged("a string without an end")
        try:
            return str(vector.bytes, "utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("a string that is no text") from error

    def _place(self, slot: int, size: int) -> int:
        place = self._start + self._fields[slot]
        if place + size > self._end:
            raise Damaged(f"a field that leaves the table at byte {self._start}")
        return place


def root(data: Content, budget: Budget) -> Table:
    """The table that the whole file is. Raises `Damaged`."""
    if len(data) < 8:
        raise Damaged(f"only {len(data)} bytes")
    return Table(data, _follow(data, 0), budget)


def _follow(data: Content, at: int) -> int:
    if at + 4 > len(data):
        raise Damaged(f"an offset at byte {at}")
    return at + int(_U32.unpack_from(data, at)[0])
