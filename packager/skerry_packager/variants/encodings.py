"""Small stored forms of one weight, and the nodes that rebuild it when the engine loads the model.

Each form is built from operators that onnxruntime folds at load (Cast, Mul, Gather, Reshape, Slice), so that
an inference sees a plain weight: measured, nothing of it is left in the optimized graph of onnxruntime 1.23.2
and 1.32. Pure: arrays in, tensors and nodes out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

FP16_MAX_ERROR: Final = 1e-3
"""Largest root mean square error of a tensor in fp16, relative to its own: beyond, its numbers underflow."""
INT8_MAX_ERROR: Final = 0.012
"""Relative error of a tensor in int8 above which fp16 is stored instead. Gaussian weights with a scale per
channel have 0.006 to 0.009; what lies above has outliers that one scale cannot serve."""
INT8_BLOCK: Final = 64
"""Numbers that share a scale, where a whole channel cannot."""
INT4_MAX_ERROR: Final = 0.13
"""Relative error of a tensor in int4 above which int8 is stored: Gaussian weights have 0.08 to 0.1."""
INT4_BLOCK: Final = 32
"""Numbers that share a scale."""
INT4_MIN_ELEMENTS: Final = 2048
"""Below, the seven nodes and the table that unpack int4 cost more than it saves over int8."""
_MAX_SHARE: Final = {1: 0.45, 2: 0.27}
"""An int8 tensor with its scales, by number of channel axes, takes at most this share of fp32: finer scales
are always nearer, and must not eat up the savings."""
_SHRINK: Final = (1.0, 0.97, 0.94, 0.9, 0.85, 0.8)
"""Shares of the largest magnitude that are tried as a channel's clipping point."""
_PAIRS: Final = np.stack([np.arange(256) % 16 - 8, np.arange(256) // 16 - 8], axis=1).astype(np.int8)
"""The two numbers in a byte; the table is stored once, see `skerry_packager.compact`."""
_NODE_BYTES: Final = 30
"""A node with short names, roughly."""
FLOAT_TYPES: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Types of weights that can be stored smaller."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What replaces one weight: new initializers and the nodes that rebuild it."""

    form: str
    """``fp32``, ``fp16``, ``int8`` or ``int4``."""
    initializers: tuple[TensorProto, ...]
    nodes: tuple[NodeProto, ...]
    saved: int
    """Bytes of the file, names and nodes included, roughly."""
    rebuilt: np.ndarray
    """What the engine will see, fp32."""
    error: float
    """Root mean square error over root mean square, of `rebuilt`."""


Encode = Callable[[np.ndarray, int, str, "Names"], "Stored | None"]
"""``encode(numbers, ONNX type, name of the weight, names)``; None if this form does not suit the weight."""


class Names:
    """Short names that a model does not use yet: long ones cost more than a small weight."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._number = 0

    def fresh(self) -> str:
        """Another name; the same sequence on every run."""
        while True:
            name = f"s{self._number}"
            self._number += 1
            if name not in self._taken:
                return name


@dataclass(slots=True)
class _Steps:
    """Nodes in the making: each step feeds the next."""

    names: Names
    initializers: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)

    def keep(self, array: np.ndarray) -> str:
        name = self.names.fresh()
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = self.names.fresh()
        self.nodes.append(onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def finish(self, weight: str, kind: int, form: str, before: np.ndarray, after: np.ndarray) -> Stored:
        """Name the result `weight`, in its own type."""
        if kind != TensorProto.FLOAT and not (
            self.nodes[-1].op_type == "Cast" and self.nodes[-1].attribute[0].i == kind
        ):
            self.add("Cast", self.nodes[-1].output[0], to=kind)
        self.nodes[-1].output[0] = weight
        size = sum(tensor.ByteSize() + 4 for tensor in self.initializers) + _NODE_BYTES * len(self.nodes)
        saved = before.size * item_bytes(kind) + len(weight) + 10 - size
        after = after.reshape(before.shape)
        return Stored(
            form, tuple(self.initializers), tuple(self.nodes), saved, after, relative_error(after, before)
        )


def item_bytes(kind: int) -> int:
    """Of one number of a float type."""
    return 8 if kind == TensorProto.DOUBLE else 4 if kind == TensorProto.FLOAT else 2


def relative_error(rebuilt: np.ndarray, array: np.ndarray) -> float:
    """Root mean square error over root mean square; infinite where a number is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        power = float(np.mean(np.square(array, dtype=np.float64)))
        noise = float(np.mean(np.square(np.subtract(rebuilt, array, dtype=np.float64))))
    if not (math.isfinite(noise) and math.isfinite(power)):
        return math.inf
    if noise == 0:
        return 0.0
    return math.sqrt(noise / power) if power else math.inf


def as_fp16(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """Half the bytes of fp32; None where numbers overflow or underflow, or have two bytes already."""
    if item_bytes(kind) <= 2:
        return None
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not relative_error(half, array) <= FP16_MAX_ERROR:
        return None
    steps = _Steps(names)
    steps.add("Cast", steps.keep(half), to=kind)
    return steps.finish(name, kind, "fp16", array, half)


def as_fp32(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """Half the bytes of a double; None for every other type, and where numbers overflow."""
    if kind != TensorProto.DOUBLE:
        return None
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        return None
    steps = _Steps(names)
    steps.add("Cast", steps.keep(single), to=kind)
    return steps.finish(name, kind, "fp32", array, single)


def as_fp16_or_fp32(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """fp16; doubles that it cannot hold as fp32."""
    return as_fp16(array, kind, name, names) or as_fp32(array, kind, name, names)


def as_int8(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """Symmetric int8 with a scale per channel; None where that does not pay."""
    wide = array.astype(np.float32, copy=False)
    scale = best_scale(wide)
    if scale is None:
        return None
    quantized = np.clip(np.rint(wide / scale), -127, 127).astype(np.int8)
    steps = _Steps(names)
    cast = steps.add("Cast", steps.keep(quantized), to=TensorProto.FLOAT)
    steps.add("Mul", cast, steps.keep(scale))
    return steps.finish(name, kind, "int8", wide, quantized * scale)


def as_int8_blocks(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """Symmetric int8 with a scale per block of neighbours; None where the blocks do not come out even."""
    if array.size % INT8_BLOCK or not np.isfinite(array).all():
        return None
    wide = array.astype(np.float32, copy=False).reshape(-1, INT8_BLOCK)
    scale = _clipped(wide, _positive(np.abs(wide).max(axis=1, keepdims=True) / np.float32(127)), 127)
    quantized = np.clip(np.rint(wide / scale), -127, 127).astype(np.int8)
    steps = _Steps(names)
    cast = steps.add("Cast", steps.keep(quantized), to=TensorProto.FLOAT)
    scaled = steps.add("Mul", cast, steps.keep(scale))
    steps.add("Reshape", scaled, steps.keep(np.array(array.shape, np.int64)))
    return steps.finish(name, kind, "int8", array, quantized * scale)


def as_int8_or_fp16(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """int8 per channel or in blocks where that is near enough, else fp16.

    A few tensors with outliers must not spoil the model.
    """
    for encode in (as_int8, as_int8_blocks):
        small = encode(array, kind, name, names)
        if small is not None and small.error <= INT8_MAX_ERROR:
            return small
    return as_fp16_or_fp32(array, kind, name, names)


def as_int4_or_int8(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """int4 where that is smaller and not far off, else as `as_int8_or_fp16`."""
    small = as_int4(array, kind, name, names)
    usual = as_int8_or_fp16(array, kind, name, names)
    if small is None or small.error > INT4_MAX_ERROR or (usual is not None and usual.saved >= small.saved):
        return usual
    return small


def best_scale(array: np.ndarray) -> np.ndarray | None:
    """The fp32 scales, broadcastable to `array`, whose symmetric int8 form is nearest to it.

    Every set of one or two axes is tried as the channels; then each channel gets the clipping point of least
    squared error. None if int8 does not pay: a vector, numbers that are not finite, or so many channels that
    the scales eat up the savings.
    """
    if array.ndim < 2 or not array.size or not np.isfinite(array).all():
        return None
    best: np.ndarray | None = None
    best_error = math.inf
    for channels in _channel_axes(array.ndim):
        count = math.prod(array.shape[axis] for axis in channels)
        if array.size + 4 * count > _MAX_SHARE[len(channels)] * 4 * array.size:
            continue
        others = tuple(axis for axis in range(array.ndim) if axis not in channels)
        scale = _positive(np.abs(array).max(axis=others, keepdims=True) / np.float32(127))
        error = float(_channel_errors(array, scale, 127, None).sum())
        if error < best_error:
            best, best_error = scale, error
    return None if best is None else _clipped(array, best, 127)


def _positive(scale: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float32).tiny
    return np.where(scale > 0, np.maximum(scale, tiny), np.float32(1)).astype(np.float32)


def _channel_errors(
    array: np.ndarray, scale: np.ndarray, levels: int, axes: tuple[int, ...] | None
) -> np.ndarray:
    rebuilt = np.clip(np.rint(array / scale), -levels, levels) * scale
    errors: np.ndarray = np.square(array - rebuilt).sum(axis=axes, keepdims=True, dtype=np.float64)
    return errors


def _clipped(array: np.ndarray, full: np.ndarray, levels: int) -> np.ndarray:
    """Per channel the clipping point of least squared error, among those of `_SHRINK`."""
    axes = tuple(axis for axis in range(array.ndim) if full.shape[axis] == 1)
    best: np.ndarray = full
    least = _channel_errors(array, full, levels, axes)
    for share in _SHRINK[1:]:
        scale = _positive(full * np.float32(share))
        error = _channel_errors(array, scale, levels, axes)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best


def _channel_axes(rank: int) -> Iterator[tuple[int, ...]]:
    yield from ((axis,) for axis in range(rank))
    if rank >= 3:
        yield from itertools.combinations(range(rank), 2)


def int4_blocks(columns: np.ndarray, block: int = INT4_BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int4 of an array ``[..., blocks * block]``, blocks along the last axis.

    Returns:
        The numbers from -8 to 7 as int8 ``[..., blocks, block]``, and fp32 scales ``[..., blocks, 1]``. A
        scale is negative where the block's largest magnitude is positive, so that it meets -8, and is the one
        of least squared error among a few.
    """
    blocked = columns.reshape(*columns.shape[:-1], -1, block)
    at = np.abs(blocked).argmax(axis=-1, keepdims=True)
    full = np.take_along_axis(blocked, at, axis=-1) / np.float32(-8)
    best, least = full, np.full(full.shape, np.inf)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8, 0.75):
        tried = full * np.float32(share)
        # What fp16 stores is what must fit.
        scale = tried.astype(np.float16).astype(np.float32)
        scale = np.where(scale == 0, np.float32(1), scale)
        rebuilt = np.clip(np.rint(blocked / scale), -8, 7) * scale
        error = np.square(blocked - rebuilt).sum(axis=-1, keepdims=True, dtype=np.float64)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return np.clip(np.rint(blocked / best), -8, 7).astype(np.int8), best


def as_int4(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """Two numbers a byte and an fp16 scale per block of 32; None for small weights and extreme numbers.

    ONNX's own INT4 needs opset 21; this looks every byte up in a table of its two numbers, and works from
    opset 9 on. Floats come as late as they can, for the engine holds every step while it folds.
    """
    if array.size < INT4_MIN_ELEMENTS or array.ndim < 2:
        return None
    flat = array.astype(np.float32).reshape(-1)
    peak = float(np.abs(flat).max())
    if not 1e-4 < peak < 60_000:  # scales are fp16; NaN fails too
        return None
    padded = np.zeros(-(-flat.size // (2 * INT4_BLOCK)) * 2 * INT4_BLOCK, np.float32)
    padded[: flat.size] = flat
    numbers, scale = int4_blocks(padded)
    rebuilt = (numbers * scale).reshape(-1)[: flat.size]
    # In lines: who infers shapes takes whole numbers in one dimension for a shape, and reads every one.
    halves = (numbers + 8).astype(np.uint8).reshape(-1, INT4_BLOCK // 2, 2)
    steps = _Steps(names)
    index = steps.add("Cast", steps.keep(halves[..., 0] | halves[..., 1] << 4), to=TensorProto.INT32)
    pairs = steps.add("Gather", steps.keep(_PAIRS), index, axis=0)
    lines = steps.add("Reshape", pairs, steps.keep(np.array([-1, INT4_BLOCK], np.int64)))
    blocks = steps.add("Cast", lines, to=TensorProto.FLOAT)
    scales = steps.add("Cast", steps.keep(scale.reshape(-1, 1).astype(np.float16)), to=TensorProto.FLOAT)
    scaled = steps.add("Mul", blocks, scales)
    if padded.size > flat.size:
        line = steps.add("Reshape", scaled, steps.keep(np.array([-1], np.int64)))
        bounds = [steps.keep(np.array([bound], np.int64)) for bound in (0, flat.size)]
        scaled = steps.add("Slice", line, *bounds)
    steps.add("Reshape", scaled, steps.keep(np.array(array.shape, np.int64)))
    return steps.finish(name, kind, "int4", array, rebuilt)
