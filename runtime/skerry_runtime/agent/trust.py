"""Asking the trust process: is this order the director's, is this bundle an engineer's?

Verification runs in a short-lived child (`verify_child`), which alone imports cryptography, so that the
agent carries neither its memory nor a parser of unverified bytes. Requests and answers are the JSON structs
below, over stdin and stdout; a child that dies, hangs or babbles has verified nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from skerry_contract.digests import Digest
from skerry_contract.errors import (
    ExpiredError,
    InputError,
    MessageError,
    RollbackError,
    SignatureError,
    UnavailableError,
)
from skerry_contract.limits import DEFAULT_LIMITS, KIB
from skerry_contract.messages import DesiredState, EngineInfo, ErrorReport, Hardware, decode

CHILD: Final = "skerry_runtime.agent.verify_child"
DESIRED_SECONDS: Final = 30.0
BUNDLE_SECONDS: Final = 60.0
FILE_SECONDS: Final = 3600.0
"""A bundle file may be gigabytes on a slow stick."""
_MAX_ANSWER: Final = 512 * KIB

T = TypeVar("T")


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


Request = CheckDesired | CheckBundle | ImportFile


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


class Refusal(msgspec.Struct, frozen=True, kw_only=True, tag="refusal"):
    error: ErrorReport


Answer = DesiredAnswer | BundleAnswer | Refusal


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


def verify_desired(
    envelope: bytes, *, director: str, device: str, last_revision: int, now_ms: int
) -> tuple[DesiredState, bytes]:
    """Verify a desired state in the child; also returns the verified payload.

    Raises:
        SignatureError, RollbackError, ExpiredError, MessageError: see `check_order`.
        UnavailableError: the trust process could not answer.
    """
    if len(envelope) > 2 * DEFAULT_LIMITS.message_bytes:
        raise MessageError(f"a desired state of {len(envelope)} bytes is over the limit")
    request = CheckDesired(
        envelope=envelope, director=director, device=device, last_revision=last_revision, now_ms=now_ms
    )
    answer = _ask(request, DesiredAnswer, DESIRED_SECONDS)
    return decode(answer.payload, DesiredState), answer.payload


def verify_bundle(request: CheckBundle) -> BundleAnswer:
    """Verify a bundle whose manifest and signature were downloaded.

    Raises:
        BundleError: its children say what is wrong.
        UnavailableError: the trust process could not answer.
    """
    return _ask(request, BundleAnswer, BUNDLE_SECONDS)


def import_file(request: ImportFile) -> BundleAnswer:
    """Verify a bundle file and take its blobs into the store; also raises `StorageError`."""
    return _ask(request, BundleAnswer, FILE_SECONDS, (request.fd,))


def _ask(request: Request, kind: type[T], seconds: float, descriptors: Sequence[int] = ()) -> T:
    """Run the child. ``-I``: no environment and no current folder can plant a module in it."""
    command = [sys.executable, "-I", "-m", CHILD]
    try:
        done = subprocess.run(
            command,
            input=msgspec.json.encode(request),
            capture_output=True,
            timeout=seconds,
            pass_fds=descriptors,
            check=False,
            cwd="/",
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"the trust process did not answer within {seconds:.0f} s") from error
    except OSError as error:
        raise UnavailableError(f"the trust process cannot be started: {error.strerror}") from error
    try:
        if done.returncode or len(done.stdout) > _MAX_ANSWER:
            raise MessageError("no answer")
        answer: Answer = msgspec.json.decode(done.stdout, type=Answer)
    except (MessageError, msgspec.DecodeError, UnicodeDecodeError, InputError) as error:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnavailableError(
            f"the trust process failed (status {done.returncode}): {lines[-1] if lines else 'no message'}",
            hint="Check that the package 'cryptography' is installed and matches this machine.",
        ) from error
    if isinstance(answer, Refusal):
        raise answer.error.to_error()
    if not isinstance(answer, kind):
        raise UnavailableError("the trust process answered another question")
    return answer
