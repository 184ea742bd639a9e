"""The signed description of a bundle: which model, in which variants, for which devices, with what evidence.

Bytes in, verified object out: `parse_manifest` raises on anything outside ``docs/spec/bundle-v1.md`` and
keeps fields it does not know, so that reading and writing never changes a meaning. The identity of a
bundle is the digest of its manifest's exact bytes, because the manifest lists every other digest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from .digests import Digest, digest_of, parse_digest
from .errors import InputError, ManifestError
from .limits import DEFAULT_LIMITS, Limits
from .strict_json import Reader, canonical, loads

SCHEMA: Final = 1
ENGINES: Final = ("onnx", "tflite")
DATATYPES: Final = (
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BYTES",
)  # fmt: skip
"""Datatypes of the Open Inference Protocol v2."""
TASKS: Final = ("classification", "regression", "embedding", "detection", "sequence", "other")

NAME: Final = "[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?"
"""Pattern of the name of a model and of a variant."""
_NAME = re.compile(NAME)
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(?:-[0-9A-Za-z.-]{1,32})?")
_NOTHING: Mapping[str, Any] = {}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A blob of the bundle, by content."""

    digest: Digest
    size: int
    """Bytes."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of the model."""

    name: str
    datatype: str
    """One of `DATATYPES`."""
    shape: tuple[int, ...]
    """-1 where the dimension is free."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far a golden output may lie from the recorded one: ``|a - b| <= atol + rtol * |b|``."""

    atol: float
    rtol: float
    top1: bool = False
    """Also require the same arg-max along the last axis."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What a device must have to run a variant; an empty tuple or 0 asks for nothing."""

    architectures: tuple[str, ...] = ()
    isa: tuple[str, ...] = ()
    min_engine: str = ""
    """Lowest version of the engine, dotted."""
    ir: int = 0
    opset: int = 0
    ram_bytes: int = 0
    """Peak resident memory of a process that runs the variant, with its engine."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What the model may cost on a device; 0 sets no limit. A device's own budgets may be stricter."""

    ram_bytes: int = 0
    latency_p95_us: int = 0
    load_ms: int = 0
    size_bytes: int = 0
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How a variant should run where the device can; what it lacks costs speed, never the answer."""

    providers: tuple[str, ...] = ()
    """Accelerators by name, such as ``cuda``, best first; the processor itself follows all of them."""
    threads: int = 0
    """At once in one inference; 0 is one, and more than the device has cores is as many as it has."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One form of the model: what a device downloads and runs."""

    id: str
    engine: str
    """One of `ENGINES`."""
    model: BlobRef
    golden_outputs: BlobRef
    """Tensor file (see `skerry_contract.tensors`) with ``outputs/NAME`` of shape ``[K, *output shape]``."""
    tolerances: Mapping[str, Tolerance]
    """By output name; every output has one."""
    requires: Requirements = field(default_factory=Requirements)
    execution: Execution = field(default_factory=Execution)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """How the variant was made: enough to make it again."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What it was measured to lose or keep against the original."""
    profiles: tuple[str, ...] = ()
    """Device profiles that it was selected for, best first choice of this bundle there."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where the model comes from; empty fields are gaps, which ``pack --strict`` refuses."""

    data_hash: str = ""
    data_splits: Mapping[str, Any] = field(default_factory=dict)
    code_commit: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    tracking_uri: str = ""
    source_model: str = ""
    """Digest of the file that the engineer gave to ``pack``."""
    unknown: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that a device or a fleet decides by. See ``docs/spec/bundle-v1.md``."""

    name: str
    version: str
    """Semantic version, for people."""
    release: int
    """Counter, for machines: a device refuses one below its floor."""
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: tuple[Variant, ...]
    golden_inputs: BlobRef
    """Tensor file with ``inputs/NAME`` of shape ``[K, *input shape]``."""
    monitoring: BlobRef
    """Monitoring spec: the reference that the device's sketches are binned against."""
    security_floor: int = 0
    """Once confirmed, releases below this are refused."""
    task: str = "other"
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the output's last axis."""
    budgets: Budgets = field(default_factory=Budgets)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    postprocessing: Mapping[str, Any] = field(default_factory=dict)
    lineage: Lineage = field(default_factory=Lineage)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    model_card: BlobRef | None = None
    parents: tuple[Digest, ...] = ()
    """Bundles that this one was derived from."""
    device_classes: tuple[str, ...] = ()
    """If not empty, only devices of these classes may install it."""
    unknown: Mapping[str, Any] = field(default_factory=dict)

    def blobs(self) -> tuple[BlobRef, ...]:
        """Every distinct blob, ordered by digest: the members of the bundle after the signature."""
        return tuple(sorted({ref.digest: ref for ref in self._refs()}.values(), key=lambda ref: ref.digest))

    def blobs_for(self, variant: Variant) -> tuple[BlobRef, ...]:
        """What a device needs to run one variant: it downloads nothing else."""
        refs = (variant.model, variant.golden_outputs, self.golden_inputs, self.monitoring)
        return tuple({ref.digest: ref for ref in refs}.values())

    def variant(self, variant_id: str) -> Variant:
        """Raises `InputError` if there is no such variant."""
        for variant in self.variants:
            if variant.id == variant_id:
                return variant
        known = ", ".join(variant.id for variant in self.variants)
        raise InputError(
            f"{self.name} {self.version} has no variant {variant_id!r}", hint=f"It has: {known}."
        )

    def to_bytes(self) -> bytes:
        """The exact bytes that are signed."""
        return canonical(_dump_manifest(self))

    def _refs(self) -> Iterator[BlobRef]:
        yield self.golden_inputs
        yield self.monitoring
        if self.model_card is not None:
            yield self.model_card
        for variant in self.variants:
            yield variant.model
            yield variant.golden_outputs


def bundle_digest(manifest_bytes: bytes) -> Digest:
    """The identity of a bundle."""
    return digest_of(manifest_bytes)


def parse_manifest(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Read a manifest strictly. Verify its signature first: `skerry_contract.signing`.

    Raises:
        ManifestError: anything outside the schema, with the place.
    """
    raw = loads(data, max_bytes=limits.manifest_bytes, max_depth=limits.json_depth, what="manifest")
    reader = Reader(raw, "manifest")
    schema = reader.take("skerry_manifest", int)
    if schema != SCHEMA:
        raise ManifestError(
            f"manifest schema {schema} is not known",
            hint=f"This version reads schema {SCHEMA}: update Skerry.",
        )
    return _manifest(reader, limits)


def _manifest(r: Reader, limits: Limits) -> Manifest:
    name = _match(_NAME, r.take("name", str), "manifest.name", "lower-case letters, digits, '.', '_' or '-'")
    version = _match(_VERSION, r.take("version", str), "manifest.version", "a semantic version such as 1.4.0")
    task = _one_of(TASKS, r.take("task", str, "other"), "manifest.task")
    inputs = _list(r, "inputs", _tensor, limits.tensors)
    outputs = _list(r, "outputs", _tensor, limits.tensors)
    variants = _list(r, "variants", partial(_variant, limits=limits), limits.variants)
    if not inputs or not outputs or not variants:
        raise ManifestError("a manifest needs at least one input, one output and one variant")
    _distinct([spec.name for spec in inputs], "manifest.inputs")
    _distinct([spec.name for spec in outputs], "manifest.outputs")
    _distinct([variant.id for variant in variants], "manifest.variants")
    for variant in variants:
        missing = {spec.name for spec in outputs} - set(variant.tolerances)
        if missing:
            raise ManifestError(f"variant {variant.id} has no tolerance for output {sorted(missing)[0]!r}")
    card = r.take("model_card", dict, None)
    manifest = Manifest(
        name=name,
        version=version,
        release=_at_least(1, r.take("release", int), "manifest.release"),
        security_floor=_at_least(0, r.take("security_floor", int, 0), "manifest.security_floor"),
        task=task,
        inputs=inputs,
        outputs=outputs,
        labels=_strings(r, "labels", limits.classes),
        variants=variants,
        golden_inputs=_blob(r.take("golden_inputs", dict), "manifest.golden_inputs", limits),
        monitoring=_blob(r.take("monitoring", dict), "manifest.monitoring", limits),
        budgets=_budgets(Reader(r.take("budgets", dict, {}), "manifest.budgets")),
        preprocessing=r.take("preprocessing", dict, _NOTHING),
        postprocessing=r.take("postprocessing", dict, _NOTHING),
        lineage=_lineage(Reader(r.take("lineage", dict, {}), "manifest.lineage")),
        evaluation=r.take("evaluation", dict, _NOTHING),
        model_card=None if card is None else _blob(card, "manifest.model_card", limits),
        parents=tuple(_digest(text, "manifest.parents") for text in _strings(r, "parents", 64)),
        device_classes=_strings(r, "device_classes", 64),
        unknown=r.rest(),
    )
    if manifest.security_floor > manifest.release:
        raise ManifestError(
            f"manifest.security_floor {manifest.security_floor} is above the release {manifest.release}"
        )
    sizes: dict[Digest, int] = {}
    for ref in manifest._refs():
        if sizes.setdefault(ref.digest, ref.size) != ref.size:
            raise ManifestError(f"blob {ref.digest} is listed with two sizes")
    if len(sizes) > limits.blobs:
        raise ManifestError(f"{len(sizes)} blobs are listed; at most {limits.blobs} are accepted")
    return manifest


def _tensor(r: Reader) -> TensorSpec:
    shape = r.take("shape", list)
    if len(shape) > 16 or not all(type(size) is int and -1 <= size < 2**31 for size in shape):
        raise ManifestError(f"{r.where}.shape must list at most 16 sizes, -1 where free")
    name = r.take("name", str)
    if not 1 <= len(name) <= 256:
        raise ManifestError(f"{r.where}.name must have 1 to 256 characters")
    datatype = _one_of(DATATYPES, r.take("datatype", str), f"{r.where}.datatype")
    return TensorSpec(name=name, datatype=datatype, shape=tuple(shape), unknown=r.rest())


def _variant(r: Reader, limits: Limits) -> Variant:
    tolerances = r.take("tolerances", dict)
    return Variant(
        id=_match(_NAME, r.take("id", str), f"{r.where}.id", "lower-case letters, digits, '.', '_' or '-'"),
        engine=_one_of(ENGINES, r.take("engine", str), f"{r.where}.engine"),
        model=_blob(r.take("model", dict), f"{r.where}.model", limits),
        golden_outputs=_blob(r.take("golden_outputs", dict), f"{r.where}.golden_outputs", limits),
        tolerances={
            name: _tolerance(Reader(value, f"{r.where}.tolerances.{name[:40]}"))
            for name, value in tolerances.items()
        },
        requires=_requirements(Reader(r.take("requires", dict, {}), f"{r.where}.requires")),
        execution=_execution(Reader(r.take("execution", dict, {}), f"{r.where}.execution")),
        recipe=r.take("recipe", dict, _NOTHING),
        evaluation=r.take("evaluation", dict, _NOTHING),
        profiles=_strings(r, "profiles", 64),
        unknown=r.rest(),
    )


def _tolerance(r: Reader) -> Tolerance:
    return Tolerance(
        atol=_at_least(0.0, r.take("atol", float), f"{r.where}.atol"),
        rtol=_at_least(0.0, r.take("rtol", float), f"{r.where}.rtol"),
        top1=r.take("top1", bool, False),
        unknown=r.rest(),
    )


def _requirements(r: Reader) -> Requirements:
    return Requirements(
        architectures=_strings(r, "architectures", 16),
        isa=_strings(r, "isa", 64),
        min_engine=r.take("min_engine", str, ""),
        ir=_at_least(0, r.take("ir", int, 0), f"{r.where}.ir"),
        opset=_at_least(0, r.take("opset", int, 0), f"{r.where}.opset"),
        ram_bytes=_at_least(0, r.take("ram_bytes", int, 0), f"{r.where}.ram_bytes"),
        unknown=r.rest(),
    )


def _execution(r: Reader) -> Execution:
    providers = _strings(r, "providers", 16)
    for provider in providers:
        _match(_NAME, provider, f"{r.where}.providers", "lower-case letters, digits, '.', '_' or '-'")
    threads = _at_least(0, r.take("threads", int, 0), f"{r.where}.threads")
    return Execution(providers=providers, threads=threads, unknown=r.rest())


def _budgets(r: Reader) -> Budgets:
    return Budgets(
        ram_bytes=_at_least(0, r.take("ram_bytes", int, 0), f"{r.where}.ram_bytes"),
        latency_p95_us=_at_least(0, r.take("latency_p95_us", int, 0), f"{r.where}.latency_p95_us"),
        load_ms=_at_least(0, r.take("load_ms", int, 0), f"{r.where}.load_ms"),
        size_bytes=_at_least(0, r.take("size_bytes", int, 0), f"{r.where}.size_bytes"),
        unknown=r.rest(),
    )


def _lineage(r: Reader) -> Lineage:
    return Lineage(
        data_hash=r.take("data_hash", str, ""),
        data_splits=r.take("data_splits", dict, _NOTHING),
        code_commit=r.take("code_commit", str, ""),
        hyperparameters=r.take("hyperparameters", dict, _NOTHING),
        environment=r.take("environment", dict, _NOTHING),
        metrics=r.take("metrics", dict, _NOTHING),
        tracking_uri=r.take("tracking_uri", str, ""),
        source_model=r.take("source_model", str, ""),
        unknown=r.rest(),
    )


def _blob(value: Any, where: str, limits: Limits) -> BlobRef:
    r = Reader(value, where)
    size = r.take("size", int)
    if not 0 <= size <= limits.blob_bytes:
        raise ManifestError(f"{where}.size is {size}; a blob has 0 to {limits.blob_bytes} bytes")
    return BlobRef(digest=_digest(r.take("digest", str), f"{where}.digest"), size=size, unknown=r.rest())


def _digest(text: str, where: str) -> Digest:
    try:
        return parse_digest(text)
    except InputError as error:
        raise ManifestError(f"{where}: {error}", hint=error.hint) from error


def _list(r: Reader, key: str, parse: Callable[[Reader], T], most: int) -> tuple[T, ...]:
    items = r.take(key, list)
    if len(items) > most:
        raise ManifestError(f"{r.where}.{key} has {len(items)} entries; at most {most} are accepted")
    return tuple(parse(Reader(item, f"{r.where}.{key}[{index}]")) for index, item in enumerate(items))


def _strings(r: Reader, key: str, most: int) -> tuple[str, ...]:
    items = r.take(key, list, [])
    if len(items) > most or not all(isinstance(item, str) and len(item) <= 256 for item in items):
        raise ManifestError(f"{r.where}.{key} must list at most {most} strings of at most 256 characters")
    return tuple(items)


def _match(pattern: re.Pattern[str], text: str, where: str, form: str) -> str:
    if not pattern.fullmatch(text):
        raise ManifestError(f"{where} is {text[:80]!r}", hint=f"It must be {form}.")
    return text


def _one_of(known: tuple[str, ...], text: str, where: str) -> str:
    if text not in known:
        raise ManifestError(f"{where} is {text[:40]!r}", hint=f"Known: {', '.join(known)}.")
    return text


N = TypeVar("N", int, float)


def _at_least(low: N, number: N, where: str) -> N:
    if not low <= number < 2**63:
        raise ManifestError(f"{where} is {number}; it must be at least {low} and below 2^63")
    return number


def _distinct(names: list[str], where: str) -> None:
    if len(set(names)) != len(names):
        raise ManifestError(f"{where} names something twice")


def _dump_manifest(m: Manifest) -> dict[str, Any]:
    return {
        **m.unknown,
        "skerry_manifest": SCHEMA,
        "name": m.name,
        "version": m.version,
        "release": m.release,
        "security_floor": m.security_floor,
        "task": m.task,
        "inputs": [_flat(spec) for spec in m.inputs],
        "outputs": [_flat(spec) for spec in m.outputs],
        "labels": list(m.labels),
        "variants": [_dump_variant(variant) for variant in m.variants],
        "golden_inputs": _flat(m.golden_inputs),
        "monitoring": _flat(m.monitoring),
        "budgets": _flat(m.budgets),
        "preprocessing": m.preprocessing,
        "postprocessing": m.postprocessing,
        "lineage": _flat(m.lineage),
        "evaluation": m.evaluation,
        "parents": list(m.parents),
        "device_classes": list(m.device_classes),
        **({} if m.model_card is None else {"model_card": _flat(m.model_card)}),
    }


def _dump_variant(v: Variant) -> dict[str, Any]:
    return {
        **v.unknown,
        "id": v.id,
        "engine": v.engine,
        "model": _flat(v.model),
        "golden_outputs": _flat(v.golden_outputs),
        "tolerances": {name: _flat(tolerance) for name, tolerance in v.tolerances.items()},
        "requires": _flat(v.requires),
        **({} if v.execution == Execution() else {"execution": _flat(v.execution)}),
        "recipe": v.recipe,
        "evaluation": v.evaluation,
        "profiles": list(v.profiles),
    }


def _flat(
    item: BlobRef | TensorSpec | Tolerance | Requirements | Execution | Budgets | Lineage,
) -> dict[str, Any]:
    """A dataclass without nesting: its unknown fields first, so that known ones win."""
    known = {name: getattr(item, name) for name in item.__dataclass_fields__ if name != "unknown"}
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    return {**item.unknown, **listed}
