"""``skerry inspect``, ``verify`` and ``unpack``: nothing of a bundle is believed before it verified."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.builders import BundleBuilder, new_signer
from tests.packager.cli_runner import run
from tests.packager.packing_inputs import write_inputs
from tests.tflite_models import dense

from skerry_contract.signing import EcdsaSigner


@pytest.fixture
def bundle(builder: BundleBuilder, tmp_path: Path) -> Path:
    return builder.write(tmp_path)


@pytest.fixture
def key(signer: EcdsaSigner, tmp_path: Path) -> Path:
    path = tmp_path / "engineer.pub"
    path.write_bytes(signer.verifier.pem)
    return path


@pytest.fixture
def other_key(tmp_path: Path) -> Path:
    path = tmp_path / "other.pub"
    path.write_bytes(new_signer().verifier.pem)
    return path


def test_a_good_bundle_verifies(bundle: Path, key: Path, signer: EcdsaSigner) -> None:
    outcome = run("verify", bundle, "--key", key)
    assert outcome.code == 0
    assert "verified: the signature and every blob" in outcome.text
    assert f"{signer.key_id} (verified)" in outcome.text
    told = run("verify", bundle, "--key", key, "--json").json
    assert (told["verified"], told["key_id"], told["manifest"]["name"]) == (True, signer.key_id, "digits")


def test_one_of_several_keys_is_enough(bundle: Path, key: Path, other_key: Path, signer: EcdsaSigner) -> None:
    told = run("verify", bundle, "--key", other_key, "--key", key, "--json").json
    assert told["key_id"] == signer.key_id


@pytest.mark.attack
def test_another_key_does_not(bundle: Path, other_key: Path, tmp_path: Path) -> None:
    for command in (["verify", bundle], ["unpack", bundle, tmp_path / "u"]):
        outcome = run(*command, "--key", other_key, "--json")
        assert (outcome.code, outcome.json["error"]["code"]) == (1, "bundle.signature")
    assert not (tmp_path / "u").exists()


@pytest.mark.attack
def test_a_signature_that_names_a_trusted_key_is_only_a_claim(
    tmp_path: Path, key: Path, signer: EcdsaSigner
) -> None:
    class Liar(EcdsaSigner):
        """Signs with its own key and names the engineer's."""

        @property
        def key_id(self) -> str:
            return signer.key_id

    thief = new_signer()
    path = BundleBuilder(signer=Liar(thief._key)).write(tmp_path)
    assert run("verify", path, "--key", key).code == 1
    shown = run("inspect", path)
    assert f"{signer.key_id} (NOT verified)" in shown.text
    thief_key = tmp_path / "thief.pub"
    thief_key.write_bytes(thief.verifier.pem)
    assert run("verify", path, "--key", thief_key, "--json").json["key_id"] == thief.key_id


@pytest.mark.attack
@pytest.mark.parametrize("position", [0, 600, 2500, -5000, -1200])
def test_a_changed_byte_is_found(bundle: Path, key: Path, tmp_path: Path, position: int) -> None:
    data = bytearray(bundle.read_bytes())
    data[position] ^= 1
    bundle.write_bytes(data)
    outcome = run("unpack", bundle, tmp_path / "u", "--key", key, "--json")
    assert outcome.code == 1
    assert outcome.json["error"]["code"].startswith("bundle.")
    assert sorted(path.name for path in tmp_path.iterdir()) == [bundle.name, "engineer.pub"]


@pytest.mark.attack
@pytest.mark.parametrize("keep", [0, 1, 512, 3000, -1, -1024])
def test_a_cut_bundle_is_no_bundle(bundle: Path, key: Path, keep: int) -> None:
    bundle.write_bytes(bundle.read_bytes()[:keep])
    outcome = run("verify", bundle, "--key", key, "--json")
    assert (outcome.code, outcome.json["error"]["code"]) == (1, "bundle.format")
    assert "truncated" in outcome.json["error"]["message"]


def test_inspect_shows_without_trust(bundle: Path, signer: EcdsaSigner) -> None:
    outcome = run("inspect", bundle)
    assert outcome.code == 0
    assert "digits 1.0.0, release 1" in outcome.text
    assert "NOT verified" in outcome.text
    assert "skerry verify" in outcome.err
    told = run("inspect", bundle, "--json").json
    assert (told["kind"], told["verified"], told["key_id"]) == ("bundle", False, signer.key_id)
    assert [variant["id"] for variant in told["manifest"]["variants"]] == ["fp32", "int8"]


@pytest.mark.attack
def test_a_manifest_cannot_steer_the_terminal(tmp_path: Path, signer: EcdsaSigner) -> None:
    labels = ("\x1b]0;owned\x07", "\x1b[2J", "[red]x[/red]", "\u202eevil")
    path = BundleBuilder(signer=signer, changes={"labels": labels}).write(tmp_path)
    shown = run("inspect", path).out
    assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "[red]x[/red]" in shown


def test_ram_in_a_bundle_is_a_lower_bound(bundle: Path, key: Path) -> None:
    for shown in (run("inspect", bundle), run("verify", bundle, "--key", key)):
        assert "RAM at least" in shown.out


def test_inspect_prints_the_model_card(tmp_path: Path, signer: EcdsaSigner) -> None:
    card = b"---\ntags:\n- edge\n---\n\n# digits 1.0.0 \x1b[2J\n"
    builder = BundleBuilder(signer=signer)
    builder.changes["model_card"] = builder.add(card)
    path = builder.write(tmp_path)
    shown = run("inspect", path, "--card")
    assert (shown.code, shown.out) == (0, "---\ntags:\n- edge\n---\n\n# digits 1.0.0 �[2J\n")
    assert "not checked" in shown.err
    assert run("inspect", path, "--card", "--json").json["card"] == card.decode()


def test_what_has_no_card_says_so(bundle: Path, tmp_path: Path) -> None:
    without = run("inspect", bundle, "--card", "--json")
    assert (without.code, without.json["error"]["code"]) == (1, "not_found")
    assert run("inspect", write_inputs(tmp_path / "m").model, "--card").code == 2


def test_inspect_loads_a_model_in_quarantine(tmp_path: Path) -> None:
    model = write_inputs(tmp_path).model
    told = run("inspect", model, "--json").json
    assert (told["kind"], told["format"], told["operators"]["MatMul"]) == ("model", "onnx", 2)
    shown = run("inspect", model)
    assert "image float32 [batch, 1, 8, 8]" in shown.text
    assert "MatMul 2" in shown.text


def test_inspect_of_neither_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("Dear engineer")
    outcome = run("inspect", tmp_path / "letter.txt", "--json")
    assert (outcome.code, outcome.json["error"]["code"]) == (1, "model")
    assert run("inspect", tmp_path / "nowhere").code == 2
    assert run("inspect", tmp_path).code == 2


def test_unpack_writes_every_member(bundle: Path, key: Path, builder: BundleBuilder, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    outcome = run("unpack", bundle, folder, "--key", key, "--json")
    assert outcome.code == 0
    manifest, data, signature = builder.parts()
    assert (folder / "manifest.json").read_bytes() == data
    assert (folder / "manifest.sig").read_bytes() == signature
    found = {f"sha256:{path.name}": path.read_bytes() for path in (folder / "blobs").iterdir()}
    assert found == {ref.digest: builder.blobs[ref.digest] for ref in manifest.blobs()}
    assert outcome.json["blobs"] == sorted(found)
    assert json.loads((folder / "manifest.json").read_text())["name"] == "digits"


def test_unpack_needs_a_key_or_a_word(bundle: Path, key: Path, tmp_path: Path) -> None:
    assert run("unpack", bundle, tmp_path / "u").code == 2
    assert run("unpack", bundle, tmp_path / "u", "--key", key, "--no-verify").code == 2
    outcome = run("unpack", bundle, tmp_path / "u", "--no-verify")
    assert outcome.code == 0
    assert "not checked" in outcome.err


def test_unpack_writes_into_an_empty_folder_only(bundle: Path, key: Path, tmp_path: Path) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    (full / "thesis.txt").write_text("precious")
    assert run("unpack", bundle, full, "--key", key).code == 1
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    assert run("unpack", bundle, bundle, "--key", key).code == 1
    assert run("unpack", bundle, empty, "--key", key).code == 0
    assert (empty / "manifest.json").exists()


@pytest.mark.attack
def test_a_pipe_is_not_read(key: Path, tmp_path: Path) -> None:
    """A named pipe without a writer would hang the command."""
    os.mkfifo(tmp_path / "pipe.skerry")
    outcome = run("verify", tmp_path / "pipe.skerry", "--key", key, "--json")
    assert outcome.code == 1
    assert outcome.json["error"]["code"] == "bundle.format"


def test_a_tflite_model_has_no_opsets_to_show(tmp_path: Path) -> None:
    path = tmp_path / "dense.tflite"
    path.write_bytes(dense().data())
    shown = run("inspect", path)
    assert shown.code == 0
    assert "FULLY_CONNECTED 1" in shown.out
    assert "opsets" not in shown.out
