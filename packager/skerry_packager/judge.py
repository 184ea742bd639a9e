"""Judges candidates against fp32: on the search split to choose by, on the held-out split at last."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from skerry_contract.digests import digest_of
from skerry_contract.errors import ModelError, SelfTestError
from skerry_runtime.worker.loaded import check_signature

from .engine import Feed, Session
from .evaluate import Gate, Reference, Unsound, compare, measure_latency
from .formats import ModelFormat, Prepared
from .memory import Probe, probe
from .metrics import Head
from .results import FP32, Fidelity, VariantResult, Verdict
from .rollouts import sample_feeds
from .splits import Splits
from .variants.candidate import Candidate, Outcome, Skipped

_TIMED_FEEDS: Final = 8
_SPLIT_FLOPS: Final = 60e9
"""Work of one pass over a split: a few seconds. A model of which that is few rows is judged on fewer, and on
the same ones on every machine."""
_OPERATOR_FLOPS: Final = 2e5
"""What an operator costs that calculates nothing, some ten microseconds, in arithmetic."""
_REFERENCE_SECONDS: Final = 30.0
"""Where the work is not known, or the machine is slow."""
_CANDIDATE_SECONDS: Final = 60.0
"""A candidate that is so much slower is judged on fewer."""


@dataclass(slots=True)
class Judge:
    """fp32 and the rows that it is compared on; raises as `Session` and `Reference.heads` do."""

    format: ModelFormat
    prepared: Prepared
    splits: Splits
    gate: Gate
    seed: int
    task: str
    heads: tuple[Head, ...]
    fp32: Session
    search: Reference
    held_out: Reference
    timed: list[Feed]
    notes: list[str]
    _packed: bytes
    """fp32 as it is packed; `prepared` has the names that reports need."""
    _effort: float
    """1 for the usual number of rows, more for more of them."""
    _fp32_probe: Probe

    def __init__(
        self,
        model_format: ModelFormat,
        prepared: Prepared,
        splits: Splits,
        gate: Gate,
        task: str | None,
        metric: str | None,
        seed: int,
        effort: float = 1.0,
    ) -> None:
        self.format, self.prepared, self.splits = model_format, prepared, splits
        self.gate, self.seed = gate, seed
        self.fp32 = self.session(prepared.data)
        self._packed = model_format.finish(prepared.data)
        self.search = Reference(self.fp32, splits.search, "search")
        self.held_out = Reference(self.fp32, splits.held_out, "held-out")
        self.task, self.heads = self.search.heads(task, metric)
        self.timed = sample_feeds(self.fp32, splits.search, _TIMED_FEEDS)
        self._effort = effort
        self._fp32_probe = probe(self._packed, self.timed[0], model_format.engine)
        self.notes = [
            note
            for split in (self.search, self.held_out)
            for note in split.settle(self._most_rows(split), _REFERENCE_SECONDS)
        ]

    def _most_rows(self, split: Reference) -> int:
        """How many rows of a split fp32's work allows, a power of two."""
        operations = self._fp32_probe.operations
        steps = max(split.data.steps(row) for row in range(len(split.data)))
        work = steps * sum(each.flops + _OPERATOR_FLOPS for each in operations)
        allowed = max(1.0, self._effort * _SPLIT_FLOPS / work) if work else 0.0
        return 1 << int(math.log2(allowed)) if allowed else len(split.data)

    def session(self, model: bytes) -> Session:
        """A model in this format's engine. Raises `ModelError`."""
        return Session(model, self.format.engine)

    @property
    def source(self) -> Candidate:
        """fp32 itself, as a candidate."""
        return Candidate(
            name=FP32, data=self.prepared.data, recipe={"kind": FP32}, note="the normalized source"
        )

    def judge_made(self, name: str, make: Callable[[], Outcome]) -> VariantResult:
        """Generate a candidate and judge it."""
        return self.judge_outcome(make(), name)

    def judge_outcome(self, outcome: Outcome, name: str = "") -> VariantResult:
        """Judge what a generator gave; a candidate equal to its source is no candidate.

        Args:
            name: what a variant that was not made is called; empty takes the generator's own name.
        """
        name = name or outcome.name
        if isinstance(outcome, Skipped):
            return VariantResult(
                name=name, verdict=Verdict.SKIPPED, reason=outcome.reason, recipe=outcome.recipe
            )
        if outcome.data == self.prepared.data:
            return VariantResult(
                name=name,
                verdict=Verdict.SKIPPED,
                reason="nothing changed: the file equals fp32",
                recipe=outcome.recipe,
            )
        return self.judge(outcome)

    def judge(self, candidate: Candidate) -> VariantResult:
        """Facts, measurements and verdict of one candidate."""
        data = self._packed if candidate.name == FP32 else self.format.finish(candidate.data)
        facts = self.format.facts(data)
        result = VariantResult(
            name=candidate.name,
            verdict=Verdict.OK,
            reason="",
            model=data,
            digest=digest_of(data),
            size_bytes=len(data),
            recipe={**candidate.recipe, "quantized_compute": candidate.quantized_compute},
            note=candidate.note,
            ir=facts.ir,
            opset=facts.opset,
            sensitivity=candidate.sensitivity,
        )
        try:
            # The fresh process comes first: a candidate that kills its process must not kill this one.
            probed = self._probed(data)
            session = self.session(data)
        except ModelError as error:
            return replace(result, verdict=Verdict.CRASH, reason=error.message)
        try:
            # As the device compares them with the manifest, which says what fp32's are.
            check_signature("input", self.fp32.input_specs, session.inputs)
            check_signature("output", self.fp32.output_specs, session.outputs)
        except SelfTestError as error:
            return replace(result, verdict=Verdict.SHAPE, reason=error.message)
        lower, upper = candidate.ram_bounds or self.format.memory_bounds(data, self.timed[0], probed.sizes)
        result = replace(
            result,
            memory=probed.memory,
            operations=probed.operations,
            ram_predicted_bytes=lower,
            ram_upper_bytes=upper,
        )
        try:
            fidelity = self._compare(self.search, session, candidate.name)
        except Unsound as unsound:
            return replace(result, verdict=unsound.verdict, reason=unsound.reason)
        latency = measure_latency(self.fp32, session, self.timed)
        result = replace(result, fidelity=fidelity, latency=latency)
        smaller = result.size_bytes < len(self._packed) or candidate.ram_bounds is not None
        if candidate.name != FP32 and not fidelity.changed and not smaller:
            return replace(
                result, verdict=Verdict.SKIPPED, reason="nothing gained: the outputs equal fp32's, no smaller"
            )
        verdict, reason = self.gate.judge(fidelity)
        return replace(result, verdict=verdict, reason=reason)

    def _probed(self, model: bytes) -> Probe:
        if model == self._packed:
            return self._fp32_probe
        return probe(model, self.timed[0], self.format.engine)

    def confirm(self, result: VariantResult) -> VariantResult:
        """The last word, on rows that no choice has seen."""
        try:
            fidelity = self._compare(self.held_out, self.session(result.model), result.name)
        except Unsound as unsound:
            return replace(result, verdict=unsound.verdict, reason=f"on held-out rows: {unsound.reason}")
        verdict, reason = self.gate.judge(fidelity)
        return replace(result, held_out=fidelity, verdict=verdict, reason=reason)

    def trial(self, model: bytes, most_rows: int) -> Fidelity:
        """See `skerry_packager.variants.candidate.Trial`."""
        try:
            session = self.session(model)
        except ModelError as error:
            raise Unsound(Verdict.CRASH, error.message) from error
        return compare(self.search, session, self.heads, self.seed, most_rows, _CANDIDATE_SECONDS)

    def _compare(self, reference: Reference, session: Session, name: str) -> Fidelity:
        found = compare(reference, session, self.heads, self.seed, seconds=_CANDIDATE_SECONDS)
        # fp32 agrees with itself by nature: no number of rows makes that more or less sure.
        return replace(found, exact_bound=None) if name == FP32 else found
