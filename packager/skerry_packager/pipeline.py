"""From a model file and sample data to tried, judged and chosen variants: the core of ``skerry pack``.

Deterministic: the same inputs give the same candidate bytes, fidelity, golden data and monitoring spec. What
is measured (latency, memory) decides only where it is asked for: a latency or RAM objective, a RAM budget.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_contract.errors import InputError, ModelError

from .datasets import Dataset, match_dataset
from .doubts import doubt_about_labels, refuse_useless_labels
from .evaluate import Gate
from .formats import format_of
from .golden import choose_samples, golden_candidates, golden_inputs, golden_outputs, tolerances
from .inspect import ModelInspection, inspect_model
from .judge import Judge
from .reference import build_spec
from .results import (
    FP32,
    Choice,
    GoldenData,
    Objective,
    PackResult,
    Progress,
    Target,
    VariantResult,
    no_progress,
)
from .rollouts import sample_feeds
from .select import choose, slowdowns
from .sources.options import SourceOptions
from .sources.read import read_source
from .splits import Splits, make_splits
from .states import find_states
from .variants.candidate import Job
from .variants.mapped import parents

DEFAULT_OPTIONS: Final = SourceOptions()
Data = str | Path | Mapping[str, np.ndarray]
"""A path or ``module:function`` (see `skerry_packager.sources`), or the arrays themselves."""

DEFAULT_TIME_LIMIT: Final = 30.0
"""Seconds of processor time for trying variants, after which no search goes on: most models need less."""
_PATIENCE: Final = 10
"""Times that limit by the clock: a busy machine may take longer, an endless wait may not."""


def pack_variants(
    model_path: Path | str,
    *,
    evaluation: Data,
    calibration: Data | None = None,
    targets: Sequence[Target],
    objective: Objective = Objective.SIZE,
    max_drop: float = 0.01,
    task: str | None = None,
    metric: str | None = None,
    states: Sequence[str] = (),
    source_options: SourceOptions = DEFAULT_OPTIONS,
    alternatives: Sequence[Target] = (),
    seed: int = 0,
    time_limit: float = DEFAULT_TIME_LIMIT,
    progress: Progress = no_progress,
    on_result: Callable[[VariantResult], None] = lambda result: None,
) -> PackResult:
    """Try every variant, judge it, and choose for each target.

    Args:
        model_path: an ONNX file, its external data beside it.
        evaluation: rows that judge; half of them only have the last word.
        calibration: rows that set the ranges of quantization; None takes a fifth of `evaluation`.
        targets: device profiles; at least one.
        max_drop: largest accepted upper bound of the loss, as in `Fidelity.drop` (0.01 is one point).
        task: one of `skerry_contract.manifest.TASKS`; None finds it from the outputs.
        metric: one of `skerry_packager.metrics.METRICS` or ``module:function``; None finds it.
        states: ``output=input`` for each state of a stateful model; empty finds them by their names, and
            ``none`` alone says that there are none. Rows are then whole sequences, see
            `skerry_packager.datasets.match_dataset`.
        source_options: how files of data become inputs.
        alternatives: other targets, to be named where the model fits them and none of `targets`.
        seed: of the splits and the bootstrap.
        time_limit: seconds of processor time after which no search is begun or goes on; what was found till
            then counts. A search that it ends says so, and may find another mixture on a faster machine.
        on_result: called with each variant as it was tried, so that a run that fails later shows them.
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
    progress("inspect", 0, 1)
    inspection = inspect_model(path)
    _check_servable(inspection)
    model_format = format_of(inspection)
    steps = (
        "inspect", "data", "normalize", FP32, *model_format.variant_names, "select", "golden", "monitoring"
    )  # fmt: skip

    def begin(step: str) -> None:
        progress(step, steps.index(step), len(steps))

    begin("data")
    loops = find_states(inspection.inputs, inspection.outputs, states)
    source = _Reader(inspection, loops, source_options)
    splits = source.splits(calibration, evaluation, seed)
    begin("normalize")
    samples = [splits.calibration.feed(row) for row in range(min(3, len(splits.calibration)))]
    prepared = model_format.prepare(path, inspection, samples, targets)
    begin(FP32)
    # More time lets more rows judge; less of it only shortens searches.
    effort = max(1.0, time_limit / DEFAULT_TIME_LIMIT)
    judge = Judge(model_format, prepared, splits, Gate(max_drop), task, metric, seed, effort)
    tried: list[VariantResult] = []

    def keep(result: VariantResult) -> None:
        estimates = {target.name: target.estimate(result) for target in targets if result.model}
        known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
        result = replace(result, estimates=known)
        tried.append(replace(result, slowdowns=slowdowns(result, (tried or [result])[0], targets)))
        on_result(tried[-1])

    keep(judge.judge(judge.source))
    if tried[0].fidelity is not None:
        refuse_useless_labels(tried[0].fidelity)
    began, worked = time.monotonic(), time.process_time()

    def seconds_left() -> float:
        by_work = time_limit - (time.process_time() - worked)
        return max(0.0, min(by_work, _PATIENCE * time_limit - (time.monotonic() - began)))

    job = Job(
        source=prepared.data,
        calibration=sample_feeds(judge.fp32, splits.calibration),
        targets=targets,
        max_drop=max_drop,
        objective=objective,
        trial=judge.trial,
        seconds_left=seconds_left,
    )
    for name, make in model_format.generate(job):
        begin(name)
        keep(judge.judge_made(name, make))
    begin("select")
    for parent in parents(tried, targets, objective):
        outcome = model_format.mapped(parent)
        if outcome is not None:
            keep(judge.judge_outcome(outcome))
    tried, choices = _settle(tried, targets, objective, judge, alternatives)
    chosen = tuple(dict.fromkeys(name for choice in choices for name in choice.variants))
    begin("golden")
    golden = _golden(judge, [result for result in tried if result.name in chosen], splits)
    begin("monitoring")
    spec = build_spec(judge.fp32, [splits.calibration, splits.search, splits.held_out], judge.heads[0])
    doubts = doubt_about_labels(
        judge.heads[0].name,
        next((result.held_out.reference for result in tried if result.held_out), None),
        splits.held_out.labels,
    )
    progress("done", len(steps), len(steps))
    return PackResult(
        inspection=inspection,
        inputs=judge.fp32.input_specs,
        outputs=judge.fp32.output_specs,
        task=judge.task,
        metric=judge.heads[0].name,
        objective=objective,
        max_drop=max_drop,
        variants=tuple(tried),
        choices=tuple(choices),
        chosen=chosen,
        golden=golden,
        monitoring=spec.to_bytes(),
        splits=splits.info,
        notes=(*_inspection_notes(inspection), *prepared.notes, *splits.notes, *judge.notes, *doubts),
        preprocessing=source.preprocessing,
        states=loops if splits.held_out.sequences else {},
        class_names=source.class_names,
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


class _Reader:
    """Reads data for one model, and remembers how it was read."""

    def __init__(self, inspection: ModelInspection, loops: Mapping[str, str], options: SourceOptions) -> None:
        self.inspection, self.loops = inspection, loops
        stateful = bool(loops) or inspection.stateful
        self.options = replace(options, sequences=stateful) if stateful else options
        self.preprocessing: Mapping[str, Any] = {}
        self.class_names: tuple[str, ...] = ()
        self.notes: list[str] = []

    def splits(self, calibration: Data | None, evaluation: Data, seed: int) -> Splits:
        """Calibration, search and held-out rows. Raises as `read_source`, `match_dataset`, `make_splits`."""
        judging = self._read(evaluation, "evaluation data", self.options)
        given = None
        if calibration is not None:
            options = replace(
                self.options, label_required=False, classes=self.options.classes or self.class_names
            )
            given = self._read(calibration, "calibration data", options)
        splits = make_splits(given, judging, seed)
        return replace(splits, notes=(*splits.notes, *self.notes))

    def _read(self, data: Data, what: str, options: SourceOptions) -> Dataset:
        samples = read_source(data, self.inspection.inputs, options)
        found = match_dataset(
            samples.arrays, self.inspection.inputs, what, self.loops, self.inspection.stateful
        )
        self.notes += samples.notes
        if broken := found.first_not_finite():
            self.notes.append(f"{what}: {broken}")
        if samples.preprocessing and self.preprocessing and samples.preprocessing != self.preprocessing:
            self.notes.append(f"{what} was prepared in another way than the rest: see how it was read")
        self.preprocessing = self.preprocessing or samples.preprocessing
        self.class_names = self.class_names or samples.class_names
        return found


def _inspection_notes(inspection: ModelInspection) -> tuple[str, ...]:
    notes = []
    if inspection.external_files:
        notes.append(f"{len(inspection.external_files)} external data files repacked into the model file")
    if inspection.quantized_operators:
        notes.append(f"already quantized ({inspection.quantized_operators} operators)")
    return tuple(notes)


def _settle(
    tried: list[VariantResult],
    targets: Sequence[Target],
    objective: Objective,
    judge: Judge,
    alternatives: Sequence[Target],
) -> tuple[list[VariantResult], list[Choice]]:
    """Choose, confirm what was chosen on the held-out rows, and choose again while that fails."""
    results = {result.name: result for result in tried}
    while True:
        choices = [choose(list(results.values()), target, objective, alternatives) for target in targets]
        unconfirmed = {
            name for choice in choices for name in choice.variants if results[name].held_out is None
        }
        if not unconfirmed:
            return list(results.values()), choices
        for name in sorted(unconfirmed):
            results[name] = judge.confirm(results[name])


def _golden(judge: Judge, chosen: Sequence[VariantResult], splits: Splits) -> GoldenData:
    head = judge.heads[0]
    candidates = golden_candidates(judge.held_out)
    places = choose_samples([moment.outputs for moment in candidates], head)
    samples = [candidates[place] for place in places]
    feeds, reference = [moment.feed for moment in samples], [moment.outputs for moment in samples]
    outputs, allowed = {}, {}
    for result in chosen:
        session = judge.session(result.model)
        outputs[result.name], recorded = golden_outputs(session, feeds)
        allowed[result.name] = tolerances(
            session.output_names, recorded, reference, head, bool(result.recipe["quantized_compute"])
        )
    return GoldenData(
        inputs=golden_inputs(feeds),
        outputs=outputs,
        tolerances=allowed,
        samples=tuple(splits.held_out_rows[moment.row] for moment in samples),
    )
