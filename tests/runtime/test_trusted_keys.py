"""A key of the configuration that is none is found soon after the start, and stops nothing that serves."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.runtime.agent_world import Device, make_bundle, running
from tests.waiting import wait_until

from skerry_contract.signing import EcdsaSigner
from skerry_runtime.cli_status import describe


class Mistyped(Device):
    """Its second engineer's key has the right first and last line, and rubbish between."""

    def write_config(self) -> Path:
        path = super().write_config()
        if self.broken:
            good = self.engineer.verifier.pem.decode()
            bad = good.replace(good.splitlines()[1], "bm90IGEga2V5")
            path.write_text(path.read_text().replace("engineers = [", f'engineers = ["""{bad}""", '))
        return path

    broken = False


@pytest.fixture
def mistyped(tmp_path: Path, signer: EcdsaSigner) -> Device:
    device = Mistyped(tmp_path, signer)
    with running(device):
        device.install(make_bundle(signer).write(tmp_path))
        assert device.status()["trust"]["problems"] == {}
    device.broken = True
    return device


def test_a_broken_key_is_told_while_the_model_answers(mistyped: Device) -> None:
    with running(mistyped):
        assert mistyped.infer()["model_version"] == "1.0.0"
        wait_until(lambda: mistyped.status()["trust"]["checked"], "the check of the keys")
        trust = mistyped.status()["trust"]
        assert trust["keys"] == ["trust.engineers[0]", "trust.engineers[1]"]
        assert list(trust["problems"]) == ["trust.engineers[0]"]
        said = mistyped.log.read_text()
        assert "trust.engineers[0] is not a public key in PEM" in said
        assert "Paste the text of the .pub file" in said
        assert "keys     trust.engineers[0] is not a public key" in describe(mistyped.status())
        assert mistyped.infer()["model_version"] == "1.0.0"
