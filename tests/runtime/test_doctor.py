"""``skerry-runtime doctor``: what it finds on machines that are well and on such that are not."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.builders import new_signer
from tests.runtime.agent_world import Broker, Device, Headquarters, make_bundle, running
from tests.runtime.test_systemd import CONFINED
from tests.waiting import wait_until

from skerry_contract.manifest import Requirements
from skerry_contract.signing import EcdsaSigner
from skerry_runtime import cli_doctor
from skerry_runtime.agent import doctor, doctor_machine, doctor_network, machine
from skerry_runtime.agent.clock import BUILD_MS
from skerry_runtime.agent.doctor import Check, Finding, Level, Patient
from skerry_runtime.config import FleetConfig, load_config

MIB = 1 << 20


def run(device: Device, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "skerry_runtime.cli", "doctor", "--config", str(device.config), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def findings(device: Device) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(run(device, "--json").stdout)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def levels(entries: Sequence[dict[str, Any]]) -> list[str]:
    return [entry["level"] for entry in entries]


@pytest.fixture
def idle(tmp_path: Path, signer: EcdsaSigner) -> Device:
    device = Device(tmp_path, signer, extra="[budgets]\nram_mb = 256")
    device.write_config()
    return device


@pytest.fixture
def patient(idle: Device, tmp_path: Path) -> Patient:
    """A machine whose ``/proc`` and ``/sys`` are the test's own."""
    idle.data.mkdir(mode=0o700)
    return Patient(
        config=load_config(idle.config),
        config_path=idle.config,
        status=None,
        now_ms=BUILD_MS + 1,
        root=tmp_path / "root",
    )


def look(check: Check, patient: Patient) -> list[Finding]:
    return list(doctor.examine([check], patient))


def put(patient: Patient, path: str, text: str) -> None:
    file = patient.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


# --- the command -------------------------------------------------------------------------------------------


def test_a_healthy_device_with_and_without_its_daemon(
    idle: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    with running(idle):
        idle.install(make_bundle(signer).write(tmp_path))
        done = run(idle)
        assert done.returncode == 0, done.stdout
        assert "ok    models         digits 1.0.0 answers" in done.stdout
        assert "ok    sockets        digits answers at" in done.stdout
        assert "ok    processor      digits 1.0.0 (fp32) runs here" in done.stdout
        assert ": 0 failed" in done.stdout
    without = findings(idle)
    assert levels(without["daemon"]) == ["warn"]
    assert "Start it: " in without["daemon"][0]["hint"]
    assert levels(without["sockets"]) == ["ok"]
    assert not [entry for entries in without.values() for entry in entries if entry["level"] == "fail"]


def test_every_trouble_says_what_to_do_and_the_code_is_1(idle: Device) -> None:
    idle.config.write_text(idle.config.read_text().replace("org =", "organisation ="))
    done = run(idle)
    assert done.returncode == 1
    assert "FAIL  configuration" in done.stdout
    assert "→ Add it" in done.stdout
    found = json.loads(run(idle, "--json").stdout)
    assert found["failed"] == 1
    assert all(entry["hint"] for entry in found["findings"] if entry["level"] == "fail")


@pytest.mark.parametrize("columns", [60, 80])
def test_lines_are_as_narrow_as_the_terminal(columns: int) -> None:
    finding = doctor.fail("broker", "a long story " * 12, "a long hint " * 12)
    lines = cli_doctor._entry(finding, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("FAIL  broker")
    assert len(cli_doctor._entry(finding, 0).splitlines()) == 2


def test_a_key_that_is_none_is_found(tmp_path: Path) -> None:
    device = Device(tmp_path, new_signer())
    device.write_config()
    text = device.config.read_text()
    body = text.split("-----BEGIN PUBLIC KEY-----\n")[1].split("\n")[0]
    device.config.write_text(text.replace(body, "A" * len(body)))
    keys = findings(device)["keys"]
    assert levels(keys) == ["fail"]
    assert "trust.engineers[0]" in keys[0]["text"]


def test_an_engine_for_another_processor_is_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -ILL $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    found = list(cli_doctor.engines())
    assert {finding.level for finding in found} == {Level.FAIL}
    assert "killed by SIGILL" in found[0].text
    assert "another processor" in found[0].hint


def test_it_works_under_the_rules_of_the_unit(idle: Device) -> None:
    """As ``ExecStartPre=`` would run it."""
    command = [*CONFINED, sys.executable, "-m", "skerry_runtime.cli", "doctor", "--config", str(idle.config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- files -------------------------------------------------------------------------------------------------


def test_a_configuration_that_others_may_write_or_read(patient: Patient) -> None:
    assert look(doctor.configuration, patient)[0].level is Level.OK
    fleet = FleetConfig(host="localhost", port=1, username="pi-7", password="secret")
    open_to_all = replace(patient, config=replace(patient.config, fleet=fleet))
    patient.config_path.chmod(0o644)
    assert look(doctor.configuration, open_to_all)[0].level is Level.WARN
    patient.config_path.chmod(0o666)
    assert look(doctor.configuration, open_to_all)[0].level is Level.FAIL


def test_a_missing_ca_file_is_found(patient: Patient) -> None:
    fleet = FleetConfig(host="x", port=1, username="u", password="p", tls_ca="/nowhere/ca.pem")
    found = look(doctor.configuration, replace(patient, config=replace(patient.config, fleet=fleet)))
    assert found[-1].level is Level.FAIL
    assert "/nowhere/ca.pem" in found[-1].text


def test_a_data_folder_that_others_see(patient: Patient) -> None:
    patient.config.data_dir.chmod(0o755)
    assert [finding.level for finding in look(doctor.permissions, patient)] == [Level.WARN]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_of_another_user_are_found(patient: Patient) -> None:
    state = patient.config.data_dir / "state"
    state.mkdir()
    (state / "epoch").write_text("1")
    os.chown(state / "epoch", 12345, 12345)
    found = look(doctor.permissions, patient)
    assert found[0].level is Level.FAIL
    assert "chown" in found[0].hint
    assert f"{state / 'epoch'} does not belong" in found[0].text
    (state / "more").write_text("1")
    os.chown(state / "more", 12345, 12345)
    assert "and 1 more do not belong" in look(doctor.permissions, patient)[0].text


def test_a_disk_that_does_not_take_a_file(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(doctor.disk, patient)
    assert [finding.level for finding in found] == [Level.OK, Level.OK]
    assert list(patient.config.data_dir.iterdir()) == [], "the probe is gone"

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    found = look(doctor.disk, patient)
    assert found[-1].level is Level.FAIL
    assert "check its health" in found[-1].hint


def test_a_full_and_a_read_only_disk(patient: Patient, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.statvfs(patient.config.data_dir)

    def system(free: int = 1 << 30, flag: int = 0, inodes: int = 100_000) -> os.statvfs_result:
        fields = [whole.f_bsize, 4096, whole.f_blocks, whole.f_bfree, free // 4096, 200_000, inodes, inodes]
        return os.statvfs_result((*fields, flag, whole.f_namemax))

    for made, level, word in (
        (system(flag=os.ST_RDONLY), Level.FAIL, "read-only"),
        (system(free=MIB), Level.FAIL, "no install is possible"),
        (system(free=20 * MIB), Level.WARN, "buffer_mb"),
        (system(inodes=3), Level.FAIL, "inodes"),
    ):
        monkeypatch.setattr(os, "statvfs", lambda path, made=made: made)
        found = [finding for finding in look(doctor.disk, patient) if finding.level is not Level.OK]
        assert [finding.level for finding in found] == [level]
        assert word in found[0].text + found[0].hint


def test_another_user_is_told_to_ask_as_the_daemons(
    patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = patient.config.data_dir.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    for check in (doctor.permissions, doctor.disk):
        found = look(check, patient)[-1]
        assert (found.level, found.hint) == (Level.WARN, doctor.AS_WHOM)
    assert list(patient.config.data_dir.iterdir()) == [], "no file was tried"


def test_what_may_not_be_looked_at_is_a_warning_without_numbers(patient: Patient) -> None:
    def forbidden(_: Patient) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/var/lib/skerry/state")
        yield

    (found,) = look(forbidden, patient)
    assert found.text == "cannot be looked at: /var/lib/skerry/state: Permission denied"
    assert (found.level, found.hint) == (Level.WARN, doctor.AS_WHOM)


# --- the daemon --------------------------------------------------------------------------------------------


def test_a_process_that_holds_the_data_folder_and_does_not_answer(patient: Patient) -> None:
    (found,) = look(doctor.daemon, patient)
    assert (found.level, found.text) == (Level.WARN, "none answers")
    assert f"skerry-runtime run --config {patient.config_path}" in found.hint
    lock = patient.config.data_dir / "lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (stuck,) = look(doctor.daemon, replace(patient, root=Path("/")))
        assert stuck.level is Level.FAIL
        assert stuck.text.startswith(f"process {os.getpid()} holds {lock.parent}")
        assert f"kill {os.getpid()}" in stuck.hint
    assert doctor.lock_holder(Path("/"), lock) == 0
    assert doctor.lock_holder(Path("/"), lock.with_name("missing")) == 0


# --- the machine -------------------------------------------------------------------------------------------


def test_a_model_that_needs_what_the_processor_lacks(
    idle: Device, tmp_path: Path, signer: EcdsaSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine.hardware("").isa[0]
    made = make_bundle(signer)
    variant = replace(made.manifest.variants[0], requires=Requirements(isa=(here,)))
    bundle = make_bundle(signer, variants=(variant,))
    with running(idle):
        idle.install(bundle.write(tmp_path))
    patient = Patient(config=load_config(idle.config), config_path=idle.config, status=None, now_ms=0)
    assert [finding.level for finding in look(doctor_machine.processor, patient)] == [Level.OK, Level.OK]
    # The same card in another board.
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"fpu"})
    found = look(doctor_machine.processor, patient)
    assert [finding.level for finding in found] == [Level.OK, Level.FAIL]
    assert f"{machine.hardware('').arch}, " in found[0].text
    assert f"the instructions {here}" in found[1].text


@pytest.mark.parametrize(
    ("cgroup", "path", "name"),
    [
        ("0::/system.slice/skerry-runtime.service", "sys/fs/cgroup/system.slice", "memory.max"),
        (
            "5:cpu:/x\n4:memory:/system.slice/skerry-runtime.service",
            "sys/fs/cgroup/memory/system.slice/skerry-runtime.service",
            "memory.limit_in_bytes",
        ),
    ],
)
def test_a_memory_limit_below_the_budget(patient: Patient, cgroup: str, path: str, name: str) -> None:
    put(patient, "proc/self/cgroup", cgroup)
    put(patient, "proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 500000 kB\n")
    assert look(doctor_machine.memory, patient)[0].level is Level.OK
    put(patient, f"{path}/{name}", str(128 * MIB))
    found = look(doctor_machine.memory, patient)
    assert [finding.level for finding in found] == [Level.FAIL]
    assert "a cgroup limit of 128 MiB" in found[0].text
    assert doctor_machine.cgroup_limit(patient.root, "self") == 128 * MIB


def test_no_budget_and_little_memory_are_warnings(patient: Patient) -> None:
    put(patient, "proc/meminfo", "MemTotal: 1000000 kB\nMemAvailable: 5000 kB\n")
    free = replace(
        patient, config=replace(patient.config, budgets=replace(patient.config.budgets, ram_bytes=0))
    )
    assert [finding.level for finding in look(doctor_machine.memory, free)] == [Level.WARN, Level.WARN]


def test_swap_on_a_card_is_a_warning(patient: Patient) -> None:
    head = "Filename\tType\tSize\tUsed\tPriority\n"
    put(patient, "proc/swaps", head + "/dev/zram0 partition 100 0 -2\n")
    assert look(doctor_machine.swap, patient)[0].level is Level.OK
    put(patient, "proc/swaps", head + "/var/swap file 100 0 -2\n")
    assert "/var/swap" in look(doctor_machine.swap, patient)[0].text
    assert look(doctor_machine.swap, patient)[0].level is Level.WARN


def test_a_hot_board_is_a_warning(patient: Patient) -> None:
    put(patient, "sys/class/thermal/thermal_zone0/temp", "48200\n")
    assert look(doctor_machine.heat, patient)[0] == Finding("heat", Level.OK, "48 °C")
    put(patient, "sys/class/thermal/thermal_zone1/temp", "84100\n")
    assert look(doctor_machine.heat, patient)[0].level is Level.WARN


def test_what_a_raspberry_pi_says_of_its_power() -> None:
    assert list(doctor_machine.throttling("throttled=0x0\n")) == []
    (now,) = doctor_machine.throttling("throttled=0x50005\n")
    assert now.text == "the board reports under-voltage, throttling"
    (before,) = doctor_machine.throttling("throttled=0x10000\n")
    assert before.text == "the board reports under-voltage since it was started"
    assert list(doctor_machine.throttling("VCHI initialization failed")) == []


def test_a_clock_before_the_floor_fails_and_one_after_does_not(patient: Patient) -> None:
    assert Level.FAIL not in {finding.level for finding in look(doctor_machine.clock, patient)}
    early = look(doctor_machine.clock, replace(patient, now_ms=0))
    assert early[0].level is Level.FAIL
    assert "Serving goes on" in early[0].hint
    assert (
        early[0].text == "it says 1970-01-01 00:00 UTC, and this device knows that 2026-01-01 00:00 is past"
    )


def test_the_unit_as_systemd_sees_it(
    patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert look(doctor.unit, patient)[0].text == "systemd does not run here"
    (patient.root / "run/systemd/system").mkdir(parents=True)
    fake = tmp_path / "systemctl"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    good = {"LoadState": "loaded", "ActiveState": "active", "UnitFileState": "enabled", "NRestarts": "0"}
    for change, level, word in (
        ({}, Level.OK, "is active"),
        ({"LoadState": "not-found"}, Level.WARN, "not installed"),
        ({"ActiveState": "failed", "Result": "watchdog"}, Level.FAIL, "failed: watchdog"),
        ({"ActiveState": "inactive"}, Level.WARN, "is inactive"),
        ({"NRestarts": "17"}, Level.WARN, "restarted 17 times"),
        ({"UnitFileState": "disabled"}, Level.WARN, "does not start at boot"),
    ):
        lines = "\n".join(f"{key}={value}" for key, value in {**good, **change}.items())
        fake.write_text(f"#!/bin/sh\ncat <<'X'\n{lines}\nX\n")
        fake.chmod(0o755)
        (finding,) = look(doctor.unit, patient)
        assert (finding.level, word in finding.text) == (level, True), finding


# --- the network -------------------------------------------------------------------------------------------


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path, password="right")
    broker.start()
    yield broker
    broker.stop()


def test_the_broker_takes_the_credentials_or_says_why_not(patient: Patient, guarded: Broker) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody listens, and nobody else can
        for port, password, level, word in (
            (guarded.port, "right", Level.OK, "takes this device's credentials"),
            (guarded.port, "wrong", Level.FAIL, "refuses the user name or the password"),
            (deaf.getsockname()[1], "right", Level.FAIL, "does not answer: Connection refused"),
        ):
            fleet = FleetConfig(host="127.0.0.1", port=port, username="pi-7", password=password)
            (finding,) = look(
                doctor_network.broker, replace(patient, config=replace(patient.config, fleet=fleet))
            )
            assert (finding.level, word in finding.text) == (level, True), finding


def test_something_that_is_no_broker(patient: Patient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        fleet = FleetConfig(host="127.0.0.1", port=server.getsockname()[1], username="u", password="p")
        (finding,) = look(
            doctor_network.broker, replace(patient, config=replace(patient.config, fleet=fleet))
        )
    assert "does not speak MQTT" in finding.text


def test_a_connected_daemon_is_not_thrown_off_its_broker(device: Device, headquarters: Headquarters) -> None:
    wait_until(lambda: device.status()["fleet"]["state"] == "connected", "the connection")
    epoch = device.status()["fleet"]["epoch"]
    assert findings(device)["broker"][0]["text"].startswith("the daemon is connected")
    assert device.status()["fleet"]["epoch"] == epoch


def test_an_address_that_is_taken(patient: Patient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        serve = replace(patient.config.serve, http=server.getsockname())
        found = look(doctor_network.sockets, replace(patient, config=replace(patient.config, serve=serve)))
    assert found[-1].level is Level.FAIL
    assert "serve.http" in found[-1].hint


def test_a_socket_where_nobody_answers(patient: Patient, tmp_path: Path) -> None:
    models = {"digits": {"active": {"version": "1.0.0"}, "socket": str(tmp_path / "nobody.sock")}}
    found = look(doctor_network.sockets, replace(patient, status={"models": models}))
    assert [finding.level for finding in found] == [Level.FAIL]
