"""fsync, rename, fsync: the order of real installs by their system calls; planted mistakes are caught."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.builders import BundleBuilder
from tests.runtime.agent_world import QUICK, Broker, Device, Headquarters, make_bundle, other_digits, running
from tests.runtime.careless_installer import MISTAKES
from tests.runtime.durable_order import Order, check_order, read_calls, traced
from tests.waiting import wait_until

from skerry_contract.signing import EcdsaSigner

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

CAUGHT = {
    "pointer_in_place": "state/current: opened for writing in place",
    "no_file_fsync": "renamed before",
    "no_directory_fsync": "its folder is never fsync'd",
    "blob_not_fsynced": ".part is fsync'd",
    "generation_not_fsynced": "state/pending: changed before models/digits/gens/2 is for good",
    "links_not_fsynced": "gens/2: renamed before it holds models/digits/gens/2.tmp/",
    "pointer_not_removed_durably": "state/pending: its folder is never fsync'd",
}


def install_traced(mistake: str, folder: Path, signer: EcdsaSigner, root: Path) -> Order:
    """Install a first release, then a second one under the eyes of the checker."""
    for release in (1, 2):
        bundle = BundleBuilder(
            version=f"{release}.0.0",
            release=release,
            signer=signer,
            models={"fp32": f"model {release} ".encode() * 200},
        ).write(folder)
        installer = [sys.executable, "-m", "tests.runtime.careless_installer"]
        command = [*installer, mistake if release == 2 else "none", str(folder / "data"), str(bundle)]
        subprocess.run(traced(folder / "trace", command) if release == 2 else command, cwd=root, check=True)
    return check_order(folder / "trace", folder / "data")


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_planted_mistake_is_caught_and_the_right_order_is_not(
    tmp_path: Path, signer: EcdsaSigner, root: Path, mistake: str
) -> None:
    order = install_traced(mistake, tmp_path, signer, root)
    assert order.renames > (4 if mistake == "pointer_in_place" else 6)
    if mistake == "none":
        assert order.faults == []
    else:
        assert [fault for fault in order.faults if CAUGHT[mistake] in fault], order.faults


@pytest.mark.slow
def test_a_daemon_that_installs_confirms_and_rolls_back_keeps_the_order(
    tmp_path: Path, signer: EcdsaSigner, broker: Broker, headquarters: Headquarters
) -> None:
    trace = tmp_path / "trace"
    # -D: the daemon itself is the child that the test started.
    device = Device(tmp_path, signer, broker, headquarters, tracer=[*traced(trace, []), "-D", "-q"])
    first = make_bundle(signer)
    second = make_bundle(signer, version="2.0.0", release=2, model=other_digits())
    third = make_bundle(signer, version="3.0.0", release=3, wrong_golden=True)
    for made in (second, third):
        headquarters.publish_bundle(made)
    with running(device):
        device.install(first.write(tmp_path))
        headquarters.desire(first, probation=QUICK)
        device.wait_state("confirmed", "1.0.0")
        headquarters.desire(second, probation=QUICK)
        device.wait_state("confirmed", "2.0.0")
        headquarters.desire(third)
        device.wait_state("rejected", "3.0.0")
        assert device.ask("rollback") == {"name": "digits", "version": "1.0.0"}
        wait_until(lambda: device.infer()["model_version"] == "1.0.0", "the last good one")
        assert device.process is not None
        pid = device.process.pid
        device.stop()
    ended = re.compile(rf"^{pid} +\+\+\+ exited with 0", re.MULTILINE)
    wait_until(lambda: ended.search(trace.read_text()), "the end of the trace")
    order = check_order(trace, device.data)
    assert order.faults == []
    names = {path.name for path in (device.data / "models" / "digits" / "state").iterdir()}
    assert {"current", "update", "bad"} <= names
    assert order.renames > 40


@pytest.mark.slow
def test_an_install_without_a_daemon_keeps_the_order(tmp_path: Path, signer: EcdsaSigner) -> None:
    device = Device(tmp_path, signer)
    bundle = make_bundle(signer).write(tmp_path)
    command = [sys.executable, "-m", "skerry_runtime.cli", "install", str(bundle)]
    command += ["--config", str(device.write_config())]
    subprocess.run(traced(tmp_path / "trace", command), check=True, capture_output=True)
    order = check_order(tmp_path / "trace", device.data)
    assert order.faults == []
    assert order.renames > 6
    assert (device.data / "models" / "digits" / "state" / "pending").exists()


# --- the checker itself ----------------------------------------------------------------------------------


def judge(*lines: str) -> list[str]:
    """Faults of a trace of the folder ``/d``."""
    order = Order("/d")
    for call in read_calls("\n".join(f"7 {line}" for line in lines)):
        order.take(call)
    order.end()
    return order.faults


WRITE = [
    'openat(AT_FDCWD</>, "/d/x.tmp", O_WRONLY|O_CREAT|O_EXCL, 0600) = 3</d/x.tmp>',
    'write(3</d/x.tmp>, ""..., 5) = 5',
    "fsync(3</d/x.tmp>) = 0",
    'rename("/d/x.tmp", "/d/x") = 0',
    "fsync(3</d>) = 0",
]


def test_the_right_order_has_no_fault() -> None:
    assert judge(*WRITE) == []


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([0, 1, 3, 4], "renamed before x.tmp is fsync'd"),
        ([0, 2, 1, 3, 4], "renamed before x.tmp is fsync'd"),
        ([0, 1, 2, 3], "never fsync'd"),
        ([0, 1, 2, 4, 3], "never fsync'd"),
    ],
)
def test_any_other_order_has_one(order: list[int], words: str) -> None:
    (fault,) = judge(*(WRITE[index] for index in order))
    assert words in fault


def test_an_fsync_that_failed_or_that_runs_meanwhile_does_not_count() -> None:
    failed = "fsync(3</d/x.tmp>) = -1 EIO (Input/output error)"
    assert judge(WRITE[0], WRITE[1], failed, *WRITE[3:])
    meanwhile = ["fsync(3</d/x.tmp> <unfinished ...>", WRITE[1], "<... fsync resumed>) = 0"]
    assert judge(WRITE[0], *meanwhile, *WRITE[3:])
    in_time = [WRITE[1], "fsync(3</d/x.tmp> <unfinished ...>", "<... fsync resumed>) = 0"]
    assert judge(WRITE[0], *in_time, *WRITE[3:]) == []
