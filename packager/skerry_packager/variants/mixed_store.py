"""Storage forms mixed by search: each weight as small as the model can bear, calculated in fp32 all the same.

Where int8 for all keeps enough, as many weights as possible go down to int4; where it does not, the weights
that do harm go up to fp16; where that does not either, they stay as they were. Weights inside the bodies of
If, Loop and Scan take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import onnx
from onnx import ModelProto

from skerry_contract.errors import ModelError

from .. import graphs
from .candidate import Candidate, Job, Outcome, Skipped
from .encodings import Encode, Names, Stored, as_fp16, as_int4, as_int8, as_int8_or_fp16
from .qdq import serialize
from .search import Search
from .sensitivity import UNKNOWN, Part, pick_inputs, rank
from .storage import MIN_SAVED_BYTES, OPSET_CAST, is_large, shrink

MIXED_STORE: Final = "mixed-store"
_SHARE: Final = 0.97
_REUSE: Final = 100.0
"""How often an inference uses a weight, in a small convolutional model."""


def mixed_store(model: ModelProto, job: Job, work: float = 0.0) -> Outcome:
    """The smallest storage that the search found, or why none beats the plain ones.

    Args:
        work: multiplications of one inference; 0 if that is not known.
    """
    recipe: dict[str, Any] = {"kind": MIXED_STORE}
    search = Search(job, work)

    def skipped(reason: str) -> Skipped:
        return Skipped(name=MIXED_STORE, reason=reason, recipe={**recipe, "search": search.trace})

    if graphs.opset_of(model) < OPSET_CAST:
        return skipped(f"opset {graphs.opset_of(model)} is too old: Cast needs {OPSET_CAST} or later")
    arrays = _weights(model)
    search.work = work or float(sum(array.size for array in arrays.values())) * _REUSE
    if not arrays:
        return skipped("no float weight is large enough to be stored smaller")
    small, large, forms = _step(model, search)
    if search.out_of_time:
        return skipped(search.failure)
    parts = _parts(arrays, small, large)
    if not parts:
        return skipped(f"no weight would be smaller as {forms[0]} than as {forms[1]}")

    def build(names: Sequence[str]) -> bytes:
        return _stored(model, _choice(set(names), small, large))

    everything = [part.name for part in parts]
    if search.passes(len(everything), lambda: build(everything)):
        return skipped(f"nothing to repair: all {len(everything)} weights pass as {forms[0]}")
    try:
        ranked, complete = rank(
            parts, serialize(model), lambda names: _stored(model, _choice(set(names), small, _as_it_was)),
            pick_inputs(job.calibration, len(parts), search.work), job.seconds_left,
        )  # fmt: skip
    except ModelError as error:
        return skipped(f"the sensitivity cannot be measured: {error.message}")
    if not complete:
        search.out_of_time = True
    order = [noise.part.name for noise in ranked if noise.noise < UNKNOWN]
    chosen = search.largest(order, build)
    if not chosen:
        return skipped(search.failure)
    recipe |= {
        "small": forms[0], "large": forms[1], forms[0]: sorted(chosen), "search": search.trace,
        "complete": not search.out_of_time,
    }  # fmt: skip
    note = f"{len(chosen)} of {len(arrays)} weights stored as {forms[0]}, the others as {forms[1]}"
    note += search.remark
    return Candidate(name=MIXED_STORE, data=build(chosen), recipe=recipe, note=note)


def _weights(model: ModelProto) -> dict[str, np.ndarray]:
    """The large float weights by name, in all graphs; a name that two graphs use is left out."""
    found: dict[str, np.ndarray] = {}
    repeated: set[str] = set()
    for graph in graphs.all_graphs(model.graph):
        for tensor in graph.initializer:
            if not is_large(tensor) or tensor.data_type != onnx.TensorProto.FLOAT:
                continue
            if tensor.name in found:
                repeated.add(tensor.name)
            found[tensor.name] = graphs.array_of(tensor)
    return {name: array for name, array in found.items() if name not in repeated}


def _as_it_was(array: np.ndarray, kind: int, name: str, names: Names) -> Stored | None:
    """No other form."""
    return None


_LADDER: Final[Sequence[tuple[Encode, Encode, tuple[str, str]]]] = (
    (as_int4, as_int8_or_fp16, ("int4", "int8")),
    (as_int8, as_fp16, ("int8", "fp16")),
    (as_fp16, _as_it_was, ("fp16", "fp32")),
)
"""The form to strive for, and the one that all weights can bear."""


def _step(model: ModelProto, search: Search) -> tuple[Encode, Encode, tuple[str, str]]:
    """The first step whose larger form passes for all weights; the last one does by nature."""
    for step in _LADDER[:-1]:
        if search.passes(0, partial(_stored, model, step[1])):
            return step
    return _LADDER[-1]


def _parts(arrays: dict[str, np.ndarray], small: Encode, large: Encode) -> list[Part]:
    parts = []
    for name, array in arrays.items():
        low = small(array, onnx.TensorProto.FLOAT, name, Names({name}))
        high = large(array, onnx.TensorProto.FLOAT, name, Names({name}))
        if low is None or low.saved < MIN_SAVED_BYTES:
            continue
        gain = low.saved - (0 if high is None else max(high.saved, 0))
        if gain > 0:
            parts.append(Part(name, float(gain)))
    return worthwhile(parts)


def worthwhile(parts: Sequence[Part]) -> list[Part]:
    """Those that together make up nearly all of the gain, in their order: the rest is not worth a trial."""
    enough = _SHARE * sum(part.gain for part in parts)
    kept: set[str] = set()
    for part in sorted(parts, key=lambda part: (-part.gain, part.name)):
        if enough <= 0:
            break
        kept.add(part.name)
        enough -= part.gain
    return [part for part in parts if part.name in kept]


def _choice(names: set[str], small: Encode, large: Encode) -> Encode:
    """`small` for the weights of those names, `large` for the others."""

    def encode(array: np.ndarray, kind: int, name: str, fresh: Names) -> Stored | None:
        return (small if name in names else large)(array, kind, name, fresh)

    return encode


def _stored(model: ModelProto, encode: Encode) -> bytes:
    copy = ModelProto()
    copy.CopyFrom(model)
    shrink(copy, encode)
    return serialize(copy)
