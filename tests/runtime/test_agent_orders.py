"""Orders that change, expire or meet a bad disk: the newest valid one is obeyed in the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    LONG,
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    endless,
    make_bundle,
    other_digits,
    running,
)
from tests.waiting import wait_until

from skerry_contract.digests import Digest, digest_of, hex_of
from skerry_contract.errors import RollbackError
from skerry_contract.signing import EcdsaSigner
from skerry_contract.topics import Up


@pytest.fixture
def device(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> Iterator[Device]:
    """A running device that tries a download again soon."""
    settings = {"preparation.RETRY_SECONDS": 0.2}
    with running(Device(tmp_path, signer, broker, headquarters, settings=settings)) as up:
        yield up


# --- a probation that ends early -----------------------------------------------------------------------


def test_the_fleet_may_shorten_a_probation_that_is_under_way(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=LONG)
    pid = device.wait_state("probation", "1.0.0")["active"]["pid"]
    headquarters.desire(made, probation=QUICK)
    model = device.wait_state("confirmed", "1.0.0")
    assert model["active"]["pid"] == pid, "the same worker: nothing began anew"
    assert device.log.read_text().count("digits 1.0.0: downloading") == 2  # Described, then fetched.
    assert headquarters.wait_report(lambda r: r["phase"] == "confirmed")["active"] == made.digest


def test_the_first_model_in_probation_stays_until_the_next_one_is_proved(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    """There is nothing to return to, so it is confirmed early; what it asks of others does not count yet."""
    first = make_bundle(signer, release=5, security_floor=5)
    bad = make_bundle(signer, version="2.0.0", release=6, wrong_golden=True)
    older = make_bundle(signer, version="0.9.0", release=4)
    for made in (first, bad, older):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=LONG)
    device.wait_state("probation", "1.0.0")
    with Hammer(device.data / "run" / "skerry.sock", clients=1) as hammer:
        headquarters.desire(bad)
        assert device.wait_state("rejected", "2.0.0")["active"]["version"] == "1.0.0"
        assert device.model()["floor"] == 0, "its probation was not over"
        headquarters.desire(older, probation=QUICK)
        device.wait_state("confirmed", "0.9.0")
    assert hammer.failures == []
    assert set(hammer.answers) <= {"1.0.0", "0.9.0"}


def test_a_confirmed_floor_refuses_what_is_older(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, older = (
        make_bundle(signer, release=5, security_floor=5),
        make_bundle(signer, version="0.9.0", release=4),
    )
    for made in (first, older):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    assert device.model()["floor"] == 5
    headquarters.desire(older, probation=QUICK)
    assert device.wait_state("rejected", "0.9.0")["error"]["code"] == RollbackError.code
    assert device.infer()["model_version"] == "1.0.0"


@pytest.mark.parametrize("state", ["downloading", "self_test", "probation"])
def test_an_order_is_superseded_in_any_state_and_its_bundle_is_not_blamed(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, state: str
) -> None:
    first, third = make_bundle(signer), make_bundle(signer, version="3.0.0", release=3)
    second = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    if state == "self_test":
        second = endless(signer, version="2.0.0", release=2)
    for made in (first, second, third):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    with Hammer(device.data / "run" / "skerry.sock", clients=1) as hammer:
        headquarters.serving_blocks = state != "downloading"
        headquarters.desire(second, probation=LONG)
        device.wait_state(state, "2.0.0")
        headquarters.serving_blocks = True
        headquarters.desire(third, probation=QUICK)
        device.wait_state("confirmed", "3.0.0")
    assert hammer.failures == []
    assert not device.quarantined(second)
    assert device.model()["fallback_generation"] > 0
    assert device.ask("rollback") == {"name": "digits", "version": "1.0.0"}


# --- an order that expired -------------------------------------------------------------------------------


def test_an_order_that_expired_while_the_device_was_off_is_not_obeyed_and_what_runs_goes_on(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    for made in (first, second):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    headquarters.serving_blocks = False
    expires = time.time() + 3
    headquarters.desire(second, expires_in_s=3)
    device.wait_state("downloading", "2.0.0")
    device.stop()
    wait_until(lambda: time.time() > expires, "the order's end")
    headquarters.serving_blocks = True
    headquarters.messages.clear()
    device.start()
    wait_until(lambda: "desired.expired" in device.log.read_text(), "the note")
    wait_until(lambda: device.status()["fleet"]["state"] == "connected", "the connection")
    assert device.infer()["model_version"] == "1.0.0"
    # The broker repeats the same order, which is recognised; only a new one makes it go on.
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    assert Up.BLOCK_REQUEST not in [channel for channel, _, _ in headquarters.messages]
    headquarters.desire(second, probation=QUICK)
    device.wait_state("confirmed", "2.0.0")


# --- a bad disk during an install ------------------------------------------------------------------------


@pytest.mark.attack
@pytest.mark.parametrize("what", ["model", "manifest", "signature"])
def test_l3_what_is_damaged_in_the_store_is_found_during_the_install_and_fetched_again(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner, what: str
) -> None:
    made = make_bundle(signer)
    digests: dict[str, Digest] = {
        "model": made.manifest.variants[0].model.digest,
        "manifest": made.digest,
        "signature": digest_of(made.signature),
    }
    data = made.everything()[digests[what]]
    damaged = device.data / "store" / hex_of(digests[what])
    # As a disk does it: the right name and the right size, and one bit is another one.
    damaged.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    assert damaged.read_bytes() == data
    assert device.infer()["model_version"] == "1.0.0"
    assert "is damaged on the disk" in device.log.read_text()
    phases = [phase for version, phase in headquarters.phases() if version == "1.0.0"]
    assert "rejected" not in phases


@pytest.mark.attack
def test_l3_a_damaged_manifest_in_the_store_does_not_stand_in_the_way_of_a_file(
    device: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    path = device.data / "store" / hex_of(made.digest)
    path.write_bytes(b"x" * len(made.manifest_bytes))
    assert device.install(made.write(tmp_path))["state"] == "probation"
    assert path.read_bytes() == made.manifest_bytes


def test_a_variant_that_is_not_what_was_signed_is_no_transient_error(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    """Tried again is what the disk lost, not what can never be right."""
    made = make_bundle(signer)
    wrong = replace(made, signature=make_bundle(signer, version="1.0.1").signature)
    headquarters.publish_bundle(wrong)
    headquarters.desire(wrong)
    assert device.wait_state("rejected", "1.0.0")["error"]["code"] == "bundle.signature"
