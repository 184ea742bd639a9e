"""Puts what the matrix showed into a bundle, as evidence of each variant, under a new signature.

Only what is the same on every run goes in: outcomes and errors, no times, nothing of what was unavailable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from skerry_contract.digests import digest_of, hex_of
from skerry_contract.manifest import BlobRef, Manifest, bundle_digest, parse_manifest

from ..build import Assembled, sign_and_write
from ..card import render_card
from . import Cell, Outcome

if TYPE_CHECKING:
    from skerry_contract.digests import Digest
    from skerry_contract.signing import EcdsaSigner

KEY: Final = "conformance"
"""Of a variant's ``evaluation`` in the manifest."""


def add_evidence(
    manifest: Manifest, blobs: Path, cells: Sequence[Cell], signer: EcdsaSigner, out: Path
) -> Digest:
    """Write the bundle again with the matrix in it; its new digest.

    Args:
        blobs: folder with the bundle's verified blobs, each named by the hexadecimal digits of its digest.

    Raises:
        StorageError: `out` cannot be written.
    """
    variants = tuple(
        replace(variant, evaluation={**variant.evaluation, KEY: _evidence(variant.id, cells)})
        for variant in manifest.variants
    )
    kept = {
        ref.digest: (blobs / hex_of(ref.digest)).read_bytes()
        for ref in manifest.blobs()
        if manifest.model_card is None or ref.digest != manifest.model_card.digest
    }
    told = replace(manifest, variants=variants, model_card=None)
    card = render_card(told)
    kept[digest_of(card)] = card
    told = replace(told, model_card=BlobRef(digest=digest_of(card), size=len(card)))
    manifest_bytes = told.to_bytes()
    assembled = Assembled(manifest=parse_manifest(manifest_bytes), manifest_bytes=manifest_bytes, blobs=kept)
    sign_and_write(assembled, signer, out)
    return bundle_digest(manifest_bytes)


def _evidence(variant: str, cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [
        {
            "engine": cell.environment.library,
            "version": cell.environment.version,
            **({"emulated_cpu": cell.environment.cpu} if cell.environment.cpu else {}),
            "outcome": str(cell.outcome),
            **({"detail": cell.detail} if cell.detail else {}),
            **({} if cell.max_abs_error is None else {"max_abs_error": cell.max_abs_error}),
        }
        for cell in cells
        if cell.variant == variant and cell.outcome is not Outcome.UNAVAILABLE
    ]
