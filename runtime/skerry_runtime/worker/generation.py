"""A generation folder: one bundle's chosen variant as the agent laid it out, hashed again while it is read.

The bytes that are hashed are the bytes that are used: nothing is opened twice, no link is followed.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from skerry_contract.digests import Digest, digest_of, hex_of, parse_digest
from skerry_contract.errors import InputError, ManifestError, SlotError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.manifest import BlobRef, Budgets, Manifest, Variant, parse_manifest
from skerry_contract.monitoring import MonitoringSpec, Source, parse_spec, spec_hash
from skerry_contract.strict_json import Reader, loads

from .engines.model_file import ModelFile
from .golden import Golden, read_golden

MANIFEST: Final = "manifest.json"
DESCRIPTION: Final = "generation.json"
_DESCRIPTION_BYTES: Final = 64 * 1024
_PIECE: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Everything that a worker needs except the model itself, which `open_model` hashes when it is wanted."""

    folder: Path
    manifest: Manifest
    variant: Variant
    bundle: Digest
    budgets: Budgets
    """What counts here: the bundle's and the device's, merged by the agent."""
    monitoring: MonitoringSpec
    spec_hash: bytes
    golden: Golden

    def open_model(self) -> ModelFile:
        """The model, hashed through the descriptor that the engine will read.

        Raises:
            SlotError: the store is damaged.
        """
        ref = self.variant.model
        path = self.folder / hex_of(ref.digest)
        model = ModelFile(_open(path, ref.size))
        hasher, size = hashlib.sha256(), 0
        try:
            while piece := os.pread(model.descriptor, _PIECE, size):
                hasher.update(piece)
                size += len(piece)
        except OSError as error:
            raise _damaged(path, f"it cannot be read: {error.strerror}") from error
        if size != ref.size or hasher.hexdigest() != hex_of(ref.digest):
            raise _damaged(path, "its bytes are not those that were verified")
        return model


def load_generation(folder: Path) -> Generation:
    """Read and check a generation.

    Raises:
        SlotError: a file is missing, no plain file, or not what its digest says.
        ManifestError: the contents break the contract.
    """
    manifest_bytes = _read(folder / MANIFEST, DEFAULT_LIMITS.manifest_bytes)
    bundle, variant_id, budgets = _description(_read(folder / DESCRIPTION, _DESCRIPTION_BYTES))
    if digest_of(manifest_bytes) != bundle:
        raise _damaged(folder / MANIFEST, "it is not the manifest that was verified")
    manifest = parse_manifest(manifest_bytes)
    try:
        variant = manifest.variant(variant_id)
    except InputError as error:
        raise SlotError(str(error), hint=error.hint) from error
    monitoring_bytes = _blob(folder, manifest.monitoring)
    monitoring = parse_spec(monitoring_bytes)
    _check_sources(manifest, monitoring)
    return Generation(
        folder=folder,
        manifest=manifest,
        variant=variant,
        bundle=bundle,
        budgets=budgets,
        monitoring=monitoring,
        spec_hash=spec_hash(monitoring_bytes),
        golden=read_golden(
            manifest, variant, _blob(folder, manifest.golden_inputs), _blob(folder, variant.golden_outputs)
        ),
    )


def _description(data: bytes) -> tuple[Digest, str, Budgets]:
    try:
        r = Reader(loads(data, max_bytes=_DESCRIPTION_BYTES, max_depth=4, what=DESCRIPTION), DESCRIPTION)
        bundle = parse_digest(r.take("bundle", str))
        variant = r.take("variant", str)
        b = Reader(r.take("budgets", dict, {}), f"{DESCRIPTION}.budgets")
        budgets = Budgets(
            ram_bytes=b.take("ram_bytes", int, 0),
            latency_p95_us=b.take("latency_p95_us", int, 0),
            load_ms=b.take("load_ms", int, 0),
        )
    except (ManifestError, InputError) as error:
        raise SlotError(f"{DESCRIPTION} is damaged: {error}", hint="Install the bundle again.") from error
    return bundle, variant, budgets


def _check_sources(manifest: Manifest, spec: MonitoringSpec) -> None:
    """Every tensor that monitoring wants must exist, with numbers in it."""
    inputs = {tensor.name: tensor for tensor in manifest.inputs}
    outputs = {tensor.name: tensor for tensor in manifest.outputs}
    sources: list[Source] = [feature.source for feature in spec.features]
    if spec.embedding is not None:
        sources.append(spec.embedding.source)
    wanted = [(outputs if source.kind == "output" else inputs, source.tensor) for source in sources]
    if spec.prediction is not None:
        wanted.append((outputs, spec.prediction.output))
    for tensors, name in wanted:
        if name not in tensors or tensors[name].datatype == "BYTES":
            raise ManifestError(f"monitoring wants {name[:80]!r}, which is no tensor of numbers here")


def _blob(folder: Path, ref: BlobRef) -> bytes:
    path = folder / hex_of(ref.digest)
    data = _read(path, ref.size)
    if digest_of(data) != ref.digest:
        raise _damaged(path, "its bytes are not those that were verified")
    return data


def _read(path: Path, most: int) -> bytes:
    """The whole of a plain file of at most ``most`` bytes."""
    try:
        with open(_open(path, most), "rb", buffering=0) as file:
            return file.read(most)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error


def _open(path: Path, most: int) -> int:
    """A descriptor of a plain file of at most ``most`` bytes that only its owner and group may change."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        os.close(descriptor)
        raise _damaged(path, "it is no plain file of its size")
    if status.st_mode & stat.S_IWOTH:
        os.close(descriptor)
        raise _damaged(path, "everybody may write to it")
    return descriptor


def _damaged(path: Path, why: str) -> SlotError:
    return SlotError(f"{path.parent.name}/{path.name} is damaged: {why}", hint="Install the bundle again.")
