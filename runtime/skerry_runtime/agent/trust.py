"""Who may order what on this device: the questions to the trust process, its answers, and the rules. Pure.

Bytes in, verified object out, or a refusal: the rules always raise, and the caller decides what is fatal. The
cryptography is in `verify_child`, the child that runs it in `trust_process`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from skerry_contract.digests import Digest
from skerry_contract.errors import (
    ExpiredError,
    RollbackError,
    SignatureError,
)
from skerry_contract.manifest import Manifest
from skerry_contract.messages import DesiredState, EngineInfo, ErrorReport, Hardware, decode

KEY_HINT: Final = "Paste the text of the .pub file there, then start the daemon again."


class CheckDesired(msgspec.Struct, frozen=True, kw_only=True, tag="desired"):
    """Verify the envelope of a desired state."""

    envelope: bytes
    director: str
    device: str
    last_revision: int
    now_ms: int


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What the choice of a variant depends on."""

    hardware: Hardware
    engines: tuple[EngineInfo, ...]
    ram_budget_bytes: int


class CheckBundle(msgspec.Struct, frozen=True, kw_only=True, tag="bundle"):
    """Verify a manifest and its signature that lie in the store."""

    store: str
    manifest: Digest
    signature: Digest
    engineers: tuple[str, ...]
    name: str
    version: str
    release: int
    """Name, version and release as the director's order says: mix and match is refused (attack S7)."""
    floor: int
    device: Device


class ImportFile(msgspec.Struct, frozen=True, kw_only=True, tag="file"):
    """Verify a bundle file, open as descriptor ``fd``, and take what this device needs into the store."""

    fd: int
    store: str
    engineers: tuple[str, ...]
    floors: Mapping[str, int]
    """By model name."""
    device: Device
    ram_taken: Mapping[str, int] = {}
    """By the models that answer here, in bytes, by name."""


class CheckKeys(msgspec.Struct, frozen=True, kw_only=True, tag="keys"):
    """Are these public keys? Nothing is verified with them."""

    keys: Mapping[str, str]
    """PEM by the key's place in the configuration."""


Request = CheckDesired | CheckBundle | ImportFile | CheckKeys


class DesiredAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="desired"):
    payload: bytes
    """The verified bytes of a `DesiredState`."""


class BundleAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="bundle"):
    """The bundle may be installed here."""

    name: str
    version: str
    release: int
    manifest: Digest
    signature: Digest
    variant: str
    reason: str


class KeysAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="keys"):
    problems: Mapping[str, str]
    """By place, what is wrong with a key that cannot be used; nothing of the others."""


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    error: ErrorReport


Answer = DesiredAnswer | BundleAnswer | KeysAnswer | Refusal


def check_order(payload: bytes, *, device: str, last_revision: int, now_ms: int) -> DesiredState:
    """The rules for a desired state whose signature is right. Pure.

    Raises:
        MessageError: not a desired state.
        SignatureError: it is for another device.
        RollbackError: older than one that was accepted before (a replay).
        ExpiredError: past its date.
    """
    desired = decode(payload, DesiredState)
    if desired.device != device:
        raise SignatureError(
            f"the desired state is for device {desired.device[:64]!r}, and this is {device!r}",
            hint="Check which credential and device name this machine was given.",
        )
    if desired.revision <= last_revision:
        raise RollbackError(
            f"desired revision {desired.revision} is not newer than {last_revision}, which was accepted",
            hint="The fleet must count on from the revision that the device says in its hello.",
        )
    if desired.expires <= now_ms:
        raise ExpiredError(
            f"desired revision {desired.revision} has expired", hint="Check the clocks of fleet and device."
        )
    return desired


def check_ordered(manifest: Manifest, request: CheckBundle) -> None:
    """The verified bundle is the one that the director ordered (attack S7).

    Raises:
        SignatureError: it is another.
    """
    ordered = (request.name, request.version, request.release)
    if (manifest.name, manifest.version, manifest.release) != ordered:
        raise SignatureError(
            f"the fleet ordered {request.name} {request.version} (release {request.release}),"
            f" and the bundle is {manifest.name} {manifest.version} (release {manifest.release})",
            hint="Publish the bundle again and start a new rollout.",
        )


def check_floor(manifest: Manifest, floor: int) -> None:
    """Raises `RollbackError` if the release lies below the security floor (attack S4)."""
    if manifest.release < floor:
        raise RollbackError(
            f"{manifest.name} {manifest.version} is release {manifest.release},"
            f" below the security floor {floor}",
            hint="Sign it again with a higher release if it really shall come back.",
        )
