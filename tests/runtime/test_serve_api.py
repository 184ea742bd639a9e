"""The Open Inference Protocol v2 over both sockets: what a well-behaved client sees."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.runtime.local_server import LocalServer, local_server
from tests.runtime.model_zoo import ZooModel, digit_images, digits, onnx_bytes
from tests.runtime.worker_harness import ask, connect, json_request
from tests.waiting import wait_until

from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec
from skerry_runtime.worker.engines import DTYPES

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with local_server(tmp_path_factory.mktemp("serve"), digits()) as running:
        yield running


@pytest.fixture(params=["unix", "tcp"])
def client(server: LocalServer, request: pytest.FixtureRequest) -> Iterator[http.client.HTTPConnection]:
    connection = connect(getattr(server, request.param))
    yield connection
    connection.close()


def digest(server: LocalServer) -> str:
    return server.inference.model.generation.bundle


def test_server_and_health(client: http.client.HTTPConnection) -> None:
    status, body, _ = ask(client, "GET", "/v2")
    assert (status, body["name"], body["extensions"]) == (200, "skerry", ["binary_tensor_data"])
    assert ask(client, "GET", "/v2/health/live")[:2] == (200, {"live": True})
    assert ask(client, "GET", "/v2/health/ready")[:2] == (200, {"ready": True})
    assert ask(client, "GET", "/v2/models/digits/ready")[:2] == (200, {"name": "digits", "ready": True})


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/1.0.0"])
def test_metadata(client: http.client.HTTPConnection, server: LocalServer, path: str) -> None:
    status, body, headers = ask(client, "GET", path)
    assert status == 200
    assert body["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert body["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
    assert (body["versions"], body["platform"]) == (["1.0.0"], "onnxruntime_onnx")
    assert headers["X-Skerry-Digest"] == digest(server)


@pytest.mark.parametrize("nested", [False, True])
def test_json_tensors(client: http.client.HTTPConnection, server: LocalServer, nested: bool) -> None:
    images, labels = digit_images()
    body = json_request(image=images[:20])
    if nested:
        body["inputs"][0]["data"] = images[:20].tolist()
    status, answer, headers = ask(client, "POST", INFER, {**body, "id": "request-7"})
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1.0.0", "request-7")
    assert answer["parameters"]["skerry_digest"] == headers["X-Skerry-Digest"] == digest(server)
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("probabilities", "FP32", [20, 10])
    predicted = np.array(output["data"]).reshape(20, 10).argmax(axis=1)
    assert (predicted == labels[:20]).mean() >= 0.9


def binary_request(images: np.ndarray, **request: Any) -> tuple[bytes, dict[str, str]]:
    tensor = {
        "name": "image",
        "shape": list(images.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": images.nbytes},
    }
    head = json.dumps({"inputs": [tensor], **request}).encode()
    return head + images.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


@pytest.mark.parametrize(
    "request_part",
    [
        {"parameters": {"binary_data_output": True}},
        {"outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}]},
    ],
)
def test_binary_tensors(
    client: http.client.HTTPConnection, server: LocalServer, request_part: dict[str, Any]
) -> None:
    images, _ = digit_images()
    body, headers = binary_request(images[:3], **request_part)
    client.request("POST", INFER, body, headers)
    response = client.getresponse()
    data = response.read()
    assert response.status == 200
    assert response.headers["Content-Type"] == "application/octet-stream"
    length = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(data[:length])["outputs"]
    assert output["parameters"]["binary_data_size"] == len(data) - length == 3 * 10 * 4
    got = np.frombuffer(data[length:], np.float32).reshape(output["shape"])
    wanted, _ = server.inference.model.run({"image": images[:3]})
    np.testing.assert_array_equal(got, wanted["probabilities"])


def test_binary_in_and_json_out(client: http.client.HTTPConnection) -> None:
    body, headers = binary_request(digit_images()[0][:1])
    status, answer, _ = ask(client, "POST", INFER, body, headers)
    assert status == 200
    assert len(answer["outputs"][0]["data"]) == 10


def test_a_connection_serves_many_requests(client: http.client.HTTPConnection) -> None:
    client.connect()
    own = client.sock
    for image in digit_images()[0][:50]:
        assert ask(client, "POST", INFER, json_request(image=image[None]))[0] == 200
    assert client.sock is own


def test_every_row_is_counted_after_its_answer(
    server: LocalServer, client: http.client.HTTPConnection
) -> None:
    wait_until(lambda: not server.http.in_flight, "the end of earlier requests")
    server.observer.close_window()
    server.observer.take()
    before = server.observer.totals().requests
    for rows in (1, 5, 300):
        assert ask(client, "POST", INFER, json_request(image=digit_images()[0][:rows]))[0] == 200
    wait_until(lambda: server.observer.totals().requests == before + 3, "three counted requests")
    server.observer.close_window()
    (window,) = server.observer.take()
    assert window.rows == 306
    assert window.prediction is not None
    assert sum(window.prediction.counts) == sum(window.prediction.scores) == 306
    assert [sum(feature.counts) for feature in window.features] == [306] * 3
    assert sum(window.health.latency) == 3
    assert server.observer.latency_p95_us() > 0


REFUSED: list[tuple[str, str, Any, int]] = [
    ("GET", "/", None, 404),
    ("GET", "/v3", None, 404),
    ("GET", "/v2/models/other", None, 404),
    ("GET", "/v2/models/digits/versions/2.0.0", None, 404),
    ("POST", "/v2/models/digits/explain", {}, 404),
    ("GET", INFER, None, 405),
    ("DELETE", "/v2/models/digits", None, 405),
    ("POST", INFER, b"not json", 400),
    ("POST", INFER, {}, 400),
    ("POST", INFER, {"inputs": []}, 400),
    ("POST", INFER, b"", 400),
]


@pytest.mark.parametrize(("method", "path", "body", "wanted"), REFUSED)
def test_refusals_say_why_and_keep_the_connection(
    client: http.client.HTTPConnection, server: LocalServer, method: str, path: str, body: Any, wanted: int
) -> None:
    status, answer, headers = ask(client, method, path, body)
    assert status == wanted
    assert answer["error"]
    assert headers["X-Skerry-Digest"] == digest(server)
    assert ask(client, "GET", "/v2/health/live")[0] == 200


def test_a_405_names_what_is_allowed(client: http.client.HTTPConnection) -> None:
    assert ask(client, "PUT", INFER)[2]["Allow"] == "POST"


@pytest.mark.parametrize("parameter", ["shared_memory_region", "classification", "sequence_id"])
def test_extensions_that_are_not_here_are_refused(client: http.client.HTTPConnection, parameter: str) -> None:
    body = json_request(image=digit_images()[0][:1])
    body["inputs"][0]["parameters"] = {parameter: 3}
    status, answer, _ = ask(client, "POST", INFER, body)
    assert (status, parameter in answer["error"]) == (400, True)


NAMES = [name for name in DTYPES if name not in ("UINT16", "UINT32", "UINT64", "INT16")]


@pytest.mark.parametrize("datatype", NAMES)
def test_every_datatype_goes_through_unchanged(datatype: str, tmp_path: Path) -> None:
    dtype = DTYPES[datatype]
    import onnx

    element = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    values = np.array([[0, 1, 1]], dtype) if datatype == "BOOL" else np.array([[0, 1, 100]], dtype)
    model = ZooModel(
        name="echo",
        data=onnx_bytes(
            [onnx.helper.make_node("Identity", ["x"], ["y"])],
            [("x", element, ["n", 3])],
            [("y", element, ["n", 3])],
        ),
        inputs=(TensorSpec(name="x", datatype=datatype, shape=(-1, 3)),),
        outputs=(TensorSpec(name="y", datatype=datatype, shape=(-1, 3)),),
        golden=({"x": values},),
        spec=MonitoringSpec(rows=1, features=()),
    )
    tensor: dict[str, Any] = {"name": "x", "datatype": datatype, "shape": [1, 3]}
    with local_server(tmp_path, model) as server:
        client = connect(server.unix)
        status, answer, _ = ask(
            client, "POST", "/v2/models/echo/infer", {"inputs": [{**tensor, "data": values.tolist()}]}
        )
        assert (status, answer["outputs"][0]["data"]) == (200, values.ravel().tolist())
        head = json.dumps(
            {"inputs": [{**tensor, "parameters": {"binary_data_size": values.nbytes}}]}
        ).encode()
        status, answer, _ = ask(
            client,
            "POST",
            "/v2/models/echo/infer",
            head + values.tobytes(),
            {"Inference-Header-Content-Length": str(len(head))},
        )
        assert (status, answer["outputs"][0]["data"]) == (200, values.ravel().tolist())
        client.close()
