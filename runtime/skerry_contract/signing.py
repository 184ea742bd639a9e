"""Signatures on bundles, byte-compatible with OpenSSF model-signing v1.0, by `cryptography` alone.

The signature file is a sigstore bundle v0.3 around a DSSE envelope around an in-toto statement with the
predicate ``https://model_signing/signature/v1.0``; it lists the manifest and every blob of the bundle.
``model_signing verify key DIR --signature DIR/manifest.sig --public_key KEY`` accepts an unpacked bundle.
Keys are EC P-256, the curve that specification and hardware tokens share; signatures are deterministic
(RFC 6979), so the same inputs give the same bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from .bundle import BLOB_FOLDER, MANIFEST_NAME, SIGNATURE_NAME
from .digests import digest_of, hex_of
from .envelope import Envelope, Signature, Signer, Verifier, WireEnvelope, check_envelope, pae
from .errors import AccessError, ConfigError, ManifestError, SignatureError
from .limits import DEFAULT_LIMITS, Limits
from .manifest import Manifest, parse_manifest
from .strict_json import canonical, loads

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://model_signing/signature/v1.0"
MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"

_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_ECDSA_DETERMINISTIC: Final = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)


class EcdsaVerifier:
    """P-256 with SHA-256."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        if key.curve.name != "secp256r1":
            raise ConfigError(
                f"the key is on curve {key.curve.name}", hint="Skerry signs with EC P-256 keys."
            )
        self._key = key
        self.pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def key_id(self) -> str:
        """SHA-256 of the PEM, as model-signing's ``hint``."""
        return hashlib.sha256(self.pem).hexdigest()

    def verify(self, data: bytes, signature: bytes) -> None:
        try:
            self._key.verify(signature, data, _ECDSA)
        except InvalidSignature as error:
            raise SignatureError("the signature does not match") from error


class EcdsaSigner:
    """P-256 with SHA-256, deterministic."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.verifier = EcdsaVerifier(key.public_key())

    @property
    def key_id(self) -> str:
        return self.verifier.key_id

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data, _ECDSA_DETERMINISTIC)


def generate_private_key(password: bytes | None = None) -> bytes:
    """A new P-256 key as PEM (PKCS #8), encrypted if there is a password."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def load_signer(pem: bytes, password: bytes | None = None) -> EcdsaSigner:
    """Raises `ConfigError`: not a P-256 private key; `AccessError`: the password is missing or wrong."""
    try:
        key = serialization.load_pem_private_key(pem, password)
    except TypeError as error:
        # cryptography says so both when a password is missing and when one is given without need.
        raise AccessError(
            f"private key: {error}", hint="Give the key's password, and only if it has one."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if password:
            raise AccessError("the private key cannot be decrypted", hint="Is the password right?") from error
        raise ConfigError(
            f"not a private key in PEM: {error}", hint="'skerry keys init' makes one; the file ends in .key."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError("the private key is not an EC key", hint="Skerry signs with EC P-256 keys.")
    return EcdsaSigner(key)


def load_verifier(pem: bytes) -> EcdsaVerifier:
    """Raises `ConfigError`: not a P-256 public key in PEM."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"not a public key in PEM: {error}", hint="'skerry keys init' makes one; the file ends in .pub."
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("the public key is not an EC key", hint="Skerry signs with EC P-256 keys.")
    return EcdsaVerifier(key)


def sign_bundle(manifest: Manifest, manifest_bytes: bytes, signer: Signer) -> bytes:
    """The signature file over a manifest and all the blobs that it lists."""
    resources = [
        {"algorithm": "sha256", "digest": digest, "name": name}
        for name, digest in sorted(_resources(manifest, manifest_bytes).items())
    ]
    root = hashlib.sha256(b"".join(bytes.fromhex(item["digest"]) for item in resources)).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{manifest.name}-{manifest.version}", "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "resources": resources,
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE_NAME],
            },
        },
    }
    payload = canonical(statement)
    # model-signing leaves the key id empty in the envelope and names the key in the material's hint.
    envelope = Envelope(payload, PAYLOAD_TYPE, (Signature("", signer.sign(pae(PAYLOAD_TYPE, payload))),))
    return canonical(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": signer.key_id}, "tlogEntries": []},
            "dsseEnvelope": msgspec.to_builtins(WireEnvelope.write(envelope)),
        }
    )


def verify_bundle(
    manifest_bytes: bytes, signature: bytes, verifiers: Sequence[Verifier], limits: Limits = DEFAULT_LIMITS
) -> Manifest:
    """The manifest, once its signature by a trusted key was verified. The first thing done with a bundle.

    Raises:
        SignatureError: unsigned, altered, or not by a trusted key.
        ManifestError: signed, yet outside the schema (attack S10).
    """
    statement = _verified_statement(signature, verifiers, limits)
    listed = _listed_resources(statement)
    if listed.get(MANIFEST_NAME) != hex_of(digest_of(manifest_bytes)):
        raise SignatureError(
            "the signature is of another manifest", hint="The bundle was altered: fetch it again."
        )
    manifest = parse_manifest(manifest_bytes, limits)
    if listed != _resources(manifest, manifest_bytes):
        raise SignatureError("the signature and the manifest list different blobs")
    return manifest


def signer_hint(signature: bytes) -> str:
    """The key id that a signature file names; unverified, for messages to people only."""
    try:
        return str(msgspec.json.decode(signature)["verificationMaterial"]["publicKey"]["hint"])[:64]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return ""


def _resources(manifest: Manifest, manifest_bytes: bytes) -> dict[str, str]:
    blobs = {f"{BLOB_FOLDER}/{hex_of(ref.digest)}": hex_of(ref.digest) for ref in manifest.blobs()}
    return {MANIFEST_NAME: hex_of(digest_of(manifest_bytes)), **blobs}


def _verified_statement(data: bytes, verifiers: Sequence[Verifier], limits: Limits) -> Mapping[str, Any]:
    try:
        outer = loads(data, max_bytes=limits.signature_bytes, max_depth=16, what="signature")
        wire = msgspec.convert(outer["dsseEnvelope"], WireEnvelope)
        media_type = outer["mediaType"]
    except (ManifestError, msgspec.ValidationError, KeyError, TypeError) as error:
        raise SignatureError(f"the bundle's signature is not readable: {error}") from error
    if media_type != MEDIA_TYPE:
        raise SignatureError(f"the signature has the media type {str(media_type)[:80]!r}, not {MEDIA_TYPE!r}")
    envelope = wire.read()
    hint = signer_hint(data)
    named = Envelope(
        envelope.payload,
        envelope.payload_type,
        tuple(Signature(s.keyid or hint, s.sig) for s in envelope.signatures),
    )
    check_envelope(named, PAYLOAD_TYPE, verifiers)
    try:
        statement = loads(envelope.payload, max_bytes=limits.signature_bytes, max_depth=16, what="statement")
    except ManifestError as error:
        raise SignatureError(f"the signed statement is not readable: {error}") from error
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise SignatureError("the signed payload is not an in-toto statement v1")
    if statement.get("predicateType") != PREDICATE_TYPE:
        raise SignatureError("the signed statement is not a model signature v1.0")
    return statement


def _listed_resources(statement: Mapping[str, Any]) -> dict[str, str]:
    try:
        resources = statement["predicate"]["resources"]
        listed = {item["name"]: item["digest"] for item in resources if item["algorithm"] == "sha256"}
    except (KeyError, TypeError) as error:
        raise SignatureError(f"the signed statement lists no resources: {error}") from error
    if len(listed) != len(resources):
        raise SignatureError("the signed statement lists a resource twice, or by another algorithm")
    return listed
