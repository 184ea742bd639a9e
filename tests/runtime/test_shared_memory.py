"""Shared memory for local clients: the answers of HTTP without its cost, also across a hot swap."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.runtime.local_server import local_server
from tests.runtime.model_zoo import (
    ZooModel,
    counting_loop,
    digit_images,
    digits,
    lay_out,
    logarithm,
    onnx_bytes,
)
from tests.runtime.shared_peer import ALIVE, CONSUMED, REQUEST, Peer
from tests.runtime.worker_harness import (
    TIMEOUT,
    Worker,
    ZygoteHarness,
    ask,
    connect,
    json_request,
    listen_unix,
    raw_exchange,
)
from tests.waiting import wait_until

from skerry_contract.errors import InputError, OverloadedError, SkerryError, UnavailableError
from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec
from skerry_runtime import LocalClient
from skerry_runtime.eager_poll import EagerPoll
from skerry_runtime.ipc import Accept, Drain, Drained, Ready, Window
from skerry_runtime.shared_memory import Wish
from skerry_runtime.worker.generation import load_generation
from skerry_runtime.worker.limits import ServeLimits
from skerry_runtime.worker.serve.shared_layout import plan

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteHarness]:
    with ZygoteHarness() as running:
        yield running


@pytest.fixture(scope="module")
def served(
    zygote: ZygoteHarness, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Worker, socket.socket]]:
    """A worker that reads digits, and its socket."""
    folder = tmp_path_factory.mktemp("shared")
    with listen_unix(folder / "s") as listener:
        yield start(zygote, lay_out(folder / "g", digits()), listener), listener


@pytest.fixture
def listener(served: tuple[Worker, socket.socket]) -> socket.socket:
    return served[1]


@pytest.fixture
def client(listener: socket.socket) -> Iterator[LocalClient]:
    with LocalClient(listener.getsockname(), rows=16) as connected:
        yield connected


def start(zygote: ZygoteHarness, folder: Path, listener: socket.socket) -> Worker:
    worker = zygote.spawn("serve", folder, [listener])
    worker.expect(Ready)
    worker.send(Accept())
    return worker


def by_http(listener: socket.socket, images: np.ndarray) -> tuple[np.ndarray, http.client.HTTPMessage]:
    connection = connect(listener)
    status, answer, headers = ask(connection, "POST", INFER, json_request(image=images))
    connection.close()
    assert status == 200
    (output,) = answer["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"]), headers


def copier(datatype: str, onnx_type: int, golden: np.ndarray) -> ZooModel:
    """Gives back a tensor of two axes, both free."""
    specs = [TensorSpec(name=name, datatype=datatype, shape=(-1, -1)) for name in ("x", "y")]
    node = helper.make_node("Identity", ["x"], ["y"])
    return ZooModel(
        name="copier",
        data=onnx_bytes([node], [("x", onnx_type, ["n", "k"])], [("y", onnx_type, ["n", "k"])]),
        inputs=(specs[0],),
        outputs=(specs[1],),
        golden=({"x": golden},),
        spec=MonitoringSpec(rows=1, features=()),
    )


# --- answers ---------------------------------------------------------------------------------------------


def test_answers_are_those_of_http(client: LocalClient, listener: socket.socket) -> None:
    images, _ = digit_images()
    for rows in (1, 16, 3):
        answer = client.infer({"image": images[:rows]})
        wanted, headers = by_http(listener, images[:rows])
        np.testing.assert_array_equal(answer["probabilities"], wanted)
        assert answer.digest == client.layout.digest == headers["X-Skerry-Digest"]
        assert answer.microseconds > 0
        assert not answer.nonfinite_input


def test_the_memory_is_used_again_and_an_answer_stays_the_callers(client: LocalClient) -> None:
    images, labels = digit_images()
    answers = [client.infer({"image": images[k : k + 1]})["probabilities"] for k in range(200)]
    assert (np.concatenate(answers).argmax(axis=1) == labels[:200]).mean() >= 0.9


def test_an_input_written_where_the_worker_reads(client: LocalClient) -> None:
    images, _ = digit_images()
    view = client.input("image", (2, 1, 8, 8))
    for k in (0, 5):
        view[:] = images[k : k + 2]
        given = client.infer()["probabilities"]
        np.testing.assert_array_equal(given, client.infer({"image": view})["probabilities"])
        np.testing.assert_array_equal(given, client.infer({"image": images[k : k + 2]})["probabilities"])
    assert client.input("image", (2, 1, 8, 8)) is view


def test_several_clients_and_several_threads_on_one(listener: socket.socket) -> None:
    images, _ = digit_images()
    wanted = by_http(listener, images[:40])[0]
    shared = LocalClient(listener.getsockname())
    clients = [shared, shared, LocalClient(listener.getsockname()), LocalClient(listener.getsockname())]
    wrong: list[str] = []

    def run(client: LocalClient, offset: int) -> None:
        for turn in range(100):
            k = (turn * 7 + offset) % 40
            try:
                got = client.infer({"image": images[k : k + 1]})["probabilities"]
            except SkerryError as error:
                wrong.append(repr(error))
            else:
                if not np.allclose(got, wanted[k], rtol=1e-5, atol=1e-7):
                    wrong.append(f"image {k} got another's answer")

    threads = [threading.Thread(target=run, args=pair) for pair in zip(clients, range(4), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    for client in clients:
        client.close()
    assert wrong == []


def test_sizes_that_the_model_leaves_free(tmp_path: Path) -> None:
    model = copier("INT16", TensorProto.INT16, np.ones((1, 2), np.int16))
    with local_server(tmp_path, model) as server:
        with LocalClient(server.unix.getsockname(), rows=4, free=300) as client:
            for shape in ((1, 1), (4, 300), (2, 7), (2, 7), (7, 2)):
                x = np.arange(shape[0] * shape[1], dtype=np.int16).reshape(shape)
                np.testing.assert_array_equal(client.infer({"x": x})["y"], x)
            with pytest.raises(InputError, match="does not fit the memory"):
                client.infer({"x": np.zeros((5, 300), np.int16)})
        with pytest.raises(InputError, match="free axes"):
            LocalClient(server.unix.getsockname())


# --- errors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, r"the inputs are \[\]"),
        ({"other": np.zeros((1, 1, 8, 8), np.float32)}, "the inputs are"),
        ({"image": np.zeros((1, 1, 8, 8))}, "float64, not float32"),
        ({"image": np.zeros((1, 8, 8), np.float32)}, r"has shape \[1, 8, 8\]"),
        ({"image": np.zeros((0, 1, 8, 8), np.float32)}, r"has shape \[0, 1, 8, 8\]"),
        ({"image": np.zeros((17, 1, 8, 8), np.float32)}, "does not fit the memory"),
    ],
)
def test_arrays_that_the_model_does_not_take(
    client: LocalClient, inputs: dict[str, np.ndarray], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        client.infer(inputs)
    assert client.infer({"image": digit_images()[0][:1]})


def test_the_models_errors_are_those_of_http(tmp_path: Path) -> None:
    with local_server(tmp_path, logarithm()) as server, LocalClient(server.unix.getsockname()) as client:
        connection = connect(server.unix)
        for values in ([-1.0, 1.0], [0.0, 1.0]):
            x = np.array([values], np.float32)
            status, answer, _ = ask(connection, "POST", "/v2/models/logarithm/infer", json_request(x=x))
            with pytest.raises(SkerryError) as caught:
                client.infer({"x": x})
            assert (status, answer["error"], answer["code"]) == (500, str(caught.value), caught.value.code)
        with pytest.raises(InputError, match="no finite answer"):
            client.infer({"x": np.array([[np.nan, 1.0]], np.float32)})
        assert client.infer({"x": np.ones((1, 2), np.float32)})["y"].tolist() == [[0.0, 0.0]]
        connection.close()


def test_a_tensor_without_a_bounded_size_is_refused(tmp_path: Path) -> None:
    generation = load_generation(lay_out(tmp_path / "g", digits()))
    text = TensorSpec(name="words", datatype="BYTES", shape=(1,))
    with pytest.raises(InputError, match="cannot be shared"):
        plan(replace(generation, manifest=replace(generation.manifest, inputs=(text,))), Wish(), 1 << 20)


@pytest.mark.parametrize(
    "body", [b"{", b'{"rows": -1}', b'{"rows": 0}', b'{"rows": 1e9}', b'{"more": 1}', b"[]"]
)
def test_a_wish_that_cannot_be_met(listener: socket.socket, body: bytes) -> None:
    answer = raw_exchange(listener, REQUEST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "input"


def test_memory_is_never_shared_over_tcp(tmp_path: Path) -> None:
    with local_server(tmp_path, digits()) as server:
        answer = raw_exchange(server.tcp, REQUEST.replace(b"Host: x", b"Host: localhost") + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"over a Unix socket only" in answer


def test_a_server_without_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no model shares memory at"):
        LocalClient(tmp_path / "nothing")


# --- limits ----------------------------------------------------------------------------------------------


def test_clients_and_bytes_are_bounded_and_come_free_again(tmp_path: Path) -> None:
    limits = ServeLimits(shared_clients=2, shared_bytes=64 * 1024)
    with local_server(tmp_path, digits(), limits=limits) as server:
        path = server.unix.getsockname()
        with pytest.raises(InputError, match="more than 65536 bytes"):
            LocalClient(path, rows=1000)
        large = LocalClient(path, rows=120)
        with pytest.raises(OverloadedError, match="too much memory"):
            LocalClient(path, rows=120)
        small = LocalClient(path)
        with pytest.raises(OverloadedError, match="too many clients"):
            LocalClient(path)
        small.close()
        large.close()
        wait_until(lambda: server.http.connections == 0, "the server noticed")
        with LocalClient(path, rows=120) as again:
            assert again.infer({"image": digit_images()[0][:1]})


def test_an_idle_session_ends_and_the_client_does_not_notice(tmp_path: Path) -> None:
    with (
        local_server(tmp_path, digits(), limits=ServeLimits(idle_s=0.05)) as server,
        LocalClient(server.unix.getsockname()) as client,
    ):
        for _ in range(3):
            assert client.infer({"image": digit_images()[0][:1]})
            wait_until(lambda: server.http.connections == 0, "the session ended")
    assert server.observer.totals().requests == 3


def test_a_closed_client_says_so(listener: socket.socket) -> None:
    client = LocalClient(listener.getsockname())
    view = client.input("image", (1, 1, 8, 8))
    client.close()
    client.close()
    view[:] = 1  # still the caller's memory
    with pytest.raises(UnavailableError, match="closed"):
        client.infer()


# --- swaps and crashes -----------------------------------------------------------------------------------


def test_no_request_is_lost_or_doubled_across_swaps(zygote: ZygoteHarness, tmp_path: Path) -> None:
    images, labels = digit_images()
    versions: Counter[str] = Counter()
    failures: list[str] = []
    stop = threading.Event()

    def hammer(listener: socket.socket) -> None:
        with LocalClient(listener.getsockname()) as client:
            view = client.input("image", (1, 1, 8, 8))
            turn = 0
            while not stop.is_set():
                turn += 1
                view[:] = images[turn % 50 : turn % 50 + 1]
                try:
                    answer = client.infer() if turn % 2 else client.infer({"image": view.copy()})
                except SkerryError as error:
                    failures.append(repr(error))
                    continue
                if answer["probabilities"].argmax() != expected[turn % 50]:
                    failures.append(f"a wrong answer for image {turn % 50}")
                versions[answer.digest] += 1

    def wait_for(version: str, more: int = 100) -> None:
        wanted = versions[version] + more
        wait_until(lambda: versions[version] >= wanted or failures, f"{more} answers of {version}")

    with listen_unix(tmp_path / "s") as listener:
        one = start(zygote, lay_out(tmp_path / "one", digits()), listener)
        with LocalClient(listener.getsockname(), rows=50) as first:
            answer = first.infer({"image": images[:50]})
            expected = answer["probabilities"].argmax(axis=1)
            assert (expected == labels[:50]).mean() >= 0.9
            digest_one = answer.digest
        two = zygote.spawn("serve", lay_out(tmp_path / "two", replace(digits(), version="2.0.0")), [listener])
        two.expect(Ready)
        digest_two = load_generation(tmp_path / "two").bundle
        threads = [threading.Thread(target=hammer, args=(listener,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        rows = -50
        try:
            wait_for(digest_one)
            for old, new, version in (
                (one, two, digest_two),
                (two, one, digest_one),
                (one, two, digest_two),
            ):
                new.send(Accept())
                old.send(Drain(deadline_s=TIMEOUT))
                wait_for(version)
                old.expect(Drained)
                rows += next(message for message in reversed(old.seen) if isinstance(message, Window)).rows
                wait_for(version)
        finally:
            stop.set()
            for thread in threads:
                thread.join(TIMEOUT)
        assert failures == []
        two.send(Drain(deadline_s=TIMEOUT))
        two.expect(Drained)
        rows += next(message for message in reversed(two.seen) if isinstance(message, Window)).rows
    assert rows == sum(versions.values())  # every answered row is in exactly one window


def test_an_idle_client_is_sent_away_at_the_deadline_of_a_drain(
    zygote: ZygoteHarness, tmp_path: Path
) -> None:
    with listen_unix(tmp_path / "s") as listener:
        worker = start(zygote, lay_out(tmp_path / "g", digits()), listener)
        with LocalClient(listener.getsockname()) as client:
            assert client.infer({"image": digit_images()[0][:1]})
            worker.send(Drain(deadline_s=0.1))
            worker.expect(Drained)
            worker.send(Accept())
            assert client.infer({"image": digit_images()[0][:1]})


def test_a_request_that_a_killed_worker_had_taken_is_not_sent_again(
    zygote: ZygoteHarness, tmp_path: Path
) -> None:
    with listen_unix(tmp_path / "s") as listener:
        folder = lay_out(tmp_path / "g", counting_loop())
        worker = start(zygote, folder, listener)
        caught: list[SkerryError] = []
        with LocalClient(listener.getsockname()) as client:

            def endless() -> None:
                try:
                    client.infer({"times": np.array([1 << 60], np.int64)})
                except SkerryError as error:
                    caught.append(error)

            client.infer({"times": np.array([1], np.int64)})
            thread = threading.Thread(target=endless)
            thread.start()
            wait_until(lambda: caught or _busy(worker), "the inference runs")
            if not caught:  # on a stalled machine the worker may have ended it, and itself, already
                os.kill(worker.pid, signal.SIGKILL)
            thread.join(TIMEOUT)
            assert isinstance(caught[0], UnavailableError)
            assert "may have run" in str(caught[0])
            other = start(zygote, folder, listener)
            assert client.infer({"times": np.array([2], np.int64)})["count"] == 2
            os.kill(other.pid, signal.SIGKILL)  # while the client is idle: what it sends now nobody took
            zygote.wait_exited(other)
            start(zygote, folder, listener)
            assert client.infer({"times": np.array([3], np.int64)})["count"] == 3


def _busy(worker: Worker) -> bool:
    """Whether a thread beside the worker's main one has burnt processor time."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one of them ended meanwhile
        for thread in os.listdir(f"/proc/{worker.pid}/task"):
            stat = Path(f"/proc/{worker.pid}/task/{thread}/stat").read_text()
            if int(thread) != worker.pid and int(stat.rpartition(") ")[2].split()[11]) >= 10:
                return True
    return False


def test_the_last_answer_stays_until_its_client_has_read_it(tmp_path: Path) -> None:
    with (
        local_server(tmp_path, digits(), limits=ServeLimits(farewell_s=TIMEOUT)) as server,
        Peer(server.unix) as peer,
    ):
        image = digit_images()[0][:1]
        peer.put("image", image.tobytes())
        peer.ring(7, 1)
        assert peer.reply() == (7, 200, (1).to_bytes(4, sys.byteorder))
        drain = threading.Thread(target=lambda: server.http.end_drain(server.http.begin_drain(), 0.01))
        drain.start()
        assert peer.reply()[1] == 0  # the worker has closed its ends
        wanted, _ = server.inference.model.run({"image": image})
        assert peer.output("probabilities", 40) == wanted["probabilities"].tobytes()
        assert peer.word(ALIVE) == 1
        peer.set_word(CONSUMED, 7)
        wait_until(lambda: not peer.word(ALIVE), "the memory is given up")
        drain.join(TIMEOUT)


# --- waiting and importing -------------------------------------------------------------------------------


def test_looking_in_vain_makes_looking_rare() -> None:
    looks: list[int] = []

    class Watched:
        def poll(self, timeout_ms: int) -> list[tuple[int, int]]:
            looks.append(timeout_ms)
            return []

    poll = EagerPoll()
    poll._poll = Watched()  # type: ignore[assignment]
    waits = 1000
    for _ in range(waits):
        poll.wait(5)
    assert looks.count(5) == waits
    trials = looks.count(0) // 150
    assert waits // 64 <= trials <= waits // 64 + 8
    looks.clear()
    poll.wait(5, eager=False)
    assert looks == [5]


def test_a_descriptor_that_is_ready_is_found_by_looking() -> None:
    read, write = os.pipe()
    poll = EagerPoll()
    poll.register(read, select.POLLIN)
    for _ in range(3):
        os.write(write, b"x")
        assert poll.wait(int(TIMEOUT * 1000)) == [(read, select.POLLIN)]
        os.read(read, 1)
    assert poll.wait(0) == []
    os.close(read)
    os.close(write)


def test_the_package_and_the_prompts_client_import_without_numpy() -> None:
    code = (
        "import sys, skerry_runtime, skerry_runtime.local_client; assert 'numpy' not in sys.modules;"
        "from skerry_runtime import LocalClient; assert LocalClient.__module__.endswith('.shared_client')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
