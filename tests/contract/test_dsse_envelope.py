"""DSSE: the signature covers type and bytes, and nothing comes out before it verifies."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import new_signer

from skerry_contract.envelope import MAX_SIGNATURES, open_envelope, pae, seal
from skerry_contract.errors import SignatureError
from skerry_contract.signing import EcdsaSigner

KIND = "application/vnd.example+json"


@pytest.fixture
def envelope(signer: EcdsaSigner) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(seal(KIND, b'{"a":1}', signer))
    return value


def test_the_encoding_that_is_signed_is_the_one_of_the_specification() -> None:
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@given(st.text(st.characters(codec="utf-8")), st.binary(), st.text(st.characters(codec="utf-8")), st.binary())
def test_two_contents_never_have_the_same_encoding(
    kind: str, payload: bytes, other: str, data: bytes
) -> None:
    assert (pae(kind, payload) == pae(other, data)) == ((kind, payload) == (other, data))


def test_what_is_sealed_is_opened(signer: EcdsaSigner) -> None:
    payload = bytes(range(256))
    assert (
        open_envelope(seal(KIND, payload, signer), KIND, [new_signer().verifier, signer.verifier]) == payload
    )


def test_an_envelope_is_the_json_of_the_specification(envelope: dict[str, Any], signer: EcdsaSigner) -> None:
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    assert base64.b64decode(envelope["payload"]) == b'{"a":1}'
    assert [entry["keyid"] for entry in envelope["signatures"]] == [signer.key_id]


def test_the_key_id_is_only_a_hint(envelope: dict[str, Any], signer: EcdsaSigner) -> None:
    envelope["signatures"][0]["keyid"] = "0" * 64
    assert open_envelope(json.dumps(envelope).encode(), KIND, [signer.verifier])
    envelope["signatures"][0]["keyid"] = signer.key_id
    with pytest.raises(SignatureError, match="not signed by a trusted key"):
        open_envelope(json.dumps(envelope).encode(), KIND, [new_signer().verifier])


def test_one_good_signature_among_foreign_ones_is_enough(
    envelope: dict[str, Any], signer: EcdsaSigner
) -> None:
    foreign = json.loads(seal(KIND, b'{"a":1}', new_signer()))["signatures"]
    envelope["signatures"] = foreign + envelope["signatures"]
    assert open_envelope(json.dumps(envelope).encode(), KIND, [signer.verifier]) == b'{"a":1}'


def test_nobody_is_trusted_by_default(envelope: dict[str, Any]) -> None:
    with pytest.raises(SignatureError, match="trusted: none") as caught:
        open_envelope(json.dumps(envelope).encode(), KIND, [])
    assert caught.value.hint


@pytest.mark.attack
@pytest.mark.parametrize("kind", ["application/vnd.other+json", "", KIND + " ", KIND.upper()])
def test_s2_another_payload_type_is_refused(signer: EcdsaSigner, kind: str) -> None:
    sealed = seal(kind, b"{}", signer)
    with pytest.raises(SignatureError, match="signed as"):
        open_envelope(sealed, KIND, [signer.verifier])
    renamed = json.dumps({**json.loads(sealed), "payloadType": KIND}).encode()
    with pytest.raises(SignatureError, match="not signed by a trusted key"):
        open_envelope(renamed, KIND, [signer.verifier])


BROKEN: dict[str, dict[str, Any]] = {
    "no signature": {"signatures": []},
    "too many signatures": {"signatures": [{"sig": "AA=="}] * (MAX_SIGNATURES + 1)},
    "empty signature": {"signatures": [{"sig": ""}]},
    "signature of zeros": {"signatures": [{"sig": base64.b64encode(bytes(70)).decode()}]},
    "signature r = s = 0": {
        "signatures": [{"sig": base64.b64encode(b"\x30\x06\x02\x01\0\x02\x01\0").decode()}]
    },
    "signature r = s = 1": {
        "signatures": [{"sig": base64.b64encode(b"\x30\x06\x02\x01\1\x02\x01\1").decode()}]
    },
    "signature is null": {"signatures": [{"sig": None}]},
    "signatures missing": {"signatures": None},
    "not base64": {"payload": "!!!!"},
    "base64 with blanks": {"payload": "eyJh\nIjoxfQ=="},
    "base64 of other digits": {"payload": "٣٣٣٣"},
    "payload changed": {"payload": base64.b64encode(b'{"a":2}').decode()},
    "payload empty": {"payload": ""},
    "payload is an object": {"payload": {"a": 1}},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_envelope_is_refused(envelope: dict[str, Any], signer: EcdsaSigner, case: str) -> None:
    with pytest.raises(SignatureError):
        open_envelope(json.dumps(envelope | BROKEN[case]).encode(), KIND, [signer.verifier])


def test_an_oversize_envelope_is_refused_unread(signer: EcdsaSigner) -> None:
    with pytest.raises(SignatureError, match="over the limit of 10"):
        open_envelope(b"[" * 11, KIND, [signer.verifier], max_bytes=10)


@given(
    st.binary(max_size=100) | st.sampled_from([b"[" * 100_000, b"null", b"{}", b"[]", b'{"payload":"\xff"}'])
)
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(SignatureError):
        open_envelope(data, KIND, [VERIFIER])


VERIFIER = new_signer().verifier
