"""Restricted static quantization: Conv, MatMul and Gemm with constant weights, int8 per channel, as QDQ.

The graph is written by `insert`, not by onnxruntime's quantizer, whose traps are known: it rounds before
*and* behind a Relu, and so keeps the convolution from running with it in int8; per-channel below opset 13
writes an invalid graph; per-channel Gemm raises "truth value of an array is ambiguous"; operators inside
subgraphs are silently left out; a shared bias is copied under names that may be taken; an activation that was
once infinite gives a range of NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from onnx import ModelProto

from ..calibrate import TensorRange
from ..results import Target
from .candidate import Candidate, Outcome, Skipped
from .insert import Range, insert
from .quantizable import OPERATORS, QdqBase, Quantizable, prepare
from .storage import shrink_rest

__all__ = ["SCHEMES", "QdqBase", "QdqScheme", "Ranges", "bounds_of", "prepare", "quantize", "usable"]


class Ranges(StrEnum):
    """How a histogram becomes a range."""

    MINMAX = "minmax"
    MSE = "mse"


@dataclass(frozen=True, slots=True, kw_only=True)
class QdqScheme:
    """One way to quantize."""

    name: str
    activation: str
    """``uint8`` or ``int8``."""
    ranges: Ranges


SCHEMES: Final = (
    QdqScheme(name="qdq-u8s8", activation="uint8", ranges=Ranges.MINMAX),
    QdqScheme(name="qdq-s8s8", activation="int8", ranges=Ranges.MINMAX),
    QdqScheme(name="qdq-u8s8-mse", activation="uint8", ranges=Ranges.MSE),
)


def needs_reduced_range(targets: Sequence[Target]) -> bool:
    """Whether a target may add products in 16 bits that saturate (VPMADDUBSW): x86 without, or not known
    to have, VNNI. onnxruntime turns S8S8 into U8S8 there, so both schemes are concerned."""
    return any(target.arch in ("x86_64", "amd64", "x86", "i686") and "vnni" not in target.isa
               for target in targets)  # fmt: skip


def usable(base: QdqBase, ranges: Mapping[str, TensorRange]) -> tuple[Quantizable, ...]:
    """The operators whose activations were seen, and were always finite."""
    return tuple(
        op
        for op in base.quantizable
        if all(name in ranges and not ranges[name].not_finite for name in (op.source, op.result) if name)
    )


def bounds_of(ranges: Mapping[str, TensorRange], kind: Ranges) -> dict[str, Range]:
    """Low and high of every tensor."""
    return {
        name: found.min_max() if kind is Ranges.MINMAX else found.mse_range()
        for name, found in ranges.items()
    }


def quantize(
    base: QdqBase,
    ranges: Mapping[str, TensorRange],
    scheme: QdqScheme,
    *,
    reduce_range: bool = False,
) -> Outcome:
    """One candidate, or why there is none; whatever fp32 weights remain are stored as int8.

    Args:
        reduce_range: see `needs_reduced_range`.
    """
    recipe = {
        "kind": "qdq", "operators": list(OPERATORS), "activation": scheme.activation, "weight": "int8",
        "per_channel": True, "ranges": scheme.ranges.value, "reduced_range": reduce_range,
        "folded_batch_norms": base.folded,
    }  # fmt: skip
    if base.obstacle:
        return Skipped(name=scheme.name, reason=base.obstacle, recipe=recipe)
    chosen = usable(base, ranges)
    if not chosen:
        reason = f"0 of {base.operators} operators quantized: every one sees NaN or infinite values"
        return Skipped(name=scheme.name, reason=reason, recipe=recipe)
    model = insert(
        base, [op.node for op in chosen], bounds_of(ranges, scheme.ranges), scheme.activation, reduce_range
    )
    rest = shrink_rest(model)
    note = f"{len(chosen)} of {base.operators} operators quantized"
    if left := len(base.quantizable) - len(chosen):
        note += f"; {left} left: NaN or infinite values"
    if reduce_range:
        note += "; weights of 7 bits, for x86 without VNNI"
    if rest.tensors:
        note += f"; {rest.tensors} other weights stored as int8"
    recipe |= {"quantized": len(chosen), "stored_int8": rest.tensors}
    return Candidate(
        name=scheme.name, data=serialize(model), recipe=recipe, note=note, quantized_compute=True
    )


def serialize(model: ModelProto) -> bytes:
    """The same bytes for the same model."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data
