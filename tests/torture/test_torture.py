"""A bounded share of the torture: a sample of every means, every planted mistake. `make torture` does all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.torture.disks import why_no_disks
from tests.torture.mistakes import MISTAKES
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
NO_DISKS = why_no_disks()
needs_disks = pytest.mark.skipif(bool(NO_DISKS), reason=f"no power cuts here: {NO_DISKS}")
TRACING = ("--only", "kill", "--only", "fault", "--only", "order")
DISKS = ("--only", "full", "--only", "cut", "--only", "mistakes")


def torture(root: Path, report: Path, *arguments: str) -> dict[str, Any]:
    """Run it, and give its report; everything in it was good, or the whole report is shown."""
    command = [sys.executable, "-m", "tests.torture", "--json", str(report), *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def cases_of(report: dict[str, Any]) -> dict[str, int]:
    assert report["bad"] == []
    return {row["means"]: row["cases"] for row in report["means"]}


@pytest.mark.timeout(660)
@pytest.mark.attack
def test_l1_l2_kills_and_failing_system_calls_leave_the_old_model_or_the_new_one(
    tmp_path: Path, root: Path
) -> None:
    report = torture(root, tmp_path / "report", *TRACING, "--limit", "20", "--seed", "1", "--without-disks")
    assert cases_of(report) == {
        "killed at a system call": 20,
        "a system call fails": 20,
        "order of system calls": 20,
    }


@needs_disks
@pytest.mark.timeout(660)
@pytest.mark.attack
def test_l1_l2_power_cuts_and_full_disks_lose_no_promise_and_every_planted_mistake_is_caught(
    tmp_path: Path, root: Path
) -> None:
    report = torture(root, tmp_path / "report", *DISKS, "--limit", "16", "--cycles", "4", "--seed", "1")
    cases = cases_of(report)
    assert cases.pop("disk full, without inodes, read-only") == 16
    assert cases == {
        f"power cut, {kind}, {what}": 4 for kind in ("ext4", "xfs") for what in ("models", "outbox")
    }
    caught = {proof["mistake"]: set(proof["caught"]) for proof in report["mistakes"]}
    assert set(caught) == set(MISTAKES)
    assert all(caught.values()), caught


@needs_disks
@pytest.mark.timeout(300)
def test_nothing_stays_mounted_when_the_run_is_killed(root: Path) -> None:
    command = [sys.executable, "-m", "tests.torture", "--only", "cut", "--seed", "1"]
    run = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    scratch = ""
    try:

        def looping() -> str:
            assert run.poll() is None
            mounts = Path(f"/proc/{run.pid}/mounts").read_text()
            found = re.search(r"/dev/loop\S+ (\S*/skerry-torture-[^/]+)/", mounts)
            return found[1] if found else ""

        scratch = wait_until(looping, "a disk on a loop device")
        assert scratch not in Path("/proc/mounts").read_text()
        run.send_signal(signal.SIGKILL)
        run.wait()
        wait_until(lambda: not left_over(scratch), "loop devices and children are gone")
    finally:
        run.kill()
        run.wait()
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def left_over(scratch: str) -> list[str]:
    """Loop devices and processes that still have to do with a folder."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found.append(file.read_text().strip())
        except OSError:
            continue
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            found.append(os.readlink(link))
        except OSError:
            continue
    return [path for path in found if path.startswith(scratch)]


def test_without_root_it_says_what_it_needs(root: Path, tmp_path: Path) -> None:
    code = (
        "import os, runpy, sys; os.geteuid = lambda: 1000; sys.argv = ['torture', '--seed', '1'];"
        "runpy.run_module('tests.torture', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "mounting needs root" in done.stderr
    assert "--without-disks" in done.stderr
