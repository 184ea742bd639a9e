"""DSSE envelopes: the signature covers the exact bytes, and nothing is parsed before it verifies.

Specification: https://github.com/secure-systems-lab/dsse (v1.0). No cryptography is imported here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import msgspec

from .errors import SignatureError

MAX_SIGNATURES: Final = 16


class Signer(Protocol):
    """Holds, or reaches, one private key."""

    @property
    def key_id(self) -> str:
        """64 hexadecimal digits."""

    def sign(self, data: bytes) -> bytes:
        """A signature over the data."""


class Verifier(Protocol):
    """Holds one public key."""

    @property
    def key_id(self) -> str:
        """64 hexadecimal digits."""

    def verify(self, data: bytes, signature: bytes) -> None:
        """Raises `SignatureError` unless the signature over the data is this key's."""


@dataclass(frozen=True, slots=True)
class Signature:
    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload with signatures; `payload` is untrusted until `open_envelope` returned it."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


class _WireSignature(msgspec.Struct):
    sig: str
    keyid: str = ""


class WireEnvelope(msgspec.Struct, rename="camel"):
    """An envelope as JSON, also inside a sigstore bundle."""

    payload: str
    payload_type: str
    signatures: list[_WireSignature]

    def read(self) -> Envelope:
        """Raises `SignatureError`: not base64, no signature, or too many."""
        if not 1 <= len(self.signatures) <= MAX_SIGNATURES:
            raise SignatureError(
                f"an envelope has 1 to {MAX_SIGNATURES} signatures, not {len(self.signatures)}"
            )
        try:
            signatures = tuple(
                Signature(s.keyid, base64.b64decode(s.sig, validate=True)) for s in self.signatures
            )
            return Envelope(base64.b64decode(self.payload, validate=True), self.payload_type, signatures)
        except (binascii.Error, ValueError) as error:
            raise SignatureError(f"an envelope is not base64: {error}") from error

    @classmethod
    def write(cls, envelope: Envelope) -> WireEnvelope:
        signatures = [_WireSignature(base64.b64encode(s.sig).decode(), s.keyid) for s in envelope.signatures]
        return cls(base64.b64encode(envelope.payload).decode(), envelope.payload_type, signatures)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: what is signed.

    >>> pae("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def seal(payload_type: str, payload: bytes, signer: Signer) -> bytes:
    """The JSON envelope around a payload."""
    signature = Signature(signer.key_id, signer.sign(pae(payload_type, payload)))
    return msgspec.json.encode(WireEnvelope.write(Envelope(payload, payload_type, (signature,))))


def open_envelope(
    data: bytes, payload_type: str, verifiers: Sequence[Verifier], *, max_bytes: int = 1 << 20
) -> bytes:
    """The payload, once one of the verifiers accepted a signature over it.

    Raises:
        SignatureError: not an envelope, of another payload type, or not signed by a trusted key.
    """
    if len(data) > max_bytes:
        raise SignatureError(f"an envelope of {len(data)} bytes is over the limit of {max_bytes}")
    try:
        wire = msgspec.json.decode(data, type=WireEnvelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(f"not a signed envelope: {error}") from error
    envelope = wire.read()
    check_envelope(envelope, payload_type, verifiers)
    return envelope.payload


def check_envelope(envelope: Envelope, payload_type: str, verifiers: Sequence[Verifier]) -> str:
    """The id of a trusted key that signed the envelope.

    A key id in the envelope is only a hint: every trusted key is tried on every signature.

    Raises:
        SignatureError: of another payload type, or not signed by a trusted key.
    """
    if envelope.payload_type != payload_type:
        raise SignatureError(f"signed as {envelope.payload_type[:80]!r}, not as {payload_type!r}")
    data = pae(payload_type, envelope.payload)
    for verifier in verifiers:
        for signature in envelope.signatures:
            try:
                verifier.verify(data, signature.sig)
            except SignatureError:
                continue
            return verifier.key_id
    names = ", ".join(sorted(signature.keyid[:12] or "unnamed" for signature in envelope.signatures))
    trusted = ", ".join(sorted(verifier.key_id[:12] for verifier in verifiers)) or "none"
    raise SignatureError(
        f"not signed by a trusted key (signed by {names}; trusted: {trusted})",
        hint="Sign with a trusted key, or add the signer's public key to the trusted ones.",
    )
