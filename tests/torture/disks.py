"""Disks of files: ext4 and xfs on loop devices, tmpfs, and the power cut.

All mounts are in a mount namespace of this process (`private_mounts`): whatever happens to it, they and their
loop devices are gone with it, and runs side by side do not see each other's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

FILE_SYSTEMS: Final = ("ext4", "xfs")
_MIB: Final = {"ext4": 24, "xfs": 300}
"""The smallest that mkfs.xfs makes is 300; its file has holes."""
_MAKE: Final = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
}
_OPTIONS: Final = {"ext4": "loop,errors=continue", "xfs": "loop,nouuid"}
_SHUTDOWN: Final = 0x8004587D
"""FS_IOC_SHUTDOWN of ext4, XFS_IOC_GOINGDOWN of xfs: the same number."""
_NO_LOG_FLUSH: Final = 2
_CLONE_NEWNS: Final = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_UNMOUNT_S: Final = 60.0
_PATH: Final = os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin"
"""Nobody's path but root's has where mkfs is."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def why_no_disks() -> str:
    """Why disks cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if missing := [make[0] for make in _MAKE.values() if shutil.which(make[0], path=_PATH) is None]:
        return f"missing on this machine: {', '.join(missing)} (packages e2fsprogs, xfsprogs)"
    if not Path("/dev/loop-control").exists():
        return "there is no /dev/loop-control"
    return ""


def private_mounts() -> None:
    """From now on this process, its later threads and children mount for themselves."""
    refused = _libc.unshare(_CLONE_NEWNS) or _libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    if refused:
        raise OSError(ctypes.get_errno(), "a private mount namespace is refused")


def make_image(kind: str, image: Path) -> None:
    """An empty file system in a file."""
    with image.open("wb") as file:
        file.truncate(_MIB[kind] << 20)
    _run(*_MAKE[kind], str(image))


def copy_image(source: Path, target: Path) -> None:
    """Holes stay holes."""
    target.unlink(missing_ok=True)
    _run("cp", "--sparse=always", str(source), str(target))


@contextlib.contextmanager
def mounted(kind: str, image: Path, point: Path) -> Iterator[Path]:
    """An image, until the end of the block."""
    point.mkdir(exist_ok=True)
    _run("mount", "-t", kind, "-o", _OPTIONS[kind], str(image), str(point))
    try:
        yield point
    finally:
        unmount(point)


@contextlib.contextmanager
def memory_disk(point: Path, options: str) -> Iterator[Path]:
    """A tmpfs."""
    point.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", options, "none", str(point))
    try:
        yield point
    finally:
        unmount(point)


def remount(point: Path, options: str) -> None:
    _run("mount", "-o", f"remount,{options}", str(point))


def unmount(point: Path) -> None:
    """A process that was killed may hold it for a moment."""
    deadline = time.monotonic() + _UNMOUNT_S
    while True:
        done = subprocess.run(["umount", str(point)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            raise OSError(f"umount: {done.stderr.strip()}")
        time.sleep(0.005)


def cut_power(point: int) -> int:
    """Shut the file system down: what is not on its disk is gone. Returns nanoseconds just before.

    Args:
        point: a descriptor of the mount point.
    """
    before = time.monotonic_ns()
    fcntl.ioctl(point, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    return before


def _run(*command: str) -> None:
    environment = {**os.environ, "PATH": _PATH}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
