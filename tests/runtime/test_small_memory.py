"""The whole daemon with a small model lives in 64 MB: installs, serves, reports, and starts again."""

from __future__ import annotations

import json
from pathlib import Path

from tests.runtime.agent_world import QUICK, Broker, Device, Headquarters, make_bundle, running
from tests.runtime.memory_group import MemoryGroup, forget_files
from tests.runtime.test_several_models import ask, wait_answers
from tests.runtime.model_zoo import digits
from tests.waiting import wait_until

from skerry_contract.limits import MIB
from skerry_contract.signing import EcdsaSigner
from skerry_contract.topics import Up

LIMIT = 64 * MIB
REQUESTS = 120


def test_the_whole_daemon_runs_in_64_mb(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    model = digits()
    made = make_bundle(signer, model=model)
    headquarters.publish_bundle(made)
    with MemoryGroup(LIMIT) as group:
        forget_files()
        device = Device(tmp_path, signer, broker, headquarters, tracer=group.entering)
        with running(device):
            headquarters.desire(made, probation=QUICK)
            device.wait_state("confirmed", "1.0.0", model.name)
            for _ in range(REQUESTS):
                ask(device, model)
            wait_until(
                lambda: device.model(model.name)["health"]["requests"] >= REQUESTS, "the worker's report"
            )
            assert device.ask("close_windows") == {"windows": 1}
            wait_until(lambda: any(channel is Up.TELEMETRY for channel, *_ in headquarters.messages), "the window")
            assert len(group.processes()) >= 2
            assert group.oom_kills == 0, group.report()
            assert device.stop() == 0
            forget_files()
            device.start()
            wait_answers(device, model)
            for _ in range(REQUESTS):
                ask(device, model)
            assert group.oom_kills == 0, group.report()
            (tmp_path / "memory.txt").write_text(group.report() + "\n")
            assert "oom" not in device.log.read_text().lower()
        assert json.loads((device.data / "models" / model.name / "state" / "memory").read_text())["peak_bytes"]
