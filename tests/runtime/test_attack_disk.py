"""The disk is full, read-only, rotten or of a newer version: what is good answers, the error is clear.

Also two daemons on one disk.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    QUICK,
    Broker,
    Device,
    Hammer,
    Headquarters,
    Made,
    make_bundle,
    other_digits,
    running,
)
from tests.runtime.model_zoo import digits
from tests.runtime.small_disks import break_disk, ext4, fill, make_ext4, tmpfs, use_up_inodes
from tests.runtime.stubborn_clients import StubbornClients, right_answer
from tests.waiting import wait_until

from skerry_contract.digests import hex_of
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.data_folder import FORMAT

pytestmark = pytest.mark.attack


def confirm(device: Device, headquarters: Headquarters, *bundles: Made) -> None:
    for made in bundles:
        headquarters.publish_bundle(made)
        headquarters.desire(made, probation=QUICK)
        device.wait_state("confirmed", made.manifest.version)


def clients_of(device: Device, socket: Path | None = None) -> StubbornClients:
    right = right_answer(digits(), 1)
    versions = dict.fromkeys(("1.0.0", "2.0.0", "3.0.0"), right)
    return StubbornClients(socket or device.data / "run" / "skerry.sock", versions)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def model_blob(device: Device, made: Made) -> Path:
    return device.data / "store" / hex_of(made.manifest.variants[0].model.digest)


def kill_worker(device: Device) -> None:
    os.kill(wait_until(lambda: (device.model()["active"] or {}).get("pid"), "the worker"), signal.SIGKILL)


def remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink()


def event_kinds(headquarters: Headquarters) -> set[str]:
    return {event["kind"] for event in headquarters.events()}


# --- L2 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["space", pytest.param("inodes", marks=pytest.mark.slow)])
def test_l2_a_disk_without_room_is_said_and_what_is_good_answers_also_after_a_restart(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters, lacks: str
) -> None:
    next_one = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    headquarters.publish_bundle(next_one)
    use_up = fill if lacks == "space" else use_up_inodes
    with tmpfs(tmp_path / "data", "size=64m,nr_inodes=400,mode=700") as disk:
        device = Device(tmp_path, signer, broker, headquarters)
        with running(device):
            confirm(device, headquarters, make_bundle(signer))
            fillers = use_up(disk)
            with clients_of(device) as clients, Hammer(device.data / "run" / "skerry.sock") as hammer:
                headquarters.desire(next_one, probation=QUICK)
                model = device.wait_state("rejected", "2.0.0")
                clients.wait_answers()
            assert model["error"]["code"] == "storage"
            assert model["error"]["hint"]
            assert hammer.failures == []
            with clients_of(device) as clients:
                kill_worker(device)
                clients.wait_answers()
            assert not list((device.data / "models" / "digits" / "gens").glob("*.tmp"))
            # What the disk did not take is in memory until it does.
            remove(fillers)
            wait_until(lambda: "update.rejected" in event_kinds(headquarters), "the audit event")
            fillers = use_up(disk)
            device.kill()
            device.start()
            assert device.infer()["model_version"] == "1.0.0"
            remove(fillers)
            headquarters.desire(next_one, probation=QUICK)
            device.wait_state("confirmed", "2.0.0")


def test_l2_a_disk_that_becomes_read_only_stops_nobody_also_after_a_restart(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    next_one = make_bundle(signer, version="2.0.0", release=2)
    headquarters.publish_bundle(next_one)
    (tmp_path / "run").mkdir()
    socket = tmp_path / "run" / "skerry.sock"
    with ext4(tmp_path / "data", make_ext4(tmp_path / "disk")) as disk:
        device = Device(tmp_path, signer, broker, headquarters, extra=f'[serve]\nsocket = "{socket}"\n')
        with running(device):
            confirm(device, headquarters, make_bundle(signer))
            with Hammer(socket) as hammer:
                break_disk(disk)
                headquarters.desire(next_one)
                model = device.wait_state("rejected", "2.0.0")
            assert hammer.failures == []
            assert model["error"]["code"] == "storage"
            assert "read-only" in model["error"]["hint"]
            with clients_of(device, socket) as clients:
                kill_worker(device)
                clients.wait_answers()
                device.kill()
                # Its control socket would be on that disk: nobody can ask it, but it serves.
                device.spawn()
                clients.wait_answers(version="1.0.0")
            assert clients.wrong == []
            assert "nobody can ask or steer" in device.log.read_text()
            assert device.stop() == 0


# --- L3, L5 --------------------------------------------------------------------------------------------


def test_l3_a_bit_that_flips_under_a_running_model_disturbs_nobody_and_the_next_start_takes_the_other_slot(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    second = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    hurry = {"preparation.RETRY_SECONDS": 0.2}
    with running(Device(tmp_path, signer, broker, headquarters, settings=hurry)) as device:
        flip_under(device, headquarters, make_bundle(signer), second)


def flip_under(device: Device, headquarters: Headquarters, first: Made, second: Made) -> None:
    confirm(device, headquarters, first, second)
    with Hammer(device.data / "run" / "skerry.sock") as hammer:
        flip_a_bit(model_blob(device, second))
        wait_until(lambda: hammer.answers.get("2.0.0", 0) > 10, "answers from memory")
    assert hammer.failures == []
    headquarters.serving_blocks = False
    device.kill()
    device.start()
    with clients_of(device) as clients:
        clients.wait_answers(version="1.0.0")
        wait_until(lambda: "slot.damaged" in event_kinds(headquarters), "the audit event")
        headquarters.serving_blocks = True
        device.wait_state("confirmed", "2.0.0")
        clients.wait_answers(version="2.0.0")
    assert clients.wrong == []
    assert not device.quarantined(second)


def test_l5_with_both_slots_bad_the_daemon_stays_says_so_and_takes_a_good_bundle(
    device: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    first = make_bundle(signer)
    second = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    confirm(device, headquarters, first, second)
    headquarters.serving_blocks = False
    for made in (first, second):
        flip_a_bit(model_blob(device, made))
    device.kill()
    device.start()
    (event,) = wait_until(
        lambda: [e for e in headquarters.events() if e["kind"] == "slot.degraded"], "the audit event"
    )
    assert event["error"]["code"] == "slot"
    with pytest.raises(ConnectionRefusedError):
        device.infer()
    assert device.model()["active"] is None
    assert device.workers("serve") == []
    assert device.is_up()
    third = make_bundle(signer, version="3.0.0", release=3)
    headquarters.serving_blocks = True
    confirm(device, headquarters, third)
    assert device.infer()["model_version"] == "3.0.0"


# --- L9, L10 -------------------------------------------------------------------------------------------


def test_l9_a_second_daemon_is_refused_and_the_first_does_not_notice(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    assert loner.process is not None
    second = Device(loner.folder, loner.engineer)
    with Hammer(loner.data / "run" / "skerry.sock") as hammer:
        second.spawn()
        assert second.process is not None
        assert second.process.wait(60) == 1
        wait_until(lambda: hammer.answers.get("1.0.0", 0) > 5, "answers")
    assert f"another skerry-runtime (process {loner.process.pid}) uses {loner.data}" in loner.log.read_text()
    assert hammer.failures == []
    assert loner.status()["pid"] == loner.process.pid
    assert int((loner.data / "lock").read_text()) == loner.process.pid


def test_l9_a_second_daemon_with_a_folder_of_its_own_cannot_take_the_socket(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    socket = loner.data / "run" / "skerry.sock"
    (tmp_path / "second").mkdir()
    second = Device(
        tmp_path / "second",
        signer,
        extra=f'[serve]\nsocket = "{socket}"\n',
        settings={"listeners.BUSY_SECONDS": 0.2},
    )
    with Hammer(socket) as hammer:
        second.spawn()
        assert second.process is not None
        assert second.process.wait(60) == 1
    assert f"another process serves at {socket}" in second.log.read_text()
    assert hammer.failures == []
    assert loner.infer()["model_version"] == "1.0.0"


def everything(folder: Path) -> dict[str, bytes]:
    """But for the lock, which names who looked last."""
    return {
        str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"
    }


def test_l10_a_folder_of_a_newer_version_is_refused_and_left_as_it_is(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    assert loner.stop() == 0
    assert (loner.data / "format").read_text() == f"{FORMAT}\n"
    (loner.data / "format").write_text(f"{FORMAT + 1}\n")
    before = everything(loner.data)
    loner.spawn()
    assert loner.process is not None
    assert loner.process.wait(60) == 1
    assert f"newer version (format {FORMAT + 1}; this one knows {FORMAT})" in loner.log.read_text()
    # The lock names who looked last; nothing else moved.
    assert {**everything(loner.data), str(loner.data / "lock"): b""} == {
        **before,
        str(loner.data / "lock"): b"",
    }
    (loner.data / "format").write_text(f"{FORMAT}\n")
    loner.start()
    assert loner.infer()["model_version"] == "1.0.0"


def test_l10_an_outbox_of_a_newer_version_is_left_as_it_is_and_the_model_answers(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    assert loner.stop() == 0
    with sqlite3.connect(loner.data / "outbox.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = (loner.data / "outbox.db").read_bytes()
    loner.start()
    assert loner.infer()["model_version"] == "1.0.0"
    outbox = wait_until(lambda: loner.status()["outbox"]["error"], "the error")
    assert "newer version" in outbox
    assert loner.stop() == 0
    assert (loner.data / "outbox.db").read_bytes() == before
