"""Storage forms of a TFLite model mixed by search: int8 where it is harmless, the other weights as fp16.

As `skerry_packager.variants.mixed_store` does it for ONNX. What must not meet in one operator is kept apart
by `skerry_packager.tflite.floats.store`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, Final

from skerry_contract.errors import ModelError

from ..tflite.floats import (
    Encode,
    Stored,
    Weight,
    as_fp16,
    as_int8,
    store,
    unpack_fp16,
    unpack_sparse,
    weights,
)
from ..tflite.model import parse, serialize
from ..tflite_operations import from_tflite
from .candidate import Candidate, Job, Outcome, Skipped
from .mixed_store import MIXED_STORE, worthwhile
from .search import Search
from .sensitivity import UNKNOWN, Noise, Part, pick_inputs, rank

MIN_ELEMENTS: Final = 256
"""A smaller weight costs more in operators than it saves."""
_ENGINE: Final = "tflite"
_BYTES: Final = {"FLOAT32": 4, "FLOAT16": 2, "INT8": 1}
_CHANNEL_BYTES: Final = 12
"""A scale and a zero point."""
_LEAST_GAIN: Final = 256.0
_RESERVE_NOISE: Final = 0.25
"""Share of the noise that a mixture has where int8 for all passes: held-out rows may be harder."""


def mixed_store(job: Job) -> Outcome:
    """The smallest storage that the search found, or why none beats the plain ones."""
    recipe: dict[str, Any] = {"kind": MIXED_STORE, "min_elements": MIN_ELEMENTS}
    search = Search(job, sum(each.flops for each in from_tflite(job.source)))

    def skipped(reason: str) -> Skipped:
        return Skipped(name=MIXED_STORE, reason=reason, recipe={**recipe, "search": search.trace})

    found = list(weights(unpacked(job.source), MIN_ELEMENTS))
    small, large, forms = _step(job.source, search)
    if search.out_of_time:
        return skipped(search.failure)
    parts = _parts(found, small, large)
    if not parts:
        return skipped(f"no weight would be smaller as {forms[0]} than as {forms[1]}")

    def build(names: Sequence[str]) -> bytes:
        return stored(job.source, _only(names, small), large)

    everything = [part.name for part in parts]
    all_pass = search.passes(len(everything), lambda: build(everything))
    try:
        ranked, complete = rank(
            parts, job.source, build, pick_inputs(job.calibration, len(parts), search.work),
            job.seconds_left, _ENGINE,
        )  # fmt: skip
    except ModelError as error:
        return skipped(f"the sensitivity cannot be measured: {error.message}")
    if not complete:
        search.out_of_time = True
    ranked = [noise for noise in ranked if noise.noise < UNKNOWN]
    if all_pass:
        chosen = _harmless(ranked)
    else:
        chosen = search.largest([noise.part.name for noise in ranked], build)
    if not chosen:
        return skipped(search.failure)
    data = build(chosen)
    recipe |= {
        "small": forms[0], "large": forms[1], forms[0]: sorted(chosen), "search": search.trace,
        "complete": not search.out_of_time,
    }  # fmt: skip
    if len(data) >= len(job.source):
        return skipped(f"not smaller: {len(data)} bytes instead of {len(job.source)}")
    note = f"{len(chosen)} of {len(found)} weights stored as {forms[0]}, the others as {forms[1]}"
    if all_pass:
        note += ": a reserve, should unseen rows not bear all of them"
    return Candidate(name=MIXED_STORE, data=data, recipe=recipe, note=note + search.remark)


def _harmless(ranked: Sequence[Noise]) -> list[str]:
    """The first ones, which together add a small share of the noise of all."""
    room = _RESERVE_NOISE * sum(noise.noise for noise in ranked)
    sums = accumulate(noise.noise for noise in ranked)
    return [noise.part.name for noise, total in zip(ranked, sums, strict=True) if total <= room]


def stored(source: bytes, small: Encode, large: Encode | None) -> bytes:
    """The model with its weights stored anew, see `store`."""
    model = unpacked(source)
    store(model, MIN_ELEMENTS, small, large)
    return serialize(model)


def unpacked(source: bytes) -> Any:
    """The model with its fp16 and sparse weights as fp32 constants; only `store` makes it whole again."""
    model = parse(source)
    unpack_fp16(model)
    unpack_sparse(model)
    return model


def _step(source: bytes, search: Search) -> tuple[Encode, Encode | None, tuple[str, str]]:
    """The form to strive for, and the one that all weights can bear: fp16 if that passes."""
    if search.passes(0, lambda: stored(source, as_fp16, None)):
        return as_int8, as_fp16, ("int8", "fp16")
    return as_fp16, None, ("fp16", "fp32")


def _only(names: Collection[str], encode: Encode) -> Encode:
    """That form for the weights of those names, none for the others."""
    wanted = frozenset(names)

    def encoded(weight: Weight) -> Stored | None:
        return encode(weight) if weight.name in wanted else None

    return encoded


def _parts(found: Sequence[Weight], small: Encode, large: Encode | None) -> list[Part]:
    parts = []
    for weight in found:
        low = small(weight)
        if low is not None:
            gain = _size(weight, None if large is None else large(weight)) - _size(weight, low)
            if gain >= _LEAST_GAIN:
                parts.append(Part(weight.name, gain))
    return worthwhile(parts)


def _size(weight: Weight, form: Stored | None) -> float:
    kind = "FLOAT32" if form is None else form.type
    channels = 0 if form is None or form.scales is None else len(form.scales)
    return float(weight.numbers * _BYTES[kind] + channels * _CHANNEL_BYTES)
