"""What an operator has to do: arithmetic and bytes, from shapes alone. Pure.

The table of a device and the estimate of a model must count alike, so both use these functions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

DATATYPES: Final = {"fp32": 4, "fp16": 2, "int8": 1}
"""Arithmetic -> bytes of an element."""
KINDS: Final = (
    "conv-dense", "conv-narrow", "conv-pointwise", "conv-depthwise", "matmul", "matvec", "lstm", "gru",
    "softmax", "normalize", "pool", "binary", "unary", "transcendental", "copy", "quantize",
)  # fmt: skip
"""Families of operators that share one kernel, or nearly."""
_NARROW: Final = 8
"""With so few channels in or out, kernels cannot fill their vectors: first and last layers."""


@dataclass(frozen=True, slots=True)
class Work:
    """One operator's load."""

    kind: str
    """One of `KINDS`."""
    datatype: str
    """One of `DATATYPES`."""
    flops: float
    """Multiplications and additions, each one."""
    bytes: float
    """Read and written, every tensor once."""


def conv(x: Sequence[int], w: Sequence[int], y: Sequence[int], datatype: str) -> Work:
    """A convolution. Shapes: x ``[N, C, *space]``, w ``[M, C / groups, *kernel]``, y ``[N, M, *space]``."""
    window = math.prod(w[2:])
    if w[1] == 1 and x[1] > 1:
        kind = "conv-depthwise"
    elif window == 1:
        kind = "conv-pointwise"
    else:
        kind = "conv-narrow" if min(w[:2]) <= _NARROW else "conv-dense"
    flops = 2.0 * math.prod(y) * w[1] * window
    return Work(kind, datatype, flops, _bytes(datatype, x, w, y))


def matmul(a: Sequence[int], b: Sequence[int], y: Sequence[int], datatype: str) -> Work:
    """A product ``[..., M, K] x [..., K, N]``; with one row it is bound by memory, and another kind."""
    rows = math.prod(y) // max(1, y[-1]) if y else 1
    kind = "matvec" if rows == 1 else "matmul"
    return Work(kind, datatype, 2.0 * math.prod(y) * a[-1], _bytes(datatype, a, b, y))


def recurrent(kind: str, x: Sequence[int], w: Sequence[int], hidden: int, datatype: str) -> Work:
    """An LSTM or GRU: x ``[T, N, I]``, w ``[directions, gates * H, I]``; every step reads the weights."""
    steps, batch, inputs = x
    weights = w[0] * w[1] * (inputs + hidden)
    flops = 2.0 * steps * batch * weights
    return Work(kind, datatype, flops, DATATYPES[datatype] * (steps * weights + math.prod(x)))


def pool(x: Sequence[int], y: Sequence[int], window: int, datatype: str) -> Work:
    """A pool over `window` elements for each of the output."""
    return Work("pool", datatype, float(math.prod(y) * window), _bytes(datatype, x, y))


def streaming(kind: str, datatype: str, *shapes: Sequence[int]) -> Work:
    """An operator that touches every element once: element-wise, copies, reductions."""
    return Work(
        kind,
        datatype,
        float(max((math.prod(shape) for shape in shapes), default=0)),
        _bytes(datatype, *shapes),
    )


def _bytes(datatype: str, *shapes: Sequence[int]) -> float:
    return float(DATATYPES[datatype] * sum(math.prod(shape) for shape in shapes))
