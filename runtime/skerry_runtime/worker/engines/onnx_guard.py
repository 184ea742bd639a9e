"""Refuses an ONNX file that reaches outside its own bytes, before the engine parses it (attacks M1 to M5).

A reader of the protocol buffer's wire format, for the few fields that matter; it needs no onnx package.
Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from skerry_contract.errors import EngineError

from . import Content
from .ort_guard import DOMAINS, ORT_MARK, check_ort

_DEPTH: Final = 64
_Operator = tuple[str, str]
"""Domain and name."""

_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_FUNCTION_NAME, _FUNCTION_DOMAIN = 1, 10
# By message: the fields that may hold a tensor, and the message in each.
_CHILDREN: Final[Mapping[str, Mapping[int, str]]] = {
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_NODE_OPERATOR, _NODE_DOMAIN = 4, 7


def check_self_contained(model: Content) -> None:
    """Raises `EngineError` if the file refers to other files or to unknown operators, or is garbled."""
    if model[4:8] == ORT_MARK:
        check_ort(model)
        return
    functions: set[_Operator] = set()
    foreign: set[_Operator] = set()
    for number, value in _fields(memoryview(model)):
        if number == _MODEL_GRAPH and not isinstance(value, int):
            _check(value, "graph", 0, foreign)
        elif number == _MODEL_FUNCTION and not isinstance(value, int):
            _check(value, "function", 0, foreign)
            functions.add(_operator(value, _FUNCTION_DOMAIN, _FUNCTION_NAME))
    unknown = sorted(foreign - functions)
    if unknown:
        domain, operator = unknown[0]
        raise EngineError(
            f"the model wants the operator `{domain[:80]}:{operator[:80]}`, which the engine does not bring",
            hint=f"Known: {', '.join(sorted(DOMAINS - {''}))}, and functions in the model itself.",
        )


def _operator(message: memoryview, domain: int, name: int) -> _Operator:
    """Domain and name of a node or a function, by the numbers of their fields; the last one counts."""
    texts = {number: _text(value) for number, value in _fields(message) if number in (domain, name)}
    return texts.get(domain, ""), texts.get(name, "")


def _check(message: memoryview, kind: str, depth: int, foreign: set[_Operator]) -> None:
    """Operators of domains that are not known, in bodies too, are added to `foreign`."""
    if depth > _DEPTH:
        raise EngineError(f"the model nests deeper than {_DEPTH} levels")
    if kind == "node":
        operator = _operator(message, _NODE_DOMAIN, _NODE_OPERATOR)
        if operator[0] not in DOMAINS:
            foreign.add(operator)
    for number, value in _fields(message):
        if kind == "tensor":
            if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value != 0):
                raise EngineError("the model keeps data in other files", hint="Pack it with its data inside.")
        elif kind == "node" and number == _NODE_OPERATOR and _text(value) == "EPContext":
            raise EngineError("the model refers to another compiled model", hint="Pack the model itself.")
        elif number in _CHILDREN[kind] and not isinstance(value, int):
            _check(value, _CHILDREN[kind][number], depth + 1, foreign)


def _text(value: memoryview | int) -> str:
    return "" if isinstance(value, int) else bytes(value[:256]).decode("utf-8", "replace")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Number and value of each field: bytes as a view, varints as numbers, fixed ones as 0."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            number_value, at = _varint(message, at)
            yield number, number_value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise EngineError("the model is not an ONNX file: unknown wire type")
        if size > len(message) - at:
            raise EngineError("the model is not an ONNX file, or is cut off")
        yield number, message[at : at + size] if wire == 2 else 0
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise EngineError("the model is not an ONNX file, or is cut off")
