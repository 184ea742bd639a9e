"""Inputs and outputs bound once to a session of ONNX Runtime, for as long as their shapes stay.

A run then costs .84 of ``session.run`` on a model of seven microseconds (docs/adr/0014). It copies inputs and
outputs, so it is for small ones only: beyond `MOST_BYTES` the copies soon cost more than they save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from . import DTYPES, Array, Signature

MOST_BYTES: Final = 16 * 1024
"""Of all inputs and outputs together."""
Symbols = tuple[int | str, ...]
"""A shape as the engine tells it: sizes, names of free ones, and "" for those without a name."""


class Bound:
    """One set of shapes. Not thread-safe."""

    def __init__(self, session: Any, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Args:
        session: of onnxruntime.
        inputs, outputs: buffers of the right types and shapes, which it keeps.
        """
        self._session = session
        self._inputs, self._outputs = inputs, outputs
        self._shapes = {name: (array.shape, array.dtype) for name, array in inputs.items()}
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def fits(self, inputs: Mapping[str, Array]) -> bool:
        """Whether these inputs have the shapes and types that are bound."""
        return {name: (array.shape, array.dtype) for name, array in inputs.items()} == self._shapes

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises what the engine raises."""
        for name, buffer in self._inputs.items():
            buffer[...] = inputs[name]
        self._session.run_with_iobinding(self._binding)
        return {name: buffer.copy() for name, buffer in self._outputs.items()}


def buffers_for(
    inputs: Mapping[str, Array],
    taken: Sequence[tuple[Signature, Symbols]],
    given: Sequence[tuple[Signature, Symbols]],
) -> tuple[dict[str, Array], dict[str, Array]] | None:
    """Buffers for inputs of these shapes and for what comes out; None where that is not known, or too large.

    A free size of an output is known if an input has one of the same name.
    """
    sizes: dict[str, int] = {}
    for signature, symbols in taken:
        array = inputs.get(signature.name)
        dtype = DTYPES.get(signature.datatype)
        if array is None or array.dtype != dtype or len(array.shape) != len(symbols):
            return None
        for symbol, size in zip(symbols, array.shape, strict=True):
            if isinstance(symbol, int):
                if symbol != size:
                    return None
            elif symbol and sizes.setdefault(symbol, size) != size:
                return None
    shapes: list[tuple[Signature, tuple[int, ...]]] = []
    for signature, symbols in given:
        known = [symbol if isinstance(symbol, int) else sizes.get(symbol, -1) for symbol in symbols]
        if signature.datatype not in DTYPES or -1 in known:
            return None
        shapes.append((signature, tuple(known)))
    if len(inputs) != len(taken):
        return None
    outputs_bytes = sum(math.prod(shape) * DTYPES[s.datatype].itemsize for s, shape in shapes)
    total = outputs_bytes + sum(array.nbytes for array in inputs.values())
    if total > MOST_BYTES or not all(array.nbytes for array in inputs.values()) or not outputs_bytes:
        return None
    return (
        {name: np.empty_like(array, order="C") for name, array in inputs.items()},
        {signature.name: np.empty(shape, DTYPES[signature.datatype]) for signature, shape in shapes},
    )
