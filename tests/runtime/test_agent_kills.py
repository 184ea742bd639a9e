"""kill -9 of the daemon at any moment of updates: something good answers, no acknowledged row is lost."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from tests.runtime.agent_world import (
    QUICK,
    Broker,
    Device,
    Headquarters,
    Made,
    make_bundle,
    other_digits,
    running,
)
from tests.waiting import wait_until

from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import DeviceSettings
from skerry_contract.signing import EcdsaSigner

KILLS = 10
LONGEST_UPDATE_S = 1.5
"""About what an update takes here; a kill comes at a random moment of it."""


def release(signer: EcdsaSigner, number: int) -> Made:
    """Two models in turn, each time as a new release."""
    model = other_digits(f"training run {number}") if number % 2 else None
    return make_bundle(signer, version=f"{number}.0.0", release=number, model=model)


@pytest.mark.slow
@pytest.mark.attack
def test_l1_the_daemon_is_killed_at_random_moments_of_repeated_installs(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    chance = random.Random(20260118)
    pause = threading.Event()
    small_windows = DeviceSettings(window_seconds=3600.0, window_rows=3)
    device = Device(tmp_path, signer, broker, headquarters)
    with running(device):
        first = release(signer, 1)
        headquarters.publish_bundle(first)
        headquarters.desire(first, probation=QUICK, settings=small_windows)
        device.wait_state("confirmed", "1.0.0")
        good, killed_in = 1, set()
        for number in range(2, KILLS + 2):
            made = release(signer, number)
            headquarters.publish_bundle(made)
            headquarters.desire(made, probation=QUICK, settings=small_windows)
            pause.wait(chance.uniform(0.0, LONGEST_UPDATE_S))
            killed_in.add(device.model()["state"])
            device.kill()
            device.start()
            answers = {device.infer()["model_version"] for _ in range(4)}
            # A trial between may have confirmed meanwhile; what was confirmed never answers less.
            allowed = {f"{each}.0.0" for each in range(good, number + 1)}
            assert answers <= allowed, device.log.read_text()
            # What was killed may have to be ordered anew: by the same order, which the device kept.
            if number % 3 == 0:
                device.wait_state("confirmed", made.manifest.version)
            current = device.model()
            if current["state"] == "confirmed":
                good = int(current["active"]["version"].partition(".")[0])
        assert len(killed_in) >= 2, "the kills came at the same moment of each update"
        device.wait_state("confirmed", f"{KILLS + 1}.0.0")
        assert device.infer()["model_version"] == f"{KILLS + 1}.0.0"
        device.ask("close_windows")
        # The worker closes its windows in its own time: rows may still come between two looks.
        wait_until(lambda: is_settled(device, headquarters), "the last acknowledgement")
        outbox = device.status()["outbox"]
        assert (outbox["gaps"], outbox["lost"], outbox["error"]) == (0, 0, "")
        check_ledger(headquarters, outbox["stream"])
        assert set(device.data.glob("outbox.db*")) <= {
            device.data / f"outbox.db{end}" for end in ("", "-wal", "-shm")
        }


def is_settled(device: Device, headquarters: Headquarters) -> bool:
    """Nothing waits, and both sides name the same last row."""
    outbox = device.status()["outbox"]
    done = {bytes.fromhex(outbox["stream"]): outbox["acknowledged"]}
    return outbox["waiting_rows"] == 0 and headquarters.committed == done


def check_ledger(headquarters: Headquarters, stream: str) -> None:
    """One stream, every row once and the same at each repetition, up to what headquarters committed."""
    rows: dict[int, OutboxFrame] = {}
    for frame in list(headquarters.frames):
        assert frame.stream.hex() == stream, "another stream was begun"
        known = rows.setdefault(frame.first, frame)
        assert (known.last, known.body) == (frame.last, frame.body), "a number was used twice"
    expected = 1
    for first in sorted(rows):
        assert first == expected, f"rows {expected} to {first - 1} are lost"
        expected = rows[first].last + 1
    assert headquarters.committed == {bytes.fromhex(stream): expected - 1}


def test_the_ledger_finds_what_is_lost(headquarters: Headquarters) -> None:
    frames = [_frame(first) for first in range(1, 5)]
    headquarters.frames[:] = [*frames, frames[1]]
    headquarters.committed = {frames[0].stream: 4}
    check_ledger(headquarters, frames[0].stream.hex())
    for wrong, words in {
        (frames[0], frames[2], frames[3]): "rows 2 to 2 are lost",
        (*frames, _frame(2, b"other")): "used twice",
        (*frames, _frame(5, stream=b"t" * 8)): "another stream",
    }.items():
        headquarters.frames[:] = wrong
        with pytest.raises(AssertionError, match=words):
            check_ledger(headquarters, frames[0].stream.hex())


def _frame(first: int, body: bytes = b"row", stream: bytes = b"s" * 8) -> OutboxFrame:
    return OutboxFrame(stream=stream, acked=0, prev=first - 1, first=first, last=first, body=body)
