"""The trust process: one request on stdin, one answer on stdout, then it ends.

The agent starts it and never imports it: it alone imports cryptography. It raises nothing to its caller:
every refusal is an answer with an error code, everything else is a traceback on stderr and a status that is
not 0.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec.structs import replace

from skerry_contract.bundle import BundleReader
from skerry_contract.envelope import open_envelope
from skerry_contract.errors import ConfigError, SignatureError, SkerryError, SlotError
from skerry_contract.limits import DEFAULT_LIMITS
from skerry_contract.manifest import BlobRef, Manifest, bundle_digest
from skerry_contract.messages import DESIRED_PAYLOAD_TYPE, ErrorReport
from skerry_contract.signing import EcdsaVerifier, load_verifier
from skerry_contract.signing import verify_bundle as verify_signature

from .agent.choose import choose_variant
from .agent.files import storage_errors
from .agent.store import Store
from .agent.trust import (
    KEY_HINT,
    Answer,
    BundleAnswer,
    CheckBundle,
    CheckDesired,
    CheckKeys,
    DesiredAnswer,
    Device,
    ImportFile,
    KeysAnswer,
    Refusal,
    Request,
    check_floor,
    check_order,
    check_ordered,
)
from .config import TrustConfig


def answer_to(request: Request) -> Answer:
    """Verify what is asked; refusals are answers."""
    try:
        match request:
            case CheckDesired():
                return _desired(request)
            case CheckBundle():
                return _bundle(request)
            case ImportFile():
                return _file(request)
            case CheckKeys():
                return _keys(request)
    except SkerryError as error:
        return Refusal(error=ErrorReport.of(error))


def _desired(request: CheckDesired) -> DesiredAnswer:
    payload = open_envelope(request.envelope, DESIRED_PAYLOAD_TYPE, _verifiers(director=request.director))
    check_order(payload, device=request.device, last_revision=request.last_revision, now_ms=request.now_ms)
    return DesiredAnswer(payload=payload)


def _bundle(request: CheckBundle) -> BundleAnswer:
    store = Store(Path(request.store))
    manifest_bytes = store.read(request.manifest, DEFAULT_LIMITS.manifest_bytes)
    signature = store.read(request.signature, DEFAULT_LIMITS.signature_bytes)
    manifest = verify_signature(manifest_bytes, signature, _verifiers(request.engineers))
    check_ordered(manifest, request)
    check_floor(manifest, request.floor)
    variant, reason = _choose(manifest, request.device)
    return BundleAnswer(
        name=manifest.name,
        version=manifest.version,
        release=manifest.release,
        manifest=request.manifest,
        signature=request.signature,
        variant=variant,
        reason=reason,
    )


def _file(request: ImportFile) -> BundleAnswer:
    store = Store(Path(request.store))
    with storage_errors("reading the bundle file"), os.fdopen(request.fd, "rb") as stream:
        if stream.seekable():
            stream.seek(0)  # Whoever opened it may have read from it.
        reader = BundleReader(stream)
        manifest = verify_signature(reader.manifest_bytes, reader.signature, _verifiers(request.engineers))
        check_floor(manifest, request.floors.get(manifest.name, 0))
        variant, reason = _choose(manifest, _beside_others(request, manifest.name))
        needed = manifest.blobs_for(manifest.variant(variant))
        missing = [ref for ref in needed if not _whole(store, ref)]
        store.reserve(sum(ref.size for ref in missing))
        wanted = {ref.digest for ref in missing}
        try:
            for ref, pieces in reader.blobs(manifest):
                if ref.digest in wanted:
                    _take(store, ref, pieces)
            # Only now has the whole file been read: what follows the blobs was checked as well.
        except BaseException:
            for ref in missing:
                store.drop(ref.digest)
            raise
        store.add(reader.manifest_bytes)
        signature = store.add(reader.signature)
    return BundleAnswer(
        name=manifest.name,
        version=manifest.version,
        release=manifest.release,
        manifest=bundle_digest(reader.manifest_bytes),
        signature=signature,
        variant=variant,
        reason=reason,
    )


def _whole(store: Store, ref: BlobRef) -> bool:
    """In the store, and hashed again: the file at hand can replace what rotted there; later nothing can."""
    if not store.has(ref.digest, ref.size):
        return False
    try:
        store.check(ref)
    except SlotError:
        return False
    return True


def _take(store: Store, ref: BlobRef, pieces: Iterator[bytes]) -> None:
    """Write a blob while it is hashed; it gets its name only after its digest was right."""
    store.drop(ref.digest)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(store.part(ref.digest), flags, 0o600), "wb") as part:
        for piece in pieces:
            part.write(piece)
    store.adopt(ref.digest)


def _beside_others(request: ImportFile, name: str) -> Device:
    """The device with the memory that the other models leave to this one."""
    device, others = request.device, (size for other, size in request.ram_taken.items() if other != name)
    if not device.ram_budget_bytes:
        return device
    return replace(device, ram_budget_bytes=max(1, device.ram_budget_bytes - sum(others)))


def _choose(manifest: Manifest, device: Device) -> tuple[str, str]:
    choice = choose_variant(
        manifest, device.hardware, device.engines, ram_budget_bytes=device.ram_budget_bytes
    )
    return choice.variant.id, choice.reason


def _keys(request: CheckKeys) -> KeysAnswer:
    problems = {}
    for place, pem in request.keys.items():
        try:
            load_verifier(pem.encode())
        except ConfigError as error:
            problems[place] = error.message
    return KeysAnswer(problems=problems)


def _verifiers(engineers: tuple[str, ...] = (), director: str = "") -> list[EcdsaVerifier]:
    """Raises `ConfigError` naming the key that is none, `SignatureError` if there is none at all."""
    keys = []
    for place, pem in TrustConfig(engineers=engineers, director=director).by_place().items():
        try:
            keys.append(load_verifier(pem.encode()))
        except ConfigError as error:
            raise ConfigError(f"{place} is {error.message}", hint=KEY_HINT) from error
    if not keys:
        raise SignatureError(
            "this device trusts no key, so nothing can be verified",
            hint="Put the engineers' public keys into trust.engineers of the device's configuration.",
        )
    return keys


def main() -> None:
    """Serve one request."""
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    sys.stdout.buffer.write(msgspec.json.encode(answer_to(request)))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
