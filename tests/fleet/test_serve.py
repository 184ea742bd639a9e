"""``skerry fleet serve``: real processes, from the first line to the last."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests import builders
from tests.builders import BundleBuilder
from tests.fleet import server_process
from tests.fleet.mqtt_peer import Peer
from tests.fleet.server_process import Server, broker_pids, command, running
from tests.waiting import wait_until

from skerry_contract.digests import Digest, digest_of, prefix8
from skerry_contract.envelope import open_envelope
from skerry_contract.frames import BlockFrame, OutboxFrame
from skerry_contract.messages import (
    DESIRED_PAYLOAD_TYPE,
    Acknowledge,
    BlockRequest,
    DesiredState,
    EngineInfo,
    Hardware,
    Hello,
    decode,
    encode,
)
from skerry_contract.signing import EcdsaSigner, load_verifier
from skerry_contract.summary import encode as encode_summary
from skerry_fleet.broker import free_port

TOPIC = "skerry/1/local/d/pi-1/{}"


@pytest.fixture
def key(tmp_path: Path, signer: EcdsaSigner) -> Path:
    path = tmp_path / "engineer.pub"
    path.write_bytes(signer.verifier.pem)
    return path


@pytest.fixture
def server(tmp_path: Path, key: Path) -> Iterator[Server]:
    with running(tmp_path / "data", "--trust", key) as found:
        yield found


def publish(server: Server, signer: EcdsaSigner) -> Digest:
    bundle = BundleBuilder(models={"int8": b"model of the journey"}, signer=signer)
    with server.client as client:
        answer = client.post("/v1/bundles", content=bundle.build())
    assert answer.status_code in (200, 201), answer.text
    return Digest(answer.json()["digest"])


# --- start and end ---


def test_when_it_says_ready_http_answers_and_the_broker_takes_devices(server: Server) -> None:
    with server.client as client:
        assert client.get("/healthz").json()["broker"] == {"state": "running"}
        assert client.get("/v1/devices").json()["items"] == []
    password = server.enrol("pi-1")
    wait_until(lambda: _is_let_in(server, password), "the new device is let in")


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_and_leaves_nothing(tmp_path: Path, key: Path, kind: signal.Signals) -> None:
    with running(tmp_path / "data", "--trust", key) as server:
        port = int(server.url.rpartition(":")[2])
        assert len(server.broker_pids) == 1
        assert server.stop(kind) == 0
    assert broker_pids(server.data) == []
    for taken in (port, server.broker_port):
        socket.create_server(("127.0.0.1", taken)).close()


def test_a_killed_server_takes_its_broker_along_and_the_next_goes_on(tmp_path: Path, key: Path) -> None:
    data = tmp_path / "data"
    with running(data, "--trust", key) as server:
        server.enrol("pi-1")
        token = (data / "admin.token").read_text()
        server.kill()
    with running(data, "--trust", key) as server:
        with server.client as client:
            assert [device["id"] for device in client.get("/v1/devices").json()["items"]] == ["pi-1"]
    assert (data / "admin.token").read_text() == token


def test_a_killed_broker_comes_back_under_the_same_server(server: Server) -> None:
    password = server.enrol("pi-1")
    (old,) = server.broker_pids
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: server.broker_pids not in ([], [old]), "another broker runs")
    wait_until(lambda: _is_let_in(server, password), "the device is let in again")


def test_text_for_people_says_what_to_do_next(tmp_path: Path, key: Path) -> None:
    arguments = command("--data", tmp_path / "data", "--port", "0", "--broker-port", "0", "--trust", key)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while "Ctrl-C" not in said:
            said += process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    for expected in (
        "http://127.0.0.1:",
        "mqtt://127.0.0.1:",
        "admin.token",
        "SKERRY_SERVER",
        "skerry publish",
    ):
        assert expected in said


# --- what cannot start ---


def failed(*arguments: str | Path) -> tuple[int, dict[str, str]]:
    """Exit code and error of a server that does not start."""
    done = subprocess.run(
        command("--json", *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    error: dict[str, str] = json.loads(done.stdout)["error"]
    return done.returncode, error


@pytest.mark.parametrize(("option", "other"), [("--port", "--broker-port"), ("--broker-port", "--port")])
def test_a_busy_port_is_named_with_what_to_do(tmp_path: Path, option: str, other: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = failed("--data", tmp_path / "data", option, str(port), other, "0")
    assert (code, error["code"]) == (3, "unavailable")
    assert str(port) in error["message"]
    assert option in error["hint"]
    assert broker_pids(tmp_path / "data") == []


def test_a_data_folder_has_one_server(server: Server) -> None:
    code, error = failed("--data", server.data, "--port", "0", "--broker-port", "0")
    assert (code, error["code"]) == (1, "conflict")
    assert "--data" in error["hint"]
    assert len(server.broker_pids) == 1


@pytest.mark.attack
def test_other_machines_need_an_explicit_word(tmp_path: Path) -> None:
    everywhere = ("--broker-listen", "0.0.0.0")  # noqa: S104 refused
    code, error = failed("--data", tmp_path / "data", "--port", "0", "--broker-port", "0", *everywhere)
    assert (code, error["code"]) == (2, "config")
    assert "--insecure-dev" in error["hint"]


def test_a_data_folder_that_is_a_file_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    done = subprocess.run(
        command("--data", tmp_path / "data"), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "--data" in done.stderr


def test_help_has_an_example() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=60, check=True)
    assert "Example:" in done.stdout
    assert "skerry fleet serve --trust engineer.pub" in done.stdout


# --- the journey of messages ---


def test_from_a_rollout_to_the_device_and_its_blobs(server: Server, signer: EcdsaSigner) -> None:
    digest = publish(server, signer)
    password = server.enrol("pi-1")
    wait_until(lambda: _is_let_in(server, password), "the device is let in")
    with Peer(server.broker_port, "pi-1", password) as device, server.client as client:
        device.subscribe(TOPIC.format("dn/+"))
        device.publish(TOPIC.format("up/hello"), encode(_hello()))
        wait_until(lambda: _presence(server) == "online", "the device is online")
        body = {"model": "digits", "version": "1.0.0", "waves": [1.0]}
        assert client.post("/v1/rollouts", json=body).status_code == 201
        topic, payload = device.next()
        assert topic == TOPIC.format("dn/des")
        director = load_verifier(client.get("/v1/trust").json()["director_key"].encode())
        state = decode(open_envelope(payload, DESIRED_PAYLOAD_TYPE, [director]), DesiredState)
        assert state.models["digits"].manifest.digest == digest
        wanted = digest_of(b"model of the journey")
        request = BlockRequest(transfer=1, digest=wanted, offset=6, block=1024, count=1)
        device.publish(TOPIC.format("up/blk"), encode(request), qos=0)
        topic, payload = device.next()
        assert (topic, BlockFrame.decode(payload).data) == (TOPIC.format("dn/blk"), b"of the journey")


class Ledger:
    """A device that sends numbered windows until the server has acknowledged every one of them."""

    def __init__(self, digest: Digest, rows: int) -> None:
        self._frames = {
            seq: OutboxFrame(
                stream=b"ledger--",
                acked=0,
                prev=seq - 1,
                first=seq,
                last=seq,
                body=encode_summary(builders.window(seq=seq, bundle=prefix8(digest))),
            )
            for seq in range(1, rows + 1)
        }
        self.acked = 0
        self.rows = rows

    @property
    def done(self) -> bool:
        return self.acked == self.rows

    def send(self, port: int, password: str, stop: threading.Event) -> None:
        """One connection, as long as it lasts; rows that are not acknowledged are sent again."""
        try:
            peer = Peer(port, "pi-1", password)
        except (OSError, AssertionError):
            stop.wait(0.05)
            return
        with peer:
            if peer.refused is not None:
                return
            peer.client.subscribe(TOPIC.format("dn/ack"), qos=1)
            while not (stop.is_set() or self.done or peer.disconnected.is_set()):
                for seq in range(self.acked + 1, min(self.acked + 32, self.rows) + 1):
                    peer.client.publish(TOPIC.format("up/tel"), self._frames[seq].encode(), qos=1)
                self._hear(peer)

    def _hear(self, peer: Peer) -> None:
        wanted = self.acked + 1
        wait = 0.5
        while self.acked < wanted:
            try:
                _, payload = peer.next(wait)
            except Exception:  # noqa: BLE001 nothing came: send again
                return
            self.acked = max(self.acked, decode(payload, Acknowledge).seq)


@pytest.mark.slow
@pytest.mark.attack
def test_kills_of_server_and_broker_lose_nothing_and_double_nothing(
    tmp_path: Path, key: Path, signer: EcdsaSigner
) -> None:
    ports = ("--port", str(free_port("127.0.0.1")), "--broker-port", str(free_port("127.0.0.1")))
    data = tmp_path / "data"
    server = server_process.start(data, "--trust", key, *ports)
    ledger = Ledger(publish(server, signer), rows=600)
    password = server.enrol("pi-1")
    stop = threading.Event()

    def sender() -> None:
        while not (stop.is_set() or ledger.done):
            ledger.send(server.broker_port, password, stop)

    thread = threading.Thread(target=sender)
    thread.start()
    try:
        for goal in (50, 150, 250):
            wait_until(lambda goal=goal: ledger.acked >= goal, f"{goal} rows", 30)  # type: ignore[misc]
            server.kill()
            server = server_process.start(data, "--trust", key, *ports)
        wait_until(lambda: ledger.acked >= 350, "350 rows", 30)
        os.kill(server.broker_pids[0], signal.SIGKILL)
        wait_until(lambda: ledger.done, "every row is acknowledged", 60)
        stored: list[int] = []
        cursor: dict[str, str] = {}
        with server.client as client:
            while True:
                page = client.get("/v1/devices/pi-1/windows", params={"limit": 500, **cursor}).json()
                stored += [window["first"] for window in page["items"]]
                if page["next"] is None:
                    break
                cursor = {"cursor": page["next"]}
        assert sorted(stored) == list(range(1, 601))
        # The device never said hello, it only sent windows.
        wait_until(lambda: _device(server)["last_seen_ms"] is not None, "the device was seen", 15)
    finally:
        stop.set()
        thread.join()
        server.stop()


def _hello() -> Hello:
    return Hello(
        protocol=1,
        boot="b" * 32,
        epoch=1,
        agent_version="0.1.0",
        hardware=Hardware(arch="aarch64", cores=4, ram_bytes=1 << 30),
        engines=(EngineInfo(name="onnx", version="1.23.2"),),
        desired_revision=0,
    )


def _device(server: Server) -> dict[str, Any]:
    with server.client as client:
        told: dict[str, Any] = client.get("/v1/devices/pi-1").json()["device"]
        return told


def _presence(server: Server) -> str:
    return str(_device(server)["presence"])


def _is_let_in(server: Server, password: str) -> bool:
    try:
        with Peer(server.broker_port, "pi-1", password) as peer:
            return peer.refused is None
    except OSError:
        return False


@pytest.mark.attack
def test_requests_for_blocks_cannot_stop_the_ingest(server: Server) -> None:
    """The broker gives the server at most a thousand messages that it has not acknowledged."""
    password = server.enrol("pi-1")
    request = BlockRequest(transfer=1, digest=digest_of(b"nothing"), offset=0, block=1, count=1)
    with Peer(server.broker_port, "pi-1", password, client_id="pi-1") as device:
        for _ in range(1100):
            device.client.publish(TOPIC.format("up/blk"), encode(request), qos=1)
        hello = Hello(
            protocol=1,
            boot="b" * 32,
            epoch=1,
            agent_version="0.1.0",
            hardware=Hardware(arch="aarch64", cores=4, ram_bytes=1 << 30),
            engines=(),
            desired_revision=0,
        )
        device.publish(TOPIC.format("up/hello"), encode(hello))
        with server.client as client:
            wait_until(
                lambda: client.get("/v1/devices/pi-1").json()["device"]["agent_version"], "the hello is heard"
            )
