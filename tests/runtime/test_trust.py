"""The trust process: what it lets through and what it refuses, by code."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.builders import BundleBuilder, new_signer

from skerry_contract.digests import digest_of, hex_of
from skerry_contract.envelope import seal
from skerry_contract.errors import (
    BundleFormatError,
    ConfigError,
    ExpiredError,
    IncompatibleError,
    MessageError,
    RollbackError,
    SignatureError,
    SlotError,
    UnavailableError,
)
from skerry_contract.messages import DESIRED_PAYLOAD_TYPE, DesiredState, EngineInfo, Hardware, encode
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent import trust, trust_process
from skerry_runtime.agent.store import Store

NOW = int(time.time() * 1000)
DEVICE = trust.Device(
    hardware=Hardware(arch="x86_64", cores=2, ram_bytes=1 << 30, device_class="gateway"),
    engines=(EngineInfo(name="onnx", version="1.30.0"),),
    ram_budget_bytes=0,
)


# --- desired states ------------------------------------------------------------------------------------

Verify = Callable[..., DesiredState]


@pytest.fixture(scope="module")
def director() -> EcdsaSigner:
    return new_signer()


@pytest.fixture
def verify(director: EcdsaSigner) -> Verify:
    def run(envelope: bytes, last_revision: int = 4) -> DesiredState:
        return trust_process.verify_desired(
            envelope,
            director=director.verifier.pem.decode(),
            device="pi-7",
            last_revision=last_revision,
            now_ms=NOW,
        )[0]

    return run


def order(signer: EcdsaSigner, payload_type: str = DESIRED_PAYLOAD_TYPE, **changes: Any) -> bytes:
    fine: dict[str, Any] = {"device": "pi-7", "revision": 5, "expires": NOW + 60_000, "models": {}}
    return seal(payload_type, encode(DesiredState(**{**fine, **changes})), signer)


def test_an_order_of_the_director_is_accepted(verify: Verify, director: EcdsaSigner) -> None:
    assert verify(order(director)).revision == 5


@pytest.mark.attack
def test_s1_an_order_signed_by_another_key_is_refused(verify: Verify) -> None:
    with pytest.raises(SignatureError, match="not signed by a trusted key"):
        verify(order(new_signer()))


@pytest.mark.attack
def test_s1_an_altered_order_is_refused(verify: Verify, director: EcdsaSigner) -> None:
    envelope = order(director)
    at = envelope.index(b'"payload":"') + 30
    with pytest.raises(SignatureError):
        verify(envelope[:at] + (b"A" if envelope[at : at + 1] != b"A" else b"B") + envelope[at + 1 :])


@pytest.mark.attack
@pytest.mark.parametrize("payload_type", ["application/vnd.in-toto+json", "", "none"])
def test_s2_a_signature_over_something_else_is_refused(
    verify: Verify, director: EcdsaSigner, payload_type: str
) -> None:
    with pytest.raises(SignatureError):
        verify(order(director, payload_type))


@pytest.mark.attack
def test_s3_an_order_for_another_device_is_refused(verify: Verify, director: EcdsaSigner) -> None:
    with pytest.raises(SignatureError, match="for device 'pi-8'"):
        verify(order(director, device="pi-8"))


@pytest.mark.attack
@pytest.mark.parametrize("revision", [4, 5])
def test_q13_a_replayed_order_is_refused(verify: Verify, director: EcdsaSigner, revision: int) -> None:
    with pytest.raises(RollbackError):
        verify(order(director, revision=revision), last_revision=5)


@pytest.mark.attack
def test_s5_an_expired_order_is_refused(verify: Verify, director: EcdsaSigner) -> None:
    with pytest.raises(ExpiredError):
        verify(order(director, expires=NOW - 1))


@pytest.mark.attack
@pytest.mark.parametrize("rubbish", [b"", b"{}", b"[" * 5000, b"\xff\xfe", b'{"payload":"","signatures":[]}'])
def test_q10_rubbish_is_refused(verify: Verify, rubbish: bytes) -> None:
    with pytest.raises(SignatureError):
        verify(rubbish)


@pytest.mark.attack
def test_q7_an_endless_order_is_refused_before_it_is_looked_at(verify: Verify) -> None:
    with pytest.raises(MessageError, match="over the limit"):
        verify(b" " * (1 << 20))


def test_a_signed_payload_that_is_no_order_is_refused(verify: Verify, director: EcdsaSigner) -> None:
    with pytest.raises(MessageError):
        verify(seal(DESIRED_PAYLOAD_TYPE, b'{"device": 5}', director))


# --- downloaded bundles ----------------------------------------------------------------------------------


class Downloaded:
    """A manifest and a signature that lie in the store."""

    def __init__(self, folder: Path, builder: BundleBuilder, signature: bytes | None = None) -> None:
        manifest, data, right = builder.parts()
        store = Store(folder / "store")
        signature = right if signature is None else signature
        self.store = store
        self.request = trust.CheckBundle(
            store=str(store.folder),
            manifest=store.add(data),
            signature=store.add(signature),
            engineers=(builder.signer.verifier.pem.decode(),),
            name=manifest.name,
            version=manifest.version,
            release=manifest.release,
            floor=0,
            device=DEVICE,
        )

    def verify(self, **changes: Any) -> trust.BundleAnswer:
        return trust_process.verify_bundle(msgspec.structs.replace(self.request, **changes))


def test_a_bundle_of_an_engineer_is_accepted_with_its_variant(tmp_path: Path, builder: BundleBuilder) -> None:
    answer = Downloaded(tmp_path, builder).verify()
    assert (answer.name, answer.version, answer.release, answer.variant) == ("digits", "1.0.0", 1, "fp32")
    assert "runs here" in answer.reason


@pytest.mark.attack
def test_s1_a_bundle_of_an_unknown_key_is_refused(tmp_path: Path, builder: BundleBuilder) -> None:
    stranger = new_signer().verifier.pem.decode()
    with pytest.raises(SignatureError, match="not signed by a trusted key"):
        Downloaded(tmp_path, builder).verify(engineers=(stranger,))


@pytest.mark.attack
@pytest.mark.parametrize("signature", [b"", b"{}", b"not json"])
def test_s1_an_unsigned_bundle_is_refused(tmp_path: Path, builder: BundleBuilder, signature: bytes) -> None:
    with pytest.raises(SignatureError):
        Downloaded(tmp_path, builder, signature or b" ").verify()


@pytest.mark.attack
def test_s1_the_signature_of_another_bundle_is_refused(tmp_path: Path, builder: BundleBuilder) -> None:
    other = BundleBuilder(version="1.0.1", signer=builder.signer).parts()[2]
    with pytest.raises(SignatureError):
        Downloaded(tmp_path, builder, other).verify()


@pytest.mark.attack
def test_s4_a_release_below_the_floor_is_refused(tmp_path: Path, builder: BundleBuilder) -> None:
    builder.release = 3
    downloaded = Downloaded(tmp_path, builder)
    downloaded.verify(floor=3)
    with pytest.raises(RollbackError, match="below the security floor 4"):
        downloaded.verify(floor=4)


@pytest.mark.attack
@pytest.mark.parametrize("changes", [{"name": "letters"}, {"version": "2.0.0"}, {"release": 2}])
def test_s7_a_bundle_that_was_not_ordered_is_refused(
    tmp_path: Path, builder: BundleBuilder, changes: dict[str, Any]
) -> None:
    with pytest.raises(SignatureError, match="the fleet ordered"):
        Downloaded(tmp_path, builder).verify(**changes)


@pytest.mark.attack
def test_s3_a_bundle_for_another_class_is_refused(tmp_path: Path, builder: BundleBuilder) -> None:
    builder.changes = {"device_classes": ("jetson",)}
    with pytest.raises(IncompatibleError, match="is for jetson"):
        Downloaded(tmp_path, builder).verify()


def test_a_device_that_trusts_nobody_refuses_everything(tmp_path: Path, builder: BundleBuilder) -> None:
    with pytest.raises(SignatureError) as caught:
        Downloaded(tmp_path, builder).verify(engineers=())
    assert "trust.engineers" in caught.value.hint


@pytest.mark.attack
def test_b12_a_manifest_that_was_swapped_in_the_store_is_refused(
    tmp_path: Path, builder: BundleBuilder
) -> None:
    downloaded = Downloaded(tmp_path, builder)
    downloaded.store.path(downloaded.request.manifest).write_bytes(b"{}")
    with pytest.raises(SlotError):
        downloaded.verify()


# --- keys ----------------------------------------------------------------------------------------------


def test_a_key_that_is_none_is_named_by_its_place(director: EcdsaSigner) -> None:
    good = director.verifier.pem.decode()
    body = good.splitlines()[1]
    keys = {
        "trust.engineers[0]": good,
        "trust.engineers[1]": good.replace(body, body[::-1]),
        "trust.director": "no PEM at all",
    }
    problems = trust_process.check_keys(keys)
    assert list(problems) == ["trust.engineers[1]", "trust.director"]
    assert all("not a public key in PEM" in problem for problem in problems.values())
    assert trust_process.check_keys({"trust.director": good}) == {}


def test_an_order_under_a_director_key_that_is_none_says_which_key(director: EcdsaSigner) -> None:
    with pytest.raises(ConfigError, match=r"trust\.director is not a public key") as caught:
        trust_process.verify_desired(
            order(director), director="rubbish", device="pi-7", last_revision=4, now_ms=NOW
        )
    assert ".pub file" in caught.value.hint


# --- bundle files ----------------------------------------------------------------------------------------


class Stick:
    """A bundle file and a store to import into."""

    def __init__(self, folder: Path, engineer: EcdsaSigner) -> None:
        self.store = Store(folder / "store")
        self._file = folder / "stick.skerry"
        self._engineer = engineer

    def bring(self, data: bytes, **changes: Any) -> trust.BundleAnswer:
        self._file.write_bytes(data)
        with self._file.open("rb") as file:
            request: dict[str, Any] = {
                "fd": file.fileno(),
                "store": str(self.store.folder),
                "engineers": (self._engineer.verifier.pem.decode(),),
                "floors": {},
                "device": DEVICE,
            }
            return trust_process.import_file(trust.ImportFile(**{**request, **changes}))

    def names(self) -> set[str]:
        return {path.name for path in self.store.folder.iterdir()}


@pytest.fixture
def stick(tmp_path: Path, signer: EcdsaSigner) -> Stick:
    return Stick(tmp_path, signer)


def test_a_bundle_file_brings_only_the_blobs_of_the_chosen_variant(
    stick: Stick, builder: BundleBuilder
) -> None:
    manifest, data, signature = builder.parts()
    answer = stick.bring(builder.build())
    assert answer.manifest == digest_of(data)
    needed = {hex_of(ref.digest) for ref in manifest.blobs_for(manifest.variant(answer.variant))}
    assert stick.names() == needed | {hex_of(answer.manifest), hex_of(digest_of(signature))}
    assert len(manifest.blobs()) > len(needed)
    for ref in manifest.blobs_for(manifest.variant(answer.variant)):
        stick.store.check(ref)


@pytest.mark.attack
def test_b8_a_truncated_or_lengthened_file_leaves_nothing_behind(
    stick: Stick, builder: BundleBuilder
) -> None:
    data = builder.build()
    for hostile in (data[:-1], data[: len(data) // 2], data[:700], data + b"\0", data + data):
        with pytest.raises(BundleFormatError):
            stick.bring(hostile)
        assert stick.names() == set()


@pytest.mark.attack
def test_b8_an_altered_blob_leaves_nothing_behind(stick: Stick, builder: BundleBuilder) -> None:
    data = bytearray(builder.build())
    at = bytes(data).index(b"model fp32")
    data[at] ^= 1
    with pytest.raises(BundleFormatError, match="altered"):
        stick.bring(bytes(data))
    assert stick.names() == set()


@pytest.mark.attack
def test_s1_a_file_of_an_unknown_key_is_refused_before_its_blobs_are_read(stick: Stick) -> None:
    foreign = BundleBuilder().build()
    with pytest.raises(SignatureError):
        stick.bring(foreign[: len(foreign) // 2])
    assert stick.names() == set()


@pytest.mark.attack
def test_s4_the_floor_counts_for_files_too(stick: Stick, builder: BundleBuilder) -> None:
    with pytest.raises(RollbackError):
        stick.bring(builder.build(), floors={"digits": 2})
    stick.bring(builder.build(), floors={"letters": 2})


@pytest.mark.parametrize("data", [b"", b"hello", b"\0" * 4096, b"PK\x03\x04" + b"x" * 5000])
def test_a_file_that_is_no_bundle_says_so(stick: Stick, data: bytes) -> None:
    with pytest.raises(BundleFormatError):
        stick.bring(data)


def test_an_import_can_be_repeated(stick: Stick, builder: BundleBuilder) -> None:
    first = stick.bring(builder.build())
    assert stick.bring(builder.build()) == first


@pytest.mark.attack
def test_b12_a_blob_that_was_swapped_in_the_store_is_taken_from_the_file_again(
    stick: Stick, builder: BundleBuilder
) -> None:
    """Same name, same size, other bytes: neither is it believed, nor does the install fail for it."""
    manifest, _, _ = builder.parts()
    answer = stick.bring(builder.build())
    for ref in manifest.blobs_for(manifest.variant(answer.variant)):
        stick.store.path(ref.digest).write_bytes(b"\0" * ref.size)
    assert stick.bring(builder.build()) == answer
    for ref in manifest.blobs_for(manifest.variant(answer.variant)):
        stick.store.check(ref)


# --- the child itself --------------------------------------------------------------------------------------


def test_a_child_that_cannot_work_has_verified_nothing(
    verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust_process, "CHILD", "skerry_runtime.agent.no_such_module")
    with pytest.raises(UnavailableError, match="no_such_module"):
        verify(b"{}")


@pytest.mark.attack
def test_l8_the_environment_cannot_plant_a_module(
    verify: Verify, director: EcdsaSigner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cryptography").mkdir()
    (tmp_path / "cryptography" / "__init__.py").write_text("raise SystemExit('planted')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert verify(order(director)).revision == 5


def test_the_agent_itself_never_loads_cryptography() -> None:
    script = (
        "import sys, skerry_runtime.agent.daemon, skerry_runtime.agent.control, skerry_runtime.cli\n"
        "heavy = {'cryptography', 'numpy', 'onnxruntime', 'pydantic', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
