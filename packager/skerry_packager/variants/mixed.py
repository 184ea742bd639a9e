"""Mixed precision: int8 where it pays and does no harm, floating point elsewhere.

Which operators pay follows from counts (`quantizable.profitable`), which do harm from a measurement of each
alone (`sensitivity`), and how many of them together keep enough from trials on the search rows (`search`).
What stays in floating point is stored as int8, or as fp16 where int8 alone would already lose too much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from onnx import ModelProto

from skerry_contract.errors import ModelError

from ..calibrate import TensorRange
from ..results import Objective, Sensitivity
from .candidate import Candidate, Job, Outcome, Skipped
from .encodings import Encode, as_fp16, as_int8_or_fp16
from .insert import insert
from .qdq import Ranges, bounds_of, needs_reduced_range, serialize, usable
from .quantizable import QdqBase, Quantizable, elements_of, inference_work, profitable, work
from .search import Search
from .sensitivity import UNKNOWN, Noise, Part, pick_inputs, rank
from .storage import shrink

MIXED: Final = "mixed"
_ACTIVATION: Final = "uint8"
_RESTS: Final[Mapping[str, Encode | None]] = {"int8": as_int8_or_fp16, "fp16": as_fp16, "fp32": None}
"""Forms of the weights that stay in floating point; None leaves them alone."""


class _Drafts:
    """Builds drafts of one model: which operators are int8, with which ranges, and how the rest is stored."""

    def __init__(self, base: QdqBase, ranges: Mapping[str, TensorRange], reduce_range: bool) -> None:
        self.base = base
        self.reduce_range = reduce_range
        self.rest = "int8"
        self.flipped: set[str] = set()
        """Operators with the other kind of range."""
        self._operators = {op.node: op for op in base.quantizable}
        self._bounds = bounds_of(ranges, Ranges.MSE)
        self._others = bounds_of(ranges, Ranges.MINMAX)

    def flip(self, node: str) -> None:
        """The other range for what an operator reads and writes, or back."""
        self.flipped ^= {node}

    def alone(self, nodes: Sequence[str]) -> bytes:
        """Only these changed, and nothing stored smaller."""
        return serialize(self._insert(nodes))

    def build(self, nodes: Sequence[str]) -> bytes:
        """A complete draft."""
        model = self._insert(nodes)
        encode = _RESTS[self.rest]
        if encode is not None:
            shrink(model, encode)
        return serialize(model)

    def _insert(self, nodes: Sequence[str]) -> ModelProto:
        bounds = dict(self._bounds)
        for node in self.flipped & set(nodes):
            op = self._operators[node]
            bounds.update((name, self._others[name]) for name in (op.source, op.result) if name)
        return insert(self.base, nodes, bounds, _ACTIVATION, self.reduce_range)


def mixed(base: QdqBase, ranges: Mapping[str, TensorRange], job: Job) -> Outcome:
    """The best mixture that was found, or why there is none.

    Args:
        ranges: of `base.tensors`, over all of `job.calibration`.
    """
    recipe: dict[str, Any] = {
        "kind": MIXED, "activation": _ACTIVATION, "weight": "int8", "per_channel": True,
        "reduced_range": needs_reduced_range(job.targets), "folded": base.folded,
    }  # fmt: skip

    search = Search(job, 0.0)

    def skipped(reason: str) -> Skipped:
        return Skipped(name=MIXED, reason=reason, recipe={**recipe, "search": search.trace})

    if base.obstacle:
        return skipped(base.obstacle)
    every = usable(base, ranges)
    if not every:
        return skipped(f"0 of {base.operators} operators quantized: every one sees NaN or infinite values")
    elements = elements_of(ranges, len(job.calibration))
    macs = work(base, elements)
    # int8 weights take less memory whether they are faster or not.
    operators = every if job.objective is Objective.RAM else profitable(base, every, elements)
    if not operators:
        return skipped(
            f"0 of {len(every)} operators would be faster in int8: the conversions cost more than they save"
        )
    search.work = inference_work(macs, elements)
    drafts = _Drafts(base, ranges, bool(recipe["reduced_range"]))
    names = [op.node for op in operators]
    if search.passes(len(names), lambda: drafts.build(names)):
        if len(operators) == len(every):
            return skipped(f"nothing to repair: all {len(every)} operators pass in int8")
        return _candidate(drafts, search, names, (), recipe)
    _choose_rest(drafts, search)
    if search.out_of_time:
        return skipped(search.failure)
    parts = [Part(op.node, _worth(op, base, macs, job.objective)) for op in operators]
    try:
        ranked, complete = rank(
            parts, serialize(base.model), drafts.alone,
            pick_inputs(job.calibration, len(parts), search.work), job.seconds_left,
        )  # fmt: skip
    except ModelError as error:
        return skipped(f"the sensitivity cannot be measured: {error.message}")
    if not complete:
        search.out_of_time = True
    order = [noise.part.name for noise in ranked if noise.noise < UNKNOWN]
    chosen = search.largest(order, drafts.build, drafts.flip)
    if not chosen:
        return skipped(search.failure)
    return _candidate(drafts, search, chosen, _sensitivities(ranked, chosen, every, base), recipe)


def _choose_rest(drafts: _Drafts, search: Search) -> None:
    """The smallest form for the rest with which the model keeps enough while no operator is in int8."""
    for drafts.rest in _RESTS:
        if _RESTS[drafts.rest] is None or search.passes(0, lambda: drafts.build([])):
            return


def _worth(op: Quantizable, base: QdqBase, macs: Mapping[str, float], objective: Objective) -> float:
    """What int8 saves: bytes, or multiplications for the time."""
    if objective is Objective.LATENCY:
        return max(macs[op.node], 1.0)
    return float(_bytes_saved(op, base))


def _bytes_saved(op: Quantizable, base: QdqBase) -> int:
    return 3 * base.weights[op.weight].size


def _sensitivities(
    ranked: Sequence[Noise], chosen: Sequence[str], every: Sequence[Quantizable], base: QdqBase
) -> tuple[Sensitivity, ...]:
    """Those measured, the most harmful first."""
    operators = {op.node: op for op in every}
    measured = [noise for noise in ranked if noise.noise < UNKNOWN]
    return tuple(
        Sensitivity(
            node=noise.part.name,
            operator=operators[noise.part.name].operator,
            bytes_saved=_bytes_saved(operators[noise.part.name], base),
            noise=noise.noise,
            kept_float=noise.part.name not in chosen,
        )
        for noise in sorted(measured, key=lambda noise: -noise.noise)
    )


def _candidate(
    drafts: _Drafts,
    search: Search,
    chosen: Sequence[str],
    sensitivity: tuple[Sensitivity, ...],
    recipe: dict[str, Any],
) -> Candidate:
    kept = [op.node for op in drafts.base.quantizable if op.node not in set(chosen)]
    recipe |= {
        "ranges": Ranges.MSE.value,
        "other_ranges": sorted(drafts.flipped & set(chosen)),
        "quantized": len(chosen),
        "float": kept,
        "rest": drafts.rest,
        "search": search.trace,
        "complete": not search.out_of_time,
    }
    note = f"{len(chosen)} of {drafts.base.operators} operators in int8, the others stored as {drafts.rest}"
    note += search.remark
    return Candidate(
        name=MIXED, data=drafts.build(chosen), recipe=recipe, note=note, quantized_compute=True,
        sensitivity=sensitivity,
    )  # fmt: skip
