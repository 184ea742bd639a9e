"""Power is cut under the running daemon (attack L1): old or new answers, and no row that was stored is lost.

The exhaustive runs are in ``tests/torture``; this is the whole daemon, with its clients and its fleet.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    QUICK,
    Broker,
    Device,
    Headquarters,
    make_bundle,
    other_digits,
    running,
)
from tests.runtime.ledger import check_ledger, settle
from tests.runtime.model_zoo import digits
from tests.runtime.small_disks import cut_power, ext4, make_ext4
from tests.runtime.stubborn_clients import StubbornClients, right_answer
from tests.waiting import wait_until

from skerry_contract.messages import DeviceSettings
from skerry_contract.signing import EcdsaSigner
from skerry_contract.topics import Up

CUTS = 2
SMALL_WINDOWS = DeviceSettings(window_seconds=3600.0, window_rows=5)


def wait_lost(headquarters: Headquarters, known: int) -> None:
    """Until the device's will has come, after the first ``known`` messages."""

    def lost() -> bool:
        later = headquarters.messages[known:]
        return any(channel is Up.STATE and b'"lost"' in payload for channel, payload, _ in later)

    wait_until(lost, "the end of its connection")


@pytest.mark.attack
def test_l1_power_is_cut_at_random_moments_of_updates_under_load(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    chance = random.Random(20260705)
    disk, data, run = make_ext4(tmp_path / "disk"), tmp_path / "data", tmp_path / "run"
    run.mkdir()
    socket = run / "skerry.sock"
    device = Device(tmp_path, signer, broker, headquarters, extra=f'[serve]\nsocket = "{socket}"\n')
    releases = [
        make_bundle(
            signer,
            version=f"{number}.0.0",
            release=number,
            model=other_digits(f"training run {number}") if number % 2 else None,
        )
        for number in range(1, CUTS + 2)
    ]
    for made in releases:
        headquarters.publish_bundle(made)
    right = dict.fromkeys((made.manifest.version for made in releases), right_answer(digits(), 1))
    confirmed = 0
    with StubbornClients(socket, right) as clients:
        for number, made in enumerate(releases, start=1):
            with ext4(data, disk), running(device):
                if confirmed:
                    # Before the network is asked for anything: what is on the disk answers.
                    clients.wait_answers()
                    active = device.model()["active"]
                    assert confirmed <= int(active["version"].partition(".")[0]) < number
                headquarters.desire(made, probation=QUICK, settings=SMALL_WINDOWS)
                if number in (1, len(releases)):
                    device.wait_state("confirmed", made.manifest.version)
                    confirmed = number
                if number == len(releases):
                    clients.stop()
                    settle(device, headquarters)
                    outbox = device.status()["outbox"]
                    assert (outbox["gaps"], outbox["lost"], outbox["error"]) == (0, 0, "")
                    check_ledger(headquarters, outbox["stream"])
                    break
                clients.wait_answers(chance.randrange(1, 60))
                wait_until(lambda: device.status()["fleet"]["state"] == "connected", "the fleet")
                model = device.model()
                if model["state"] == "confirmed":
                    confirmed = int(model["active"]["version"].partition(".")[0])
                # The network goes first: while the power goes nobody can say whether a row was durable.
                headquarters.listening, known = False, len(headquarters.messages)
                cut_power(data)
                # The disk is dead; what answers is in memory.
                clients.wait_answers()
                device.kill()
            # The broker's word that it is gone comes after all that it still sent.
            wait_lost(headquarters, known)
            headquarters.listening = True
    assert clients.wrong == []
    assert clients.unanswered == 0
