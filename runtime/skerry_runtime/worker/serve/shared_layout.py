"""Where tensors lie in shared memory, and their arrays there. Pure, but for the memory that it is given."""

from __future__ import annotations

import math
import mmap
from typing import Final

import numpy as np

from skerry_contract.errors import EngineError, InputError
from skerry_contract.manifest import TensorSpec

from ...shared_memory import ALIGNMENT, PAGE, Layout, Region, Wish
from ..engines import DTYPES, Array
from ..generation import Generation

_MOST_SIZE: Final = 1 << 31


def plan(generation: Generation, wish: Wish, most: int) -> Layout:
    """Where each tensor lies, at most ``most`` bytes in all.

    Raises:
        InputError: a tensor has no bounded size, or the wish is too large.
    """
    for name, size in (("rows", wish.rows), ("free", wish.free)):
        if not 0 <= size <= _MOST_SIZE:
            raise InputError(f"{name} is {size}, which is no size")
    at, left = 0, most

    def lay(spec: TensorSpec) -> Region:
        nonlocal at
        if spec.datatype not in DTYPES:
            raise InputError(f"{spec.name!r} is {spec.datatype}: it cannot be shared", hint="Use HTTP.")
        sizes = [
            size if size != -1 else wish.free if axis else wish.rows for axis, size in enumerate(spec.shape)
        ]
        if 0 in sizes:
            raise InputError(
                f"{spec.name!r} has free axes, {list(spec.shape)}, and nobody said how large they get",
                hint="Say it: 'rows' for axis 0, 'free' for all others.",
            )
        capacity = math.prod(sizes) * DTYPES[spec.datatype].itemsize
        region = Region(spec.name, spec.datatype, spec.shape, at, capacity)
        at += -(-capacity // ALIGNMENT) * ALIGNMENT
        if at > left:
            raise InputError(
                f"the tensors would take more than {most} bytes", hint="Ask for fewer rows, or use HTTP."
            )
        return region

    manifest = generation.manifest
    inputs = tuple(lay(spec) for spec in manifest.inputs)
    inputs_bytes = -(-at // PAGE) * PAGE
    at, left = PAGE, most - inputs_bytes
    outputs = tuple(lay(spec) for spec in manifest.outputs)
    return Layout(
        model=manifest.name,
        version=manifest.version,
        digest=generation.bundle,
        variant=generation.variant.id,
        inputs_bytes=inputs_bytes,
        outputs_bytes=-(-at // PAGE) * PAGE,
        inputs=inputs,
        outputs=outputs,
    )


def view_of(region: Region, shape: tuple[int, ...], memory: mmap.mmap) -> Array:
    """A tensor where it lies. Raises `InputError` if the region is too small."""
    dtype = DTYPES[region.datatype]
    size = math.prod(shape) * dtype.itemsize
    if size > region.capacity:
        raise InputError(
            f"{region.name!r} of shape {list(shape)} has {size} bytes, the memory has {region.capacity}",
            hint="Connect with more 'rows' or a larger 'free'.",
        )
    return np.ndarray(shape, dtype, memory, region.offset)


def output_view(region: Region, array: Array, memory: mmap.mmap) -> Array:
    """Where an output goes. Raises `EngineError` if it is not what the manifest says, or `InputError`."""
    if array.ndim != len(region.shape) or any(
        size not in (-1, got) for size, got in zip(region.shape, array.shape, strict=True)
    ):
        raise misshapen(region, array)
    return view_of(region, array.shape, memory)


def misshapen(region: Region, array: Array) -> EngineError:
    """The model broke its manifest."""
    return EngineError(
        f"the output {region.name!r} has shape {list(array.shape)}, the manifest says {list(region.shape)}"
    )
