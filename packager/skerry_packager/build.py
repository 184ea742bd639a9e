"""From what packing found to one signed file: manifest, blobs, signature, bundle.

Only facts that are the same on every run go in (see `skerry_packager.results`), so the same inputs give the
same bytes. The file appears whole, flushed and verified by the device's own reader, or not at all.
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry_contract.bundle import write_bundle
from skerry_contract.digests import Digest, digest_of
from skerry_contract.errors import InputError, StorageError
from skerry_contract.manifest import (
    BlobRef,
    Budgets,
    Execution,
    Lineage,
    Manifest,
    Requirements,
    Variant,
    bundle_digest,
    parse_manifest,
)

from .bundles import verify
from .card import render_card

if TYPE_CHECKING:
    from skerry_contract.signing import EcdsaSigner

    from .results import Fidelity, PackResult, VariantResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What the engineer says that the bundle is."""

    name: str
    version: str
    release: int
    labels: tuple[str, ...] = ()
    security_floor: int = 0
    execution: Execution = field(default_factory=Execution)
    """How every variant should run where a device can."""
    budgets: Budgets = field(default_factory=Budgets)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """A bundle that is not signed yet."""

    manifest: Manifest
    manifest_bytes: bytes
    blobs: Mapping[Digest, bytes]

    @property
    def digest(self) -> Digest:
        return bundle_digest(self.manifest_bytes)


def assemble(identity: Identity, result: PackResult, lineage: Lineage) -> Assembled:
    """Manifest and blobs of what was chosen, with the model card made from them.

    Raises:
        ManifestError: the name, the version or a label cannot be in a manifest.
    """
    from .requirements import min_engine  # brings onnx

    blobs: dict[Digest, bytes] = {}

    def store(data: bytes) -> BlobRef:
        digest = digest_of(data)
        blobs[digest] = data
        return BlobRef(digest=digest, size=len(data))

    manifest = Manifest(
        name=identity.name,
        version=identity.version,
        release=identity.release,
        security_floor=identity.security_floor,
        task=result.task,
        inputs=result.inputs,
        outputs=result.outputs,
        labels=identity.labels,
        variants=tuple(
            Variant(
                id=chosen.name,
                engine=result.inspection.format,
                model=store(chosen.model),
                golden_outputs=store(result.golden.outputs[chosen.name]),
                tolerances=result.golden.tolerances[chosen.name],
                requires=Requirements(
                    min_engine=min_engine(chosen.model),
                    ir=chosen.ir,
                    opset=chosen.opset,
                    ram_bytes=chosen.ram_predicted_bytes,
                ),
                execution=identity.execution,
                recipe=chosen.recipe,
                evaluation=_evaluation(chosen),
                profiles=tuple(choice.target for choice in result.choices if chosen.name in choice.variants),
            )
            for chosen in map(result.variant, result.chosen)
        ),
        golden_inputs=store(result.golden.inputs),
        monitoring=store(result.monitoring),
        budgets=identity.budgets,
        preprocessing=result.preprocessing,
        lineage=lineage,
        evaluation=_evidence(result),
    )
    manifest = replace(manifest, model_card=store(render_card(manifest)))
    manifest_bytes = manifest.to_bytes()
    # Read back as a device will: what it would refuse must fail here.
    return Assembled(manifest=parse_manifest(manifest_bytes), manifest_bytes=manifest_bytes, blobs=blobs)


def sign_and_write(assembled: Assembled, signer: EcdsaSigner, path: Path) -> int:
    """Write the signed bundle to `path`, replacing what was there; its size in bytes.

    Raises:
        StorageError: the folder cannot be written to, or is full; then `path` is as it was.
    """
    from skerry_contract.signing import sign_bundle

    signature = sign_bundle(assembled.manifest, assembled.manifest_bytes, signer)
    pieces = write_bundle(
        assembled.manifest, assembled.manifest_bytes, signature, assembled.blobs.__getitem__
    )
    draft = path.with_name(f".{path.name}-{secrets.token_hex(6)}.part")
    try:
        with draft.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        verify(draft, [signer.verifier])
        os.replace(draft, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="Choose another --out, or make room there.",
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return size


def check_writable(path: Path) -> None:
    """Find out before the work that a file could not be written after it.

    Raises:
        InputError: the folder is missing or cannot be written to, or `path` is a folder.
    """
    folder = path.parent
    if path.is_dir():
        raise InputError(f"{path} is a folder", hint="Give the path of a file by --out.")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {folder}", hint="Make it, or choose another --out.")


def _evaluation(variant: VariantResult) -> dict[str, Any]:
    judged = {"search": variant.fidelity, "held_out": variant.held_out}
    found: dict[str, Any] = {
        name: _fidelity(fidelity) for name, fidelity in judged.items() if fidelity is not None
    }
    return found | ({"note": variant.note} if variant.note else {})


def _evidence(result: PackResult) -> dict[str, Any]:
    """What the choice was made by; measurements of this host stay out."""
    return {
        "metric": result.metric,
        "objective": str(result.objective),
        "max_drop": result.max_drop,
        "choices": [
            {"profile": choice.target, "variants": list(choice.variants)} for choice in result.choices
        ],
        "tried": [_tried(variant) for variant in result.variants],
        "golden_rows": list(result.golden.samples),
        **({"states": dict(result.states)} if result.states else {}),
        "notes": list(result.notes),
    }


def _tried(variant: VariantResult) -> dict[str, Any]:
    found: dict[str, Any] = {"name": variant.name, "verdict": str(variant.verdict)}
    if variant.size_bytes:
        found["size_bytes"] = variant.size_bytes
    if variant.fidelity is not None:
        found |= {"drop": _finite(variant.fidelity.drop), "drop_bound": _finite(variant.fidelity.drop_bound)}
        if variant.fidelity.exact_bound is not None:
            found["exact_bound"] = variant.fidelity.exact_bound
    return found


def _fidelity(fidelity: Fidelity) -> dict[str, Any]:
    return {key: _finite(value) for key, value in asdict(fidelity).items()}


def _finite(value: Any) -> Any:
    """JSON has no infinity: such a figure is left out as null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def budgets_for(sizes: Sequence[Budgets]) -> Budgets:
    """The widest of several budgets: the bundle must be allowed on each class of devices that it is for. A
    device's own limits still hold there."""

    def widest(values: Sequence[int]) -> int:
        return 0 if not values or 0 in values else max(values)

    return Budgets(
        ram_bytes=widest([item.ram_bytes for item in sizes]),
        latency_p95_us=widest([item.latency_p95_us for item in sizes]),
        load_ms=widest([item.load_ms for item in sizes]),
        size_bytes=widest([item.size_bytes for item in sizes]),
    )
