"""What a local client and a worker agree on when tensors pass through shared memory.

The specification is docs/spec/shared-memory-v1.md. Both ends are processes of one machine, so all numbers are
in its own byte order. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec

PROTOCOL: Final = "skerry-shm/1"
"""The name in the ``Upgrade`` header."""
TARGET: Final = "/v2/shared-memory"
"""Of the request that carries the header."""
PAGE: Final = 4096
"""The outputs' memory begins with a page for `WORDS`; a message on a pipe is never longer than this."""
ALIGNMENT: Final = 64

MAPPED: Final = b"m"
"""What the client sends on the socket when it has allocated and mapped the inputs' memory."""

TAKEN: Final = 0
"""Index in `WORDS`: number of the newest request that the worker read. Written by the worker."""
CONSUMED: Final = 1
"""Index in `WORDS`: number of the newest answer whose outputs the client no longer needs. Written by it."""
ALIVE: Final = 2
"""Index in `WORDS`: 0 once the worker gave the outputs up; what was read last then is none."""
WORDS: Final = "=3I"

NONFINITE_INPUT: Final = 1
"""Bit of an answer's flags: the inputs held NaN or infinity, and the answer is finite all the same."""


class Wish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of the request: how large the memory shall be where the model leaves sizes free."""

    rows: int = 1
    """The largest size of a free axis 0."""
    free: int = 0
    """The largest size of any other free axis; 0: the client expects none."""


class Region(msgspec.Struct, frozen=True):
    """Where a tensor lies in its memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 where free."""
    offset: int
    capacity: int
    """In bytes."""


class Layout(msgspec.Struct, frozen=True):
    """The worker's first message: what is served, and where its tensors lie in the two memories."""

    model: str
    version: str
    digest: str
    variant: str
    inputs_bytes: int
    outputs_bytes: int
    inputs: tuple[Region, ...]
    outputs: tuple[Region, ...]


class Refusal(msgspec.Struct, frozen=True):
    """Why there are no outputs: the error object of the Open Inference Protocol, as over HTTP."""

    error: str
    code: str = ""
    hint: str = ""


LENGTH: Final = struct.Struct("=I")
"""Of the encoded `Layout` that follows."""
ANSWER: Final = struct.Struct("=IHHQ8s")
"""Number of the request, HTTP status, flags, nanoseconds of the inference, first bytes of the digest."""
OK: Final = 200


def request_struct(inputs: Sequence[Region]) -> struct.Struct:
    """A request: its number, then each free size of the inputs in order."""
    return struct.Struct(f"=I{free_axes(inputs)}I")


def answer_struct(outputs: Sequence[Region]) -> struct.Struct:
    """An answer: `ANSWER`, then each free size of the outputs in order; an encoded `Refusal` may follow."""
    return struct.Struct(f"{ANSWER.format}{free_axes(outputs)}I")


def free_axes(regions: Sequence[Region]) -> int:
    """How many sizes the model leaves free."""
    return sum(region.shape.count(-1) for region in regions)


def free_sizes(region: Region, shape: Sequence[int]) -> list[int]:
    """Of an array of this shape, where the region's are free."""
    return [size for size, wanted in zip(shape, region.shape, strict=True) if wanted == -1]


def shapes(regions: Sequence[Region], sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """The shape of each tensor when the free sizes are these, in order."""
    given = iter(sizes)
    return [tuple(next(given) if size == -1 else size for size in region.shape) for region in regions]
