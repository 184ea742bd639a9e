"""Every variant of a TFLite model, in the order in which they are tried.

The storage variants keep computing in fp32. Measured on 15 real models, int8 storage runs at the speed of its
source on ai-edge-litert 2.3 and on tflite-runtime 2.14, see `skerry_packager.tflite.floats`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from skerry_contract.errors import ModelError

from ..tflite import quantizer
from ..tflite.floats import Encode, as_fp16, as_int8, store, weights
from ..tflite.model import array_of, parse, serialize
from .candidate import Candidate, Job, Outcome, Skipped
from .mixed_store import MIXED_STORE
from .tflite_mixed_store import MIN_ELEMENTS, mixed_store, unpacked

FP16_STORE: Final = "fp16-store"
INT8_STORE: Final = "int8-store"
LITERT_DYNAMIC: Final = "litert-int8-dynamic"
LITERT_STATIC: Final = "litert-int8-static"
VARIANT_NAMES: Final = (FP16_STORE, INT8_STORE, MIXED_STORE, LITERT_DYNAMIC, LITERT_STATIC)
_CALIBRATION_FEEDS: Final = 64
_QUANTIZER_SECONDS: Final = 120.0


def generate(job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """(name, function that makes it) of each variant."""
    yield FP16_STORE, partial(fp16_store, job.source)
    yield INT8_STORE, partial(int8_store, job.source)
    yield MIXED_STORE, partial(_mixed, job)
    yield LITERT_DYNAMIC, partial(_quantized, job, LITERT_DYNAMIC, "dynamic")
    yield LITERT_STATIC, partial(_quantized, job, LITERT_STATIC, "static")


def fp16_store(source: bytes) -> Outcome:
    """fp32 weights as fp16, half the size."""
    model = parse(source)
    if not any(weights(model, MIN_ELEMENTS)):
        return Skipped(name=FP16_STORE, reason=_nothing_to_store(model))
    return _stored(source, model, FP16_STORE, as_fp16)


def int8_store(source: bytes) -> Outcome:
    """Weights as symmetric int8 per output channel, a quarter of fp32 and half of fp16; vectors as fp16."""
    model = unpacked(source)
    if not any(weights(model, MIN_ELEMENTS)):
        return Skipped(name=INT8_STORE, reason=_nothing_to_store(model))
    return _stored(source, model, INT8_STORE, as_int8, as_fp16)


def _stored(source: bytes, model: Any, name: str, small: Encode, large: Encode | None = None) -> Outcome:
    kinds = Counter(store(model, MIN_ELEMENTS, small, large).values())
    data = serialize(model)
    recipe = {"kind": name, "min_elements": MIN_ELEMENTS, "tensors": dict(sorted(kinds.items()))}
    if len(data) >= len(source):
        reason = f"not smaller: {len(data)} bytes instead of {len(source)}"
        return Skipped(name=name, reason=reason, recipe=recipe)
    told = " and ".join(f"{count} as {kind.lower()}" for kind, count in sorted(kinds.items(), reverse=True))
    return Candidate(name=name, data=data, recipe=recipe, note=f"weights stored smaller: {told}")


def _mixed(job: Job) -> Outcome:
    model = unpacked(job.source)
    if not any(weights(model, MIN_ELEMENTS)):
        return Skipped(name=MIXED_STORE, reason=_nothing_to_store(model))
    return mixed_store(job)


def _quantized(job: Job, name: str, mode: quantizer.Mode) -> Outcome:
    if not quantizer.installed():
        return Skipped(
            name=name,
            reason="the LiteRT quantizer is not installed: pip install 'skerry[litert-quantizer]'",
        )
    model = unpacked(job.source)
    if not any(weights(model, MIN_ELEMENTS)):
        return Skipped(name=name, reason=_nothing_to_store(model))
    feeds = job.calibration[:_CALIBRATION_FEEDS]
    recipe = {"kind": name, "tool": f"litert-quantizer {quantizer.version()}"}
    if mode == "static":
        recipe["calibration_feeds"] = str(len(feeds))
        if not feeds:
            return Skipped(name=name, reason="there is no calibration data", recipe=recipe)
    if not job.seconds_left():
        return Skipped(name=name, reason="no time was left: --time-limit gives more", recipe=recipe)
    try:
        # All the time or none: a busy machine must not decide what is made.
        data = quantizer.quantize(job.source, mode, feeds, _QUANTIZER_SECONDS)
    except ModelError as error:
        return Skipped(name=name, reason=error.message, recipe=recipe)
    return Candidate(name=name, data=data, recipe=recipe, quantized_compute=True)


def _nothing_to_store(model: Any) -> str:
    integers = quantizer.integer_weights(model)
    if integers:
        return f"already quantized ({integers} integer weights); passed through"
    halves = sum(
        array is not None and array.dtype.itemsize == 2 and array.dtype.kind == "f"
        for graph in model.subgraphs
        for array in (array_of(model, tensor) for tensor in graph.tensors)
    )
    if halves:
        return f"already stored as fp16 ({halves} weights)"
    return f"no fp32 weight has {MIN_ELEMENTS} or more numbers: nothing to store smaller"
