"""Everything that ``skerry pack`` does: from a model file to a signed bundle and an entry in the log.

What can be found wrong cheaply (options, key, folders, files) is found before the work. A run that fails
leaves no bundle, but its reason in the log.
"""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skerry_contract.bundle import SUFFIX
from skerry_contract.digests import Digest
from skerry_contract.errors import InputError, SkerryError, StorageError
from skerry_contract.limits import MIB
from skerry_contract.manifest import TASKS, Budgets, TensorSpec
from skerry_contract.monitoring import parse_spec

from .build import Identity, assemble, budgets_for, check_writable, sign_and_write
from .keys import read_signer
from .lineage import collect_lineage, lineage_gaps, packing_environment, read_lineage_file
from .profiles import DeviceProfile, load_profile
from .results import Objective, PackResult, Progress, Target, no_progress
from .runlog import DEFAULT_PATH, Run, RunLog

if TYPE_CHECKING:
    from skerry_contract.signing import EcdsaSigner

MONITORS: Final = ("auto", "image", "column", "tensor", "none")
"""What devices watch of the inputs: everything that was found, or only features of one kind, or nothing."""

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
    lineage: Path | None = None
    budgets: OwnBudgets = field(default_factory=OwnBudgets)
    security_floor: int = 0
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
        lineage=plan.told,
        environment=packing_environment(),
    )
    try:
        packed = _pack(plan, progress)
    except SkerryError as error:
        with suppress(StorageError):
            # The error at hand is what the engineer must hear of.
            log.record(replace(run, seconds=time.monotonic() - clock, error=error))
        raise
    else:
        return _logged(log, run, packed, time.monotonic() - clock)
    finally:
        log.close()


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
    if not 0 <= request.security_floor <= release or release < 1:
        raise InputError(
            f"release {release} with security floor {request.security_floor}",
            hint="A release is at least 1, and its floor is not above it.",
        )
    if request.monitor not in MONITORS or (request.task is not None and request.task not in TASKS):
        raise InputError("unknown task or monitor", hint=f"Known: {', '.join((*TASKS, *MONITORS))}.")
    profiles = tuple(load_profile(name) for name in dict.fromkeys(request.profiles))
    path = request.out or Path(f"{request.name}-{request.version}{SUFFIX}")
    check_writable(path)
    return _Plan(
        request=request,
        release=release,
        path=path,
        profiles=profiles,
        signer=read_signer(request.key, request.password),
        told={} if request.lineage is None else read_lineage_file(request.lineage),
    )


def _pack(plan: _Plan, progress: Progress) -> Packed:
    # Imported here: it brings onnx, onnxruntime and numpy.
    from .pipeline import pack_variants

    request = plan.request
    result = pack_variants(
        request.model,
        evaluation=request.evaluation,
        calibration=request.calibration,
        targets=[_target(profile, request.budgets) for profile in plan.profiles],
        objective=request.objective,
        max_drop=request.max_drop,
        task=request.task,
        progress=progress,
    )
    _check_labels(request.labels, result.outputs)
    result = replace(result, monitoring=_monitoring(result.monitoring, request.monitor))
    lineage = collect_lineage(request.model, plan.told, result)
    identity = Identity(
        name=request.name,
        version=request.version,
        release=plan.release,
        labels=request.labels,
        security_floor=request.security_floor,
        budgets=_budgets(plan.profiles, request.budgets),
    )
    assembled = assemble(identity, result, lineage)
    size = sign_and_write(assembled, plan.signer, plan.path)
    # What is true of this machine alone is said, and kept in the log, but never signed.
    notes = (*result.notes, *_latency_notes(plan.profiles, request.objective, platform.machine()))
    return Packed(
        result=replace(result, notes=notes),
        path=plan.path,
        digest=assembled.digest,
        size=size,
        release=plan.release,
        key_id=plan.signer.key_id,
        run=0,
        gaps=lineage_gaps(lineage),
        warnings=(),
    )


def _logged(log: RunLog, run: Run, packed: Packed, seconds: float) -> Packed:
    """The bundle is there: a log that fails now is a warning, not a failure."""
    done = replace(
        run,
        seconds=seconds,
        result=packed.result,
        bundle=str(packed.path),
        bundle_digest=packed.digest,
        bundle_bytes=packed.size,
    )
    try:
        return replace(packed, run=log.record(done))
    except StorageError as error:
        return replace(packed, warnings=(*packed.warnings, f"not in the log: {error.message}"))


def _target(profile: DeviceProfile, own: OwnBudgets) -> Target:
    """A profile's limits. What this host measures is a prediction for a device, hence the safety factor."""
    engine = profile.engine("onnxruntime")
    return Target(
        name=profile.name,
        size_bytes=own.size_bytes or profile.size_bytes,
        ram_bytes=own.ram_bytes or profile.predicted_ram_bytes,
        latency_p95_us=own.latency_p95_us or profile.latency_p95_us,
        max_ir=int(engine.max_ir.value) if engine.max_ir else 0,
        max_opset=int(engine.max_opset.value) if engine.max_opset else 0,
    )


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
    chose = " and chose the variants" if objective is Objective.LATENCY else ""
    return [
        f"latency was measured on this machine ({here}){chose}, not on {' or '.join(others)}: "
        "not verified there; the device's self-test judges it"
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
