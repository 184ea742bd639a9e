"""Every limit of the contract as a named number with its unit."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader accepts at most; a device may be stricter than a server."""

    manifest_bytes: int = 1 * MIB
    signature_bytes: int = 256 * KIB
    blob_bytes: int = 2 * GIB
    bundle_bytes: int = 4 * GIB
    blobs: int = 256
    variants: int = 64
    tensors: int = 256
    json_depth: int = 32
    message_bytes: int = 128 * KIB
    """The largest MQTT payload (AWS IoT Core's limit)."""
    summary_bytes: int = 64 * KIB
    features: int = 1024
    bins: int = 256
    classes: int = 4096


DEFAULT_LIMITS = Limits()
