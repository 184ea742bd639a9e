"""The daemon's log: a ring in memory, fields for journald, every line of an update with its transaction."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.runtime.agent_world import Device, make_bundle, running
from tests.waiting import wait_until

from skerry_contract.errors import StorageError
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent import log, log_ring
from skerry_runtime.agent.log_journal import JournalHandler, encode_fields, priority_of, stderr_is_journal
from skerry_runtime.cli_logs import from_journal

COMMAND = [sys.executable, "-m", "skerry_runtime.cli", "logs"]


def record(message: str, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    found = logging.LogRecord("skerry.update", level, __file__, 1, message, (), None)
    vars(found).update(extra)
    return found


@pytest.fixture
def quiet() -> Iterator[None]:
    """The logger as it was, afterwards."""
    logger = logging.getLogger("skerry")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


# --- the ring ----------------------------------------------------------------------------------------------


def test_the_ring_keeps_the_newest_lines_within_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_ring, "LINES", 3)
    ring = log_ring.Ring(log.line_of)
    for number in range(5):
        ring.emit(record(f"line {number}"))
    assert [(number, line["message"]) for number, line in ring.after(0)] == [
        (3, "line 2"),
        (4, "line 3"),
        (5, "line 4"),
    ]
    assert [line["message"] for _, line in ring.after(4)] == ["line 4"]


def test_the_ring_is_bounded_in_bytes_and_long_lines_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_ring, "BYTES", 10_000)
    ring = log_ring.Ring(log.line_of)
    for _ in range(50):
        ring.emit(record("x" * 1000))
    assert 5 <= len(ring.after(0)) <= 10
    ring.emit(record("y" * 100_000))
    last = ring.after(0)[-1][1]["message"]
    assert last.endswith(" …")
    assert len(last) < 4096


def test_readers_wait_for_more() -> None:
    ring = log_ring.Ring(log.line_of)
    assert ring.after(0, wait_s=0.01) == []


# --- lines -------------------------------------------------------------------------------------------------


def test_a_line_of_a_model_in_an_update_gets_its_transaction(quiet: None) -> None:
    ring = log.set_up("json")
    log.name_transactions(lambda model: {"digits": "cafe0001"}.get(model, ""))
    logger = log.get_logger("serving")
    logger.warning("a worker ended", extra={"model": "digits"})
    logger.warning("another one's", extra={"model": "letters"})
    logger.info("its own", extra={"model": "digits", "transaction": "beef"})
    assert [line.get("transaction") for _, line in ring.after(0)] == ["cafe0001", None, "beef"]


def test_an_error_is_a_field_and_readable_text() -> None:
    error = StorageError("the disk is full", hint="Free some space.")
    line = log.line_of(record("cannot be stored", logging.ERROR, error=error))
    assert line["error"] == {"code": "storage", "message": "the disk is full", "hint": "Free some space."}
    text = log.text_of(line)
    assert "error: cannot be stored  error=storage: the disk is full → Free some space." in text


def test_a_traceback_stays_with_its_line() -> None:
    try:
        raise ValueError("odd")
    except ValueError:
        found = logging.LogRecord("skerry.loop", logging.ERROR, __file__, 1, "failed", (), sys.exc_info())
    line = log.line_of(found)
    assert "ValueError: odd" in line["traceback"]
    assert log.text_of(line).endswith("ValueError: odd")


# --- journald ----------------------------------------------------------------------------------------------


def parse_native(data: bytes) -> dict[str, str]:
    """A datagram of journald's native protocol, read as journald reads it."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            key, _, value = line.partition(b"=")
        else:
            key, length = line, int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + length], rest[8 + length + 1 :]
        fields[key.decode()] = value.decode()
        data = rest
    return fields


def test_journald_gets_fields_with_the_transaction(tmp_path: Path) -> None:
    error = StorageError("full", hint="Free some.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind(str(tmp_path / "journal"))
        handler = JournalHandler(log.line_of, tmp_path / "journal")
        handler.emit(
            record(
                "digits:\nrolled back", logging.WARNING, transaction="cafe0001", model="digits", error=error
            )
        )
        fields = parse_native(journald.recv(65536))
        handler.close()
    assert fields == {
        "MESSAGE": "digits:\nrolled back",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "skerry-runtime",
        "SKERRY_PART": "update",
        "SKERRY_TRANSACTION": "cafe0001",
        "SKERRY_MODEL": "digits",
        "SKERRY_ERROR_CODE": "storage",
        "SKERRY_ERROR_MESSAGE": "full",
        "SKERRY_ERROR_HINT": "Free some.",
    }


def test_without_journald_a_line_goes_to_stderr_with_its_priority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = JournalHandler(log.line_of, tmp_path / "nobody")
    handler.emit(record("bad", logging.ERROR))
    handler.close()
    assert capsys.readouterr().err == "<3>bad\n"


def test_stderr_is_journalds_if_its_inode_is() -> None:
    status = os.fstat(2)
    assert stderr_is_journal({"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
    assert not stderr_is_journal({"JOURNAL_STREAM": "1:1"})
    assert not stderr_is_journal({})


def test_priorities_are_syslogs() -> None:
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)
    assert [priority_of(level) for level in levels] == [7, 6, 4, 3, 3]


def test_a_line_comes_back_from_journald_as_it_went() -> None:
    line = log.line_of(record("staged", transaction="cafe0001"))
    entry = {**parse_native(encode_fields(line, 6)), "__REALTIME_TIMESTAMP": "1767225600123000"}
    back = from_journal(entry)
    assert back == {**line, "time": "2026-01-01T00:00:00.123Z"}
    assert from_journal({"MESSAGE": [104, 105]})["message"] == "hi"


# --- the command -------------------------------------------------------------------------------------------


def test_the_lines_of_an_update_can_be_asked_for(loner: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    transaction = loner.install(make_bundle(signer).write(tmp_path))["transaction"]
    command = [*COMMAND, "--config", str(loner.config), "--json"]
    done = subprocess.run(
        [*command, "--transaction", transaction], capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["transaction"] for line in lines} == {transaction}
    kinds = [line["kind"] for line in lines if "kind" in line]
    assert kinds[:5] == [
        "update.verifying", "update.staged", "update.self_test", "update.pending", "update.probation",
    ]  # fmt: skip
    everything = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(everything) > len(lines)
    newest = subprocess.run([*command, "--lines", "1"], capture_output=True, text=True, check=True)
    assert newest.stdout.splitlines() == everything[-1:]


def test_the_log_can_be_followed(loner: Device, tmp_path: Path, signer: EcdsaSigner) -> None:
    command = [*COMMAND, "--config", str(loner.config), "--follow", "--lines", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        # What comes before the daemon has read its question is not asked for.
        wait_until(lambda: _followed(loner), "the follower's connection")
        loner.install(make_bundle(signer).write(tmp_path))
        line = next(line for line in follower.stdout if "digits 1.0.0: probation" in line)
        assert "transaction=" in line
        follower.terminate()


def test_without_a_daemon_journald_is_asked(
    tmp_path: Path, signer: EcdsaSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, signer)
    device.write_config()
    fake = tmp_path / "bin" / "journalctl"
    fake.parent.mkdir()
    entry = {"MESSAGE": "staged", "PRIORITY": "6", "SKERRY_PART": "update", "SKERRY_TRANSACTION": "cafe"}
    fake.write_text(f"#!/bin/sh\necho \"$@\" >{tmp_path}/asked\necho nonsense\necho '{json.dumps(entry)}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(fake.parent), prepend=os.pathsep)
    command = [*COMMAND, "--config", str(device.config), "--transaction", "cafe"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "00:00:00.000  update     staged  transaction=cafe\n"
    asked = (tmp_path / "asked").read_text()
    assert "--unit=skerry-runtime" in asked
    assert "SKERRY_TRANSACTION=cafe" in asked
    fake.write_text("#!/bin/sh\n")
    nothing = subprocess.run(command, capture_output=True, text=True, check=False)
    assert nothing.returncode == 3
    assert "no skerry-runtime answers" in nothing.stderr


def test_a_reader_that_has_enough_is_no_error(loner: Device) -> None:
    command = [*COMMAND, "--config", str(loner.config)]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_only_a_few_may_follow(loner: Device) -> None:
    request = json.dumps({"do": "logs", "lines": 0, "follow": True}).encode() + b"\n"
    followers = []
    try:
        for _ in range(5):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect(str(loner.data / "run" / "agent.sock"))
            sock.sendall(request)
            followers.append(sock)
        refused = wait_until(lambda: _refusal(followers), "the refusal")
        assert refused["error"]["code"] == "overloaded"
        assert loner.status()["pid"], "orders still get through"
    finally:
        for sock in followers:
            sock.close()


def test_the_daemon_ends_while_it_is_followed(tmp_path: Path, signer: EcdsaSigner) -> None:
    device = Device(tmp_path, signer)
    with running(device):
        command = [*COMMAND, "--config", str(device.config), "--follow"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follower:
            assert follower.stdout is not None
            assert "serves no model yet" in follower.stdout.readline()
            assert device.stop() == 0
            assert "stopping" in follower.stdout.read()
            assert follower.wait() == 3


def _followed(device: Device) -> bool:
    """Whether a client's connection is open beside the one that asks."""
    listening = str(device.data / "run" / "agent.sock")
    table = Path("/proc/net/unix").read_text()
    return sum(line.endswith(listening) and line.split()[5] == "03" for line in table.splitlines()) > 0


def _refusal(socks: list[socket.socket]) -> Any:
    for sock in socks:
        sock.setblocking(False)
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            continue
        for line in data.splitlines():
            if b"error" in line:
                return json.loads(line)
    return None
