"""Golden samples: real inputs with each variant's recorded answers, for the self-test on every device.

Devices differ from the packing host by rounding alone: fp32 kernels of x86 and Arm by a few units in the last
place, which sums widen, so storage variants get a narrow tolerance. Integer kernels round at other places and
one step of a quantized activation shows, so those get a wider one, in proportion to their own noise.

Of a stateful model a sample is a single step in the middle of a rollout, its states among its inputs: the
device's self-test needs no memory. A model that keeps its state inside is asked for first steps alone, each
after a reset.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from skerry_contract.errors import DataError
from skerry_contract.manifest import Tolerance
from skerry_contract.tensors import DTYPE_OF_DATATYPE, Tensor, write_tensors

from .engine import Feed, Session
from .evaluate import Reference
from .inspect import DATATYPE_OF_NUMPY
from .metrics import Form, Head, Metric, classes_of
from .rollouts import Moment, moments

DEFAULT_COUNT: Final = 8
_FP32_RELATIVE: Final = 2e-4
_INT8_RELATIVE: Final = 2e-2
_MOST_MOMENTS: Final = 256
_MOST_BYTES: Final = 256 << 20
"""Outputs that are looked at, to choose among."""
_UNCLEAR_SHARE: Final = 0.1
"""This share of the samples, those nearest to a tie, is never golden: their class may flip by rounding."""

Outputs = Sequence[np.ndarray]


def golden_candidates(reference: Reference) -> list[Moment]:
    """What samples can be chosen from: the rows themselves, or steps of fp32's rollouts of them.

    Raises:
        ModelError: fp32 fails on a row.
    """
    data = reference.data
    if data.sequences:
        inner = data.memory is not None and data.memory.inner
        return list(moments(reference.session, data, _MOST_MOMENTS, first_only=inner))
    found: list[Moment] = []
    room = _MOST_BYTES
    rows = reference.rows()
    for row, outputs in zip(rows, reference.answers(rows), strict=True):
        found.append(Moment(row, 0, data.feed(row), outputs))
        room -= sum(output.nbytes for output in outputs)
        if room < 0:
            break
    return sorted(found, key=lambda moment: moment.row)


def choose_samples(outputs: Sequence[Outputs], head: Head, count: int = DEFAULT_COUNT) -> tuple[int, ...]:
    """Positions of `count` samples (fewer if there are fewer), ascending, spread over the classes.

    Args:
        outputs: fp32's outputs, by position.
        head: the scored output.

    Raises:
        DataError: no sample has finite outputs.
    """
    finite = [
        position
        for position, row in enumerate(outputs)
        if all(output.dtype.kind != "f" or bool(np.isfinite(output).all()) for output in row)
    ]
    if not finite:
        raise DataError(
            "fp32 gives NaN or infinite values on every held-out sample",
            hint="Check the data's scaling, and that no input is NaN.",
        )
    shapes = Counter(_shapes(outputs[position]) for position in finite)
    usual = shapes.most_common(1)[0][0]
    usable = [position for position in finite if _shapes(outputs[position]) == usual]
    if head.form is Form.NONE:
        spread = np.linspace(0, len(usable) - 1, min(count, len(usable)))
        return tuple(sorted({usable[place] for place in np.rint(spread).astype(int)}))
    usable.sort(key=lambda position: (_margin(head, outputs[position][head.output]), position))
    clear = sorted(usable[int(len(usable) * _UNCLEAR_SHARE) :])
    by_class: dict[str, list[int]] = {}
    for position in clear:
        name = str(classes_of(head.form, outputs[position][head.output])[0])
        by_class.setdefault(name, []).append(position)
    chosen: list[int] = []
    while len(chosen) < min(count, len(clear)):
        for name in sorted(by_class):
            if by_class[name] and len(chosen) < count:
                chosen.append(by_class[name].pop(0))
    return tuple(sorted(chosen))


def _shapes(row: Outputs) -> tuple[tuple[int, ...], ...]:
    return tuple(output.shape for output in row)


def _margin(head: Head, output: np.ndarray) -> float:
    """How far the decision is from flipping, at the closest place; infinite where that is not known."""
    if head.form is Form.LABEL:
        return np.inf
    if head.form in (Form.BINARY_PROBABILITY, Form.BINARY_LOGIT):
        middle = 0.5 if head.form is Form.BINARY_PROBABILITY else 0.0
        return float(np.abs(output - middle).min())
    top = np.sort(output, axis=-1)
    return float((top[..., -1] - top[..., -2]).min())


def golden_inputs(feeds: Sequence[Feed]) -> bytes:
    """``inputs/NAME`` of shape ``[K, *one complete input]``."""
    return _stacked("inputs", {name: [feed[name] for feed in feeds] for name in feeds[0]})


def golden_outputs(session: Session, feeds: Sequence[Feed]) -> tuple[bytes, list[list[np.ndarray]]]:
    """``outputs/NAME`` of shape ``[K, *one complete output]`` of one variant, and the outputs themselves.

    What the model keeps inside is forgotten before each sample.

    Raises:
        ModelError: the engine failed on a sample.
    """
    recorded = []
    for feed in feeds:
        session.reset()
        recorded.append(session.run(feed))
    named = {name: [row[index] for row in recorded] for index, name in enumerate(session.output_names)}
    return _stacked("outputs", named), recorded


def _stacked(prefix: str, arrays: Mapping[str, Sequence[np.ndarray]]) -> bytes:
    return write_tensors({f"{prefix}/{name}": _tensor(np.stack(items)) for name, items in arrays.items()})


def _tensor(array: np.ndarray) -> Tensor:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return Tensor(DTYPE_OF_DATATYPE[DATATYPE_OF_NUMPY[array.dtype.name]], array.shape, little.tobytes())


def tolerances(
    names: Sequence[str],
    recorded: Sequence[Outputs],
    reference: Sequence[Outputs],
    head: Head,
    quantized_compute: bool,
) -> dict[str, Tolerance]:
    """How far a device's answers may lie from the recorded ones, by output.

    Args:
        recorded: the variant's outputs on the golden samples.
        reference: fp32's outputs on them.
        quantized_compute: whether the variant calculates in integers.
    """
    found: dict[str, Tolerance] = {}
    for index, name in enumerate(names):
        values = np.stack([row[index] for row in recorded])
        if values.dtype.kind != "f":
            exact = head.form is Form.LABEL or not quantized_compute
            found[name] = Tolerance(atol=0.0 if exact else 1.0, rtol=0.0)
            continue
        peak = float(np.abs(values).max(initial=0.0))
        relative = max(_FP32_RELATIVE, 4 * float(np.finfo(values.dtype).eps))
        noise = 0.0
        if quantized_compute:
            relative = max(relative, _INT8_RELATIVE)
            fp32 = np.stack([row[index] for row in reference]).astype(np.float64)
            noise = float(np.sqrt(np.mean(np.square(values - fp32))))
        atol = _two_digits(relative * peak + noise + 1e-7)
        found[name] = Tolerance(
            atol=atol, rtol=relative, top1=_decides(head, index, values, atol + relative * peak)
        )
    return found


def _decides(head: Head, index: int, values: np.ndarray, allowed: float) -> bool:
    """Whether the largest element must stay the largest: only where the tolerance cannot flip it."""
    if index != head.output or head.metric not in (Metric.ACCURACY, Metric.AGREEMENT):
        return False
    if head.form not in (Form.PROBABILITIES, Form.LOGITS):
        return False
    return _margin(head, values) > 2 * allowed


def _two_digits(value: float) -> float:
    """Rounded up, so that the manifest shows a number that people can read."""
    exponent = np.floor(np.log10(value)) - 1
    return float(f"{np.ceil(value / 10**exponent) * 10**exponent:.2g}")
