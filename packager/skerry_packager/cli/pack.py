"""``skerry pack``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click

from skerry_contract.manifest import TASKS

from .. import console
from ..packing import DEFAULT_SLOWDOWN, MONITORS, OwnBudgets, Packed, PackRequest, megabytes
from ..packing import pack as pack_model
from ..results import Objective
from ..runlog import variant_row
from .options import EXISTING_FILE, Limit, duration, json_option, key_password, loss, password_env_option
from .runs import run_log_option, show_drawings, show_variants
from .source_options import with_source_options

_STEPS: Final = {
    "inspect": "loading the model in quarantine",
    "data": "reading the data",
    "normalize": "normalizing the model",
    "fp32": "measuring the original",
    "select": "choosing, and confirming on held-out rows",
    "golden": "recording golden samples",
    "monitoring": "learning what is normal",
    "done": "signing",
}
"""Of the steps that `pack_variants` reports; all others are variants."""


@click.command()
@click.argument("model", type=EXISTING_FILE)
@click.option(
    "--name", required=True, help="Name of the model in the fleet: lower-case letters, digits, '.', '_', '-'."
)
@click.option("--version", required=True, help="Semantic version, such as 1.4.0.")
@click.option(
    "--release",
    type=click.IntRange(1),
    metavar="N",
    help="Counter that rises with every release; from the version if not given (1.4.2 is 1004002).",
)
@click.option(
    "--evaluation",
    required=True,
    metavar="DATA",
    help="Rows that judge: .npz or .npy arrays, a .csv or .parquet table, a folder of images or WAV files, "
    "or module:function. Labels let accuracy judge; without them agreement with fp32 does. See docs/data.md.",
)
@click.option(
    "--calibration",
    metavar="DATA",
    help="Rows that set quantization ranges; a fifth of the evaluation if not given.",
)
@click.option(
    "--profile",
    "profiles",
    required=True,
    multiple=True,
    metavar="NAME",
    help="Device profile, or the path of one of your own; may be repeated.",
)
@click.option(
    "--key",
    required=True,
    type=EXISTING_FILE,
    metavar="KEY",
    help="Private key that signs (see 'skerry keys init').",
)
@password_env_option
@click.option(
    "--objective",
    type=click.Choice([objective.value for objective in Objective]),
    default="size",
    show_default=True,
    help="What to minimize among the variants that pass.",
)
@click.option(
    "--max-drop",
    type=loss,
    default="1pt",
    show_default=True,
    metavar="LOSS",
    help="Largest loss accepted: 1pt, 1% or 0.01.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where to write; NAME-VERSION.skerry if not given.",
)
@click.option(
    "--labels", default="", help="Names of the classes in the order of the output, separated by commas."
)
@click.option(
    "--task",
    type=click.Choice(TASKS),
    help="What the model does; found from its outputs if not given.",
)
@click.option(
    "--monitor",
    type=click.Choice(MONITORS),
    default="auto",
    show_default=True,
    help="What devices watch of the inputs for drift: all that was found, one kind of it, or nothing.",
)
@click.option(
    "--metric",
    metavar="METRIC",
    help="accuracy, f1, auc, mae, top1-agreement, cosine, sqnr, or module:function(labels, outputs); found "
    "from labels and outputs if not given.",
)
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="OUTPUT=INPUT",
    help="A state of a stateful model: an output that the next step takes as input. Found by their names if "
    "not given; 'none' says that there is none.",
)
@with_source_options
@click.option(
    "--lineage",
    metavar="FILE|RUN",
    help="About the training: JSON or TOML, or a run of MLflow, Weights & Biases, DVC or Neptune: a folder, "
    "mlflow.db#RUN_ID, mlflow+https://HOST/#RUN_ID, dvc.lock, …",
)
@click.option(
    "--max-slowdown",
    type=click.FloatRange(0),
    default=DEFAULT_SLOWDOWN,
    show_default=True,
    metavar="FACTOR",
    help="Largest latency as a multiple of the original's, where that is measured; 0 sets no limit.",
)
@click.option(
    "--measurements",
    type=EXISTING_FILE,
    metavar="FILE",
    help="Timings of model files on devices, as devices/README.md describes them.",
)
@click.option(
    "--time-limit",
    type=duration,
    metavar="TIME",
    help="Processor time after which no search for a mixture of precisions goes on: 90s, 10m; 30s if not "
    "given. With more of it more rows judge a slow model.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="HTML",
    help="Write the report as a page that works offline.",
)
@click.option(
    "--security-floor",
    type=click.IntRange(0),
    default=0,
    help="Once confirmed, devices refuse lower releases.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="How many threads an inference may use on a device that has the cores; timings here are of one.",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="An accelerator that devices use where their engine has it, such as cuda; the best first.",
)
@click.option(
    "--budget-ram",
    type=Limit(1),
    metavar="MB",
    help="Memory of a worker process, instead of the profiles'.",
)
@click.option(
    "--budget-size",
    type=Limit(),
    metavar="MB",
    help="Size of the model, instead of the profiles'.",
)
@click.option(
    "--budget-latency-ms",
    type=Limit(),
    metavar="MS",
    help="95th percentile on a device, instead of the profiles'; devices check it themselves.",
)
@run_log_option
@json_option
def pack(
    model: Path,
    name: str,
    version: str,
    release: int | None,
    evaluation: str,
    calibration: str | None,
    profiles: tuple[str, ...],
    key: Path,
    password_env: str | None,
    objective: str,
    max_drop: float,
    out: Path | None,
    labels: str,
    task: str | None,
    monitor: str,
    metric: str | None,
    states: tuple[str, ...],
    source_options: dict[str, Any],
    lineage: str | None,
    max_slowdown: float,
    measurements: Path | None,
    time_limit: float | None,
    report: Path | None,
    security_floor: int,
    threads: int,
    providers: tuple[str, ...],
    budget_ram: float | None,
    budget_size: float | None,
    budget_latency_ms: float | None,
    run_log: Path,
    as_json: bool,
) -> None:
    """Turn a model into a signed bundle of its best variants.

    Several forms of the model are made (16-bit and 8-bit storage, 8-bit arithmetic). Each is compared with
    the original on your data, and measured. For every profile the best one that loses less than --max-drop
    and fits the device goes into the bundle, with the original behind it where that fits too.

    The same inputs give the same bundle, byte for byte, unless a measurement decides: the objectives
    latency and ram, and --max-slowdown for a profile of this machine's own architecture. A model that fits
    nowhere is refused, with the numbers. One MB is 1,048,576 bytes.

    \b
    Example:
      skerry pack digits.onnx --name digits --version 1.0.0 --key engineer.key \\
        --calibration train.npz --evaluation test.npz --profile raspberry-pi-4
      skerry pack digits.onnx --name digits --version 1.1.0 --key engineer.key --evaluation test.npz \\
        --profile raspberry-pi-4 --profile x86-gateway --objective latency --max-drop 0.5pt --lineage run.toml
    """
    password = key_password(key, password_env)
    request = PackRequest(
        model=model,
        name=name,
        version=version,
        release=release,
        key=key,
        password=password,
        evaluation=evaluation,
        calibration=calibration,
        profiles=profiles,
        objective=Objective(objective),
        max_drop=max_drop,
        out=out,
        labels=tuple(label.strip() for label in labels.split(",")) if labels else (),
        task=task,
        monitor=monitor,
        metric=metric,
        states=states,
        source_options=source_options,
        lineage=lineage,
        max_slowdown=max_slowdown,
        measurements=measurements,
        time_limit=time_limit,
        report=report,
        command=_command_line(),
        security_floor=security_floor,
        threads=threads,
        providers=providers,
        budgets=OwnBudgets(
            ram_bytes=megabytes(budget_ram or 0),
            size_bytes=megabytes(budget_size or 0),
            latency_p95_us=round((budget_latency_ms or 0) * 1000),
        ),
        run_log=run_log,
    )
    with console.progress(quiet=as_json) as step:
        packed = pack_model(
            request, lambda what, done, total: step(_STEPS.get(what, f"trying {what}"), done, total)
        )
    for warning in packed.warnings:
        console.warn(warning)
    if as_json:
        console.print_json(_as_json(packed, request))
    else:
        _show(packed, request.run_log, report)


def _command_line() -> tuple[str, ...]:
    """What was typed. No option holds a password."""
    return ("skerry", *sys.argv[1:]) if Path(sys.argv[0]).name == "skerry" else ()


def _rows(packed: Packed) -> list[dict[str, Any]]:
    return [variant_row(packed.result, variant) for variant in packed.result.variants]


def _as_json(packed: Packed, request: PackRequest) -> dict[str, Any]:
    result = packed.result
    return {
        "bundle": str(packed.path),
        "digest": packed.digest,
        "size": packed.size,
        "release": packed.release,
        "key_id": packed.key_id,
        "task": result.task,
        "metric": result.metric,
        "judged_by": _judged_by(packed),
        "objective": str(result.objective),
        "max_drop": result.max_drop,
        "chosen": result.chosen,
        "choices": [
            {
                "profile": choice.target,
                "variants": choice.variants,
                "lost": dict(choice.lost),
                "pareto": choice.pareto,
            }
            for choice in result.choices
        ],
        "variants": _rows(packed),
        "notes": result.notes,
        "lineage_gaps": packed.gaps,
        "run": packed.run,
        "run_log": str(request.run_log),
        "report": None if request.report is None else str(request.report),
    }


def _judged_by(packed: Packed) -> dict[str, Any] | None:
    """What had the last word, and how good fp32 and the best variant are by it."""
    best = packed.result.variant(packed.result.chosen[0])
    judged = best.held_out
    if judged is None:
        return None
    return {
        "metric": judged.metric,
        "labels": packed.result.labelled,
        "split": judged.split,
        "rows": judged.samples,
        "fp32": judged.reference,
        "variant": best.name,
        "value": judged.candidate,
    }


_MEASURES: Final = {
    "accuracy": ("accuracy", "{:.1%}"),
    "f1": ("F1", "{:.3f}"),
    "auc": ("area under the ROC curve", "{:.3f}"),
    "mae": ("mean absolute error", "{:.4g}"),
    "top1-agreement": ("agreement with fp32", "{:.1%}"),
    "cosine": ("cosine similarity with fp32", "{:.4f}"),
    "sqnr": ("noise against fp32 (relative power)", "{:.2g}"),
}
"""Metric -> what it is called, and how its figure is written."""


def _verdict_line(packed: Packed) -> str:
    judged = _judged_by(packed)
    if judged is None:
        return ""
    what, form = _MEASURES.get(judged["metric"], (judged["metric"], "{:.4g}"))
    figures = [f"{judged['variant']} {form.format(judged['value'])}"]
    if judged["labels"]:
        figures = list(dict.fromkeys([f"fp32 {form.format(judged['fp32'])}", *figures]))
    rows = f"{judged['rows']} {judged['split']} rows"
    if judged["labels"]:
        return f"judged by {what} on {rows} (labels found): {', '.join(figures)}"
    return f"no labels: judged by {what} on {rows}: {', '.join(figures)}"


def _show(packed: Packed, run_log: Path, report: Path | None) -> None:
    result = packed.result
    show_variants(_rows(packed))
    show_drawings(packed.document)
    console.say(_verdict_line(packed))
    for note in result.notes:
        console.say(f"note: {note}", style="dim")
    for choice in result.choices:
        console.say(f"{choice.target}: {', then '.join(choice.variants)}", style="bold")
    if packed.gaps:
        console.say(f"not known: {', '.join(packed.gaps)} (--lineage tells)", style="dim")
    if packed.run:
        console.say(
            f"logged as run {packed.run}: skerry runs show {packed.run} --run-log {run_log}", style="dim"
        )
    if report is not None:
        console.say(f"report: {report}")
    console.facts(
        [
            ("bundle", f"{packed.path}  ({console.size(packed.size)})"),
            ("digest", packed.digest),
            ("signed by", packed.key_id),
        ]
    )
