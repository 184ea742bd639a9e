"""A hostile local user (attack L8): may neither look nor touch, and what he plants is not run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.runtime.agent_world import Device, Hammer, make_bundle, running
from tests.waiting import wait_until

from skerry_contract.errors import UnavailableError
from skerry_contract.signing import EcdsaSigner

pytestmark = pytest.mark.attack
NOBODY = 65534


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that everybody may enter; pytest's own are closed, which would hide what is open below."""
    folder = Path(tempfile.mkdtemp(prefix="skerry-l8-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def as_nobody(*attempts: Callable[[], object]) -> list[str]:
    """Name of the error of each attempt, made by another user without any rights; empty if it succeeded."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            for attempt in attempts:
                try:
                    attempt()
                except OSError as error:
                    told.append(errno.errorcode[error.errno or 0])
                else:
                    told.append("")
            os.write(theirs, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    result: list[str] = json.loads(data)
    assert len(result) == len(attempts)
    return result


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_l8_another_user_cannot_ask_steer_read_or_replace_anything(
    open_folder: Path, signer: EcdsaSigner
) -> None:
    run = open_folder / "run"
    run.mkdir(mode=0o755)
    front = run / "skerry.sock"
    device = Device(open_folder, signer, extra=f'[serve]\nsocket = "{front}"\ntoken = "secret"\n')
    with running(device):
        device.install(make_bundle(signer).write(open_folder))
        worker, zygote = device.model()["active"]["pid"], device.status()["zygote_pid"]
        assert device.process is not None
        processes = [device.process.pid, worker, *([zygote] if zygote else [])]
        agent_socket, outbox = device.data / "run" / "agent.sock", device.data / "outbox.db"
        attempts: list[Callable[[], object]] = [
            lambda: connect(front),
            lambda: connect(agent_socket),
            lambda: os.listdir(device.data),
            outbox.read_bytes,
            device.config.read_bytes,
            lambda: (device.data / "planted").write_text("x"),
            front.unlink,
            lambda: (run / "planted").write_text("x"),
            *(lambda pid=pid: os.kill(pid, signal.SIGKILL) for pid in processes),
            *(lambda pid=pid: Path(f"/proc/{pid}/environ").read_bytes() for pid in processes),
            *(lambda pid=pid: os.listdir(f"/proc/{pid}/fd") for pid in processes),
            *(lambda pid=pid: Path(f"/proc/{pid}/mem").read_bytes() for pid in processes),
        ]
        with Hammer(front) as hammer:
            told = as_nobody(*attempts)
            wait_until(lambda: hammer.answers.get("1.0.0", 0) > 5, "answers")
        assert set(told) == {"EACCES", "EPERM"}, told
        assert hammer.failures == []
        files = [path for path in device.data.rglob("*") if path.is_file()]
        assert files
        assert [path for path in files if path.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("target", ["a file", "nothing", "a socket of his"])
def test_l8_a_link_in_a_shared_folder_is_not_followed(
    tmp_path: Path, signer: EcdsaSigner, target: str
) -> None:
    shared, victim = tmp_path / "shared", tmp_path / "victim"
    shared.mkdir(mode=0o1777)
    front = shared / "skerry.sock"
    front.symlink_to(victim)
    his = socket.socket(socket.AF_UNIX)
    if target == "a file":
        victim.write_text("precious")
    elif target == "a socket of his":
        his.bind(str(victim))
    device = Device(tmp_path, signer, extra=f'[serve]\nsocket = "{front}"\n')
    try:
        if target == "nothing":
            with running(device):
                device.install(make_bundle(signer).write(tmp_path))
                assert device.infer(sock=front)["model_version"] == "1.0.0"
                assert stat.S_ISSOCK(front.lstat().st_mode)
                assert not victim.exists()
        else:
            device.spawn()
            assert device.process is not None
            assert device.process.wait(60) == 1
            assert "is not a socket" in device.log.read_text()
            assert front.is_symlink()
            assert target != "a file" or victim.read_text() == "precious"
    finally:
        his.close()


def test_l8_a_data_folder_that_everybody_may_write_to_is_refused(tmp_path: Path, signer: EcdsaSigner) -> None:
    device = Device(tmp_path, signer)
    device.data.mkdir()
    device.data.chmod(0o777)
    device.spawn()
    assert device.process is not None
    assert device.process.wait(60) == 1
    assert "everybody may write" in device.log.read_text()
    assert list(device.data.iterdir()) == []


MODULES = (
    "json",
    "ssl",
    "socket",
    "msgspec",
    "paho",
    "numpy",
    "onnxruntime",
    "cryptography",
    "skerry_contract",
)
SITE = ("sitecustomize", "usercustomize")
COMMAND = "import sys\nfrom skerry_runtime.cli import main\nsys.exit(main())\n"
"""What an installed ``skerry-runtime`` is."""


def plant(folder: Path, names: tuple[str, ...], note: Path) -> Path:
    """Modules that leave a note and end the process that imports them."""
    folder.mkdir()
    for name in names:
        text = f"open({str(note)!r}, 'a').write({name!r} + '\\n')\nimport os\nos._exit(66)\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def test_l8_what_is_planted_in_the_current_folder_and_the_environment_is_not_imported(
    tmp_path: Path, signer: EcdsaSigner
) -> None:
    note = tmp_path / "note"
    here = plant(tmp_path / "here", MODULES + SITE, note)
    # The agent imports none of these: whoever sets its environment is its user. Its children import them all.
    there = plant(tmp_path / "there", ("numpy", "onnxruntime", "cryptography", "ai_edge_litert"), note)
    command = tmp_path / "bin" / "skerry-runtime"
    command.parent.mkdir()
    command.write_text(COMMAND)
    device = Device(tmp_path, signer)
    device.write_config()
    environment = {**os.environ, "PYTHONPATH": str(there), "PYTHONSTARTUP": str(here / "json.py")}
    with device.log.open("ab") as log:
        device.process = subprocess.Popen(
            [sys.executable, str(command), "run", "--config", str(device.config), "--log", "text"],
            stderr=log,
            stdin=subprocess.DEVNULL,
            cwd=here,
            env=environment,
        )
    try:
        wait_until(device.is_up, "the daemon")
        device.install(make_bundle(signer).write(tmp_path))
        assert device.infer()["model_version"] == "1.0.0"
        asked = subprocess.run(
            [sys.executable, str(command), "status", "--config", str(device.config)],
            cwd=here,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "digits" in asked.stdout
        assert device.stop() == 0
    finally:
        device.process.kill()
        device.process.wait()
    assert not note.exists(), note.read_text()
    with pytest.raises(UnavailableError):
        device.status()
