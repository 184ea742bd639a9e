"""From a model file and sample data to tried, judged and chosen variants: the core of ``skerry pack``.

Deterministic: the same inputs give the same candidate bytes, fidelity, golden data and monitoring spec. What
is measured (latency, memory) decides only where it is asked for: a latency or RAM objective, a RAM budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnx

from skerry_contract.digests import digest_of
from skerry_contract.errors import InputError, ModelError
from skerry_contract.manifest import TensorSpec

from . import graphs
from .datasets import Dataset, Splits, load_arrays, make_splits, match_dataset
from .engine import Session
from .evaluate import Gate, Reference, Unsound, compare, measure_latency
from .golden import choose_samples, golden_inputs, golden_outputs, tolerances
from .inspect import ModelInspection, inspect_model
from .memory import measure_memory, predict_memory
from .metrics import Head
from .modelfile import load_approved
from .normalize import Normalized, normalize
from .reference import build_spec
from .results import (
    FP32,
    Choice,
    Fidelity,
    GoldenData,
    Objective,
    PackResult,
    Progress,
    Target,
    VariantResult,
    Verdict,
    no_progress,
)
from .select import choose
from .variants.candidate import Candidate, Outcome, Skipped
from .variants.onnx import VARIANT_NAMES, generate

Data = str | Path | Mapping[str, np.ndarray]
"""A path or ``module:function`` (see `skerry_packager.datasets`), or the arrays themselves."""

_STEPS: Final = ("inspect", "data", "normalize", FP32, *VARIANT_NAMES, "select", "golden", "monitoring")
_TIMED_FEEDS: Final = 8


def pack_variants(
    model_path: Path | str,
    *,
    evaluation: Data,
    calibration: Data | None = None,
    targets: Sequence[Target],
    objective: Objective = Objective.SIZE,
    max_drop: float = 0.01,
    task: str | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> PackResult:
    """Try every variant, judge it, and choose for each target.

    Args:
        model_path: an ONNX file, its external data beside it.
        evaluation: rows that judge; half of them only have the last word.
        calibration: rows that set the ranges of quantization; None takes a fifth of `evaluation`.
        targets: device profiles; at least one.
        max_drop: largest accepted upper bound of the loss, as in `Fidelity.drop` (0.01 is one point).
        task: one of `skerry_contract.manifest.TASKS`; None finds it from the outputs.
        seed: of the splits and the bootstrap.
        progress: called at the start of every step.

    Raises:
        ModelError, DataError, InputError: the model, the data or an option cannot be used.
        BudgetError: nothing that passes fits a target.
    """
    if not targets:
        raise InputError("no device profile was given", hint="Name one with --profile.")
    if not 0 <= max_drop < 1:
        raise InputError(
            f"the largest drop must be from 0 to below 1, not {max_drop}", hint="One point is 0.01."
        )
    path = Path(model_path)

    def begin(step: str) -> None:
        progress(step, _STEPS.index(step), len(_STEPS))

    begin("inspect")
    inspection = inspect_model(path)
    _check_servable(inspection)
    begin("data")
    splits = _load_splits(inspection, calibration, evaluation, seed)
    begin("normalize")
    calibration_feeds = [splits.calibration.feed(row) for row in range(len(splits.calibration))]
    normalized = normalize(
        load_approved(path, inspection),
        calibration_feeds[:3],
        max_ir=min((target.max_ir for target in targets if target.max_ir), default=0),
        max_opset=min((target.max_opset for target in targets if target.max_opset), default=0),
    )
    begin(FP32)
    judge = _Judge(normalized, splits, Gate(max_drop), task, seed)
    tried = [judge.judge(judge.source)]
    for name, make in generate(normalized.model, calibration_feeds):
        begin(name)
        tried.append(judge.judge_made(name, make))
    begin("select")
    tried, choices = _settle(tried, targets, objective, judge)
    chosen = tuple(dict.fromkeys(name for choice in choices for name in choice.variants))
    begin("golden")
    golden = _golden(judge, [result for result in tried if result.name in chosen], splits)
    begin("monitoring")
    spec = build_spec(judge.fp32, [splits.calibration, splits.search, splits.held_out], judge.heads[0])
    progress("done", len(_STEPS), len(_STEPS))
    return PackResult(
        inspection=inspection,
        inputs=tuple(TensorSpec(name=s.name, datatype=s.datatype, shape=s.shape) for s in judge.fp32.inputs),
        outputs=tuple(
            TensorSpec(name=s.name, datatype=s.datatype, shape=s.shape) for s in judge.fp32.outputs
        ),
        task=judge.task,
        metric=judge.heads[0].metric.value,
        objective=objective,
        max_drop=max_drop,
        variants=tuple(tried),
        choices=tuple(choices),
        chosen=chosen,
        golden=golden,
        monitoring=spec.to_bytes(),
        splits=splits.info,
        notes=(*_inspection_notes(inspection), *normalized.notes, *splits.notes),
    )


def _check_servable(inspection: ModelInspection) -> None:
    """Refuse early what no device can serve. Raises `ModelError`."""
    for info in inspection.inputs:
        if info.spec().datatype == "BYTES":
            raise ModelError(
                f"input {info.name!r} takes strings, which devices do not serve",
                hint="Encode text outside of the model, or export it with numbers as input.",
            )
    if not inspection.inputs:
        raise ModelError(
            "the model has no input: its answer never changes", hint="Export it with its inputs."
        )


def _load_splits(
    inspection: ModelInspection, calibration: Data | None, evaluation: Data, seed: int
) -> Splits:
    notes = []

    def load(source: Data, what: str) -> Dataset:
        arrays = source if isinstance(source, Mapping) else load_arrays(source)
        data = match_dataset(arrays, inspection.inputs, what)
        if found := data.first_not_finite():
            notes.append(f"{what}: {found}")
        return data

    given = None if calibration is None else load(calibration, "calibration data")
    splits = make_splits(given, load(evaluation, "evaluation data"), seed)
    return replace(splits, notes=(*splits.notes, *notes))


def _inspection_notes(inspection: ModelInspection) -> tuple[str, ...]:
    notes = []
    if inspection.external_files:
        notes.append(f"{len(inspection.external_files)} external data files repacked into the model file")
    if inspection.quantized_operators:
        notes.append(f"already quantized ({inspection.quantized_operators} operators)")
    return tuple(notes)


@dataclass(slots=True)
class _Judge:
    """Judges candidates against fp32 on the search split, and the best of them on the held-out split."""

    normalized: Normalized
    splits: Splits
    gate: Gate
    seed: int
    task: str
    heads: tuple[Head, ...]
    fp32: Session
    search: Reference
    held_out: Reference

    def __init__(
        self, normalized: Normalized, splits: Splits, gate: Gate, task: str | None, seed: int
    ) -> None:
        self.normalized, self.splits, self.gate, self.seed = normalized, splits, gate, seed
        self.fp32 = Session(normalized.data)
        self.search = Reference(self.fp32, splits.search, "search")
        self.held_out = Reference(self.fp32, splits.held_out, "held-out")
        self.task, self.heads = self.search.heads(task)

    @property
    def source(self) -> Candidate:
        """fp32 itself, as a candidate."""
        return Candidate(
            name=FP32, data=self.normalized.data, recipe={"kind": FP32}, note="the normalized source"
        )

    def judge_made(self, name: str, make: Callable[[], Outcome]) -> VariantResult:
        """Generate a candidate and judge it; a candidate equal to its source is no candidate."""
        outcome = make()
        if isinstance(outcome, Skipped):
            return VariantResult(
                name=name, verdict=Verdict.SKIPPED, reason=outcome.reason, recipe=outcome.recipe
            )
        if outcome.data == self.normalized.data:
            return VariantResult(
                name=name,
                verdict=Verdict.SKIPPED,
                reason="nothing changed: the file equals fp32",
                recipe=outcome.recipe,
            )
        return self.judge(outcome)

    def judge(self, candidate: Candidate) -> VariantResult:
        """Facts, measurements and verdict of one candidate."""
        model = onnx.load_model_from_string(candidate.data)
        result = VariantResult(
            name=candidate.name,
            verdict=Verdict.OK,
            reason="",
            model=candidate.data,
            digest=digest_of(candidate.data),
            size_bytes=len(candidate.data),
            recipe={**candidate.recipe, "quantized_compute": candidate.quantized_compute},
            note=candidate.note,
            ir=model.ir_version,
            opset=graphs.opset_of(model),
            ram_predicted_bytes=predict_memory(model, self.splits.search.feed(0)),
        )
        try:
            # The fresh process comes first: a candidate that kills its process must not kill this one.
            result = replace(result, memory=measure_memory(candidate.data, self.splits.search.feed(0)))
            session = Session(candidate.data)
        except ModelError as error:
            return replace(result, verdict=Verdict.CRASH, reason=error.message)
        try:
            fidelity = self._compare(self.search, session, candidate.name)
        except Unsound as unsound:
            return replace(result, verdict=unsound.verdict, reason=unsound.reason)
        feeds = [self.splits.search.feed(row) for row in range(min(_TIMED_FEEDS, len(self.splits.search)))]
        result = replace(result, fidelity=fidelity, latency=measure_latency(self.fp32, session, feeds))
        if candidate.name != FP32 and not fidelity.changed and result.size_bytes >= len(self.normalized.data):
            return replace(
                result, verdict=Verdict.SKIPPED, reason="nothing gained: the outputs equal fp32's, no smaller"
            )
        verdict, reason = self.gate.judge(fidelity)
        return replace(result, verdict=verdict, reason=reason)

    def _compare(self, reference: Reference, session: Session, name: str) -> Fidelity:
        found = compare(reference, session, self.heads, self.seed)
        # fp32 agrees with itself by nature: no number of rows makes that more or less sure.
        return replace(found, exact_bound=None) if name == FP32 else found

    def confirm(self, result: VariantResult) -> VariantResult:
        """The last word, on rows that no choice has seen."""
        try:
            fidelity = self._compare(self.held_out, Session(result.model), result.name)
        except Unsound as unsound:
            return replace(result, verdict=unsound.verdict, reason=f"on held-out rows: {unsound.reason}")
        verdict, reason = self.gate.judge(fidelity)
        return replace(result, held_out=fidelity, verdict=verdict, reason=reason)


def _settle(
    tried: list[VariantResult], targets: Sequence[Target], objective: Objective, judge: _Judge
) -> tuple[list[VariantResult], list[Choice]]:
    """Choose, confirm what was chosen on the held-out rows, and choose again while that fails."""
    results = {result.name: result for result in tried}
    while True:
        choices = [choose(list(results.values()), target, objective) for target in targets]
        unconfirmed = {
            name for choice in choices for name in choice.variants if results[name].held_out is None
        }
        if not unconfirmed:
            return list(results.values()), choices
        for name in sorted(unconfirmed):
            results[name] = judge.confirm(results[name])


def _golden(judge: _Judge, chosen: Sequence[VariantResult], splits: Splits) -> GoldenData:
    data, head = splits.held_out, judge.heads[0]
    positions = choose_samples([judge.held_out.outputs(row) for row in range(len(data))], head)
    reference = [judge.held_out.outputs(row) for row in positions]
    outputs, allowed = {}, {}
    for result in chosen:
        session = Session(result.model)
        outputs[result.name], recorded = golden_outputs(session, data, positions)
        allowed[result.name] = tolerances(
            session.output_names, recorded, reference, head, bool(result.recipe["quantized_compute"])
        )
    return GoldenData(
        inputs=golden_inputs(data, positions),
        outputs=outputs,
        tolerances=allowed,
        samples=tuple(splits.held_out_rows[position] for position in positions),
    )
