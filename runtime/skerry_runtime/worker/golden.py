"""Golden samples: what the model answered where it was packed, and whether it still answers so here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from skerry_contract.errors import ManifestError, SelfTestError
from skerry_contract.manifest import Manifest, TensorSpec, Tolerance, Variant
from skerry_contract.tensors import DTYPE_OF_DATATYPE, Tensor, read_tensors

from .engines import DTYPES, Array


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenSample:
    """One recorded inference; each array has the shape that the engine takes or gives."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """All recorded inferences of one variant."""

    samples: tuple[GoldenSample, ...]
    tolerances: Mapping[str, Tolerance]

    def check(self, index: int, outputs: Mapping[str, Array]) -> None:
        """Compare the answer to sample ``index`` with the recorded one.

        Raises:
            SelfTestError: not finite, another shape or type, or outside the tolerance.
        """
        for name, wanted in self.samples[index].outputs.items():
            got = outputs.get(name)
            if got is None:
                raise SelfTestError(f"golden sample {index}: the model gives no output {name!r}")
            problem = _difference(got, wanted, self.tolerances[name])
            if problem:
                raise SelfTestError(
                    f"golden sample {index}, output {name!r}: {problem}",
                    hint="The model misbehaves on this device: try another variant or engine.",
                )


def read_golden(manifest: Manifest, variant: Variant, inputs: bytes, outputs: bytes) -> Golden:
    """Parse the two tensor files of a variant.

    Raises:
        ManifestError: they do not fit the manifest or each other.
        SelfTestError: a recorded output is not finite, so nothing could be compared with it.
    """
    stacked_inputs = _read(inputs, "inputs", manifest.inputs)
    stacked_outputs = _read(outputs, "outputs", manifest.outputs)
    lengths = {array.shape[0] for array in (*stacked_inputs.values(), *stacked_outputs.values())}
    if len(lengths) != 1 or 0 in lengths:
        raise ManifestError(f"the golden samples' counts differ, or there are none: {sorted(lengths)}")
    for name, array in stacked_outputs.items():
        if not finite(array):
            raise SelfTestError(f"the golden output {name!r} is not finite", hint="Pack the model again.")
    samples = tuple(
        GoldenSample(
            inputs={name: array[k] for name, array in stacked_inputs.items()},
            outputs={name: array[k] for name, array in stacked_outputs.items()},
        )
        for k in range(lengths.pop())
    )
    return Golden(samples=samples, tolerances=variant.tolerances)


def finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; integers always are finite."""
    if array.dtype.kind != "f":
        return True
    # A sum of squares is finite only if each of them is; it is the cheapest look at all, and vdot does not
    # warn of overflow. It may be infinite for finite numbers that are large: then the slow look decides.
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())


def _read(data: bytes, prefix: str, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
    tensors = read_tensors(data)
    wanted = {f"{prefix}/{spec.name}": spec for spec in specs}
    if set(tensors) != set(wanted):
        raise ManifestError(f"the golden {prefix} do not hold exactly the model's {prefix}")
    return {spec.name: _array(tensors[key], spec, key) for key, spec in wanted.items()}


def _array(tensor: Tensor, spec: TensorSpec, where: str) -> Array:
    if tensor.dtype != DTYPE_OF_DATATYPE.get(spec.datatype):
        raise ManifestError(f"golden {where} is {tensor.dtype}, the manifest says {spec.datatype}")
    fits = len(tensor.shape) == len(spec.shape) + 1 and all(
        free == -1 or size == free for size, free in zip(tensor.shape[1:], spec.shape, strict=True)
    )
    if not fits:
        raise ManifestError(f"golden {where} has shape {list(tensor.shape)}, wanted [K, *{list(spec.shape)}]")
    return np.frombuffer(tensor.data, DTYPES[spec.datatype]).reshape(tensor.shape)


def _difference(got: Array, wanted: Array, tolerance: Tolerance) -> str:
    """What is wrong with an output; empty if nothing is."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return f"got {got.dtype} {list(got.shape)}, recorded {wanted.dtype} {list(wanted.shape)}"
    if not finite(got):
        return "NaN or infinity"
    a, b = got.astype(np.float64), wanted.astype(np.float64)
    excess = np.abs(a - b) - (tolerance.atol + tolerance.rtol * np.abs(b))
    if excess.size and float(excess.max()) > 0:
        worst = int(excess.argmax())
        return (
            f"{a.flat[worst]:.6g} where {b.flat[worst]:.6g} was recorded "
            f"(tolerance {tolerance.atol:g} + {tolerance.rtol:g} x |recorded|)"
        )
    if tolerance.top1 and a.ndim and a.size and bool((a.argmax(axis=-1) != b.argmax(axis=-1)).any()):
        return "another element is the largest"
    return ""
