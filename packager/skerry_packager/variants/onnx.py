"""All variants of an ONNX model, one after another, from one normalized source and one calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from onnx import ModelProto

from skerry_contract.errors import ModelError

from ..calibrate import collect_ranges
from . import qdq, storage
from .candidate import Job, Outcome, Skipped

VARIANT_NAMES = (storage.FP16_STORE, storage.INT8_STORE, *(scheme.name for scheme in qdq.SCHEMES))
"""What `generate` tries, in this order."""


def generate(model: ModelProto, job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """(name, function that makes it) for each of `VARIANT_NAMES`; the model is calibrated at most once."""
    yield storage.FP16_STORE, partial(storage.fp16_store, model)
    yield storage.INT8_STORE, partial(storage.int8_store, model)
    base = qdq.prepare(model)
    obstacle = ""
    ranges = {}
    if not base.obstacle:
        try:
            ranges = dict(collect_ranges(base.model, base.tensors, job.calibration))
        except ModelError as error:
            obstacle = f"calibration failed: {error.message}"
    for scheme in qdq.SCHEMES:
        if obstacle:
            yield scheme.name, partial(Skipped, name=scheme.name, reason=obstacle)
        else:
            yield scheme.name, partial(qdq.quantize, base, ranges, scheme)
