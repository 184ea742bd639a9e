"""Reads a TFLite file with suspicion before an engine parses it (attacks M3 to M5, M8 to M10).

Engines trust much of a file: tflite-runtime 2.14 follows any offset, and both libraries run an operator that
reads a tensor that nothing wrote. So all that they follow is checked here: offsets, indices, sizes, the flow
of data from operator to operator. No guard knows each kernel: what passes is still loaded in a disposable
process first.

Field numbers: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from skerry_contract.errors import EngineError

from . import Content
from .flatbuffer import Budget, Damaged, Table, root

IDENTIFIER: Final = b"TFL3"
"""Bytes 4 to 8 of the file."""
CUSTOM_OPERATORS: Final = frozenset(
    {
        "AudioSpectrogram",
        "Convolution2DTransposeBias",
        "Mfcc",
        "NumericVerify",
        "TFLite_Detection_PostProcess",
    }
)
"""Operators outside the standard set that the libraries themselves bring; no other library is ever loaded."""
TENSOR_BYTES: Final = 1 << 30
"""Largest tensor: no small machine has room for more."""
_SUBGRAPHS, _TENSORS, _OPERATORS, _BUFFERS = 64, 50_000, 50_000, 100_000
_RANK: Final = 8
_READS: Final = 2_000_000

TYPES: Final[Mapping[int, tuple[str, int]]] = {
    0: ("FP32", 32), 1: ("FP16", 16), 2: ("INT32", 32), 3: ("UINT8", 8), 4: ("INT64", 64), 5: ("BYTES", 0),
    6: ("BOOL", 8), 7: ("INT16", 16), 8: ("COMPLEX64", 64), 9: ("INT8", 8), 10: ("FP64", 64),
    11: ("COMPLEX128", 128), 12: ("UINT64", 64), 13: ("RESOURCE", 0), 14: ("VARIANT", 0), 15: ("UINT32", 32),
    16: ("UINT16", 16), 17: ("INT4", 4), 18: ("BF16", 16), 19: ("INT2", 2), 20: ("UINT4", 4),
    21: ("FP8_E4M3", 8), 22: ("FP8_E5M2", 8),
}  # fmt: skip
"""Type in the file -> datatype and bits; 0 bits where the bytes do not follow from the shape."""
_BYTES: Final = 5
_CALL, _CUSTOM, _DELEGATE, _IF, _WHILE, _CALL_ONCE = 31, 32, 51, 118, 119, 129
_COMPOSITE: Final = 206
_STATE: Final = frozenset({_CALL_ONCE, 136, 142, 143, 144})
"""Operators with something that outlives an inference: tables and variables."""
# Where an operator names another subgraph: kind of options and their fields.
_CALLS: Final[Mapping[int, tuple[int, tuple[int, ...]]]] = {
    _CALL: (4, (0,)), _IF: (4, (0, 1)), _WHILE: (4, (0, 1)), _CALL_ONCE: (4, (0,)), _COMPOSITE: (12, (1,)),
}  # fmt: skip
# Options with more than scalars: (number of the union, its type) -> field -> width of the items; 0 is text.
_VECTORS: Final[Mapping[tuple[int, int], Mapping[int, int]]] = {
    (4, 3): {1: 4, 2: 4}, (4, 8): {5: 4}, (4, 17): {0: 4}, (4, 30): {0: 4}, (4, 111): {0: 0, 1: 0},
    (4, 115): {0: 4}, (12, 2): {0: 8}, (12, 3): {0: 8, 1: 8, 2: 8},
    (12, 4): {0: 8, 1: 8, 2: 8, 3: 8, 4: 1, 7: 8, 10: 8, 13: 8, 16: 4}, (12, 5): {0: 0, 2: 0, 4: 4, 5: 1},
    (12, 6): {0: 8}, (12, 7): {1: 8, 2: 8, 3: 8}, (12, 9): {0: 8}, (12, 10): {0: 8, 1: 8, 2: 8},
    (12, 12): {0: 8, 1: 8, 2: 8, 3: 8, 4: 4}, (12, 13): {0: 8, 1: 8, 2: 8, 3: 8, 4: 8},
    (12, 16): {0: 8, 1: 8, 2: 8, 4: 8}, (12, 17): {0: 8}, (12, 21): {0: 0, 2: 1}, (12, 23): {0: 4},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the model."""

    name: str
    """As people call it: the signature's where there is one, else the tensor's."""
    index: int
    """Of the tensor in subgraph 0."""
    datatype: str
    shape: tuple[int, ...]
    """-1 where free."""


@dataclass(frozen=True, slots=True)
class Outline:
    """What a checked file is."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    stateful: bool
    """It keeps variables from one inference to the next."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    kind: int
    shape: tuple[int, ...]
    signature: tuple[int, ...]
    constant: bool
    variable: bool


@dataclass(frozen=True, slots=True)
class _Graph:
    tensors: tuple[_Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    calls: frozenset[int]


def check_tflite(model: Content) -> Outline:
    """Raises `EngineError` if the file is damaged, reaches outside of itself or wants foreign operators."""
    if len(model) < 16 or model[4:8] != IDENTIFIER:
        what = f"{len(model)} bytes" if len(model) < 16 else "without the mark TFL3"
        raise EngineError(f"the model is no TFLite file: {what}", hint="Check its size and digest.")
    try:
        return _outline(root(model, Budget(_READS)), len(model))
    except Damaged as error:
        raise EngineError(
            f"the TFLite file is damaged or hostile: {error}",
            hint="Export the model again, or copy it again.",
        ) from error


def _outline(model: Table, length: int) -> Outline:
    if (version := model.scalar(0, "I")) != 3:
        raise Damaged(f"version {version} of the format; there is only 3")
    if model.has(8) or model.has(9):
        raise Damaged("it keeps weights in other files")
    codes = [_code(code) for code in model.tables(1)]
    buffers = [_buffer(buffer, length) for buffer in _at_most(model.tables(4), _BUFFERS, "buffers")]
    model.text(3)
    if any(not 0 <= index < len(buffers) for index in model.numbers(5)):
        raise Damaged("metadata in a buffer that is not there")
    for entry in _at_most(model.tables(6), 1000, "entries of metadata"):
        entry.text(0)
        if entry.scalar(1, "I") >= len(buffers):
            raise Damaged("metadata in a buffer that is not there")
    tables = _at_most(model.tables(2), _SUBGRAPHS, "subgraphs")
    if not tables:
        raise Damaged("it has no subgraph")
    graphs = [_graph(graph, codes, buffers) for graph in tables]
    _check_calls([graph.calls for graph in graphs])
    main = graphs[0]
    if not main.outputs:
        raise Damaged("it has no output")
    names = _signature_names(model, graphs)
    variables = any(tensor.variable for graph in graphs for tensor in graph.tensors)
    return Outline(
        inputs=_ports(main, main.inputs, names and names[0], "input"),
        outputs=_ports(main, main.outputs, names and names[1], "output"),
        stateful=variables or any(code in _STATE for code in codes),
    )


def _at_most(tables: Iterator[Table], most: int, what: str) -> list[Table]:
    found: list[Table] = []
    for table in tables:
        if len(found) >= most:
            raise Damaged(f"more than {most} {what}")
        found.append(table)
    return found


def _code(table: Table) -> int:
    """Number of an operator; files before 2020 have it in a byte."""
    code = max(table.scalar(3, "i"), table.scalar(0, "b"))
    name = table.text(1)
    if code == _CUSTOM and name not in CUSTOM_OPERATORS:
        raise EngineError(
            f"the model wants the custom operator {name[:80]!r}, which no engine here brings",
            hint="Replace it by standard operators (Flex operators: convert without SELECT_TF_OPS).",
        )
    if code == _DELEGATE or code < 0:
        raise Damaged(f"operator {code}, which only an engine itself may make")
    return code


def _buffer(table: Table, length: int) -> int:
    """Bytes in a buffer. They may lie behind the FlatBuffer, as the LiteRT quantizer writes them."""
    offset, size = table.scalar(1, "Q"), table.scalar(2, "Q")
    if offset > 1 or size > 1:
        if table.has(0) or not 16 <= offset <= length or size > length - offset:
            raise Damaged(f"{size} bytes of weights at byte {offset} of {length}")
        return size
    data = table.vector(0, 1)
    return 0 if data is None else data.count


def _graph(table: Table, codes: Sequence[int], buffers: Sequence[int]) -> _Graph:
    table.text(4)
    tensors = tuple(_tensor(t, buffers) for t in _at_most(table.tables(0), _TENSORS, "tensors"))
    inputs, outputs = table.numbers(1), table.numbers(2)
    for index in (*inputs, *outputs):
        if not 0 <= index < len(tensors):
            raise Damaged(f"tensor {index} of {len(tensors)}")
    ready = {index for index, tensor in enumerate(tensors) if tensor.constant or tensor.variable}
    written = set(inputs) | {index for index in ready if tensors[index].constant}
    ready.update(inputs)
    calls: set[int] = set()
    for operator in _at_most(table.tables(3), _OPERATORS, "operators"):
        number = operator.scalar(0, "I")
        if number >= len(codes):
            raise Damaged(f"operator code {number} of {len(codes)}")
        taken, given = operator.numbers(1), operator.numbers(2)
        for index in (*taken, *operator.numbers(8)):
            if not -1 <= index < len(tensors):
                raise Damaged(f"tensor {index} of {len(tensors)}")
        if not ready.issuperset(index for index in taken if index >= 0):
            raise Damaged("an operator reads a tensor that nothing has written")
        for index in given:
            if not 0 <= index < len(tensors) or index in written:
                raise Damaged(f"an operator writes tensor {index}, which is not its own")
            written.add(index)
        ready.update(given)
        if len(operator.numbers(7, "B")) not in (0, len(taken)):
            raise Damaged("a wrong list of changed inputs")
        calls |= _options(operator, codes[number])
    if not ready.issuperset(outputs):
        raise Damaged("an output that nothing writes")
    return _Graph(tensors, inputs, outputs, frozenset(calls))


def _options(operator: Table, code: int) -> set[int]:
    """Check an operator's options; the subgraphs that they name."""
    if operator.scalar(9, "Q") > 1 or operator.scalar(10, "Q") > 1:
        raise Damaged("it keeps options behind its end")
    operator.vector(5, 1)
    for slot in (4, 12):
        options, kind = operator.table(slot), operator.scalar(slot - 1, "B")
        if options is None:
            continue
        for field, width in _VECTORS.get((slot, kind), {}).items():
            _ = options.vector(field, width) if width else options.text(field)
    if code not in _CALLS:
        return set()
    slot, fields = _CALLS[code]
    options = operator.table(slot)
    if options is None:
        raise Damaged("a call without options")
    return {options.scalar(field, "i") for field in fields}


def _tensor(table: Table, buffers: Sequence[int]) -> _Tensor:
    name, kind = table.text(3), table.scalar(1, "b")
    shape, signature = table.numbers(0), table.numbers(7)
    if kind not in TYPES:
        raise Damaged(f"tensor {name[:80]!r} of the unknown type {kind}")
    if len(shape) > _RANK or any(size < 0 for size in shape):
        raise Damaged(f"tensor {name[:80]!r} has the impossible shape {list(shape)[:20]}")
    if signature and (len(signature) != len(shape) or any(size < -1 for size in signature)):
        raise Damaged(f"tensor {name[:80]!r} has the shapes {list(shape)} and {list(signature)[:20]}")
    bits = TYPES[kind][1]
    size = (math.prod(shape) * bits + 7) // 8
    if size > TENSOR_BYTES:
        raise EngineError(
            f"tensor {name[:80]!r} of shape {list(shape)} takes {size} bytes; at most {TENSOR_BYTES} "
            "are accepted",
            hint="No small machine can run it: look for a huge dimension.",
        )
    if (index := table.scalar(2, "I")) >= len(buffers):
        raise Damaged(f"buffer {index} of {len(buffers)}")
    if table.scalar(10, "I"):
        raise Damaged("it keeps weights in other files")
    sparse = table.table(6)
    stored = buffers[index]
    if sparse is not None:
        _check_sparsity(sparse, shape, stored * 8 // bits if bits else 0)
    elif stored and bits and stored != size:
        raise Damaged(f"tensor {name[:80]!r} of shape {list(shape)} needs {size} bytes and has {stored}")
    elif stored and not bits and kind != _BYTES:
        raise Damaged(f"tensor {name[:80]!r} is a handle with bytes")
    _check_quantization(table.table(4), shape)
    for inner in _at_most(table.tables(9), 16, "inner types"):
        inner.numbers(0)
    # An empty tensor needs no bytes: a constant like any other.
    constant = bool(stored) or (bits > 0 and size == 0)
    return _Tensor(name, kind, shape, signature, constant, bool(table.scalar(5, "B")))


def _check_quantization(table: Table | None, shape: Sequence[int]) -> None:
    if table is None:
        return
    scales, zeros, axis = table.vector(2, 4), table.vector(3, 8), table.scalar(6, "i")
    table.vector(0, 4)
    table.vector(1, 4)
    count = 0 if scales is None else scales.count
    if zeros is not None and zeros.count not in (1, count):
        raise Damaged(f"{count} scales and {zeros.count} zero points")
    if count > 1 and not (0 <= axis < len(shape) and shape[axis] == count):
        raise Damaged(f"{count} scales along axis {axis} of shape {list(shape)}")
    details, kind = table.table(5), table.scalar(4, "B")
    if details is None and kind:
        raise Damaged("quantization details that are not there")
    if details is not None:
        details.vector({1: 0, 2: 3, 3: 3}.get(kind, 0), 1 if kind == 1 else 4)


def _check_sparsity(table: Table, shape: Sequence[int], stored: int) -> None:
    """The lists by which a sparse tensor is unfolded stay inside the tensor."""
    order, blocks = table.numbers(0), table.numbers(1)
    dimensions = _at_most(table.tables(2), 2 * _RANK, "sparse dimensions")
    if sorted(order) != list(range(len(shape) + len(blocks))) or len(dimensions) != len(order):
        raise Damaged("a sparse tensor with a wrong order of its dimensions")
    if any(not 0 <= axis < len(shape) for axis in blocks):
        raise Damaged("a sparse tensor with blocks along an axis that is not there")
    inner = [d.scalar(1, "i") for d in dimensions[len(shape) :]]
    outer = list(shape)
    for axis, size in zip(blocks, inner, strict=True):
        if size <= 0 or outer[axis] % size:
            raise Damaged(f"a sparse tensor with blocks of {size}")
        outer[axis] //= size
    wanted = [*outer, *inner]
    groups = 1
    for dimension, axis in zip(dimensions, order, strict=True):
        size = wanted[axis]
        if dimension.scalar(0, "b") == 0:
            if dimension.scalar(1, "i") != size:
                raise Damaged("a sparse tensor whose dimensions are not those of its shape")
            groups *= size
            continue
        segments, indices = _indices(dimension, 3, 2), _indices(dimension, 5, 4)
        if len(segments) != groups + 1 or segments[0] != 0 or segments[-1] != len(indices):
            raise Damaged("a sparse tensor with wrong segments")
        if any(a > b for a, b in pairwise(segments)):
            raise Damaged("a sparse tensor with wrong segments")
        if any(not 0 <= index < size for index in indices):
            raise Damaged("a sparse tensor with an index outside of it")
        groups = len(indices)
    if groups != stored:
        raise Damaged(f"a sparse tensor with {stored} numbers where {groups} belong")


def _indices(dimension: Table, slot: int, kind_slot: int) -> tuple[int, ...]:
    kinds = {1: "i", 2: "H", 3: "B"}
    kind, table = dimension.scalar(kind_slot, "B"), dimension.table(slot)
    if table is None or kind not in kinds:
        raise Damaged("a sparse tensor without its indices")
    return table.numbers(0, kinds[kind])


def _check_calls(calls: Sequence[frozenset[int]]) -> None:
    """Subgraphs call only those that are there, and never themselves."""
    if any(not 0 <= index < len(calls) for called in calls for index in called):
        raise Damaged("a call of a subgraph that is not there")
    left = dict(enumerate(calls))
    while left:
        leaves = [index for index, called in left.items() if not called & left.keys()]
        if not leaves:
            raise Damaged("subgraphs that call each other in a circle")
        for index in leaves:
            del left[index]


def _signature_names(
    model: Table, graphs: Sequence[_Graph]
) -> tuple[Mapping[int, str], Mapping[int, str]] | None:
    """Tensor -> name, of inputs and outputs, if there is one signature that names all of subgraph 0."""
    found: list[tuple[int, dict[int, str], dict[int, str]]] = []
    for table in _at_most(model.tables(7), _SUBGRAPHS, "signatures"):
        number = table.scalar(4, "I")
        if number >= len(graphs):
            raise Damaged("a signature of a subgraph that is not there")
        table.text(2)
        sides = []
        for slot in (0, 1):
            entries = _at_most(table.tables(slot), _TENSORS, "names in a signature")
            side = {entry.scalar(1, "I"): entry.text(0) for entry in entries}
            if any(index >= len(graphs[number].tensors) for index in side):
                raise Damaged("a signature of a tensor that is not there")
            sides.append(side)
        found.append((number, sides[0], sides[1]))
    if len(found) != 1 or found[0][0] != 0:
        return None
    _, inputs, outputs = found[0]
    main = graphs[0]
    whole = set(inputs) == set(main.inputs) and set(outputs) == set(main.outputs)
    named = all(len(set(side.values())) == len(side) and all(side.values()) for side in (inputs, outputs))
    return (inputs, outputs) if whole and named else None


def _ports(
    graph: _Graph, indices: Sequence[int], names: Mapping[int, str] | None, what: str
) -> tuple[Port, ...]:
    ports = []
    for index in indices:
        tensor = graph.tensors[index]
        name = names[index] if names else tensor.name
        ports.append(Port(name, index, TYPES[tensor.kind][0], tensor.signature or tensor.shape))
    if len({port.name for port in ports}) != len(ports) or not all(port.name for port in ports):
        raise EngineError(
            f"two {what}s of the model have the same name, or one has none: {[port.name for port in ports]}",
            hint=f"Export it with a signature that names every {what}.",
        )
    return tuple(ports)
