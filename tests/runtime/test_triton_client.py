"""A foreign client: NVIDIA's ``tritonclient`` over loopback HTTP with a token, as its own examples use it."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper
from tests.runtime.local_server import LocalServer, local_server
from tests.runtime.model_zoo import ZooModel, digit_images, digits, logarithm, onnx_bytes
from tests.runtime.worker_harness import ask, connect
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec
from skerry_runtime.worker.engines import DTYPES

TOKEN = "s3cret"


def bearer() -> dict[str, str]:
    """New each time: the client adds headers of one request to the dictionary that it is given."""
    return {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with local_server(tmp_path_factory.mktemp("triton"), digits(), token=TOKEN) as running:
        yield running


@pytest.fixture
def client(server: LocalServer) -> Iterator[Any]:
    with client_of(server.tcp) as opened:
        yield opened


def client_of(listener: socket.socket) -> Any:
    host, port = listener.getsockname()
    return triton.InferenceServerClient(f"{host}:{port}")


def given(name: str, array: np.ndarray, *, binary: bool) -> Any:
    tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def expected(server: LocalServer, images: np.ndarray) -> np.ndarray:
    return server.inference.model.run({"image": images})[0]["probabilities"]


def test_health_and_metadata(client: Any, server: LocalServer) -> None:
    assert client.is_server_live(headers=bearer())
    assert client.is_server_ready(headers=bearer())
    assert client.is_model_ready("digits", headers=bearer())
    assert client.is_model_ready("digits", "1.0.0", headers=bearer())
    assert not client.is_model_ready("digits", "9", headers=bearer())
    assert not client.is_model_ready("other", headers=bearer())
    about = client.get_server_metadata(headers=bearer())
    assert (about["name"], about["extensions"]) == ("skerry", ["binary_tensor_data"])
    found = client.get_model_metadata("digits", headers=bearer())
    assert found == client.get_model_metadata("digits", "1.0.0", headers=bearer())
    assert (found["name"], found["versions"], found["platform"]) == ("digits", ["1.0.0"], "onnxruntime_onnx")
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert found["outputs"] == [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]}]
    assert found["parameters"]["skerry_digest"] == server.inference.model.generation.bundle


@pytest.mark.parametrize("binary_in", [False, True], ids=["json in", "binary in"])
@pytest.mark.parametrize("binary_out", [None, False, True], ids=["default out", "json out", "binary out"])
def test_infer(client: Any, server: LocalServer, binary_in: bool, binary_out: bool | None) -> None:
    images = digit_images()[0][:7]
    outputs = (
        None if binary_out is None else [triton.InferRequestedOutput("probabilities", binary_data=binary_out)]
    )
    result = client.infer(
        "digits",
        [given("image", images, binary=binary_in)],
        outputs=outputs,
        request_id="seven",
        headers=bearer(),
    )
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("seven", "digits", "1.0.0")
    assert ("data" in result.get_output("probabilities")) == (binary_out is False)
    got = result.as_numpy("probabilities")
    assert (got.dtype, got.shape) == (np.float32, (7, 10))
    np.testing.assert_allclose(got, expected(server, images), rtol=1e-6)


def test_a_version_that_is_served_and_one_that_is_not(client: Any) -> None:
    image = given("image", digit_images()[0][:1], binary=True)
    assert client.infer("digits", [image], model_version="1.0.0", headers=bearer()).get_response()
    with pytest.raises(InferenceServerException, match=r"in version '2\.0\.0' is not served here") as error:
        client.infer("digits", [image], model_version="2.0.0", headers=bearer())
    assert error.value.status() == "404"


def many() -> ZooModel:
    """Two inputs of a kind each, and their sum and difference."""
    element = TensorProto.INT32
    return ZooModel(
        name="sums",
        data=onnx_bytes(
            [
                helper.make_node("Add", ["a", "b"], ["sum"]),
                helper.make_node("Sub", ["a", "b"], ["difference"]),
            ],
            [("a", element, ["n", 3]), ("b", element, ["n", 3])],
            [("sum", element, ["n", 3]), ("difference", element, ["n", 3])],
        ),
        inputs=tuple(TensorSpec(name=name, datatype="INT32", shape=(-1, 3)) for name in "ab"),
        outputs=tuple(
            TensorSpec(name=name, datatype="INT32", shape=(-1, 3)) for name in ("sum", "difference")
        ),
        golden=({"a": np.ones((1, 3), np.int32), "b": np.ones((1, 3), np.int32)},),
        spec=MonitoringSpec(rows=1, features=()),
    )


def test_some_outputs_in_the_order_and_form_that_is_asked_for(tmp_path: Path) -> None:
    a, b = np.array([[1, 2, 3]], np.int32), np.array([[10, 20, 30]], np.int32)
    with local_server(tmp_path, many(), token=TOKEN) as server, client_of(server.tcp) as client:
        inputs = [given("b", b, binary=True), given("a", a, binary=False)]
        one = client.infer(
            "sums", inputs, outputs=[triton.InferRequestedOutput("difference")], headers=bearer()
        )
        assert [output["name"] for output in one.get_response()["outputs"]] == ["difference"]
        np.testing.assert_array_equal(one.as_numpy("difference"), a - b)
        wanted = [
            triton.InferRequestedOutput("difference", binary_data=True),
            triton.InferRequestedOutput("sum", binary_data=False),
        ]
        both = client.infer("sums", inputs, outputs=wanted, headers=bearer())
        assert [output["name"] for output in both.get_response()["outputs"]] == ["difference", "sum"]
        np.testing.assert_array_equal(both.as_numpy("difference"), a - b)
        np.testing.assert_array_equal(both.as_numpy("sum"), a + b)
        every = client.infer("sums", inputs, headers=bearer())
        assert [output["name"] for output in every.get_response()["outputs"]] == ["sum", "difference"]
        with pytest.raises(InferenceServerException, match="the input 'b' is missing"):
            client.infer("sums", inputs[1:], headers=bearer())


def echo(datatype: str) -> ZooModel:
    """Gives what it takes."""
    dtype = DTYPES[datatype]
    element = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    spec: dict[str, Any] = {"datatype": datatype, "shape": (-1, 2)}
    return ZooModel(
        name="echo",
        data=onnx_bytes(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", element, ["n", 2])],
            [("y", element, ["n", 2])],
        ),
        inputs=(TensorSpec(name="x", **spec),),
        outputs=(TensorSpec(name="y", **spec),),
        golden=({"x": np.ones((1, 2), dtype)},),
        spec=MonitoringSpec(rows=1, features=()),
    )


@pytest.mark.parametrize("datatype", ["BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32", "FP64"])
def test_datatypes(tmp_path: Path, datatype: str) -> None:
    dtype = DTYPES[datatype]
    low, high = (0, 1) if dtype.kind in "bf" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.array([[low, high]], dtype)
    forms = (True,) if datatype == "FP16" else (True, False)  # the client sends FP16 as binary data only
    with local_server(tmp_path, echo(datatype), token=TOKEN) as server, client_of(server.tcp) as client:
        for binary in forms:
            outputs = [triton.InferRequestedOutput("y", binary_data=binary)]
            result = client.infer(
                "echo", [given("x", values, binary=binary)], outputs=outputs, headers=bearer()
            )
            got = result.as_numpy("y")
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, values)


BAD: list[tuple[str, str, Callable[[], Any]]] = [
    (
        "400",
        r"has shape \[1, 8, 8\], the model takes \[-1, 1, 8, 8\]",
        lambda: given("image", digit_images()[0][0], binary=True),
    ),
    (
        "400",
        r"has shape \[1, 1, 8, 9\]",
        lambda: given("image", np.zeros((1, 1, 8, 9), np.float32), binary=False),
    ),
    (
        "400",
        "'image' is FP32, not 'FP64'",
        lambda: given("image", digit_images()[0][:1].astype(np.float64), binary=True),
    ),
    (
        "400",
        "the input 'picture' is not one of the model",
        lambda: given("picture", digit_images()[0][:1], binary=True),
    ),
    ("400", "is FP32, not 'BYTES'", lambda: given("image", np.array([[b"text"]], np.object_), binary=True)),
]


@pytest.mark.parametrize(("status", "text", "make"), BAD)
def test_a_wrong_input_is_an_error_that_the_client_can_read(
    client: Any, status: str, text: str, make: Callable[[], Any]
) -> None:
    with pytest.raises(InferenceServerException, match=text) as error:
        client.infer("digits", [make()], headers=bearer())
    assert error.value.status() == status
    image = given("image", digit_images()[0][:1], binary=True)
    assert client.infer("digits", [image], headers=bearer()).as_numpy("probabilities").shape == (1, 10)


def test_what_this_server_has_not_is_said_so(client: Any) -> None:
    image = given("image", digit_images()[0][:1], binary=True)
    classes = triton.InferRequestedOutput("probabilities", class_count=3)
    with pytest.raises(InferenceServerException, match="'classification' belongs to an extension"):
        client.infer("digits", [image], outputs=[classes], headers=bearer())
    with pytest.raises(InferenceServerException, match="'sequence_id' belongs to an extension"):
        client.infer("digits", [image], sequence_id=7, sequence_start=True, headers=bearer())
    with pytest.raises(InferenceServerException, match="without a content coding") as error:
        client.infer("digits", [image], request_compression_algorithm="gzip", headers=bearer())
    assert error.value.status() == "415"
    with pytest.raises(InferenceServerException, match="there is nothing at /v2/models/digits/config"):
        client.get_model_config("digits", headers=bearer())
    with pytest.raises(InferenceServerException, match="there is nothing at /v2/repository/index"):
        client.get_model_repository_index(headers=bearer())


def test_a_compressed_answer_may_be_asked_for_and_need_not_come(client: Any, server: LocalServer) -> None:
    images = digit_images()[0][:2]
    result = client.infer(
        "digits",
        [given("image", images, binary=True)],
        response_compression_algorithm="gzip",
        headers=bearer(),
    )
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected(server, images))


def test_own_parameters_priority_and_timeout_are_taken(client: Any) -> None:
    image = given("image", digit_images()[0][:1], binary=True)
    result = client.infer(
        "digits", [image], priority=3, timeout=5_000_000, parameters={"camera": "door"}, headers=bearer()
    )
    assert result.as_numpy("probabilities").shape == (1, 10)


def test_without_the_token_the_client_reads_why(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="the bearer token is missing or wrong") as error:
        client.get_server_metadata()
    assert error.value.status() == "401"
    assert not client.is_server_live()


def test_an_input_without_a_finite_answer(tmp_path: Path) -> None:
    with local_server(tmp_path, logarithm(), token=TOKEN) as server, client_of(server.tcp) as client:
        nothing = given("x", np.array([[np.nan, 1]], np.float32), binary=True)
        with pytest.raises(InferenceServerException, match="NaN or infinity in the input") as error:
            client.infer("logarithm", [nothing], headers=bearer())
        assert error.value.status() == "400"


def test_raw_bytes_of_the_one_input_without_json(client: Any, server: LocalServer) -> None:
    """Triton's raw binary request; the client makes no such request itself, but can read the answer."""
    images = digit_images()[0][:3]
    plain = connect(server.tcp)
    plain.request(
        "POST",
        "/v2/models/digits/infer",
        images.tobytes(),
        {**bearer(), "Inference-Header-Content-Length": "0"},
    )
    response = plain.getresponse()
    length = response.headers["Inference-Header-Content-Length"]
    result = client.parse_response_body(response.read(), header_length=int(length))
    np.testing.assert_array_equal(result.as_numpy("probabilities"), expected(server, images))
    for size in (0, 5, images[0].nbytes + 4):
        status, answer, _ = ask(
            plain,
            "POST",
            "/v2/models/digits/infer",
            bytes(size),
            {**bearer(), "Inference-Header-Content-Length": "0"},
        )
        assert (status, answer["error"][:17]) == (400, "the input 'image'")
    plain.close()
