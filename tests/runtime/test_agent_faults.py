"""A device in trouble: crashes, kills, damage, full disks, strangers. Something good goes on answering."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest
from tests.builders import new_signer
from tests.runtime.agent_world import (
    LONG,
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    free_port,
    infer,
    make_bundle,
    other_digits,
    running,
)
from tests.runtime.model_zoo import logarithm
from tests.waiting import wait_until

from skerry_contract.digests import hex_of
from skerry_contract.errors import NotFoundError, SelfTestError, SignatureError
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.daemon import STOP_SECONDS


def fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_it_serves_without_any_network_and_after_a_kill(
    tmp_path: Path, signer: EcdsaSigner, headquarters: Headquarters
) -> None:
    silent = Broker(tmp_path)  # Never started.
    device = Device(tmp_path, signer, silent, headquarters)
    bundle = make_bundle(signer).write(tmp_path)
    with running(device):
        assert device.install(bundle)["state"] == "probation"
        assert device.infer()["model_version"] == "1.0.0"
        fleet = device.status()["fleet"]
        assert fleet["state"] == "connecting"
        device.kill()
        device.start()
        assert device.infer()["model_version"] == "1.0.0"
        error = wait_until(lambda: device.status()["fleet"]["error"], "the error")
        assert error["code"] == "unavailable"
        assert "keeps trying" in error["hint"]


def test_a_crashed_worker_is_replaced_at_once_and_no_connection_is_refused(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=QUICK)
    before = device.wait_state("confirmed")["active"]["pid"]
    os.kill(before, signal.SIGKILL)
    assert device.infer()["model_version"] == "1.0.0"
    after = wait_until(lambda: device.model()["active"]["pid"], "the next worker")
    assert after != before


def test_a_crash_within_probation_rolls_back_to_the_warm_one(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    for made in (first, second):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    headquarters.desire(second, probation=LONG)
    device.wait_state("probation", "2.0.0")
    os.kill(device.model()["active"]["pid"], signal.SIGSEGV)
    model = device.wait_state("rolled_back", "2.0.0")
    assert model["error"]["code"] == "selftest"
    assert "SIGSEGV" in model["error"]["message"]
    assert device.infer()["model_version"] == "1.0.0"


def test_a_killed_zygote_is_replaced_with_its_workers_and_nobody_is_blamed(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    zygote = loner.status()["zygote_pid"]
    os.kill(zygote, signal.SIGKILL)
    wait_until(lambda: loner.status()["zygote_pid"] not in (zygote, None), "the next zygote")
    assert loner.infer()["model_version"] == "1.0.0"
    assert loner.model()["state"] == "probation"


def test_a_model_that_is_not_confirmed_in_three_starts_is_rolled_back(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    for made in (first, second):
        headquarters.publish_bundle(made)
    headquarters.desire(first, probation=QUICK)
    device.wait_state("confirmed", "1.0.0")
    headquarters.desire(second, probation=LONG)
    device.wait_state("probation", "2.0.0")
    for _ in range(3):
        device.kill()
        device.start()
        device.wait_state("probation", "2.0.0")
        assert device.infer()["model_version"] == "2.0.0"
    device.kill()
    device.start()
    model = device.wait_state("rolled_back", "2.0.0")
    assert model["error"]["code"] == "selftest"
    assert device.infer()["model_version"] == "1.0.0"


def test_a_clean_stop_within_probation_costs_no_try(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    for _ in range(4):
        assert loner.stop() == 0
        loner.start()
        loner.wait_state("probation")
    assert loner.infer()["model_version"] == "1.0.0"


def test_an_operator_rolls_back_and_the_bundle_is_not_taken_again(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    with pytest.raises(NotFoundError):
        device.ask("rollback")
    first, second = make_bundle(signer), make_bundle(signer, version="2.0.0", release=2)
    for made in (first, second):
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)
    with Hammer(device.data / "run" / "skerry.sock") as hammer:
        assert device.ask("rollback", model="digits") == {"name": "digits", "version": "1.0.0"}
        wait_until(lambda: hammer.answers.get("1.0.0"), "answers of the old version")
    assert hammer.failures == []
    assert device.model()["state"] == "rolled_back"
    headquarters.desire(second)
    wait_until(lambda: device.status()["fleet"]["revision"] == 3, "the order")
    assert device.infer()["model_version"] == "1.0.0"


def test_a_stop_right_after_a_rollback_does_not_wait_for_the_worker_that_was_left(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    for release in (1, 2):
        made = make_bundle(signer, version=f"{release}.0.0", release=release)
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)
    device.ask("rollback")
    began = time.monotonic()
    assert device.stop() == 0
    assert time.monotonic() - began < STOP_SECONDS / 2


def test_two_models_have_sockets_of_their_own(loner: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    loner.install(make_bundle(signer, model=logarithm()).write(tmp_path))
    sockets = {name: Path(model["socket"]) for name, model in loner.status()["models"].items()}
    assert sockets == {
        "digits": loner.data / "run" / "skerry.sock",
        "logarithm": loner.data / "run" / "logarithm.sock",
    }
    assert loner.infer()["model_name"] == "digits"
    assert sockets["logarithm"].stat().st_mode & 0o777 == 0o660


def test_before_the_first_model_a_client_is_refused_and_not_left_waiting(loner: Device) -> None:
    with pytest.raises(ConnectionRefusedError):
        loner.infer()


def test_the_first_model_of_a_device_that_fails_leaves_nothing_that_answers(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    with pytest.raises(SelfTestError):
        loner.install(make_bundle(signer, wrong_golden=True).write(tmp_path))
    with pytest.raises(ConnectionRefusedError):
        loner.infer()
    # A person may try it again, and it fails again.
    with pytest.raises(SelfTestError):
        loner.install(make_bundle(signer, wrong_golden=True).write(tmp_path))


@pytest.mark.parametrize("alive", [False, True], ids=["crashed", "over its budget"])
def test_the_first_model_of_a_device_that_is_rolled_back_leaves_nothing_that_answers(
    tmp_path: Path, signer: EcdsaSigner, alive: bool
) -> None:
    """Also if its worker lives on for a while, to finish its answers."""
    device = Device(tmp_path, signer, extra=f'[serve]\nhttp = "127.0.0.1:{free_port()}"\n')
    with running(device):
        device.install(make_bundle(signer).write(tmp_path))
        health = wait_until(lambda: device.model()["health"], "a report")
        if alive:
            device.stop()
            device.extra += f"[budgets]\nram_mb = {health['rss_bytes'] / (1 << 20) + 6:.2f}\n"
            shutil.rmtree(device.data)
            device.start()
            device.install(make_bundle(signer).write(tmp_path))
            while device.model()["state"] == "probation":
                with contextlib.suppress(OSError, http.client.HTTPException):
                    infer(device.data / "run" / "skerry.sock", rows=1797)
        else:
            os.kill(device.model()["active"]["pid"], signal.SIGSEGV)
        device.wait_state("rolled_back", "1.0.0")
        status = device.status()
        assert status["models"]["digits"]["active"] is None
        host, _, port = status["serve"]["http"].rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            device.infer()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 5)
        if alive:
            device.stop()
            device.extra = device.extra.partition("[budgets]")[0]
            device.start()
        device.install(make_bundle(signer, version="2.0.0", release=2).write(tmp_path))
        assert device.infer()["model_version"] == "2.0.0"
        assert device.status()["serve"]["http"] == f"{host}:{port}"
        with urllib.request.urlopen(f"http://{host}:{port}/v2/models/digits", timeout=10) as answer:
            assert answer.status == 200


def test_a_bundle_file_of_an_unknown_key_is_refused(loner: Device, tmp_path: Path) -> None:
    with pytest.raises(SignatureError):
        loner.install(make_bundle(new_signer()).write(tmp_path))
    assert loner.status()["models"] == {}
    assert not list((loner.data / "store").iterdir())


@pytest.mark.attack
def test_l3_a_flipped_bit_is_found_and_the_other_generation_answers(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first = make_bundle(signer)
    changed = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    for made in (first, changed):
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)
    device.stop()
    blob = device.data / "store" / hex_of(changed.manifest.variants[0].model.digest)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    device.start()
    assert device.infer()["model_version"] in ("1.0.0", "2.0.0")
    # The fleet still wants it, so it is fetched again and answers in the end.
    device.wait_state("confirmed", "2.0.0")
    assert device.infer()["model_version"] == "2.0.0"
    assert "slot.damaged" in device.log.read_text()


@pytest.mark.attack
def test_l4_lost_pointers_are_rebuilt_from_the_generations(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=QUICK)
    device.wait_state("confirmed")
    device.stop()
    state = device.data / "models" / "digits" / "state"
    (state / "current").write_bytes(b"\0" * 10)
    (state / "update").unlink()
    device.start()
    assert device.infer()["model_version"] == "1.0.0"
    device.wait_state("confirmed", "1.0.0")


@pytest.mark.attack
def test_l9_two_daemons_on_one_folder(loner: Device) -> None:
    second = Device(loner.folder, loner.engineer)
    with pytest.raises(AssertionError, match="another skerry-runtime"):
        second.start()
    assert second.process is not None
    assert second.process.returncode == 1
    assert loner.status()


@pytest.mark.attack
def test_l8_what_clients_and_strangers_may_touch(loner: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    modes = {
        name: (loner.data / "run" / name).stat().st_mode & 0o777 for name in ("skerry.sock", "agent.sock")
    }
    assert modes == {"skerry.sock": 0o660, "agent.sock": 0o600}
    for path in (loner.data, loner.data / "store", loner.data / "state", loner.data / "models"):
        assert path.stat().st_mode & 0o077 == 0
    assert (loner.data / "outbox.db").stat().st_mode & 0o777 == 0o600


def test_loopback_http_is_served_on_a_free_port_that_status_tells(
    tmp_path: Path, signer: EcdsaSigner
) -> None:
    device = Device(tmp_path, signer, extra='[serve]\nhttp = "127.0.0.1:0"\n')
    with running(device):
        device.install(make_bundle(signer).write(tmp_path))
        address = device.status()["serve"]["http"]
        with urllib.request.urlopen(f"http://{address}/v2/models/digits", timeout=10) as answer:
            assert answer.status == 200


def test_a_busy_port_is_a_clear_error(tmp_path: Path, signer: EcdsaSigner) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        device = Device(tmp_path, signer, extra=f'[serve]\nhttp = "127.0.0.1:{port}"\n')
        with pytest.raises(AssertionError, match="Another program uses it"):
            device.start()


def test_a_killed_daemon_comes_back_on_the_same_port(tmp_path: Path, signer: EcdsaSigner) -> None:
    device = Device(tmp_path, signer, extra=f'[serve]\nhttp = "127.0.0.1:{free_port()}"\n')
    with running(device):
        device.install(make_bundle(signer).write(tmp_path))
        device.kill()
        device.start()
        assert device.infer()["model_version"] == "1.0.0"


@pytest.mark.attack
def test_l2_a_full_disk_is_said_and_serving_goes_on(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    small = tmp_path / "data"
    small.mkdir()
    mount = shutil.which("mount")
    assert mount
    if os.system(f"mount -t tmpfs -o size=24m,mode=700 tmpfs {small}") != 0:  # noqa: S605
        pytest.skip("this machine does not let tests mount a file system")
    try:
        made = make_bundle(signer)
        next_one = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
        for bundle in (made, next_one):
            headquarters.publish_bundle(bundle)
        device = Device(tmp_path, signer, broker, headquarters)
        with running(device):
            headquarters.desire(made, probation=QUICK)
            device.wait_state("confirmed")
            (small / "filler").write_bytes(b"x" * (10 << 20))
            headquarters.desire(next_one)
            model = device.wait_state("rejected", "2.0.0")
            assert model["error"]["code"] == "storage"
            assert "free" in model["error"]["message"]
            # Now really full: nothing at all can be written.
            fill_up(small / "filler2")
            for _ in range(5):
                assert device.infer()["model_version"] == "1.0.0"
            headquarters.desire(next_one)
            wait_until(lambda: device.status()["fleet"]["revision"] == 3, "the order")
            device.wait_state("rejected", "2.0.0")
            assert device.infer()["model_version"] == "1.0.0"
            (small / "filler").unlink()
            (small / "filler2").unlink()
            headquarters.desire(next_one, probation=QUICK)
            device.wait_state("confirmed", "2.0.0")
    finally:
        os.system(f"umount -l {small}")  # noqa: S605
