"""Running the trust process: a short-lived child that alone imports cryptography.

So the agent carries neither its memory nor a parser of unverified bytes. Requests and answers are the JSON
structs of `trust`, over stdin and stdout; a child that dies, hangs or babbles has verified nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from skerry_contract.errors import InputError, MessageError, UnavailableError
from skerry_contract.limits import DEFAULT_LIMITS, KIB
from skerry_contract.messages import DesiredState, decode

from .trust import (
    Answer,
    BundleAnswer,
    CheckBundle,
    CheckDesired,
    CheckKeys,
    DesiredAnswer,
    ImportFile,
    KeysAnswer,
    Refusal,
    Request,
)

CHILD: Final = "skerry_runtime.verify_child"
KEYS_SECONDS: Final = 30.0
DESIRED_SECONDS: Final = 30.0
BUNDLE_SECONDS: Final = 60.0
FILE_SECONDS: Final = 3600.0
"""A bundle file may be gigabytes on a slow stick."""
_MAX_ANSWER: Final = 512 * KIB

T = TypeVar("T")


def verify_desired(
    envelope: bytes, *, director: str, device: str, last_revision: int, now_ms: int
) -> tuple[DesiredState, bytes]:
    """Verify a desired state in the child; also returns the verified payload.

    Raises:
        SignatureError, RollbackError, ExpiredError, MessageError: see `trust.check_order`.
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


def check_keys(keys: Mapping[str, str]) -> Mapping[str, str]:
    """What is wrong with PEM texts that shall be public keys, by their place in the configuration.

    Raises:
        UnavailableError: the trust process could not answer.
    """
    return _ask(CheckKeys(keys=keys), KeysAnswer, KEYS_SECONDS).problems


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
