"""What the registry knows, as it leaves the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from skerry_contract.digests import Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One published bundle."""

    digest: Digest
    name: str
    version: str
    release: int
    size: int
    """Bytes of all blobs."""
    variants: list[Mapping[str, Any]]
    signer: str
    published_ms: int
    quarantined_ms: int | None
    quarantine_reason: str
    manifest_size: int
    signature_digest: Digest
    signature_size: int
    monitoring_digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """One model, with its newest release."""

    name: str
    task: str
    versions: int
    latest_version: str
    latest_release: int
    latest_digest: Digest
