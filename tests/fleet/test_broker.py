"""The supervised broker: who may come in, who may say and hear what, and what survives what."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.mqtt_peer import Peer
from tests.waiting import wait_until

from skerry_contract.errors import ConfigError, UnavailableError
from skerry_fleet import broker as broker_module
from skerry_fleet.broker import Broker, BrokerState, Listen, free_port
from skerry_fleet.mosquitto import SERVER_USER, age_note, find_mosquitto, hash_password, mosquitto_version

UP = "skerry/1/acme/d/{}/up/tel"
DOWN = "skerry/1/acme/d/{}/dn/des"
DEVICES = ("pi-1", "pi-2")


@pytest.fixture
def credentials() -> dict[str, str]:
    return {device: hash_password(f"secret of {device}") for device in DEVICES}


@pytest.fixture
def broker(tmp_path: Path, credentials: dict[str, str]) -> Iterator[Broker]:
    running = Broker(tmp_path / "broker", org="acme", listen=Listen(port=0), credentials=lambda: credentials)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def device(broker: Broker) -> Iterator[Callable[..., Peer]]:
    """Connects a device with its own password, unless told otherwise."""
    peers: list[Peer] = []

    def connect(name: str, password: str | None = None, **options: Any) -> Peer:
        peers.append(Peer(broker.port, name, password or f"secret of {name}", **options))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.__exit__()


@pytest.fixture
def server(broker: Broker) -> Iterator[Peer]:
    with Peer(broker.port, SERVER_USER, broker.password) as peer:
        peer.subscribe("skerry/1/+/d/+/up/+")
        yield peer


def drain(peer: Peer, server: Peer, marker_topic: str) -> list[str]:
    """Topics that a peer got before a marker that the server sends it now."""
    server.publish(marker_topic, b"marker")
    seen: list[str] = []
    while True:
        topic, payload = peer.next()
        if payload == b"marker":
            return seen
        seen.append(topic)


# --- credentials ---


def test_a_device_with_its_own_password_is_let_in(device: Callable[..., Peer]) -> None:
    assert device("pi-1").refused is None


@pytest.mark.attack
@pytest.mark.parametrize(
    ("username", "password"),
    [
        (None, None),
        ("pi-1", "guess"),
        ("pi-1", ""),
        ("pi-1", "secret of pi-2"),
        ("pi-9", "x"),
        (SERVER_USER, "x"),
    ],
)
def test_nobody_else_is(broker: Broker, username: str | None, password: str | None) -> None:
    with Peer(broker.port, username, password) as peer:
        assert peer.refused is not None


def test_a_hash_is_what_mosquitto_passwd_would_have_written(tmp_path: Path) -> None:
    binary = shutil.which("mosquitto_passwd")
    if binary is None:
        pytest.skip("mosquitto_passwd is not installed")
    path = tmp_path / "passwd"
    subprocess.run([binary, "-b", "-c", str(path), "pi-1", "x"], check=True, capture_output=True)
    theirs, ours = path.read_text().strip().partition(":")[2], hash_password("x")
    assert [len(part) for part in theirs.split("$")] == [len(part) for part in ours.split("$")]
    assert theirs.split("$")[:3] == ours.split("$")[:3]


def test_secrets_are_readable_by_the_broker_alone(broker: Broker, tmp_path: Path) -> None:
    folder = tmp_path / "broker"
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("passwd", "acl", "mosquitto.conf"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert broker.password not in (folder / "passwd").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives privileges up")
def test_root_does_not_run_the_broker(broker: Broker) -> None:
    assert broker.pid is not None
    assert Path(f"/proc/{broker.pid}").stat().st_uid != 0


# --- topics ---


def test_a_device_tells_the_server_and_hears_from_it(device: Callable[..., Peer], server: Peer) -> None:
    pi = device("pi-1")
    pi.subscribe("skerry/1/acme/d/pi-1/dn/+")
    pi.publish(UP.format("pi-1"), b"up")
    assert server.next() == (UP.format("pi-1"), b"up")
    server.publish(DOWN.format("pi-1"), b"down")
    assert pi.next() == (DOWN.format("pi-1"), b"down")


@pytest.mark.attack
@pytest.mark.parametrize(
    "topic",
    [
        UP.format("pi-2"),
        DOWN.format("pi-1"),
        DOWN.format("pi-2"),
        "skerry/1/acme/d/pi-1/up/tel/deeper",
        "skerry/1/other/d/pi-1/up/tel",
        "skerry/1/acme/g/all/dn/poke",
        "$SYS/broker/log/E",
        "elsewhere",
    ],
)
def test_q2_a_device_publishes_under_its_own_name_alone(
    device: Callable[..., Peer], server: Peer, topic: str
) -> None:
    witness, pi = device("pi-2"), device("pi-1")
    witness.subscribe("#")
    pi.publish(topic, b"forged")
    pi.publish(UP.format("pi-1"), b"own")
    assert server.next() == (UP.format("pi-1"), b"own")
    assert drain(witness, server, DOWN.format("pi-2")) == []


@pytest.mark.attack
@pytest.mark.parametrize("wanted", ["#", "skerry/#", "+/+/+/+/+/+/+", "$SYS/#", "skerry/1/acme/d/pi-2/dn/+"])
def test_q1_wildcards_show_a_device_nothing_of_others(
    device: Callable[..., Peer], server: Peer, wanted: str
) -> None:
    pi, other = device("pi-1"), device("pi-2")
    pi.subscribe(wanted)
    pi.subscribe("skerry/1/acme/d/pi-1/dn/+")
    server.publish(DOWN.format("pi-2"), b"for the other", retain=True)
    other.publish(UP.format("pi-2"), b"of the other")
    assert set(drain(pi, server, DOWN.format("pi-1"))) <= {DOWN.format("pi-1")}


@pytest.mark.attack
def test_q3_a_client_identifier_takes_nothing_over(device: Callable[..., Peer], server: Peer) -> None:
    victim = device("pi-2", client_id="pi-2")
    thief = device("pi-1", client_id="pi-2")
    assert thief.refused is None
    victim.publish(UP.format("pi-2"), b"still here")
    assert server.next() == (UP.format("pi-2"), b"still here")
    assert not victim.disconnected.is_set()
    assert not server.disconnected.is_set()


@pytest.mark.attack
def test_q6_a_will_on_a_foreign_topic_is_not_sent(device: Callable[..., Peer], server: Peer) -> None:
    device("pi-1", will=UP.format("pi-2")).drop()
    device("pi-2", will=UP.format("pi-2")).drop()
    assert server.next() == (UP.format("pi-2"), b"will")
    server.publish(DOWN.format("pi-1"), b"x")
    assert server.messages.empty()


@pytest.mark.attack
def test_q7_an_oversize_packet_ends_its_connection_alone(device: Callable[..., Peer], server: Peer) -> None:
    pi, other = device("pi-1"), device("pi-2")
    pi.client.publish(UP.format("pi-1"), b"x" * 200_000, qos=0)
    assert pi.disconnected.wait(10)
    other.publish(UP.format("pi-2"), b"y" * 128 * 1024)
    assert len(server.next()[1]) == 128 * 1024


@pytest.mark.attack
def test_q8_qos_2_is_not_offered(device: Callable[..., Peer], server: Peer) -> None:
    pi = device("pi-1")
    pi.client.publish(UP.format("pi-1"), b"x", qos=2)
    assert pi.disconnected.wait(10)
    device("pi-2").publish(UP.format("pi-2"), b"y")
    assert server.next() == (UP.format("pi-2"), b"y")


@pytest.mark.attack
def test_q11_a_connection_that_says_nothing_delays_nobody(
    broker: Broker, device: Callable[..., Peer]
) -> None:
    silent = [socket.create_connection(("127.0.0.1", broker.port)) for _ in range(50)]
    assert device("pi-1").refused is None
    for connection in silent:
        connection.close()


# --- supervision ---


def test_a_reload_lets_new_devices_in_and_keeps_the_others(
    broker: Broker, device: Callable[..., Peer], credentials: dict[str, str]
) -> None:
    old = device("pi-1")
    credentials["pi-3"] = hash_password("secret of pi-3")
    broker.reload()
    wait_until(lambda: _is_let_in(broker.port, "pi-3"), "the new device is let in")
    old.subscribe("skerry/1/acme/d/pi-1/dn/+")
    assert not old.disconnected.is_set()


@pytest.mark.attack
def test_a_reload_shuts_a_removed_device_out(
    broker: Broker, device: Callable[..., Peer], credentials: dict[str, str]
) -> None:
    kept, removed = device("pi-1"), device("pi-2")
    del credentials["pi-2"]
    broker.reload()
    assert removed.disconnected.wait(10)
    assert not _is_let_in(broker.port, "pi-2")
    assert not kept.disconnected.is_set()


def test_a_killed_broker_is_back_at_the_same_address(broker: Broker, device: Callable[..., Peer]) -> None:
    first = broker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: broker.restarts == 1 and broker.state is BrokerState.RUNNING, "it runs again")
    assert broker.pid not in (None, first)
    assert device("pi-1").refused is None


def test_a_clean_end_keeps_retained_messages_and_leaves_no_process(
    tmp_path: Path, credentials: dict[str, str]
) -> None:
    topic = DOWN.format("pi-1")
    for run in ("first", "second"):
        broker = Broker(tmp_path, org="acme", listen=Listen(port=0), credentials=lambda: credentials)
        broker.start()
        pid = broker.pid
        if run == "first":
            with Peer(broker.port, SERVER_USER, broker.password) as server:
                server.publish(topic, b"desired", retain=True)
        else:
            with Peer(broker.port, "pi-1", "secret of pi-1") as pi:
                pi.subscribe(topic)
                assert pi.next() == (topic, b"desired")
        broker.stop()
        assert broker.state is BrokerState.STOPPED
        assert not Path(f"/proc/{pid}").exists()


def test_a_busy_port_is_named_and_nothing_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        broker = Broker(tmp_path, org="acme", listen=Listen(port=port), credentials=dict)
        with pytest.raises(UnavailableError, match=f"port {port}") as caught:
            broker.start()
    assert "--broker-port" in caught.value.hint
    assert broker.pid is None


def test_a_missing_mosquitto_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_options: None)
    with pytest.raises(UnavailableError) as caught:
        Broker(tmp_path, org="acme", listen=Listen(), credentials=dict)
    assert caught.value.hint == "sudo apt-get install mosquitto"


def test_a_mosquitto_that_does_not_start_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "render_config", lambda host, port: "no_such_option true\n")
    broker = Broker(tmp_path, org="acme", listen=Listen(port=0), credentials=dict)
    with pytest.raises(UnavailableError, match="no_such_option"):
        broker.start()


@pytest.mark.attack
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "fleet.example"])  # noqa: S104 refused
def test_beyond_loopback_needs_an_explicit_word(host: str) -> None:
    with pytest.raises(ConfigError, match="clear"):
        Listen(host=host)
    assert Listen(host=host, insecure=True).host == host


def test_a_killed_server_leaves_no_broker_behind(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from typing import Any
from skerry_fleet.broker import Broker, Listen
broker = Broker(Path(sys.argv[1]), org="acme", listen=Listen(port=0), credentials=dict)
broker.start()
print(broker.pid, flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert Path(f"/proc/{pid}/cwd").exists()
        server.kill()
    wait_until(lambda: not _is_alive(pid), "the broker is gone")


def test_a_broker_that_was_left_behind_all_the_same_is_ended(
    tmp_path: Path, credentials: dict[str, str]
) -> None:
    port = free_port("127.0.0.1")
    (tmp_path / "left.conf").write_text(f"listener {port} 127.0.0.1\n")
    if os.geteuid() == 0:
        (tmp_path / "left.conf").write_text(f"user root\nlistener {port} 127.0.0.1\n")
    command = [str(find_mosquitto()), "-c", "left.conf"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL) as left:
        wait_until(lambda: _accepts(port), "the old broker accepts connections")
        broker = Broker(tmp_path, org="acme", listen=Listen(port=port), credentials=lambda: credentials)
        reaper = _reap_in_background(left)
        broker.start()
        reaper.join()
        with Peer(port, "pi-1", "secret of pi-1") as pi:
            assert pi.refused is None
        broker.stop()
    assert left.returncode == -signal.SIGKILL


def test_the_age_of_mosquitto_is_worth_a_note_once_it_is_old() -> None:
    assert "2.0.11" in age_note((2, 0, 11))
    assert age_note((2, 0, 18)) == age_note((2, 1, 0)) == age_note(()) == ""
    assert len(mosquitto_version(find_mosquitto())) == 3


def _is_let_in(port: int, name: str) -> bool:
    with Peer(port, name, f"secret of {name}") as peer:
        return peer.refused is None


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _reap_in_background(process: subprocess.Popen[bytes]) -> threading.Thread:
    thread = threading.Thread(target=process.wait)
    thread.start()
    return thread
