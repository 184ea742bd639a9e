"""The signature of a bundle: one, over manifest and every blob; deterministic; verified before parsing."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import BundleBuilder, new_signer

from skerry_contract.digests import digest_of, hex_of
from skerry_contract.envelope import pae
from skerry_contract.errors import AccessError, BundleError, ConfigError, ManifestError, SignatureError
from skerry_contract.limits import Limits
from skerry_contract.manifest import parse_manifest
from skerry_contract.signing import (
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    EcdsaSigner,
    generate_private_key,
    load_signer,
    load_verifier,
    sign_bundle,
    signer_hint,
    verify_bundle,
)
from skerry_contract.strict_json import canonical

Statement = dict[str, Any]


def statement_of(signature: bytes) -> Statement:
    payload = json.loads(signature)["dsseEnvelope"]["payload"]
    value: Statement = json.loads(base64.b64decode(payload))
    return value


def sign_statement(
    statement: Statement | bytes, signer: EcdsaSigner, payload_type: str = PAYLOAD_TYPE
) -> bytes:
    """What an engineer's own key could sign by mistake or malice."""
    payload = statement if isinstance(statement, bytes) else canonical(statement)
    return canonical(
        {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": signer.key_id}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": payload_type,
                "signatures": [
                    {"sig": base64.b64encode(signer.sign(pae(payload_type, payload))).decode(), "keyid": ""}
                ],
            },
        }
    )


# --- what is signed -----------------------------------------------------------------------------------------


def test_the_manifest_comes_out_of_a_verified_signature(builder: BundleBuilder) -> None:
    manifest, data, signature = builder.parts()
    assert verify_bundle(data, signature, [new_signer().verifier, builder.signer.verifier]) == manifest
    assert signer_hint(signature) == builder.signer.key_id


def test_the_signature_lists_the_manifest_and_every_blob(builder: BundleBuilder) -> None:
    manifest, data, signature = builder.parts()
    listed = {item["name"]: item["digest"] for item in statement_of(signature)["predicate"]["resources"]}
    blobs = {f"blobs/{hex_of(ref.digest)}": hex_of(ref.digest) for ref in manifest.blobs()}
    assert listed == {"manifest.json": hex_of(digest_of(data)), **blobs}


def test_the_same_inputs_give_the_same_signature(builder: BundleBuilder) -> None:
    manifest, data, signature = builder.parts()
    assert sign_bundle(manifest, data, builder.signer) == signature
    assert sign_bundle(manifest, data, new_signer()) != signature


def test_deterministic_signatures_are_those_of_rfc_6979() -> None:
    """Appendix A.2.5 of the RFC: P-256 with SHA-256, message "sample"."""
    secret = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    signer = EcdsaSigner(ec.derive_private_key(secret, ec.SECP256R1()))
    signature = signer.sign(b"sample").hex()
    assert "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716" in signature
    assert "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8" in signature
    signer.verifier.verify(b"sample", bytes.fromhex(signature))


# --- keys ---------------------------------------------------------------------------------------------------


def test_a_private_key_may_have_a_password() -> None:
    pem = generate_private_key(b"correct horse")
    assert b"ENCRYPTED" in pem
    assert load_signer(pem, b"correct horse").key_id
    for password in (None, b"wrong"):
        with pytest.raises(AccessError) as caught:
            load_signer(pem, password)
        assert caught.value.hint
    with pytest.raises(AccessError):
        load_signer(generate_private_key(), b"a password that it does not have")


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem


FOREIGN_KEYS = {
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
}


@pytest.mark.attack
@pytest.mark.parametrize("kind", FOREIGN_KEYS)
def test_s2_a_key_of_another_algorithm_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"curve|not an EC key"):
        load_signer(private_pem(FOREIGN_KEYS[kind]))
    with pytest.raises(ConfigError, match=r"curve|not an EC key"):
        load_verifier(public_pem(FOREIGN_KEYS[kind]))


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"]
)
def test_what_is_no_key_is_refused_with_a_hint(data: bytes) -> None:
    for load in (load_verifier, load_signer):
        with pytest.raises(ConfigError) as caught:
            load(data)
        assert "skerry keys init" in caught.value.hint


def test_a_private_key_is_not_taken_for_a_public_one() -> None:
    pem = generate_private_key()
    with pytest.raises(ConfigError, match="not a public key"):
        load_verifier(pem)
    with pytest.raises(ConfigError, match="not a private key"):
        load_signer(load_signer(pem).verifier.pem)


# --- attacks ------------------------------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize(
    "signature", [b"", b"{}", b"null", b"[]", b"0", b"not json", b'{"dsseEnvelope":{}}', b"[" * 9999]
)
def test_s1_an_unsigned_bundle_is_refused(builder: BundleBuilder, signature: bytes) -> None:
    _, data, _ = builder.parts()
    with pytest.raises(SignatureError):
        verify_bundle(data, signature, [builder.signer.verifier])


@pytest.mark.attack
def test_s1_a_signature_of_a_key_that_nobody_trusts_is_refused(builder: BundleBuilder) -> None:
    _, data, signature = builder.parts()
    stranger = new_signer()
    with pytest.raises(SignatureError, match="not signed by a trusted key") as caught:
        verify_bundle(data, signature, [stranger.verifier])
    assert builder.signer.key_id[:12] in str(caught.value)
    assert stranger.key_id[:12] in str(caught.value)
    assert caught.value.hint
    with pytest.raises(SignatureError, match="trusted: none"):
        verify_bundle(data, signature, [])


@pytest.mark.attack
def test_s1_a_signature_cut_anywhere_is_refused(builder: BundleBuilder) -> None:
    _, data, signature = builder.parts()
    for size in range(0, len(signature), 7):
        with pytest.raises(SignatureError):
            verify_bundle(data, signature[:size], [builder.signer.verifier])


@pytest.mark.attack
def test_s1_one_changed_bit_of_the_manifest_is_refused_unparsed(builder: BundleBuilder) -> None:
    _, data, signature = builder.parts()
    for at in range(0, len(data), 13):
        broken = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(SignatureError, match="of another manifest"):
            verify_bundle(broken, signature, [builder.signer.verifier])


@pytest.mark.attack
@pytest.mark.parametrize("payload_type", ["application/vnd.skerry.desired.v1+json", "text/plain", "", "none"])
def test_s2_a_statement_signed_as_something_else_is_refused(
    builder: BundleBuilder, payload_type: str
) -> None:
    _, data, signature = builder.parts()
    confused = sign_statement(statement_of(signature), builder.signer, payload_type)
    with pytest.raises(SignatureError, match="signed as"):
        verify_bundle(data, confused, [builder.signer.verifier])


@pytest.mark.attack
@pytest.mark.parametrize("media_type", ["application/json", MEDIA_TYPE.replace("v0.3", "v0.1"), "", None, {}])
def test_s2_another_media_type_is_refused(builder: BundleBuilder, media_type: object) -> None:
    _, data, signature = builder.parts()
    confused = canonical({**json.loads(signature), "mediaType": media_type})
    with pytest.raises(SignatureError, match="media type"):
        verify_bundle(data, confused, [builder.signer.verifier])


CONFUSED: dict[str, Callable[[Statement], object]] = {
    "another statement type": lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "another predicate": lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "no predicate": lambda s: s.pop("predicate"),
    "predicate is a list": lambda s: s.update(predicate=[]),
    "no resources": lambda s: s["predicate"].pop("resources"),
    "resources is an object": lambda s: s["predicate"].update(resources={}),
    "resources is a number": lambda s: s["predicate"].update(resources=1),
    "resource is a text": lambda s: s["predicate"]["resources"].append("manifest.json"),
    "resource name is a list": lambda s: s["predicate"]["resources"][0].update(name=[]),
    "a resource twice": lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
    "a resource by another algorithm": lambda s: s["predicate"]["resources"][0].update(algorithm="none"),
    "one blob less": lambda s: s["predicate"]["resources"].pop(0),
    "one blob more": lambda s: s["predicate"]["resources"].append(
        {"algorithm": "sha256", "name": "blobs/" + "0" * 64, "digest": "0" * 64}
    ),
    "a file that climbs": lambda s: s["predicate"]["resources"].append(
        {"algorithm": "sha256", "name": "../../etc/passwd", "digest": "0" * 64}
    ),
}


@pytest.mark.attack
@pytest.mark.parametrize("case", CONFUSED)
def test_s2_a_signed_statement_that_says_something_else_is_refused(builder: BundleBuilder, case: str) -> None:
    _, data, signature = builder.parts()
    statement = statement_of(signature)
    CONFUSED[case](statement)
    with pytest.raises(SignatureError):
        verify_bundle(data, sign_statement(statement, builder.signer), [builder.signer.verifier])


@pytest.mark.attack
@pytest.mark.parametrize(
    "payload", [b"", b"null", b"[]", b"1", b"\xff", b'{"_type":1,"_type":2}', b"[" * 5000]
)
def test_s2_a_signed_payload_that_is_no_statement_is_refused(builder: BundleBuilder, payload: bytes) -> None:
    _, data, _ = builder.parts()
    with pytest.raises(SignatureError):
        verify_bundle(data, sign_statement(payload, builder.signer), [builder.signer.verifier])


@pytest.mark.attack
def test_s7_the_signature_of_another_bundle_is_refused(builder: BundleBuilder, signer: EcdsaSigner) -> None:
    _, data, _ = builder.parts()
    for other in (
        BundleBuilder(signer=signer, version="1.0.1"),
        BundleBuilder(signer=signer, models={"fp32": b"other"}),
    ):
        with pytest.raises(SignatureError, match="of another manifest"):
            verify_bundle(data, other.parts()[2], [signer.verifier])


@pytest.mark.attack
def test_s7_parts_of_two_signed_bundles_do_not_mix(builder: BundleBuilder, signer: EcdsaSigner) -> None:
    """Model of one, preprocessing of the other: every part is signed, their mixture is not."""
    builder.changes = {"preprocessing": {"scale": 1 / 255}}
    other = BundleBuilder(
        signer=signer,
        models={"fp32": b"other", "int8": b"other int8"},
        changes={"preprocessing": {"scale": 1.0}},
    )
    (_, data, signature), (_, other_data, other_signature) = builder.parts(), other.parts()
    for key in ("variants", "preprocessing"):
        mixed = canonical({**json.loads(data), key: json.loads(other_data)[key]})
        for either in (signature, other_signature):
            with pytest.raises(SignatureError, match="of another manifest"):
                verify_bundle(mixed, either, [signer.verifier])


@pytest.mark.attack
def test_s7_a_manifest_whose_blobs_were_not_signed_is_refused(
    builder: BundleBuilder, signer: EcdsaSigner
) -> None:
    manifest, data, _ = builder.parts()
    other = BundleBuilder(signer=signer, models={"fp32": b"other"}).manifest()
    with pytest.raises(SignatureError, match="list different blobs"):
        verify_bundle(data, sign_bundle(other, data, signer), [signer.verifier])
    assert manifest != other


CLIMBING: dict[str, Callable[[dict[str, Any]], object]] = {
    "name": lambda raw: raw.update(name="../../etc"),
    "version": lambda raw: raw.update(version="1.0.0/../../x"),
    "variant": lambda raw: raw["variants"][0].update(id="../fp32"),
    "digest": lambda raw: raw["variants"][0]["model"].update(digest="sha256:../../../../etc/passwd"),
    "monitoring": lambda raw: raw["monitoring"].update(digest="../../monitoring"),
    "parent": lambda raw: raw.update(parents=["sha256:" + "../" * 21 + "x"]),
}


@pytest.mark.attack
@pytest.mark.parametrize("place", CLIMBING)
def test_s10_a_path_in_a_signed_manifest_is_refused(builder: BundleBuilder, place: str) -> None:
    manifest, data, _ = builder.parts()
    raw = json.loads(data)
    CLIMBING[place](raw)
    hostile = canonical(raw)
    signature = sign_bundle(manifest, hostile, builder.signer)
    with pytest.raises(ManifestError):
        verify_bundle(hostile, signature, [builder.signer.verifier])


def test_the_hint_and_the_form_of_the_signature_file_are_not_signed(builder: BundleBuilder) -> None:
    """Nobody may rely on them; the identity of the bundle does not cover them."""
    manifest, data, signature = builder.parts()
    outer = json.loads(signature)
    outer["verificationMaterial"]["publicKey"]["hint"] = "somebody else"
    outer["x"] = 1
    assert verify_bundle(data, json.dumps(outer, indent=2).encode(), [builder.signer.verifier]) == manifest


def test_limits_of_the_device_hold(builder: BundleBuilder) -> None:
    _, data, signature = builder.parts()
    with pytest.raises(SignatureError, match="at most 100"):
        verify_bundle(data, signature, [builder.signer.verifier], Limits(signature_bytes=100))
    with pytest.raises(ManifestError, match="at most 100"):
        verify_bundle(data, signature, [builder.signer.verifier], Limits(manifest_bytes=100))


PARTS = BundleBuilder().parts()
SIGNER = new_signer()


@given(st.data())
def test_a_mutated_signature_gives_the_signed_manifest_or_an_error(data: st.DataObject) -> None:
    manifest, manifest_bytes, _ = PARTS
    signature = bytearray(sign_bundle(manifest, manifest_bytes, SIGNER))
    for _ in range(data.draw(st.integers(1, 3))):
        signature[data.draw(st.integers(0, len(signature) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        assert verify_bundle(manifest_bytes, bytes(signature), [SIGNER.verifier]) == parse_manifest(
            manifest_bytes
        )


@given(
    st.binary(max_size=200)
    | st.sampled_from([b"[" * 100_000, b'{"verificationMaterial":[]}', b"null", b"{}"])
)
def test_the_hint_of_any_bytes_is_a_text(data: bytes) -> None:
    assert len(signer_hint(data)) <= 64
