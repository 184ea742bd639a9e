"""Notes that a process leaves behind when it is killed: shared memory, written without a system call.

So a tracer that counts system calls counts none of ours, and what was noted before a kill can be read after
it.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec

BYTES: Final = 16 << 20
_HEAD: Final = struct.Struct("<II")
"""Whether the process may begin; where the notes end."""
_RECORD: Final = struct.Struct("<IQ")
"""Length of the note, nanoseconds of the monotonic clock."""


@dataclass(frozen=True, slots=True)
class Note:
    """What a process said, and when."""

    at_ns: int
    facts: dict[str, Any]


class Board:
    """One process writes, another one reads."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, BYTES)

    @staticmethod
    def create() -> int:
        """A descriptor to be handed to both."""
        descriptor = os.memfd_create("torture-board")
        os.ftruncate(descriptor, BYTES)
        return descriptor

    def clear(self) -> None:
        _HEAD.pack_into(self._memory, 0, 0, _HEAD.size)

    def begin(self) -> None:
        """Let the process begin."""
        self._memory[0] = 1

    @property
    def may_begin(self) -> bool:
        return self._memory[0] == 1

    def note(self, **facts: Any) -> None:
        """It counts from the moment in which the end is moved."""
        data = msgspec.json.encode(facts)
        end = self._end
        if end + _RECORD.size + len(data) > BYTES:
            raise MemoryError("the board is full")
        _RECORD.pack_into(self._memory, end, len(data), time.monotonic_ns())
        begin = end + _RECORD.size
        self._memory[begin : begin + len(data)] = data
        struct.pack_into("<I", self._memory, 4, begin + len(data))

    def notes(self) -> list[Note]:
        found: list[Note] = []
        position, end = _HEAD.size, self._end
        while position < end:
            length, at_ns = _RECORD.unpack_from(self._memory, position)
            position += _RECORD.size
            found.append(Note(at_ns, msgspec.json.decode(self._memory[position : position + length])))
            position += length
        return found

    @property
    def empty(self) -> bool:
        return self._end == _HEAD.size

    @property
    def used(self) -> int:
        """Grows with every note."""
        return self._end

    @property
    def _end(self) -> int:
        return int(struct.unpack_from("<I", self._memory, 4)[0])
