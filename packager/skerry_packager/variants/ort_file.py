"""The same bytes for the same model: onnxruntime writes one part of an ORT file in the order of a hash table.

That part, which kernels an operator's types belong to, is the last that its writer makes, so it lies before
all others. It is read, written again in the order of its keys behind the rest, and cut off in front.
"""

from __future__ import annotations

import struct
from typing import Final

from skerry_contract.errors import ModelError
from skerry_runtime.worker.bench_ops.flatbuffer_writer import Scalar, append
from skerry_runtime.worker.bench_ops.flatbuffer_writer import Table as NewTable
from skerry_runtime.worker.engines.flatbuffer import Budget, Damaged, Table, root
from skerry_runtime.worker.engines.ort_guard import ORT_MARK

_VERSION, _MODEL, _KERNELS = 0, 1, 3
_LAYOUT: Final = struct.pack("<HH4H", 12, 16, 4, 8, 0, 12)
"""Of the table that the file is: version, model, nothing, kernels."""
_LAYOUT_AT, _TABLE_AT, _HEAD = 8, 20, 36
_ALIGNED: Final = 16
_READS: Final = 1_000_000


def canonical(data: bytes) -> bytes:
    """The same file in one of its forms. Raises `ModelError` if it is not laid out as expected."""
    try:
        session = root(data, Budget(_READS))
        kernels = session.table(_KERNELS)
        if kernels is None or session.table(_MODEL) is None or session.has(2) or session.has(4):
            raise Damaged("other parts than version, model and kernels")
        rewritten = _kernels(kernels)
    except Damaged as error:
        raise ModelError(
            f"onnxruntime wrote an ORT file that is not understood: {error}",
            hint="Pack with the onnxruntime version that this version of Skerry was tested with.",
        ) from error
    version, model = _place(data, _VERSION), _place(data, _MODEL)
    # Its layout is shared with a table behind it, or lies before it.
    begin = min(model, model - struct.unpack_from("<i", data, model)[0])
    rest = data[begin:]
    head = _HEAD + -(_HEAD + len(rest)) % _ALIGNED
    out = bytearray(struct.pack("<I", _TABLE_AT) + ORT_MARK + _LAYOUT)
    out += struct.pack("<i", _TABLE_AT - _LAYOUT_AT) + bytes(head - _TABLE_AT - 4) + rest
    places = (version - begin + head, model - begin + head, append(out, rewritten))
    for number, place in enumerate(places, start=1):
        at = _TABLE_AT + 4 * number
        struct.pack_into("<I", out, at, place - at)
    return bytes(out)


def _place(data: bytes, slot: int) -> int:
    """Where a child of the table that the file is lies; `root` has checked the way."""
    table = struct.unpack_from("<I", data)[0]
    layout = table - struct.unpack_from("<i", data, table)[0]
    at = table + struct.unpack_from("<H", data, layout + 4 + 2 * slot)[0]
    return int(at + struct.unpack_from("<I", data, at)[0])


def _kernels(table: Table) -> NewTable:
    operators = sorted(((entry.text(0), entry) for entry in table.tables(0)), key=_first)
    return NewTable({0: [NewTable({0: name, 1: _types(entry)}) for name, entry in operators]})


def _first(pair: tuple[str, Table]) -> str:
    return pair[0]


def _types(operator: Table) -> list[NewTable]:
    types = sorted(((entry.text(0), entry) for entry in operator.tables(1)), key=_first)
    return [
        NewTable(
            {
                0: name,
                1: [
                    NewTable({0: Scalar("b", arg.scalar(0, "b")), 1: Scalar("I", arg.scalar(1, "I"))})
                    for arg in entry.tables(1)
                ],
            }
        )
        for name, entry in types
    ]
