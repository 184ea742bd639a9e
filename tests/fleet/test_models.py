"""The registry: only what a trusted engineer signed, and never changed after."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.builders import BundleBuilder, new_signer
from tests.fleet.fleet_harness import Fleet, running_fleet

from skerry_contract.digests import digest_of
from skerry_contract.errors import InputError, NotFoundError
from skerry_contract.signing import EcdsaSigner


def stored(fleet: Fleet) -> list[Path]:
    return [path for path in (fleet.services.settings.data / "blobs").rglob("*") if path.is_file()]


def test_a_published_bundle_is_listed_with_its_variants(fleet: Fleet, builder: BundleBuilder) -> None:
    answer = fleet.client.post("/v1/bundles", content=builder.build())
    assert answer.status_code == 201
    told = answer.json()
    manifest, data, _ = builder.parts()
    assert told["digest"] == digest_of(data)
    assert (told["name"], told["version"], told["release"]) == ("digits", "1.0.0", 1)
    assert told["size"] == sum(ref.size for ref in manifest.blobs())
    assert [variant["id"] for variant in told["variants"]] == ["fp32", "int8"]
    assert told["signer"] == fleet.signer.key_id
    assert fleet.client.get("/v1/models").json()["items"] == [
        {
            "name": "digits",
            "task": "classification",
            "versions": 1,
            "latest_version": "1.0.0",
            "latest_release": 1,
            "latest_digest": told["digest"],
        }
    ]
    assert [row["version"] for row in fleet.client.get("/v1/models/digits/versions").json()["items"]] == [
        "1.0.0"
    ]


def test_every_blob_manifest_and_signature_can_be_downloaded(fleet: Fleet, builder: BundleBuilder) -> None:
    manifest, data, signature = builder.parts()
    fleet.client.post("/v1/bundles", content=builder.build())
    read = fleet.services.models.read_block
    assert read(digest_of(data), 0, 1 << 20) == data
    assert read(digest_of(signature), 0, 1 << 20) == signature
    for ref in manifest.blobs():
        assert read(ref.digest, 0, 1 << 20) == builder.blobs[ref.digest]
    model = builder.models["fp32"]
    assert read(digest_of(model), 10, 20) == model[10:30]


def test_only_blobs_of_published_bundles_are_given_out(fleet: Fleet) -> None:
    with fleet.services.blobs.staging() as staging:
        secret = staging.put_bytes(b"in the store, in no bundle")
        staging.commit()
    with pytest.raises(NotFoundError, match="no published bundle"):
        fleet.services.models.read_block(secret, 0, 10)
    with pytest.raises(InputError):
        fleet.services.models.read_block("../admin.token", 0, 10)


def test_the_same_bytes_again_change_nothing(fleet: Fleet, builder: BundleBuilder) -> None:
    bundle = builder.build()
    first = fleet.client.post("/v1/bundles", content=bundle)
    files = sorted(stored(fleet))
    again = fleet.client.post("/v1/bundles", content=bundle)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert sorted(stored(fleet)) == files


@pytest.mark.parametrize(("version", "release"), [("1.0.0", 2), ("1.0.1", 1)])
def test_a_version_or_release_never_changes_its_content(
    fleet: Fleet, signer: EcdsaSigner, version: str, release: int
) -> None:
    fleet.publish("1.0.0", 1)
    files = sorted(stored(fleet))
    other = BundleBuilder(version=version, release=release, models={"x": b"other"}, signer=signer).build()
    answer = fleet.client.post("/v1/bundles", content=other)
    assert answer.status_code == 409
    assert answer.json()["code"] == "conflict"
    assert sorted(stored(fleet)) == files


@pytest.mark.attack
def test_s1_a_bundle_of_a_foreign_key_is_refused_and_leaves_nothing(fleet: Fleet) -> None:
    answer = fleet.client.post("/v1/bundles", content=BundleBuilder(signer=new_signer()).build())
    assert answer.status_code == 422
    assert answer.json()["code"] == "bundle.signature"
    assert "trusted" in answer.json()["hint"]
    assert stored(fleet) == []
    assert fleet.client.get("/v1/models").json()["items"] == []


@pytest.mark.parametrize("cut", [0, 100, 600, 5000, -1])
def test_a_truncated_bundle_is_refused_and_leaves_nothing(
    fleet: Fleet, builder: BundleBuilder, cut: int
) -> None:
    answer = fleet.client.post("/v1/bundles", content=builder.build()[:cut])
    assert answer.status_code == 422
    assert answer.json()["code"] == "bundle.format"
    assert stored(fleet) == []


def test_an_altered_blob_is_refused(fleet: Fleet, builder: BundleBuilder) -> None:
    bundle = bytearray(builder.build())
    place = bundle.index(builder.models["fp32"])
    bundle[place] ^= 1
    answer = fleet.client.post("/v1/bundles", content=bytes(bundle))
    assert (answer.status_code, answer.json()["code"]) == (422, "bundle.format")
    assert stored(fleet) == []


def test_a_signed_bundle_with_a_broken_monitoring_spec_is_refused(fleet: Fleet, signer: EcdsaSigner) -> None:
    bundle = BundleBuilder(spec=b'{"skerry_monitoring":1,"rows":0}', signer=signer).build()
    answer = fleet.client.post("/v1/bundles", content=bundle)
    assert (answer.status_code, answer.json()["code"]) == (422, "bundle.manifest")
    assert stored(fleet) == []


@pytest.mark.attack
def test_h4_an_upload_over_the_limit_is_refused_announced_or_not(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running_fleet(tmp_path, signer, max_bundle_bytes=50_000) as fleet:
        assert fleet.client.post("/v1/bundles", content=b"x" * 50_001).status_code == 413

        def endless() -> Iterator[bytes]:
            for _ in range(1000):
                yield b"x" * 1000

        answer = fleet.client.post("/v1/bundles", content=endless())
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
        assert stored(fleet) == []


def test_lists_are_paged_by_cursor(fleet: Fleet) -> None:
    for release in range(1, 6):
        fleet.publish(f"1.0.{release}", release)
    seen: list[int] = []
    cursor = None
    while True:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = fleet.client.get("/v1/models/digits/versions", params=query).json()
        seen += [row["release"] for row in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert seen == [5, 4, 3, 2, 1]


def test_published_models_survive_a_restart(tmp_path: Path, signer: EcdsaSigner) -> None:
    with running_fleet(tmp_path, signer) as fleet:
        digest = fleet.publish("1.0.0", 1)
        trust = fleet.client.get("/v1/trust").json()
    with running_fleet(tmp_path, signer) as fleet:
        assert fleet.services.models.get(digest).version == "1.0.0"
        assert fleet.services.models.manifest(digest).name == "digits"
        assert fleet.services.models.monitoring(digest).rows == 1000
        assert fleet.client.get("/v1/trust").json() == trust


def test_an_unknown_model_is_a_clear_error(fleet: Fleet) -> None:
    answer = fleet.client.get("/v1/models/nothing/versions")
    assert answer.status_code == 404
    assert "nothing" in answer.json()["detail"]
