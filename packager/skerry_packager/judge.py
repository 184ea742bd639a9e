"""Judges candidates against fp32: on the search split to choose by, on the held-out split at last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from skerry_contract.digests import digest_of
from skerry_contract.errors import ModelError

from .datasets import Splits
from .engine import Session
from .evaluate import Gate, Reference, Unsound, compare, measure_latency
from .formats import ModelFormat, Prepared
from .memory import measure_memory
from .metrics import Head
from .results import FP32, Fidelity, VariantResult, Verdict
from .variants.candidate import Candidate, Outcome, Skipped

_TIMED_FEEDS: Final = 8


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

    def __init__(
        self,
        model_format: ModelFormat,
        prepared: Prepared,
        splits: Splits,
        gate: Gate,
        task: str | None,
        seed: int,
    ) -> None:
        self.format, self.prepared, self.splits = model_format, prepared, splits
        self.gate, self.seed = gate, seed
        self.fp32 = self.session(prepared.data)
        self.search = Reference(self.fp32, splits.search, "search")
        self.held_out = Reference(self.fp32, splits.held_out, "held-out")
        self.task, self.heads = self.search.heads(task)

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
        """Generate a candidate and judge it; a candidate equal to its source is no candidate."""
        outcome = make()
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
        facts = self.format.facts(candidate.data)
        lower, upper = self.format.memory_bounds(candidate.data, self.splits.search.feed(0))
        result = VariantResult(
            name=candidate.name,
            verdict=Verdict.OK,
            reason="",
            model=candidate.data,
            digest=digest_of(candidate.data),
            size_bytes=len(candidate.data),
            recipe={**candidate.recipe, "quantized_compute": candidate.quantized_compute},
            note=candidate.note,
            ir=facts.ir,
            opset=facts.opset,
            ram_predicted_bytes=lower,
            ram_upper_bytes=upper,
            sensitivity=candidate.sensitivity,
        )
        try:
            # The fresh process comes first: a candidate that kills its process must not kill this one.
            result = replace(result, memory=measure_memory(candidate.data, self.splits.search.feed(0)))
            session = self.session(candidate.data)
        except ModelError as error:
            return replace(result, verdict=Verdict.CRASH, reason=error.message)
        try:
            fidelity = self._compare(self.search, session, candidate.name)
        except Unsound as unsound:
            return replace(result, verdict=unsound.verdict, reason=unsound.reason)
        feeds = [self.splits.search.feed(row) for row in range(min(_TIMED_FEEDS, len(self.splits.search)))]
        result = replace(result, fidelity=fidelity, latency=measure_latency(self.fp32, session, feeds))
        if candidate.name != FP32 and not fidelity.changed and result.size_bytes >= len(self.prepared.data):
            return replace(
                result, verdict=Verdict.SKIPPED, reason="nothing gained: the outputs equal fp32's, no smaller"
            )
        verdict, reason = self.gate.judge(fidelity)
        return replace(result, verdict=verdict, reason=reason)

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
        return compare(self.search, session, self.heads, self.seed)

    def _compare(self, reference: Reference, session: Session, name: str) -> Fidelity:
        found = compare(reference, session, self.heads, self.seed)
        # fp32 agrees with itself by nature: no number of rows makes that more or less sure.
        return replace(found, exact_bound=None) if name == FP32 else found
