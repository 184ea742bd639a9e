"""Numbers as the window summary packs them: LEB128 varints, zigzag for signed, runs of zeros."""

from __future__ import annotations

import struct
from itertools import groupby
from typing import Final

from .errors import MessageError

COUNT_BITS, SUM_BITS = 63, 95
"""A count fits a database column; a sum of a merged year of saturated sensors still fits its number."""
_FLOATS: Final = struct.Struct(">ff")
_LARGEST_FLOAT: Final = 3.4028234663852886e38


class Writer:
    """Varints are unsigned LEB128; signed numbers are zigzag-coded first."""

    def __init__(self) -> None:
        self.out = bytearray()

    def raw(self, data: bytes) -> None:
        self.out += data

    def number(self, value: int, bits: int = COUNT_BITS) -> None:
        if not 0 <= value < 1 << bits:
            raise MessageError(f"window summary: {value} is not within 0 and 2^{bits}")
        while value > 0x7F:
            self.out.append(value & 0x7F | 0x80)
            value >>= 7
        self.out.append(value)

    def signed(self, value: int) -> None:
        self.number(value << 1 if value >= 0 else (-value << 1) - 1, SUM_BITS)

    def floats(self, low: float, high: float) -> None:
        # Adding 0.0 makes one zero of two, so that equal windows have equal bytes.
        self.raw(
            _FLOATS.pack(*(min(max(value, -_LARGEST_FLOAT), _LARGEST_FLOAT) + 0.0 for value in (low, high)))
        )

    def counts(self, values: tuple[int, ...]) -> None:
        """Length, then the numbers; a run of k zeros is written as 0, k."""
        self.number(len(values))
        for zero, group in groupby(values, key=lambda value: value == 0):
            if zero:
                self.number(0)
                self.number(sum(1 for _ in group))
            else:
                for value in group:
                    self.number(value)


class Reader:
    """Reads what `Writer` wrote; every method raises `MessageError` on anything else."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def done(self) -> bool:
        return self._at == len(self._data)

    def raw(self, size: int) -> bytes:
        piece = self._data[self._at : self._at + size]
        if len(piece) != size:
            raise MessageError("window summary: truncated")
        self._at += size
        return piece

    def number(self, bits: int = COUNT_BITS) -> int:
        value = shift = 0
        while True:
            byte = self.raw(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise MessageError("window summary: a number is not in its shortest form")
                if value >> bits:
                    raise MessageError(f"window summary: a number is longer than {bits} bits")
                return value
            shift += 7
            if shift > bits:
                raise MessageError(f"window summary: a number is longer than {bits} bits")

    def signed(self) -> int:
        value = self.number(SUM_BITS)
        return value >> 1 if not value & 1 else -((value + 1) >> 1)

    def counts(self, most: int) -> tuple[int, ...]:
        length = self.number()
        if length > most:
            raise MessageError(f"window summary: {length} counts; at most {most} are accepted")
        values: list[int] = []
        while len(values) < length:
            value = self.number()
            run = self.number() if value == 0 else 1
            if not 1 <= run <= length - len(values):
                raise MessageError("window summary: a run of zeros does not fit")
            values += [value] * run
        return tuple(values)

    def floats(self) -> tuple[float, float]:
        low, high = _FLOATS.unpack(self.raw(_FLOATS.size))
        return low, high
