"""Bundles and requests that lie about tensors (attacks M12 to M14) are refused; what is good answers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.runtime.agent_world import QUICK, Device, Hammer, Headquarters, UnixConnection, make_bundle
from tests.runtime.model_zoo import Arrays, ZooModel, digits
from tests.waiting import wait_until

from skerry_contract import summary
from skerry_contract.digests import hex_of
from skerry_contract.manifest import TensorSpec
from skerry_contract.messages import DeviceSettings
from skerry_contract.signing import EcdsaSigner

pytestmark = pytest.mark.attack
ANSWERS: tuple[Arrays, ...] = tuple({"probabilities": np.full((1, 10), 0.1, np.float32)} for _ in range(5))


@pytest.fixture
def confirmed(device: Device, headquarters: Headquarters, signer: EcdsaSigner) -> Device:
    """A device where 1.0.0 is confirmed."""
    made = make_bundle(signer)
    headquarters.publish_bundle(made)
    headquarters.desire(made, probation=QUICK, settings=DeviceSettings(window_seconds=3600.0))
    device.wait_state("confirmed", "1.0.0")
    return device


def with_input(**changes: Any) -> ZooModel:
    spec = replace(digits().inputs[0], **changes)
    golden = tuple({spec.name: np.zeros([max(1, size) for size in spec.shape], np.float32)} for _ in range(5))
    return replace(digits(), inputs=(spec,), golden=golden)


LIES = {
    "another type": with_input(datatype="INT64"),
    "another shape": with_input(shape=(-1, 1, 8, 9)),
    "another rank": with_input(shape=(-1, 64)),
    "one input more": replace(
        digits(),
        inputs=(*digits().inputs, TensorSpec(name="more", datatype="FP32", shape=(1,))),
        golden=tuple({**sample, "more": np.zeros(1, np.float32)} for sample in digits().golden),
    ),
}


def test_m12_a_model_that_differs_from_its_manifest_is_refused(
    confirmed: Device, headquarters: Headquarters, signer: EcdsaSigner
) -> None:
    refused = {}
    with Hammer(confirmed.data / "run" / "skerry.sock") as hammer:
        for release, (lie, model) in enumerate(LIES.items(), start=2):
            version = f"{release}.0.0"
            wrong = make_bundle(signer, version=version, release=release, model=model, answers=ANSWERS)
            headquarters.publish_bundle(wrong)
            headquarters.desire(wrong, probation=QUICK)
            error = confirmed.wait_state("rejected", version)["error"]
            assert (error["code"], "manifest" in error["message"]) == ("selftest", True), lie
            assert confirmed.quarantined(wrong)
            refused[wrong.digest] = "selftest"
        wait_until(lambda: hammer.answers.get("1.0.0", 0) > 5, "answers")
    assert (hammer.failures, set(hammer.answers)) == ([], {"1.0.0"})
    assert len(list((confirmed.data / "models" / "digits" / "gens").iterdir())) == 1
    stored = {path.name for path in (confirmed.data / "store").iterdir()}
    assert not stored & {hex_of(digest) for digest in refused}

    def told() -> bool:
        events = [event for event in headquarters.events() if event["kind"] == "update.rejected"]
        return {event["digest"]: event["error"]["code"] for event in events} == refused

    wait_until(told, "the audit events")


def image(data: Any, shape: Any = (1, 1, 8, 8), datatype: str = "FP32") -> bytes:
    tensor = {"name": "image", "shape": list(shape), "datatype": datatype, "data": data}
    return json.dumps({"inputs": [tensor]}).encode()


def binary(values: np.ndarray, shape: Any = (1, 1, 8, 8)) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "image",
        "shape": list(shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": values.nbytes},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return head + values.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def post(device: Device, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    connection = UnixConnection(device.data / "run" / "skerry.sock")
    try:
        connection.request("POST", "/v2/models/digits/infer", body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def errors_told(headquarters: Headquarters) -> int:
    rows = {frame.first: frame.body for frame in list(headquarters.frames)}
    return sum(
        summary.decode(body).errors for body in rows.values() if body[: len(summary.MAGIC)] == summary.MAGIC
    )


def test_m13_numbers_that_are_none_are_refused_or_flagged_and_counted_and_disturb_nobody(
    confirmed: Device, headquarters: Headquarters
) -> None:
    worker = confirmed.model()["active"]["pid"]
    with Hammer(confirmed.data / "run" / "skerry.sock") as hammer:
        for value in (np.nan, np.inf, -np.inf):
            status, answer = post(confirmed, *binary(np.full(64, value, np.float32)))
            assert (status, bool(answer["error"])) == (400, True)
        status, answer = post(confirmed, *binary(np.full(64, 3.4e38, np.float32)))
        # The sums overflow: an answer is finite, or there is none.
        assert status in (400, 500) or np.isfinite(answer["outputs"][0]["data"]).all()
        wait_until(lambda: hammer.answers.get("1.0.0", 0) > 5, "answers")
    assert hammer.failures == []
    assert confirmed.model()["active"]["pid"] == worker
    assert confirmed.model()["state"] == "confirmed"
    confirmed.ask("close_windows")
    wait_until(lambda: errors_told(headquarters) >= 3, "the count at the fleet")


def test_m14_tensors_of_the_wrong_type_or_size_are_refused_without_room_for_them(confirmed: Device) -> None:
    worker = confirmed.model()["active"]["pid"]
    before = confirmed.model()["health"]["failures"]
    bad = [
        image([0.5] * 64, datatype="FP64"),
        image([], shape=(0, 1, 8, 8)),
        image([0.5] * 64, shape=(2**31, 1, 8, 8)),
        image([0.5] * 64, shape=(2**62, 1, 8, 8)),
        image([0.5] * 63),
        image("x" * 64),
    ]
    with Hammer(confirmed.data / "run" / "skerry.sock") as hammer:
        for body in bad:
            status, answer = post(confirmed, body)
            assert (status, bool(answer["error"])) == (400, True), answer
        body, headers = binary(np.zeros(64, np.float32), shape=(2**40, 1, 8, 8))
        assert post(confirmed, body, headers)[0] == 400
        wait_until(lambda: hammer.answers.get("1.0.0", 0) > 5, "answers")
    assert hammer.failures == []
    model = confirmed.model()
    assert (model["active"]["pid"], model["state"]) == (worker, "confirmed")
    # The client's fault, not the model's.
    assert model["health"]["failures"] == before
