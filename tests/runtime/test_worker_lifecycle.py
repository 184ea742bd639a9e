"""Zygote and workers as the agent sees them: born, warm, counted, crashed, hung, orphaned, stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.model_zoo import counting_loop, digit_images, digits, lay_out, logarithm
from tests.runtime.worker_harness import (
    TIMEOUT,
    Worker,
    ZygoteHarness,
    ask,
    connect,
    json_request,
    listen_unix,
    process_threads,
)
from tests.waiting import wait_until

from skerry_contract.digests import digest_of, prefix8
from skerry_contract.monitoring import spec_hash
from skerry_contract.summary import check, decode
from skerry_runtime.ipc import (
    Accept,
    Channel,
    CloseWindow,
    Failed,
    Health,
    Ready,
    Settings,
    Spawn,
    Stop,
    Window,
)
from skerry_runtime.worker.heartbeat import HUNG

INFER = "/v2/models/digits/infer"
BOOT = "0123456789abcdef" * 2


@pytest.fixture
def zygote() -> Iterator[ZygoteHarness]:
    with ZygoteHarness() as running:
        yield running


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with listen_unix(tmp_path / "s") as sock:
        yield sock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return lay_out(tmp_path / "gen", digits())


def started(zygote: ZygoteHarness, folder: Path, listener: socket.socket, **options: object) -> Worker:
    worker = zygote.spawn("serve", folder, [listener], **options)
    worker.expect(Ready)
    worker.send(Accept())
    return worker


def answer(listener: socket.socket, rows: int = 1) -> int:
    client = connect(listener)
    try:
        return ask(client, "POST", INFER, json_request(image=digit_images()[0][:rows]))[0]
    finally:
        client.close()


def test_a_worker_is_warm_before_it_accepts(
    zygote: ZygoteHarness, folder: Path, listener: socket.socket
) -> None:
    worker = zygote.spawn("serve", folder, [listener])
    ready = worker.expect(Ready)
    assert ready.latency_p50_us > 0
    early = connect(listener)
    early.request("GET", "/v2/health/live")  # kept by the kernel: nobody accepts yet
    worker.send(Accept())
    assert early.getresponse().status == 200
    early.close()


def test_the_zygote_has_one_thread_and_its_workers_share_its_imports(
    zygote: ZygoteHarness, folder: Path, listener: socket.socket
) -> None:
    started(zygote, folder, listener)
    assert process_threads(zygote.process.pid) == 1


def test_windows_carry_what_was_answered(
    zygote: ZygoteHarness, folder: Path, listener: socket.socket
) -> None:
    worker = started(zygote, folder, listener, boot=BOOT, first_window=41)
    for rows in (1, 2, 300):
        assert answer(listener, rows) == 200
    wait_until(lambda: worker.expect(Health).requests == 3, "three counted requests")
    worker.send(CloseWindow())
    window = worker.expect(Window)
    summary = decode(window.summary)
    spec = digits().spec
    check(summary, spec, spec_hash(spec.to_bytes()))
    assert (window.seq, window.rows, summary.seq, summary.rows) == (41, 303, 41, 303)
    assert summary.boot == bytes.fromhex(BOOT)
    assert summary.bundle == prefix8(digest_of((folder / "manifest.json").read_bytes()))
    assert summary.prediction is not None
    assert sum(summary.prediction.counts) == 303
    assert sum(summary.health.latency) == 3
    assert summary.health.rss_kib > 10_000
    answer(listener)
    worker.send(Stop())
    last = worker.expect(Window)
    assert (last.seq, last.rows) == (42, 1)  # the open window is not lost
    assert zygote.wait_exited(worker) == 0


def test_a_window_closes_by_rows_and_settings_change_it(
    zygote: ZygoteHarness, folder: Path, listener: socket.socket
) -> None:
    worker = started(zygote, folder, listener, window_rows=10)
    answer(listener, 10)
    assert worker.expect(Window).rows == 10
    answer(listener, 6)
    wait_until(lambda: worker.expect(Health).requests == 2, "six counted rows")
    worker.send(Settings(window_seconds=3600, window_rows=4))
    worker.send(CloseWindow())
    assert worker.expect(Window).rows == 6  # the window that was open kept its length
    answer(listener, 4)
    assert worker.expect(Window).rows == 4


def test_a_window_closes_by_time(zygote: ZygoteHarness, folder: Path, listener: socket.socket) -> None:
    worker = started(zygote, folder, listener, window_seconds=0.3)
    answer(listener)
    assert worker.expect(Window).rows == 1


def test_health_counts_and_sees_a_peak(zygote: ZygoteHarness, folder: Path, listener: socket.socket) -> None:
    worker = started(zygote, folder, listener)
    quiet = worker.expect(Health)
    assert (quiet.requests, quiet.failures, quiet.canary_ok) == (0, 0, True)
    assert answer(listener, 1500) == 200
    seen = [worker.expect(Health)]
    while seen[-1].requests == 0:
        seen.append(worker.expect(Health))
    assert seen[-1].latency_p95_us > 0
    assert max(health.rss_bytes for health in seen) > quiet.rss_bytes + 2**20  # the request's memory was seen


def test_a_model_s_failures_are_in_its_health(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    worker = started(zygote, lay_out(tmp_path / "g", logarithm()), listener)
    client = connect(listener)
    status, _, _ = ask(
        client, "POST", "/v2/models/logarithm/infer", json_request(x=np.array([[-1.0, 1.0]], np.float32))
    )
    client.close()
    assert status == 500
    wait_until(lambda: worker.expect(Health).failures == 1, "the failure is reported")


def test_a_model_that_cannot_be_loaded_is_a_failure(
    zygote: ZygoteHarness, tmp_path: Path, listener: socket.socket
) -> None:
    folder = lay_out(tmp_path / "g", digits(), engine="tflite")
    worker = zygote.spawn("serve", folder, [listener])
    assert worker.expect(Failed).error.code == "engine"
    assert os.waitstatus_to_exitcode(zygote.wait_exited(worker)) == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_is_reported_and_another_worker_takes_over(
    zygote: ZygoteHarness, folder: Path, listener: socket.socket, number: signal.Signals
) -> None:
    worker = started(zygote, folder, listener)
    os.kill(worker.pid, number)
    worker.expect_end()
    assert os.WTERMSIG(zygote.wait_exited(worker)) == number
    started(zygote, folder, listener)
    assert answer(listener) == 200


def test_a_hung_inference_ends_its_worker_with_a_word(tmp_path: Path) -> None:
    """The worker alone, with a deadline that a test can wait for."""
    program = (
        "import socket, sys\n"
        "from skerry_runtime.ipc import Channel, Spawn\n"
        "from skerry_runtime.worker.limits import ServeLimits\n"
        "from skerry_runtime.worker.server import serve\n"
        "channel, listener = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:3])\n"
        "spawn = Spawn(id=1, role='serve', generation=sys.argv[3])\n"
        "serve(Channel(channel), spawn, [(listener, 'unix')], ServeLimits(inference_s=0.5))\n"
    )
    folder = lay_out(tmp_path / "g", counting_loop())
    ours, theirs = Channel.pair()
    with listen_unix(tmp_path / "s") as listener:
        descriptors = [theirs.fileno(), listener.fileno()]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, descriptors), str(folder)],
            pass_fds=descriptors,
            stderr=subprocess.DEVNULL,
        )
        theirs.close()
        worker = Worker(process.pid, ours)
        worker.expect(Ready)
        worker.send(Accept())
        client = connect(listener)
        client.request(
            "POST", "/v2/models/counter/infer", json.dumps(json_request(times=np.array([1 << 60], np.int64)))
        )
        assert "not returned" in worker.expect(Failed).error.message
        worker.expect_end()
        assert process.wait(TIMEOUT) == HUNG
        client.close()
        ours.close()


def test_when_the_agent_dies_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    with ZygoteHarness() as zygote, listen_unix(tmp_path / "s") as listener:
        workers = [started(zygote, folder, listener) for _ in range(2)]
        zygote.channel.sock.shutdown(socket.SHUT_RDWR)
        assert zygote.process.wait(TIMEOUT) == 0
        for worker in workers:
            worker.expect_end()
        wait_until(lambda: not any(os.path.exists(f"/proc/{w.pid}") for w in workers), "the workers' end")


def test_when_the_zygote_is_killed_its_workers_die(folder: Path, tmp_path: Path) -> None:
    with ZygoteHarness() as zygote, listen_unix(tmp_path / "s") as listener:
        worker = started(zygote, folder, listener)
        zygote.process.kill()
        worker.expect_end()


def test_a_worker_whose_channel_closes_ends(
    zygote: ZygoteHarness, folder: Path, listener: socket.socket
) -> None:
    worker = started(zygote, folder, listener)
    worker.channel.sock.shutdown(socket.SHUT_RDWR)
    assert os.waitstatus_to_exitcode(zygote.wait_exited(worker)) == 0


def test_the_zygote_stops_on_request(folder: Path) -> None:
    with ZygoteHarness() as zygote:
        zygote.channel.send(Stop())
        assert zygote.process.wait(TIMEOUT) == 0


def test_a_spawn_with_the_wrong_descriptors_forks_nobody(zygote: ZygoteHarness, folder: Path) -> None:
    ours, theirs = Channel.pair()
    zygote.channel.send(
        Spawn(id=9, role="serve", generation=str(folder), sockets=("unix",)), [theirs.fileno()]
    )
    theirs.close()
    Worker(0, ours).expect_end()  # its end was closed
    ours.close()
    worker = zygote.spawn("preflight", folder)  # and the zygote goes on
    worker.expect(Ready)
