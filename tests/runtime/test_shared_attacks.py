"""A hostile client of shared memory (L8, M14): whatever it does, the worker lives and others are answered."""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.runtime.local_server import LocalServer, local_server
from tests.runtime.model_zoo import ZooModel, counting_loop, digit_images, digits, lay_out, onnx_bytes
from tests.runtime.shared_peer import ALIVE, CONSUMED, Peer
from tests.runtime.worker_harness import TIMEOUT, ZygoteHarness, listen_unix
from tests.waiting import wait_until

from skerry_contract.manifest import TensorSpec
from skerry_contract.monitoring import MonitoringSpec
from skerry_runtime import LocalClient
from skerry_runtime.ipc import Accept, Ready
from skerry_runtime.worker.limits import ServeLimits

pytestmark = pytest.mark.attack
_PUNCH_HOLE, _KEEP_SIZE = 2, 1


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[socket.socket]:
    """Of a worker process of its own that reads digits."""
    folder = tmp_path_factory.mktemp("attacked")
    with ZygoteHarness() as zygote, listen_unix(folder / "s") as listening:
        worker = zygote.spawn("serve", lay_out(folder / "g", digits()), [listening])
        worker.expect(Ready)
        worker.send(Accept())
        yield listening
        assert worker.pid not in zygote.exited


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    with local_server(tmp_path, digits()) as running:
        yield running


@pytest.fixture(autouse=True)
def others_are_answered(listener: socket.socket) -> Iterator[None]:
    """Before and after each attack."""
    images, labels = digit_images()
    with LocalClient(listener.getsockname(), rows=20) as honest:
        before = honest.infer({"image": images[:20]})["probabilities"]
        assert (before.argmax(axis=1) == labels[:20]).mean() >= 0.9
        yield
        np.testing.assert_array_equal(honest.infer({"image": images[:20]})["probabilities"], before)


@pytest.fixture
def peer(listener: socket.socket) -> Iterator[Peer]:
    with Peer(listener) as connected:
        yield connected


def _punch(memfd: int, size: int) -> None:
    """Take all pages out."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(memfd, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(size)):
        raise OSError(ctypes.get_errno(), "fallocate")


@pytest.mark.parametrize("which", ["inputs", "outputs"])
@pytest.mark.parametrize(
    "move",
    [
        lambda memfd, size: os.ftruncate(memfd, 0),
        lambda memfd, size: os.ftruncate(memfd, size * 1000),
        lambda memfd, size: fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ],
    ids=["shrink", "grow", "seal"],
)
def test_l8_the_memory_can_neither_be_resized_nor_sealed(
    peer: Peer, which: str, move: Callable[[int, int], object]
) -> None:
    peer.ring(1, 1)
    assert peer.reply()[:2] == (1, 200)
    with pytest.raises(PermissionError):
        move(getattr(peer, f"{which}_fd"), peer.layout[f"{which}_bytes"])
    peer.ring(2, 1)
    assert peer.reply()[:2] == (2, 200)


def test_l8_pages_taken_out_of_the_memory(peer: Peer) -> None:
    """Out of the inputs they cannot be taken; the outputs are made again."""
    image = digit_images()[0][:1]
    peer.put("image", image.tobytes())
    peer.ring(1, 1)
    assert peer.reply()[:2] == (1, 200)
    wanted = peer.output("probabilities", 40)
    with pytest.raises(PermissionError):
        _punch(peer.inputs_fd, peer.layout["inputs_bytes"])
    with pytest.raises(PermissionError):
        peer.inputs.madvise(mmap.MADV_REMOVE)
    _punch(peer.outputs_fd, peer.layout["outputs_bytes"])
    peer.ring(2, 1)
    assert peer.reply()[:2] == (2, 200)
    assert peer.output("probabilities", 40) == wanted


def _not_allocated(peer: Peer) -> None:
    peer.sock.sendall(b"m")


def _another_word(peer: Peer) -> None:
    os.posix_fallocate(peer.inputs_fd, 0, peer.layout["inputs_bytes"])
    peer.sock.sendall(b"x")


def _sealed_by_the_client(peer: Peer) -> None:
    os.posix_fallocate(peer.inputs_fd, 0, peer.layout["inputs_bytes"])
    fcntl.fcntl(peer.inputs_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
    peer.sock.sendall(b"m")


def _nothing(peer: Peer) -> None:
    peer.sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("begin", [_not_allocated, _another_word, _sealed_by_the_client, _nothing])
def test_l8_memory_that_is_not_made_as_it_must_be_is_never_used(
    listener: socket.socket, begin: Callable[[Peer], None]
) -> None:
    with Peer(listener, begin=False) as peer:
        begin(peer)
        assert peer.reply()[1] == 0


@pytest.mark.parametrize("size", [0, 2, 1 << 20, (1 << 32) - 1])
def test_m14_sizes_that_do_not_fit_are_an_error_and_the_session_goes_on(peer: Peer, size: int) -> None:
    peer.ring(1, size)
    number, status, rest = peer.reply()
    assert (number, status, json.loads(rest[4:])["code"]) == (1, 400, "input")
    peer.ring(2, 1)
    assert peer.reply()[:2] == (2, 200)


@pytest.mark.parametrize("data", [b"x", b"x" * 7, b"x" * 12, b"GET / HTTP/1.1\r\n\r\n"])
def test_l8_what_is_no_request_ends_the_session(peer: Peer, data: bytes) -> None:
    os.write(peer.doorbell, data)
    status = 400
    while status == 400:  # eight bytes of anything are a request for too many rows
        _, status, _ = peer.reply()
    assert status == 0


def test_l8_bytes_on_the_socket_end_the_session(peer: Peer) -> None:
    peer.sock.sendall(b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert peer.reply()[1] == 0


def test_l8_a_flood_of_doorbells_ends_the_flooders_session_alone(peer: Peer) -> None:
    """Nobody reads the answers: their pipe fills, and the session ends instead of blocking a thread."""

    def flood() -> None:
        for number in range(1, 1_000_000):
            peer.ring(number, 1)

    with pytest.raises(BrokenPipeError):
        flood()
    assert peer.reply()[1] == 200


def test_l8_the_client_leaves_in_the_middle(tmp_path: Path) -> None:
    with local_server(tmp_path, counting_loop()) as server:
        for _ in range(3):
            with Peer(server.unix) as peer:
                peer.put("times", struct.pack("q", 300_000))
                peer.ring(1)
                wait_until(lambda: server.inference.gate.running_s() > 0, "the inference runs")
            wait_until(lambda: server.http.connections == 0, "the server noticed")
        with LocalClient(server.unix.getsockname()) as honest:
            assert honest.infer({"times": np.array([5], np.int64)})["count"] == 5


def test_l8_bytes_that_change_while_they_are_judged(tmp_path: Path) -> None:
    """Indices are checked, then used: an engine that read shared memory could be led out of bounds."""
    model = _picker()
    stop = threading.Event()
    with local_server(tmp_path, model) as server, Peer(server.unix) as peer:
        at = peer.region("inputs", "indices")["offset"]

        def scribble() -> None:
            chaos = random.Random(1)
            while not stop.is_set():
                wild = [chaos.choice((0, 1, 1 << 40, -(1 << 40))) for _ in range(256)]
                struct.pack_into("256q", peer.inputs, at, *wild)
                struct.pack_into("256q", peer.inputs, at, *([1] * 256))

        thread = threading.Thread(target=scribble)
        thread.start()
        statuses = set()
        try:
            for number in range(1, 1500):
                peer.ring(number)
                answered, status, _ = peer.reply()
                assert answered == number
                statuses.add(status)
        finally:
            stop.set()
            thread.join(TIMEOUT)
        assert statuses <= {200, 500}
        assert 200 in statuses


def _picker() -> ZooModel:
    """Picks elements of a table by indices."""
    table = helper.make_tensor("table", TensorProto.FLOAT, [4], [1.0, 2.0, 3.0, 4.0])
    return ZooModel(
        name="picker",
        data=onnx_bytes(
            [helper.make_node("Gather", ["table", "indices"], ["picked"])],
            [("indices", TensorProto.INT64, [256])],
            [("picked", TensorProto.FLOAT, [256])],
            [table],
        ),
        inputs=(TensorSpec(name="indices", datatype="INT64", shape=(256,)),),
        outputs=(TensorSpec(name="picked", datatype="FP32", shape=(256,)),),
        golden=({"indices": np.zeros(256, np.int64)},),
        spec=MonitoringSpec(rows=1, features=()),
    )


def test_m14_bool_bytes_that_are_neither_0_nor_1_never_reach_the_engine(tmp_path: Path) -> None:
    node = helper.make_node("Not", ["x"], ["y"])
    model = ZooModel(
        name="inverter",
        data=onnx_bytes([node], [("x", TensorProto.BOOL, [4])], [("y", TensorProto.BOOL, [4])]),
        inputs=(TensorSpec(name="x", datatype="BOOL", shape=(4,)),),
        outputs=(TensorSpec(name="y", datatype="BOOL", shape=(4,)),),
        golden=({"x": np.array([True, False, True, False])},),
        spec=MonitoringSpec(rows=1, features=()),
    )
    with local_server(tmp_path, model) as server, Peer(server.unix) as peer:
        peer.put("x", b"\1\0\1\2")
        peer.ring(1)
        number, status, rest = peer.reply()
        assert (number, status) == (1, 400)
        assert "neither 0 nor 1" in json.loads(rest)["error"]
        peer.put("x", b"\1\0\1\0")
        peer.ring(2)
        assert peer.reply()[:2] == (2, 200)
        assert peer.output("y", 4) == b"\0\1\0\1"


def test_l8_pages_that_the_worker_made_are_given_back_whoever_keeps_the_memory(server: LocalServer) -> None:
    """Else each connection would leave pages on the worker's account."""
    with Peer(server.unix, {"rows": 1000}) as peer:
        peer.put("image", np.ones(64_000, np.float32).tobytes())
        peer.ring(1, 1000)
        assert peer.reply()[1] == 200
        assert os.fstat(peer.outputs_fd).st_blocks * 512 > 40_000
        peer.close()
        wait_until(lambda: os.fstat(peer.outputs_fd).st_blocks == 0, "the pages are given back")
        assert peer.word(ALIVE) == 0


def test_l8_a_client_that_never_reads_cannot_keep_the_memory(tmp_path: Path) -> None:
    limits = ServeLimits(farewell_s=0.1, idle_s=0.1)
    with local_server(tmp_path, digits(), limits=limits) as server, Peer(server.unix) as peer:
        peer.set_word(CONSUMED, 99)
        peer.ring(1, 1)
        assert peer.reply()[1] == 200
        wait_until(lambda: not peer.word(ALIVE), "the worker gave up waiting")
        assert peer.output("probabilities", 40) == bytes(40)
        wait_until(lambda: server.http.connections == 0, "its place is free")


def test_l8_sessions_without_a_request_leave_nothing(server: LocalServer) -> None:
    def come_and_go() -> int:
        """How many descriptors are open then."""
        with Peer(server.unix):
            pass
        wait_until(lambda: server.http.connections == 0, "it is gone")
        return len(os.listdir("/proc/self/fd"))

    before = come_and_go()
    for _ in range(40):
        come_and_go()
    wait_until(lambda: come_and_go() <= before, "no descriptor is left")
