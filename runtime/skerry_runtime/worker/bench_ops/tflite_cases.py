"""The grid for TFLite engines: chains of operators in fp32, and in int8 with one scale a tensor.

Field numbers: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ..engines import Array
from . import work
from .cases import COUNTS, DENSE, DEPTHWISE, MATMUL, MATVEC, NARROW, POINTWISE, ROWS, Case
from .flatbuffer_writer import Numbers, Scalar, Table, write
from .work import Work

_IDENTIFIER: Final = b"TFL3"
_TYPES: Final[Mapping[str, int]] = {"float32": 0, "int32": 2, "int8": 9}
_ADD, _CONV, _DEPTHWISE, _DEQUANTIZE, _FULLY_CONNECTED = 0, 3, 4, 6, 9
_LOGISTIC, _MAX_POOL, _RELU, _SOFTMAX, _TRANSPOSE, _ABS, _QUANTIZE = 14, 17, 19, 25, 39, 101, 114
_NO_OPTIONS: Final = (0, Table({}))
_SCALE: Final = 0.02
_SOFTMAX_SCALE: Final = (1 / 256, -128)
"""The kernel takes no other scale and zero point for its output."""

Link = Callable[["_Chain", int, int], int]
"""Adds the operator number ``int`` behind a tensor; returns its output."""


@dataclass(slots=True)
class _Chain:
    """Tensors and operators of a model that grows link by link."""

    type: str
    tensors: list[Table] = field(default_factory=list)
    buffers: list[Table] = field(default_factory=lambda: [Table({})])
    operators: list[Table] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def tensor(
        self, shape: Sequence[int], kind: str = "", data: Array | None = None,
        scale: float = _SCALE, zero: int = 0,
    ) -> int:  # fmt: skip
        kind = kind or self.type
        if data is not None:
            self.buffers.append(Table({0: np.ascontiguousarray(data).tobytes()}))
        fields: dict[int, Scalar | Numbers | bytes | str | Table | Sequence[Table]] = {
            0: Numbers("i", shape),
            1: Scalar("b", _TYPES[kind]),
            2: Scalar("I", 0 if data is None else len(self.buffers) - 1),
            3: f"t{len(self.tensors)}",
        }
        if kind != "float32":
            fields[4] = Table({2: Numbers("f", [scale]), 3: Numbers("q", [zero])})
        self.tensors.append(Table(fields))
        return len(self.tensors) - 1

    def weight(self, shape: Sequence[int]) -> int:
        if self.type == "int8":
            return self.tensor(shape, data=self.random.integers(-127, 128, shape, dtype=np.int8))
        return self.tensor(shape, data=self.random.uniform(-0.1, 0.1, shape).astype(np.float32))

    def bias(self, channels: int) -> int:
        if self.type == "int8":
            return self.tensor([channels], "int32", np.zeros(channels, np.int32), _SCALE * _SCALE)
        return self.tensor([channels], data=np.zeros(channels, np.float32))

    def add(self, code: int, inputs: Sequence[int], output: int, options: tuple[int, Table]) -> int:
        if code not in self.codes:
            self.codes.append(code)
        self.operators.append(
            Table(
                {
                    0: Scalar("I", self.codes.index(code)),
                    1: Numbers("i", inputs),
                    2: Numbers("i", [output]),
                    **({3: Scalar("B", options[0]), 4: options[1]} if options[0] else {}),
                }
            )
        )
        return output


def _build(links: int, type_: str, shape: Sequence[int], link: Link) -> bytes:
    chain = _Chain(type_)
    value = first = chain.tensor(shape)
    for number in range(links):
        value = link(chain, value, number)
    graph = Table(
        {
            0: chain.tensors,
            1: Numbers("i", [first]),
            2: Numbers("i", [value]),
            3: chain.operators,
            4: "bench",
        }
    )
    codes = [
        # The old one-byte field is what tflite-runtime reads of the first 127 codes.
        Table({0: Scalar("b", code), 2: Scalar("i", _version(code, type_)), 3: Scalar("i", code)})
        for code in chain.codes
    ]
    return write(Table({0: Scalar("I", 3), 1: codes, 2: [graph], 3: "bench", 4: chain.buffers}), _IDENTIFIER)


def _version(code: int, type_: str) -> int:
    """Of the operator: the first that takes int8 where it is not 1."""
    if type_ != "int8":
        return 1
    return {_CONV: 3, _DEPTHWISE: 3, _FULLY_CONNECTED: 4}.get(code, 2)


def _case(operator: str, size: str, load: Work, shape: tuple[int, ...], link: Link) -> Case:
    type_ = "int8" if load.datatype == "int8" else "float32"

    def feed() -> dict[str, Array]:
        random = np.random.default_rng(0)
        if type_ == "int8":
            return {"t0": random.integers(-127, 128, shape, dtype=np.int8)}
        return {"t0": random.uniform(-1, 1, shape).astype(np.float32)}

    return Case(operator, size, load, lambda links: _build(links, type_, shape, link), feed)


def families() -> Iterator[list[Case]]:
    """The cases of each family, the most important sizes first."""
    for datatype in ("fp32", "int8"):
        yield [_conv(channels, side, 3, datatype) for channels, side in DENSE]
        yield [_conv(channels, side, kernel, datatype) for channels, side, kernel in NARROW]
        yield [_conv(channels, side, 1, datatype) for channels, side in POINTWISE]
        yield [_depthwise(channels, side, datatype) for channels, side in DEPTHWISE]
        yield [_fully_connected(rows, size, datatype) for rows, size in MATMUL]
        yield [_fully_connected(1, size, datatype) for size in MATVEC]
        yield [_binary(count, datatype) for count in COUNTS]
        # Not RELU in fp32: a chain of them becomes one.
        name, code = ("ABS", _ABS) if datatype == "fp32" else ("RELU", _RELU)
        yield [_plain("unary", name, code, (1, count), datatype) for count in COUNTS]
        yield [_plain("transcendental", "LOGISTIC", _LOGISTIC, (1, count), datatype) for count in COUNTS]
        yield [_plain("softmax", "SOFTMAX", _SOFTMAX, shape, datatype) for shape in ROWS]
        yield [_pool(channels, side, datatype) for channels, side in ((32, 32), (16, 8), (64, 56))]
    yield [_transpose(side) for side in (128, 32, 512)]
    yield [_requantize(count) for count in COUNTS]


def _conv(channels: int, side: int, kernel: int, datatype: str) -> Case:
    shape = (1, side, side, channels)

    def link(chain: _Chain, value: int, number: int) -> int:
        inputs = [value, chain.weight((channels, kernel, kernel, channels)), chain.bias(channels)]
        options = Table({1: Scalar("i", 1), 2: Scalar("i", 1)})
        return chain.add(_CONV, inputs, chain.tensor(shape), (1, options))

    flat = (1, channels, side, side)
    load = work.conv(flat, (channels, channels, kernel, kernel), flat, datatype)
    return _case("CONV_2D", f"{channels} channels, {side} x {side}, kernel {kernel}", load, shape, link)


def _depthwise(channels: int, side: int, datatype: str) -> Case:
    shape = (1, side, side, channels)

    def link(chain: _Chain, value: int, number: int) -> int:
        inputs = [value, chain.weight((1, 3, 3, channels)), chain.bias(channels)]
        options = Table({1: Scalar("i", 1), 2: Scalar("i", 1), 3: Scalar("i", 1)})
        return chain.add(_DEPTHWISE, inputs, chain.tensor(shape), (2, options))

    flat = (1, channels, side, side)
    load = work.conv(flat, (channels, 1, 3, 3), flat, datatype)
    return _case("DEPTHWISE_CONV_2D", f"{channels} channels, {side} x {side}, kernel 3", load, shape, link)


def _fully_connected(rows: int, size: int, datatype: str) -> Case:
    shape = (rows, size)

    def link(chain: _Chain, value: int, number: int) -> int:
        inputs = [value, chain.weight((size, size)), chain.bias(size)]
        return chain.add(_FULLY_CONNECTED, inputs, chain.tensor(shape), (8, Table({})))

    load = work.matmul(shape, (size, size), shape, datatype)
    return _case("FULLY_CONNECTED", f"{rows} x {size} by {size} x {size}", load, shape, link)


def _binary(count: int, datatype: str) -> Case:
    shape = (1, count)

    def link(chain: _Chain, value: int, number: int) -> int:
        return chain.add(_ADD, [value, chain.weight(shape)], chain.tensor(shape), (11, Table({})))

    return _case("ADD", str(count), work.streaming("binary", datatype, shape, shape, shape), shape, link)


def _plain(kind: str, operator: str, code: int, shape: tuple[int, ...], datatype: str) -> Case:
    def link(chain: _Chain, value: int, number: int) -> int:
        options = (9, Table({0: Scalar("f", 1.0)})) if code == _SOFTMAX else _NO_OPTIONS
        scale, zero = (_SCALE, 0) if code == _RELU else _SOFTMAX_SCALE
        return chain.add(code, [value], chain.tensor(shape, scale=scale, zero=zero), options)

    size = " x ".join(map(str, shape))
    return _case(operator, size, work.streaming(kind, datatype, shape, shape), shape, link)


def _pool(channels: int, side: int, datatype: str) -> Case:
    shape = (1, side, side, channels)

    def link(chain: _Chain, value: int, number: int) -> int:
        options = Table({slot: Scalar("i", size) for slot, size in ((1, 1), (2, 1), (3, 3), (4, 3))})
        return chain.add(_MAX_POOL, [value], chain.tensor(shape), (5, options))

    load = work.pool(shape, shape, 9, datatype)
    return _case("MAX_POOL_2D", f"{channels} channels, {side} x {side}, kernel 3", load, shape, link)


def _transpose(side: int) -> Case:
    shape = (side, side)

    def link(chain: _Chain, value: int, number: int) -> int:
        order = chain.tensor([2], "int32", np.array([1, 0], np.int32))
        return chain.add(_TRANSPOSE, [value, order], chain.tensor(shape), (26, Table({})))

    load = work.streaming("copy", "fp32", shape, shape)
    return _case("TRANSPOSE", f"{side} x {side}", load, shape, link)


def _requantize(count: int) -> Case:
    shape = (1, count)

    def link(chain: _Chain, value: int, number: int) -> int:
        inner = chain.add(_QUANTIZE, [value], chain.tensor(shape, "int8"), _NO_OPTIONS)
        return chain.add(_DEQUANTIZE, [inner], chain.tensor(shape), _NO_OPTIONS)

    load = work.streaming("quantize", "fp32", shape, shape)
    return _case("QUANTIZE", str(count), load, shape, link)
