"""Everything that ``skerry pack`` does: from a model file to a signed bundle and an entry in the log.

What can be found wrong cheaply (options, key, folders, files) is found before the work. A run that fails
leaves no bundle, but its reason in the log.
"""

from __future__ import annotations

import math
import platform
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skerry_contract.bundle import SUFFIX
from skerry_contract.digests import Digest
from skerry_contract.errors import InputError, SkerryError, StorageError
from skerry_contract.limits import MIB
from skerry_contract.manifest import TASKS, Budgets, Execution, TensorSpec
from skerry_contract.monitoring import parse_spec

from .build import Identity, assemble, budgets_for, check_writable, sign_and_write
from .keys import read_signer
from .lineage import collect_lineage, lineage_document, lineage_gaps, packing_environment
from .lineage_import import read_lineage
from .profiles import DeviceProfile, load_profile
from .results import Objective, PackResult, Progress, Target, VariantResult, no_progress
from .runlog import DEFAULT_PATH, Run, RunLog, document

if TYPE_CHECKING:
    from skerry_contract.signing import EcdsaSigner

MONITORS: Final = ("auto", "image", "column", "tensor", "none")
"""What devices watch of the inputs: everything that was found, or only features of one kind, or nothing."""

DEFAULT_SLOWDOWN: Final = 1.1
"""What a variant may take as a multiple of fp32's latency, where that is known."""

MAX_RELEASE: Final = 2**53 - 1
"""The largest integer that every reader of JSON keeps exactly."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_ARCHITECTURES: Final[Mapping[str, str]] = {"arm64": "aarch64", "amd64": "x86_64"}
"""What some systems call the architectures of profiles."""
_VERSION: Final = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})(-[0-9A-Za-z.-]{1,32})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBudgets:
    """Limits that replace those of the profiles; 0 leaves them."""

    ram_bytes: int = 0
    latency_p95_us: int = 0
    size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PackRequest:
    """What the engineer asked for."""

    model: Path
    name: str
    version: str
    key: Path
    evaluation: str | Path
    """A file, or ``module:function``; see `skerry_packager.datasets`."""
    profiles: tuple[str, ...]
    """Names or paths."""
    password: bytes | None = None
    release: int | None = None
    """None derives it from the version, see `release_of`."""
    calibration: str | Path | None = None
    objective: Objective = Objective.SIZE
    max_drop: float = 0.01
    out: Path | None = None
    labels: tuple[str, ...] = ()
    task: str | None = None
    monitor: str = "auto"
    lineage: str | None = None
    """What `skerry_packager.lineage_import.read_lineage` reads."""
    metric: str | None = None
    states: tuple[str, ...] = ()
    source_options: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `skerry_packager.sources.SourceOptions`."""
    max_slowdown: float = DEFAULT_SLOWDOWN
    time_limit: float | None = None
    """Seconds for searches; None takes `skerry_packager.pipeline.DEFAULT_TIME_LIMIT`."""
    measurements: Path | None = None
    """Timings from devices, see `skerry_packager.latency.read_measurements`."""
    report: Path | None = None
    """Where to write the report as a page."""
    command: tuple[str, ...] = ()
    """The command line that packs the same again, for the log and the report."""
    budgets: OwnBudgets = field(default_factory=OwnBudgets)
    security_floor: int = 0
    threads: int = 1
    """Of an inference, on a device that has the cores."""
    providers: tuple[str, ...] = ()
    """Accelerators that a device uses where it has them, best first."""
    run_log: Path = DEFAULT_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The outcome."""

    result: PackResult
    path: Path
    digest: Digest
    size: int
    release: int
    key_id: str
    run: int
    """Number in the run log; 0 if it could not be written."""
    document: Mapping[str, Any]
    """What the log holds of the run, see `skerry_packager.runlog.document`."""
    gaps: Sequence[str]
    """Fields of the lineage that nobody filled."""
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A request whose every part was checked."""

    request: PackRequest
    release: int
    path: Path
    profiles: tuple[DeviceProfile, ...]
    signer: EcdsaSigner
    told: Mapping[str, Any]
    lineage_notes: tuple[str, ...]
    targets: tuple[Target, ...]


def pack(request: PackRequest, progress: Progress = no_progress) -> Packed:
    """Pack a model.

    Raises:
        InputError, ConfigError, AccessError, StorageError: an option, the key or a folder cannot be used.
        ModelError, DataError: the model or the data cannot be used.
        BudgetError: no variant fits a profile; nothing was written but the log.
    """
    plan = _check(request)
    log = RunLog(request.run_log)
    started, clock = datetime.now(UTC), time.monotonic()
    run = Run(
        started=started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=0.0,
        name=request.name,
        version=request.version,
        release=plan.release,
        source_file=str(request.model),
        objective=str(request.objective),
        max_drop=request.max_drop,
        profiles=tuple(profile.name for profile in plan.profiles),
        targets=plan.targets,
        options=_options(request),
        command=request.command,
        lineage=plan.told,
        environment=packing_environment(),
    )
    tried: list[VariantResult] = []
    try:
        packed, done = _pack(plan, run, progress, tried.append)
        done = replace(done, seconds=time.monotonic() - clock)
        packed = _logged(log, done, packed)
    except SkerryError as error:
        with suppress(StorageError):
            # The error at hand is what the engineer must hear of.
            failed = replace(run, seconds=time.monotonic() - clock, error=error, partial=tuple(tried))
            number = log.record(failed)
            _write_report({**document(failed), "id": number}, request.report)
        raise
    finally:
        log.close()
    return _reported(packed, request.report)


def release_of(version: str) -> int:
    """The release counter of a semantic version: 1.4.2 is 1004002, so that it rises as the version does.

    Raises:
        InputError: not a semantic version, a pre-release, or a part above 999: then it must be given.
    """
    match = _VERSION.fullmatch(version)
    if match is None:
        raise InputError(f"{version[:80]!r} is no semantic version", hint="Write it as 1.4.0.")
    major, minor, patch = (int(part) for part in match.group(1, 2, 3))
    release = (major * 1000 + minor) * 1000 + patch
    if match[4] or minor > 999 or patch > 999 or release < 1:
        raise InputError(
            f"no release counter follows from version {version}",
            hint="Give one by --release: a number above that of every version released before.",
        )
    return release


def _check(request: PackRequest) -> _Plan:
    if not _NAME.fullmatch(request.name):
        raise InputError(
            f"{request.name[:80]!r} cannot name a model",
            hint="Use lower-case letters, digits, '.', '_' or '-'.",
        )
    if not _VERSION.fullmatch(request.version):
        raise InputError(f"{request.version[:80]!r} is no semantic version", hint="Write it as 1.4.0.")
    release = release_of(request.version) if request.release is None else request.release
    if release > MAX_RELEASE:
        raise InputError(
            f"release {release} is too large a counter",
            hint=f"Give one of at most {MAX_RELEASE} by --release.",
        )
    if not 0 <= request.security_floor <= release or release < 1:
        raise InputError(
            f"release {release} with security floor {request.security_floor}",
            hint="A release is at least 1, and its floor is not above it.",
        )
    if request.monitor not in MONITORS or (request.task is not None and request.task not in TASKS):
        raise InputError("unknown task or monitor", hint=f"Known: {', '.join((*TASKS, *MONITORS))}.")
    for option, number in (("--max-slowdown", request.max_slowdown), ("--time-limit", request.time_limit)):
        if number is not None and math.isnan(number):
            raise InputError(f"{option} is no number", hint="Give a factor, or seconds; see --help.")
    profiles = tuple(load_profile(name) for name in dict.fromkeys(request.profiles))
    path = request.out or Path(f"{request.name}-{request.version}{SUFFIX}")
    check_writable(path)
    if request.report is not None:
        check_writable(request.report)
    _check_outputs(request, path)
    # Imported here: they bring numpy and the engine.
    from skerry_runtime.worker.engines.providers import PROVIDERS

    from .latency import read_measurements
    from .targets import target_of

    if unknown := [name for name in request.providers if name not in PROVIDERS]:
        raise InputError(
            f"{unknown[0][:80]!r} is no provider that devices know",
            hint=f"Known: {', '.join(sorted(PROVIDERS))}.",
        )
    told = None if request.lineage is None else read_lineage(request.lineage)
    measured = () if request.measurements is None else read_measurements(request.measurements)
    return _Plan(
        request=request,
        release=release,
        path=path,
        profiles=profiles,
        signer=read_signer(request.key, request.password),
        told={} if told is None else told.told,
        lineage_notes=() if told is None else told.notes,
        targets=tuple(
            target_of(
                profile,
                size_bytes=request.budgets.size_bytes,
                ram_bytes=request.budgets.ram_bytes,
                latency_p95_us=request.budgets.latency_p95_us,
                max_slowdown=request.max_slowdown,
                measurements=measured,
            )
            for profile in profiles
        ),
    )


def _check_outputs(request: PackRequest, path: Path) -> None:
    """What is written must replace nothing that is read, and not each other. Raises `InputError`."""
    taken = {
        Path(given).resolve(): what
        for what, given in (
            ("the model", request.model),
            ("the key", request.key),
            ("the evaluation data", request.evaluation),
            ("the calibration data", request.calibration),
            ("the measurements", request.measurements),
            ("the lineage", request.lineage),
        )
        if given is not None
    }
    for what, written in (("--out", path), ("--report", request.report), ("--run-log", request.run_log)):
        if written is None:
            continue
        if (found := taken.get(written.resolve())) is not None:
            raise InputError(
                f"{what} {written} is {found}, which it would overwrite", hint=f"Name another file by {what}."
            )
        taken[written.resolve()] = f"what {what} writes"


def _options(request: PackRequest) -> dict[str, Any]:
    """What changes the outcome and has no column of its own in the log."""
    own = request.budgets
    source = {name: list(v) if isinstance(v, tuple) else v for name, v in request.source_options.items()}
    found = {
        "task": request.task,
        "metric": request.metric,
        "states": list(request.states),
        "monitor": request.monitor,
        "labels": list(request.labels),
        "max_slowdown": request.max_slowdown,
        "time_limit": request.time_limit,
        "budget_ram_bytes": own.ram_bytes,
        "budget_size_bytes": own.size_bytes,
        "budget_latency_p95_us": own.latency_p95_us,
        "source": source,
    }
    return {name: value for name, value in found.items() if value}


def _pack(
    plan: _Plan, run: Run, progress: Progress, on_result: Callable[[VariantResult], None]
) -> tuple[Packed, Run]:
    # Imported here: it brings onnx, onnxruntime and numpy.
    from .pipeline import DEFAULT_TIME_LIMIT, pack_variants
    from .sources.options import SourceOptions
    from .targets import known_targets

    request = plan.request
    result = pack_variants(
        request.model,
        evaluation=request.evaluation,
        calibration=request.calibration,
        targets=plan.targets,
        objective=request.objective,
        max_drop=request.max_drop,
        task=request.task,
        metric=request.metric,
        states=request.states,
        source_options=SourceOptions(**{"classes": request.labels, **request.source_options}),
        alternatives=known_targets(),
        time_limit=DEFAULT_TIME_LIMIT if request.time_limit is None else request.time_limit,
        progress=progress,
        on_result=on_result,
    )
    labels = request.labels or _names_of_classes(result)
    _check_labels(labels, result.outputs)
    result = replace(result, monitoring=_monitoring(result.monitoring, request.monitor))
    lineage = collect_lineage(request.model, plan.told, result)
    identity = Identity(
        name=request.name,
        version=request.version,
        release=plan.release,
        labels=labels,
        security_floor=request.security_floor,
        execution=Execution(
            providers=request.providers, threads=request.threads if request.threads > 1 else 0
        ),
        budgets=_budgets(plan.profiles, request.budgets),
    )
    assembled = assemble(identity, result, lineage)
    size = sign_and_write(assembled, plan.signer, plan.path)
    # What is true of this machine alone is said, and kept in the log, but never signed.
    notes = (
        *result.notes,
        *plan.lineage_notes,
        *_latency_notes(plan.profiles, request.objective, platform.machine()),
        *_cautions(result, plan.targets),
    )
    result = replace(result, notes=notes)
    done = replace(
        run,
        result=result,
        lineage=lineage_document(lineage),
        bundle=str(plan.path),
        bundle_digest=assembled.digest,
        bundle_bytes=size,
    )
    packed = Packed(
        result=result,
        path=plan.path,
        digest=assembled.digest,
        size=size,
        release=plan.release,
        key_id=plan.signer.key_id,
        run=0,
        document=document(done),
        gaps=lineage_gaps(lineage),
        warnings=(),
    )
    return packed, done


def _logged(log: RunLog, run: Run, packed: Packed) -> Packed:
    """The bundle is there: a log that fails now is a warning, not a failure."""
    told = document(run)
    try:
        number = log.record(run)
    except StorageError as error:
        return replace(packed, document=told, warnings=(*packed.warnings, f"not in the log: {error.message}"))
    return replace(packed, run=number, document={**told, "id": number})


def _reported(packed: Packed, path: Path | None) -> Packed:
    """The bundle is there: a page that cannot be written is a warning."""
    try:
        _write_report(packed.document, path)
    except StorageError as error:
        return replace(packed, warnings=(*packed.warnings, error.message))
    return packed


def _write_report(told: Mapping[str, Any], path: Path | None) -> None:
    """Raises `StorageError`."""
    if path is None:
        return
    from .report import render_html

    draft = path.with_name(f".{path.name}-{secrets.token_hex(6)}.part")
    try:
        draft.write_text(render_html(told), encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise StorageError(
            f"no report was written to {path}: {error.strerror or error}",
            hint="Name another file by --report.",
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _names_of_classes(result: PackResult) -> tuple[str, ...]:
    """Names that the data gave, if they are as many as the model's classes."""
    names = result.class_names
    return names if any(len(names) == spec.shape[-1] for spec in result.outputs if spec.shape) else ()


def _cautions(result: PackResult, targets: Sequence[Target]) -> list[str]:
    """What may go wrong on a target although nothing is certain."""
    from .fit import cautions

    first = {choice.target: result.variant(choice.variants[0]) for choice in result.choices}
    return [text for target in targets for text in cautions(first[target.name], target)]


def _budgets(profiles: Sequence[DeviceProfile], own: OwnBudgets) -> Budgets:
    """What the bundle asks devices to hold it to."""
    return budgets_for(
        [
            Budgets(
                ram_bytes=own.ram_bytes or profile.ram_bytes,
                latency_p95_us=own.latency_p95_us or profile.latency_p95_us,
                load_ms=profile.load_ms,
                size_bytes=own.size_bytes or profile.size_bytes,
            )
            for profile in profiles
        ]
    )


def _latency_notes(profiles: Sequence[DeviceProfile], objective: Objective, machine: str) -> list[str]:
    """For whom the latency that was measured here means little."""
    here = _ARCHITECTURES.get(machine.lower(), machine)
    others = [profile.name for profile in profiles if profile.arch != here]
    if not others:
        return []
    chose = "; what its profile tells chose the variants" if objective is Objective.LATENCY else ""
    return [
        f"latency was measured on this machine ({here}), not on {' or '.join(others)}: "
        f"not verified there{chose}; the device's self-test judges it"
    ]


def _check_labels(labels: Sequence[str], outputs: Sequence[TensorSpec]) -> None:
    """Raises `InputError`: no output has that many classes."""
    classes = {spec.shape[-1] for spec in outputs if len(spec.shape) > 1}
    if labels and classes and -1 not in classes and len(labels) not in classes:
        found = " or ".join(map(str, sorted(classes)))
        raise InputError(
            f"{len(labels)} labels were given, but the model has {found} classes",
            hint="Give one label for each class, in the order of the output.",
        )


def _monitoring(data: bytes, monitor: str) -> bytes:
    """The monitoring spec, reduced to the kind of features that was asked for.

    Raises:
        InputError: the inputs gave no feature of that kind.
    """
    if monitor == "auto":
        return data
    spec = parse_spec(data)
    kept = tuple(feature for feature in spec.features if feature.source.kind == monitor)
    if not kept and monitor != "none":
        found = sorted({feature.source.kind for feature in spec.features}) or ["nothing"]
        raise InputError(
            f"no input can be watched as {monitor!r}: the data gave {' and '.join(found)}",
            hint="Leave --monitor out, or give images as 4-dimensional arrays (NCHW or NHWC).",
        )
    return replace(spec, features=kept).to_bytes()


def megabytes(number: float) -> int:
    """Bytes, from the megabytes (1,048,576 bytes) of options and profiles."""
    return round(number * MIB)
