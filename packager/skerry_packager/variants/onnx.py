"""All variants of an ONNX model, one after another, from one normalized source and one calibration.

Cheap and safe ones come first, searches last: they stop when the time is up. A model that a generator cannot
handle gives a reason, never an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from onnx import ModelProto

from skerry_contract.errors import ModelError

from ..calibrate import TensorRange, collect_ranges
from . import dynamic, half, int4, qdq, storage
from .candidate import Job, Outcome, Skipped
from .mixed import MIXED, mixed
from .mixed_store import MIXED_STORE, mixed_store
from .quantizable import elements_of, inference_work, work

_STORED: Final[Mapping[str, Callable[[ModelProto], Outcome]]] = {
    storage.FP16_STORE: storage.fp16_store,
    storage.INT8_STORE: storage.int8_store,
    storage.INT4_STORE: storage.int4_store,
    storage.TREE_STORE: storage.tree_store,
    dynamic.INT8_DYNAMIC: dynamic.int8_dynamic,
    int4.INT4_WEIGHTS: int4.int4_weights,
}
"""What needs the model alone."""

VARIANT_NAMES: Final = (
    *_STORED, half.FP16, *(scheme.name for scheme in qdq.SCHEMES), MIXED, MIXED_STORE
)  # fmt: skip
"""What `generate` tries, in this order."""


def generate(model: ModelProto, job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
    """(name, function that makes it) for each of `VARIANT_NAMES`; the model is calibrated at most once."""
    for name, make in _STORED.items():
        yield name, partial(_reasoned, name, partial(make, model))
    yield half.FP16, partial(_reasoned, half.FP16, partial(_half, model, job))
    calibrated = _Calibrated(model, job)
    for scheme in qdq.SCHEMES:
        yield scheme.name, partial(_reasoned, scheme.name, partial(_quantized, calibrated, scheme))
    yield MIXED, partial(_reasoned, MIXED, partial(_mixed, calibrated, _half_time(job)))
    yield MIXED_STORE, partial(_reasoned, MIXED_STORE, partial(_mixed_store, calibrated, job))


@dataclass(slots=True)
class _Calibrated:
    """The base of all quantized variants, made when the first of them asks."""

    model: ModelProto
    job: Job
    _made: tuple[qdq.QdqBase, Mapping[str, TensorRange]] | None = None
    _failure: ModelError | None = None

    def get(self) -> tuple[qdq.QdqBase, Mapping[str, TensorRange]]:
        """The base and its ranges; none where it has an obstacle. Raises `ModelError`."""
        if self._failure is not None:
            raise self._failure
        if self._made is None:
            base = qdq.prepare(self.model)
            ranges: Mapping[str, TensorRange] = {}
            if not base.obstacle:
                try:
                    ranges = collect_ranges(base.model, base.tensors, self.job.calibration)
                except ModelError as error:
                    self._failure = ModelError(f"calibration failed: {error.message}", hint=error.hint)
                    raise self._failure from error
            self._made = base, ranges
        return self._made

    def work(self) -> float:
        """Multiplications of one inference; 0 if that is not known. Raises `ModelError`."""
        base, ranges = self.get()
        elements = elements_of(ranges, len(self.job.calibration))
        return inference_work(work(base, elements), elements)


def _quantized(calibrated: _Calibrated, scheme: qdq.QdqScheme) -> Outcome:
    base, ranges = calibrated.get()
    reduced = qdq.needs_reduced_range(calibrated.job.targets)
    return qdq.quantize(base, ranges, scheme, reduce_range=reduced)


def _mixed_store(calibrated: _Calibrated, job: Job) -> Outcome:
    try:
        known = calibrated.work()
    except ModelError:
        known = 0.0  # storage needs no calibration
    return mixed_store(calibrated.model, job, known)


def _mixed(calibrated: _Calibrated, job: Job) -> Outcome:
    base, ranges = calibrated.get()
    return mixed(base, ranges, job)


def _half(model: ModelProto, job: Job) -> Outcome:
    pointless = half.wanted(job.targets)
    return (
        Skipped(name=half.FP16, reason=pointless)
        if pointless
        else half.fp16_native(model, job.calibration[0])
    )


def _half_time(job: Job) -> Job:
    """The same with half of the time, counted from the first question on: another search follows."""
    kept: list[float] = []

    def seconds_left() -> float:
        left = job.seconds_left()
        kept[:] = kept or [left / 2]
        return left - kept[0]

    return replace(job, seconds_left=seconds_left)


def _reasoned(name: str, make: Callable[[], Outcome]) -> Outcome:
    try:
        return make()
    except ModelError as error:
        return Skipped(name=name, reason=error.message)
