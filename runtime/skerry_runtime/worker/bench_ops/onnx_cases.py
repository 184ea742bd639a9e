"""The grid for ONNX engines: chains of operators of opset 17; int8 as QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from ..engines import Array
from . import work
from .cases import COUNTS, DENSE, DEPTHWISE, MATMUL, MATVEC, NARROW, POINTWISE, ROWS, SEQUENCES, Case
from .onnx_graphs import Attribute, model, node
from .work import Work

Link = Callable[["_Chain", str, int], str]
"""Adds the operator number ``int`` behind the value ``str``; returns the name of its output."""
_NUMPY: Final[Mapping[str, np.dtype[Any]]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "int8": np.dtype(np.float32),
}
"""Datatype -> type of the chain's ends."""
_ZERO: Final = np.uint8(128)
_FP16_SIZES: Final = 3
"""So many sizes are enough for a datatype that few devices calculate in."""


@dataclass(slots=True)
class _Chain:
    """Nodes and weights of a model that grows link by link."""

    datatype: str
    nodes: list[bytes] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Attribute) -> str:
        self.nodes.append(node(operator, inputs, [output], **attributes))
        return output

    def weight(self, name: str, shape: Sequence[int], spread: float = 0.5) -> str:
        """A constant of the chain's own datatype."""
        self.weights[name] = self.random.uniform(-spread, spread, shape).astype(_NUMPY[self.datatype])
        return name

    def constant(self, name: str, value: Array) -> str:
        self.weights[name] = value
        return name

    def quantized_weight(self, name: str, shape: Sequence[int]) -> str:
        """An int8 constant behind its DequantizeLinear."""
        values = self.random.integers(-127, 128, shape, dtype=np.int8)
        return self.dequantize(self.constant(f"{name}_q", values), f"{name}_f", zero=np.int8(0))

    def dequantize(self, value: str, output: str, zero: np.integer[Any] = _ZERO) -> str:
        return self.add("DequantizeLinear", [value, *self._scale(output, zero)], output)

    def quantize(self, value: str, output: str) -> str:
        return self.add("QuantizeLinear", [value, *self._scale(output, _ZERO)], output)

    def _scale(self, name: str, zero: np.integer[Any]) -> tuple[str, str]:
        # Of each its own: equal nodes would be merged.
        return (
            self.constant(f"{name}_s", np.array(0.02, np.float32)),
            self.constant(f"{name}_z", np.array(zero)),
        )


def _build(links: int, datatype: str, shape: Sequence[int], link: Link) -> bytes:
    chain = _Chain(datatype)
    value = chain.quantize("x", "xq") if datatype == "int8" else "x"
    for number in range(links):
        value = link(chain, value, number)
    if datatype == "int8":
        value = chain.dequantize(value, "end")
    kind = (_NUMPY[datatype].name, shape)
    return model(chain.nodes, {"x": kind}, {value: kind}, chain.weights)


def _case(operator: str, size: str, load: Work, shape: tuple[int, ...], link: Link) -> Case:
    def feed() -> dict[str, Array]:
        # Around zero, and none of them subnormal, which some processors are slow with.
        return {"x": np.random.default_rng(0).uniform(-1, 1, shape).astype(_NUMPY[load.datatype])}

    return Case(operator, size, load, lambda links: _build(links, load.datatype, shape, link), feed)


def _weighted(shape: Sequence[int], operator: str, **attributes: Attribute) -> Link:
    """Conv or MatMul with weights of this shape; between Dequantize and Quantize if the chain is int8."""

    def link(chain: _Chain, value: str, number: int) -> str:
        if chain.datatype != "int8":
            weight = chain.weight(f"w{number}", shape, 1 / np.sqrt(np.prod(shape[1:])))
            return chain.add(operator, [value, weight], f"y{number}", **attributes)
        inside = [chain.dequantize(value, f"a{number}"), chain.quantized_weight(f"w{number}", shape)]
        return chain.quantize(chain.add(operator, inside, f"y{number}", **attributes), f"y{number}_q")

    return link


def _plain(operator: str, second: Sequence[int] = (), **attributes: Attribute) -> Link:
    """An operator without weights; with a constant of the shape `second` as another input if it is given."""

    def link(chain: _Chain, value: str, number: int) -> str:
        inputs = [value, chain.weight(f"w{number}", second)] if second else [value]
        if chain.datatype != "int8":
            return chain.add(operator, inputs, f"y{number}", **attributes)
        inside = [chain.dequantize(value, f"a{number}")]
        if second:
            inside.append(chain.quantized_weight(f"w{number}", second))
        return chain.quantize(chain.add(operator, inside, f"y{number}", **attributes), f"y{number}_q")

    return link


def _gather(rows: int) -> Link:
    def link(chain: _Chain, value: str, number: int) -> str:
        order = np.roll(np.arange(rows, dtype=np.int64), number + 1)
        return chain.add("Gather", [value, chain.constant(f"i{number}", order)], f"y{number}", axis=0)

    return link


def _requantize(chain: _Chain, value: str, number: int) -> str:
    """Quantize by the range of the values and back: with constant scales the pair would be removed."""
    names = [f"q{number}", f"s{number}", f"z{number}"]
    chain.nodes.append(node("DynamicQuantizeLinear", [value], names))
    return chain.add("DequantizeLinear", names, f"y{number}")


def _recurrent(operator: str, gates: int, hidden: int) -> Link:
    def link(chain: _Chain, value: str, number: int) -> str:
        weights = [chain.weight(f"{name}{number}", (1, gates * hidden, hidden), 0.1) for name in ("w", "r")]
        every = chain.add(operator, [value, *weights], f"h{number}", hidden_size=hidden)
        axis = chain.constant(f"axis{number}", np.array([1], np.int64))
        return chain.add("Squeeze", [every, axis], f"y{number}")

    return link


def families() -> Iterator[list[Case]]:
    """The cases of each family, the most important sizes first."""
    for datatype in work.DATATYPES:
        most = _FP16_SIZES if datatype == "fp16" else None
        yield [_conv(channels, side, 3, datatype) for channels, side in DENSE[:most]]
        yield [_conv(channels, side, kernel, datatype) for channels, side, kernel in NARROW[:most]]
        yield [_conv(channels, side, 1, datatype) for channels, side in POINTWISE[:most]]
        yield [_depthwise(channels, side, 3, datatype) for channels, side in DEPTHWISE[:most]]
        yield [_matmul(rows, size, datatype) for rows, size in MATMUL[:most]]
        yield [_matmul(1, size, datatype) for size in MATVEC[:most]]
        yield [
            _streaming("binary", "Add", _plain("Add", (count,)), (count,), datatype)
            for count in COUNTS[:most]
        ]
        if datatype != "fp32":
            continue  # few models spend time on the others in these
        yield [_streaming("unary", "Relu", _plain("Relu"), (count,), datatype) for count in COUNTS]
        for operator in ("Sigmoid", "Tanh"):
            yield [
                _streaming("transcendental", operator, _plain(operator), (count,), datatype)
                for count in COUNTS
            ]
        yield [
            _streaming("softmax", "Softmax", _plain("Softmax", axis=-1), shape, datatype) for shape in ROWS
        ]
    for operator, gates in (("LSTM", 4), ("GRU", 3)):
        yield [_sequence(operator, gates, steps, hidden) for steps, hidden in SEQUENCES]
    yield [_normalization(shape) for shape in ROWS]
    yield [_maxpool(channels, side) for channels, side in ((32, 32), (16, 8), (64, 56))]
    yield [_streaming("copy", "Gather", _gather(shape[0]), shape, "fp32") for shape in ROWS]
    yield [_streaming("quantize", "DynamicQuantizeLinear", _requantize, (n,), "fp32") for n in COUNTS]


def _conv(channels: int, side: int, kernel: int, datatype: str) -> Case:
    shape, weights = (1, channels, side, side), (channels, channels, kernel, kernel)
    return _case(
        operator="Conv",
        size=f"{channels} channels, {side} x {side}, kernel {kernel}",
        load=work.conv(shape, weights, shape, datatype),
        shape=shape,
        link=_weighted(weights, "Conv", pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel]),
    )


def _depthwise(channels: int, side: int, kernel: int, datatype: str) -> Case:
    shape, weights = (1, channels, side, side), (channels, 1, kernel, kernel)
    return _case(
        operator="Conv",
        size=f"{channels} channels, {side} x {side}, kernel {kernel}, depthwise",
        load=work.conv(shape, weights, shape, datatype),
        shape=shape,
        link=_weighted(
            weights, "Conv", pads=[kernel // 2] * 4, kernel_shape=[kernel, kernel], group=channels
        ),
    )


def _matmul(rows: int, size: int, datatype: str) -> Case:
    shape, weights = (rows, size), (size, size)
    return _case(
        operator="MatMul",
        size=f"{rows} x {size} by {size} x {size}",
        load=work.matmul(shape, weights, shape, datatype),
        shape=shape,
        link=_weighted(weights, "MatMul"),
    )


def _streaming(kind: str, operator: str, link: Link, shape: tuple[int, ...], datatype: str) -> Case:
    shapes = [shape] * (3 if kind == "binary" else 2)
    return _case(
        operator=operator,
        size=" x ".join(map(str, shape)),
        load=work.streaming(kind, datatype, *shapes),
        shape=shape,
        link=link,
    )


def _sequence(operator: str, gates: int, steps: int, hidden: int) -> Case:
    shape = (steps, 1, hidden)
    weights = (1, gates * hidden, hidden)
    return _case(
        operator=operator,
        size=f"{steps} steps, {hidden} wide",
        load=work.recurrent(operator.lower(), shape, weights, hidden, "fp32"),
        shape=shape,
        link=_recurrent(operator, gates, hidden),
    )


def _normalization(shape: tuple[int, ...]) -> Case:
    def link(chain: _Chain, value: str, number: int) -> str:
        scale = chain.weight(f"w{number}", shape[-1:])
        return chain.add("LayerNormalization", [value, scale], f"y{number}", axis=-1)

    return _streaming("normalize", "LayerNormalization", link, shape, "fp32")


def _maxpool(channels: int, side: int) -> Case:
    shape = (1, channels, side, side)
    return _case(
        operator="MaxPool",
        size=f"{channels} channels, {side} x {side}, kernel 3",
        load=work.pool(shape, shape, 9, "fp32"),
        shape=shape,
        link=_plain("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    )
