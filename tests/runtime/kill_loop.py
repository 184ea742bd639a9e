"""``kill -9`` of agent, zygote and worker in a loop under load and under updates.

Guarantees that are checked: every client is answered in the end, with what the version that answers must say;
after each kill the service answers again; no telemetry row that was stored is lost, none comes twice; no
process outlives its parent, no descriptor is lost, the sockets are where they belong.

    python -m tests.runtime.kill_loop --kills 200
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from tests.builders import new_signer
from tests.runtime.agent_world import QUICK, Broker, Device, Headquarters, Made, make_bundle, running
from tests.runtime.ledger import check_ledger, settle
from tests.runtime.model_zoo import ZooModel, digits
from tests.runtime.stubborn_clients import StubbornClients, right_answer
from tests.waiting import wait_until

from skerry_contract.messages import DeviceSettings

TARGETS = ("worker", "zygote", "agent")
KILLS_PER_UPDATE = 2
SMALL_WINDOWS = DeviceSettings(window_seconds=3600.0, window_rows=20)


@dataclass(slots=True)
class Tally:
    """What was done and seen."""

    kills: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    """States of the update at the moments of the kills."""
    answers: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    """Telemetry rows that headquarters committed."""

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {target}" for target, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kills}) in the states {dict(self.states)}; {self.answers.total()} "
            f"right answers of {len(self.answers)} versions; attempts that failed: {dict(self.failed)}; "
            f"{self.rows} rows of telemetry, none lost, none twice"
        )


def mirrored() -> ZooModel:
    """A digit reader that calls 0 a 9, 1 an 8, and so on."""
    model = onnx.load_from_string(digits().data)
    for tensor in model.graph.initializer:
        flipped = np.flip(numpy_helper.to_array(tensor), axis=-1)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(flipped), tensor.name))
    return replace(digits(), data=model.SerializeToString())


class KillLoop:
    """One device of a fleet, its clients, and who kills."""

    def __init__(self, folder: Path, headquarters: Headquarters, broker: Broker, seed: int) -> None:
        self._engineer = new_signer()
        self._headquarters = headquarters
        self._mark = f"SKERRY_KILL_LOOP={os.urandom(8).hex()}"
        self.device = Device(folder, self._engineer, broker, headquarters, tracer=("env", self._mark))
        self._chance = random.Random(seed)
        self._releases = itertools.count(1)
        self._right = {"plain": right_answer(digits(), 1), "mirrored": right_answer(mirrored(), 1)}
        self.clients = StubbornClients(self.device.data / "run" / "skerry.sock", {}, clients=2)
        self._baseline = 0
        self.tally = Tally()

    def run(self, kills: int) -> Tally:
        """Raises `AssertionError` at the first guarantee that does not hold."""
        with running(self.device):
            self.order()
            self.device.wait_state("confirmed", "1.0.0")
            self._note_descriptors()
            with self.clients:
                for number in range(kills):
                    if number % KILLS_PER_UPDATE == 0:
                        self.order()
                    self.kill(TARGETS[number % len(TARGETS)])
                self.clients.wait_answers()
            self._check_clients()
            self._check_device()
            self.device.stop()
        self._check_nothing_is_left()
        return self.tally

    def order(self) -> Made:
        """The next release; two models in turn, so that an answer tells which model gave it."""
        number = next(self._releases)
        kind = "mirrored" if number % 2 else "plain"
        model = mirrored() if kind == "mirrored" else digits()
        made = make_bundle(self._engineer, version=f"{number}.0.0", release=number, model=model)
        self.clients.right[made.manifest.version] = self._right[kind]
        self._headquarters.publish_bundle(made)
        self._headquarters.desire(made, probation=QUICK, settings=SMALL_WINDOWS)
        return made

    def kill(self, target: str) -> None:
        """At a random moment; then wait until clients are answered again."""
        # A number of answers and not of seconds: on a slow machine the update is slow, too.
        self.clients.wait_answers(self._chance.randrange(1, 80))
        self.tally.states[self.device.model()["state"]] += 1
        self.tally.kills[target] += 1
        if target == "agent":
            self._check_descriptors()
            self.device.kill()
            self.device.start()
            self._note_descriptors()
        else:
            os.kill(self._victim(target), signal.SIGKILL)
        self.clients.wait_answers()

    def _victim(self, target: str) -> int:
        def pid() -> int | None:
            status = self.device.status()
            active = status["models"]["digits"]["active"]
            # A zygote that has retired has left its place to the worker.
            found: int | None = (target == "zygote" and status["zygote_pid"]) or (active and active["pid"])
            return found

        return wait_until(pid, f"the {target}")

    # --- what must hold ---------------------------------------------------------------------------

    def _note_descriptors(self) -> None:
        self._settle()
        self._baseline = self._descriptors()

    def _check_descriptors(self) -> None:
        """As few as at the start of this agent."""
        self._settle()
        wait_until(lambda: self._descriptors() <= self._baseline, f"{self._baseline} descriptors again")

    def _settle(self) -> None:
        """One worker answers, and nothing else goes on."""

        def settled() -> bool:
            model = self.device.model()
            quiet = model["state"] in ("idle", "confirmed", "rolled_back", "rejected")
            return bool(quiet and model["active"] and len(self.device.workers("serve")) == 1)

        wait_until(settled, "quiet")
        wait_until(lambda: self.device.status()["fleet"]["state"] == "connected", "the fleet")

    def _descriptors(self) -> int:
        assert self.device.process is not None
        return len(os.listdir(f"/proc/{self.device.process.pid}/fd"))

    def _check_clients(self) -> None:
        clients = self.clients
        self.tally.answers, self.tally.failed = clients.answers, clients.failed
        assert clients.wrong == []
        assert clients.unanswered == 0
        # Whoever was being answered at a kill was cut off; between agents nobody listens. Nothing else.
        assert not [what for what in clients.failed if what.isdigit()], clients.failed

    def _check_device(self) -> None:
        self._check_descriptors()
        self.device.ask("close_windows")
        settle(self.device, self._headquarters)
        outbox = self.device.status()["outbox"]
        assert (outbox["gaps"], outbox["lost"], outbox["error"]) == (0, 0, "")
        self.tally.rows = check_ledger(self._headquarters, outbox["stream"])
        run = self.device.data / "run"
        modes = {path.name: oct(path.stat().st_mode & 0o777) for path in run.iterdir()}
        assert modes == {"agent.sock": "0o600", "skerry.sock": "0o660"}
        assert set(self.device.data.glob("outbox.db*")) <= {
            self.device.data / f"outbox.db{end}" for end in ("", "-wal", "-shm")
        }

    def _check_nothing_is_left(self) -> None:
        assert not list((self.device.data / "run").iterdir())
        wait_until(lambda: not list(self._processes()), "the end of all its processes")

    def _processes(self) -> Iterator[int]:
        """Whatever has the mark in its environment: the agents and all that they ever started."""
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if self._mark.encode() in path.read_bytes().split(b"\0"):
                    yield int(path.parent.name)


def kill_loop(folder: Path, kills: int, seed: int = 1) -> Tally:
    """Run it with a broker and a headquarters of its own."""
    broker = Broker(folder)
    broker.start()
    try:
        headquarters = Headquarters(broker)
        try:
            return KillLoop(folder, headquarters, broker, seed).run(kills)
        finally:
            headquarters.close()
    finally:
        broker.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="kill -9 of agent, zygote and worker in a loop, under load")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="kill-loop-") as folder:
        print(kill_loop(Path(folder), arguments.kills, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
