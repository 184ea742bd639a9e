"""The systemd unit: hard, and yet all that the daemon needs. Uses tools of the package ``systemd``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests import tflite_models
from tests.runtime import confined, tflite_runs
from tests.runtime.agent_world import QUICK, Broker, Device, Headquarters, make_bundle, running

from skerry_contract.signing import EcdsaSigner
from skerry_runtime.agent.worker import SILENT_SECONDS

UNIT = Path(__file__).resolve().parents[2] / "devices" / "systemd" / "skerry-runtime.service"
WORST_SCORE = 1.5
TOOL = shutil.which("systemd-analyze")
CONFINED = (sys.executable, confined.__file__, str(UNIT))


@pytest.fixture(autouse=True)
def tool() -> None:
    assert TOOL, "systemd-analyze is missing: install the system's package 'systemd' (it need not run)"


def test_the_unit_is_as_hard_as_promised() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        check=False,
    )
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert score, done.stderr
    assert float(score[1]) <= WORST_SCORE


def test_the_unit_has_no_unknown_word() -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(UNIT)], capture_output=True, text=True, check=False
    )
    complaints = [
        line
        for line in done.stderr.splitlines()
        # Nobody installed the program on the machine that tests.
        if UNIT.name in line and "is not executable" not in line
    ]
    assert complaints == []


def test_the_watchdog_leaves_the_agent_time_to_replace_a_worker_that_hangs() -> None:
    found = dict(confined.settings(UNIT))
    assert found["Type"] == "notify"
    # The last ping may be half an interval old when a worker begins to hang.
    assert int(found["WatchdogSec"]) / 2 > SILENT_SECONDS


def test_installing_rolling_out_and_answering_work_under_the_unit(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    device = Device(tmp_path, signer, broker, headquarters, tracer=CONFINED, extra="[budgets]\nram_mb = 512")
    with running(device):
        assert device.install(make_bundle(signer).write(tmp_path))["state"] == "probation"
        assert device.infer()["model_version"] == "1.0.0"
        second = make_bundle(signer, version="2.0.0", release=2)
        headquarters.publish_bundle(second)
        headquarters.desire(second, probation=QUICK)
        device.wait_state("confirmed", "2.0.0")
        assert device.infer()["model_version"] == "2.0.0"
        assert device.stop() == 0
    log = device.log.read_text()
    assert "Traceback" not in log
    assert "Operation not permitted" not in log


def test_tflite_works_under_the_unit(tmp_path: Path) -> None:
    model = tmp_path / "dense.tflite"
    model.write_bytes(tflite_models.dense().data())
    command = [*CONFINED, sys.executable, tflite_runs.__file__, str(tmp_path / "free.npz"), str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "free.npz").exists()


@pytest.mark.attack
@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("memory that is written and executed", "import mmap; mmap.mmap(-1, 4096, prot=7)"),
        ("a packet socket", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"),
        ("a netlink socket", "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)"),
        (
            "a user namespace",
            "import ctypes, os; libc = ctypes.CDLL(None, use_errno=True)\n"
            "if libc.unshare(0x10000000): raise OSError(ctypes.get_errno(), 'unshare')",
        ),
        (
            "a mount",
            "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
            "if libc.mount(b'none', b'/mnt', b'tmpfs', 0, None): raise OSError(ctypes.get_errno(), 'mount')",
        ),
        (
            "another clock",
            "import time; time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))",
        ),
        ("a larger priority", "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))"),
    ],
)
def test_l8_the_unit_refuses(what: str, code: str) -> None:
    """The rules are really loaded: what they forbid fails, whoever asks."""
    done = subprocess.run(
        [*CONFINED, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, what
    assert re.search(r"(PermissionError|OSError|Address family not supported)", done.stderr), done.stderr
