"""Reads an ``.ort`` file with suspicion before an engine maps it: the rules of `onnx_guard` in a FlatBuffer.

Nothing outside the file's own bytes, no operators but the engine's own, no compiled context, tensors as long
as their shapes say. The engine maps the file and uses the weights where they lie, so what it would follow is
checked here; that the graph makes sense is the engine's own check, in a process that may die.

Field numbers: onnxruntime's ``core/flatbuffers/schema/ort.fbs``
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

from skerry_contract.errors import EngineError

from . import Content
from .flatbuffer import Budget, Damaged, Table, root

ORT_MARK: Final = b"ORTM"
"""Bytes 4 to 8 of the file."""
DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operators that the engine itself brings; no other library is ever loaded."""
_VERSIONS: Final = frozenset(("5", "6"))
_WIDTHS: Final[Mapping[int, int]] = {
    1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 14: 8, 15: 16, 16: 2,
    17: 1, 18: 1, 19: 1, 20: 1,
}  # fmt: skip
"""Type of a tensor -> bytes of an element. Narrower ones are stored in a form of their own."""
_STRING: Final = 8
_TENSOR_BYTES: Final = 1 << 31
_READS: Final = 2_000_000
_DEPTH: Final = 64


def check_ort(model: Content) -> None:
    """Raises `EngineError` if the file is damaged, reaches outside of itself or wants foreign operators."""
    try:
        session = root(model, Budget(_READS))
        if (version := session.text(0)) not in _VERSIONS:
            raise EngineError(
                f"the file has version {version[:20]!r} of the ORT format; known: "
                f"{', '.join(sorted(_VERSIONS))}",
                hint="Pack the model again, or update Skerry.",
            )
        described = session.table(1)
        graph = None if described is None else described.table(7)
        if graph is None:
            raise Damaged("it has no graph")
        _check_graph(graph, 0)
    except Damaged as error:
        raise EngineError(
            f"the ORT file is damaged or hostile: {error}", hint="Pack the model again, or copy it again."
        ) from error


def _check_graph(graph: Table, depth: int) -> None:
    if depth > _DEPTH:
        raise Damaged(f"it nests deeper than {_DEPTH} levels")
    for tensor in graph.tables(0):
        _check_tensor(tensor)
    for sparse in graph.tables(7):
        for slot in (0, 1):
            if (part := sparse.table(slot)) is not None:
                _check_tensor(part)
    for node in graph.tables(2):
        domain, operator = node.text(2), node.text(5)
        if operator == "EPContext":
            raise EngineError("the model refers to another compiled model", hint="Pack the model itself.")
        if domain not in DOMAINS:
            raise EngineError(
                f"the model wants the operator `{domain[:80]}:{operator[:80]}`, "
                "which the engine does not bring",
                hint=f"Known: {', '.join(sorted(DOMAINS - {''}))}.",
            )
        for attribute in node.tables(10):
            for tensor in (*_present(attribute.table(6)), *attribute.tables(11)):
                _check_tensor(tensor)
            for body in (*_present(attribute.table(7)), *attribute.tables(12)):
                _check_graph(body, depth + 1)


def _check_tensor(tensor: Table) -> None:
    if tensor.scalar(6, "q", -1) != -1:
        raise EngineError("the model keeps data in other files", hint="Pack it with its data inside.")
    kind, shape = tensor.scalar(3, "i"), tensor.numbers(2, "q")
    if kind == _STRING:
        return
    if len(shape) > 16 or any(size < 0 for size in shape):
        raise Damaged(f"a tensor of the impossible shape {list(shape)[:20]}")
    raw = tensor.vector(4, 1)
    stored = 0 if raw is None else raw.count
    width = _WIDTHS.get(kind)
    size = math.prod(shape) * (width or 0)
    if max(size, math.prod(shape)) > _TENSOR_BYTES:
        raise EngineError(
            f"a tensor of shape {list(shape)} takes {size} bytes; at most {_TENSOR_BYTES} are accepted",
            hint="No small machine can run it: look for a huge dimension.",
        )
    if width is not None and stored != size:
        raise Damaged(f"a tensor of shape {list(shape)} needs {size} bytes and has {stored}")


def _present(table: Table | None) -> Iterator[Table]:
    if table is not None:
        yield table
