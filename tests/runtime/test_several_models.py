"""Several models share the memory of a device: all that fit answer, and the others are told, not killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.agent_world import (
    QUICK,
    Broker,
    Device,
    Headquarters,
    Made,
    UnixConnection,
    make_bundle,
    running,
)
from tests.runtime.model_zoo import ZooModel, digits
from tests.runtime.real_zoo import file_types, text_direction
from tests.waiting import wait_until

from skerry_contract.digests import hex_of
from skerry_contract.errors import IncompatibleError, MemoryBudgetError
from skerry_contract.limits import MIB
from skerry_contract.manifest import Requirements
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.room import resident

MODELS: Sequence[ZooModel] = (digits(), file_types(), text_direction())
"""In the order in which they are installed: the first has the configured addresses."""
_TYPES = {"FP32": np.float32, "INT32": np.int32}


@pytest.fixture
def bundles(signer: EcdsaSigner) -> list[Made]:
    return [make_bundle(signer, model=model) for model in MODELS]


@pytest.fixture
def device(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters, bundles: list[Made]
) -> Iterator[Device]:
    """A device where all three are confirmed; without a limit."""
    with running(Device(tmp_path, signer, broker, headquarters)) as up:
        for count in range(1, len(bundles) + 1):
            headquarters.publish_bundle(bundles[count - 1])
            headquarters.desire(*bundles[:count], probation=QUICK)
            up.wait_state("confirmed", "1.0.0", MODELS[count - 1].name)
        yield up


def ask(device: Device, model: ZooModel) -> None:
    """The golden input over the model's own socket; the answer must have its outputs."""
    (sample,) = model.golden[:1]
    body = {
        "inputs": [
            {
                "name": spec.name,
                "shape": list(sample[spec.name].shape),
                "datatype": spec.datatype,
                "data": sample[spec.name].ravel().tolist(),
            }
            for spec in model.inputs
        ]
    }
    connection = UnixConnection(Path(device.model(model.name)["socket"]))
    try:
        connection.request("POST", f"/v2/models/{model.name}/infer", json.dumps(body))
        answer = connection.getresponse()
        found = json.loads(answer.read())
    finally:
        connection.close()
    assert answer.status == 200, found
    assert [output["name"] for output in found["outputs"]] == [spec.name for spec in model.outputs]


def wait_answers(device: Device, model: ZooModel) -> None:
    wait_until(lambda: (device.model(model.name)["active"] or {}).get("pid"), f"{model.name} answers")


def peak(device: Device, model: ZooModel) -> int:
    """What the device remembers of it."""
    kept = json.loads((device.data / "models" / model.name / "state" / "memory").read_text())
    return int(kept["peak_bytes"])


def restart(device: Device, ram_bytes: int = 0) -> None:
    """With another limit; 0 is none."""
    if device.process is not None and device.process.poll() is None:
        assert device.stop() == 0
    device.extra = f"[budgets]\nram_mb = {ram_bytes / MIB:.3f}\n" if ram_bytes else ""
    device.start()


def waiting(device: Device) -> set[str]:
    """Names of the models that the newest start left out."""
    newest = device.log.read_text().rpartition("stopping: answers in flight")[2].splitlines()
    lines = [line for line in newest if "kind=model.waits" in line]
    return {model.name for model in MODELS if any(f"model={model.name} " in line + " " for line in lines)}


def test_three_real_models_answer_side_by_side_and_share_what_they_can(device: Device) -> None:
    for model in MODELS:
        ask(device, model)
    pids = [device.model(model.name)["active"]["pid"] for model in MODELS]
    assert len(set(pids)) == 3
    together = [resident(pid) for pid in pids]
    assert sum(one.pss for one in together) < sum(one.rss for one in together)


def test_one_too_many_is_refused_with_the_numbers_and_the_others_answer_on(
    tmp_path: Path, signer: EcdsaSigner, bundles: list[Made]
) -> None:
    device = Device(tmp_path, signer)
    files = [bundle.write(tmp_path) for bundle in bundles]
    with running(device):
        for file in files[:2]:
            device.install(file)
        two = sum(resident(device.model(model.name)["active"]["pid"]).pss for model in MODELS[:2])
        restart(device, two + 30 * MIB)
        for model in MODELS[:2]:
            wait_answers(device, model)
            ask(device, model)
        with pytest.raises(MemoryBudgetError) as refused:
            device.install(files[2])
        assert "textline takes" in str(refused.value)
        assert "digits" in str(refused.value)
        assert "raise budgets.ram_mb" in refused.value.hint
        for model in MODELS[:2]:
            ask(device, model)
        # It is the device that is small, not the bundle that is bad.
        assert not device.quarantined(bundles[2])
        restart(device)
        device.install(files[2])
        for model in MODELS:
            wait_answers(device, model)
            ask(device, model)


def test_a_bundle_that_says_what_it_needs_is_refused_before_anything_is_started(
    tmp_path: Path, signer: EcdsaSigner, bundles: list[Made]
) -> None:
    """Its need fits into the device's limit, and not into what the other model leaves of it."""
    device = Device(tmp_path, signer, extra="[budgets]\nram_mb = 200\n")
    variants = tuple(
        replace(variant, requires=Requirements(ram_bytes=190 * MIB)) for variant in bundles[1].manifest.variants
    )
    demanding = make_bundle(signer, model=MODELS[1], variants=variants)
    with running(device):
        device.install(bundles[0].write(tmp_path))
        with pytest.raises(IncompatibleError, match="190 MiB of memory"):
            device.install(demanding.write(tmp_path))
        assert MODELS[1].name not in device.status()["models"]
        ask(device, MODELS[0])


def test_with_too_little_memory_the_first_model_starts_and_the_others_wait_and_say_so(device: Device) -> None:
    assert device.stop() == 0
    restart(device, peak(device, MODELS[0]) + 10 * MIB)
    wait_answers(device, MODELS[0])
    ask(device, MODELS[0])
    for model in MODELS[1:]:
        told = device.model(model.name)
        assert told["active"] is None
        assert told["state"] == "confirmed"
        assert told["trouble"]["code"] == "budget.memory"
        assert "MiB" in told["trouble"]["message"]
        with pytest.raises(OSError, match=r"No such file|refused"):
            ask(device, model)
    assert waiting(device) == {model.name for model in MODELS[1:]}
    restart(device)
    for model in MODELS:
        wait_answers(device, model)
        ask(device, model)


def test_who_was_asked_last_starts_and_the_next_one_when_memory_is_free(
    device: Device, headquarters: Headquarters, bundles: list[Made]
) -> None:
    headquarters.serving_blocks = False
    first, second, third = MODELS[0], MODELS[2], MODELS[1]
    for model in (third, second):
        ask(device, model)
        wait_until(lambda model=model: device.model(model.name)["health"]["requests"], "its report")
    assert device.stop() == 0
    restart(device, peak(device, first) + peak(device, second) + 2 * MIB)
    for model in (first, second):
        wait_answers(device, model)
        ask(device, model)
    assert waiting(device) == {third.name}
    # The second one's file rots, so it cannot be started again, and leaves its memory.
    blob = device.data / "store" / hex_of(bundles[2].manifest.variants[0].model.digest)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    os.kill(device.model(second.name)["active"]["pid"], signal.SIGKILL)
    wait_answers(device, third)
    ask(device, third)
    assert device.model(third.name)["trouble"] is None
