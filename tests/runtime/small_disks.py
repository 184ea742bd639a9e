"""Disks that fail on command, mounted by root: full, without inodes, read-only, without power."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.waiting import wait_until

_SHUTDOWN: Final = 0x8004587D
"""FS_IOC_SHUTDOWN, of ext4 and xfs."""
_NO_LOG_FLUSH: Final = 2


@contextlib.contextmanager
def mounted(folder: Path, *command: str) -> Iterator[Path]:
    """Mount at a folder, which is made; skips the test where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system takes root")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *command, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine does not let tests mount a file system: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        # Whoever was killed may still hold a file; another mount of the same disk must not meet this one.
        wait_until(lambda: _unmount(folder), f"nobody uses {folder}")


def _unmount(folder: Path) -> bool:
    return subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode == 0


def tmpfs(folder: Path, options: str) -> contextlib.AbstractContextManager[Path]:
    """In memory, with limits such as ``size=24m,nr_inodes=100``."""
    return mounted(folder, "-t", "tmpfs", "-o", options, "tmpfs")


def make_ext4(image: Path, megabytes: int = 64) -> Path:
    """A file as a disk, which the kernel makes read-only at the first error."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is not installed")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-e", "remount-ro", str(image)], check=True)
    return image


def ext4(folder: Path, image: Path) -> contextlib.AbstractContextManager[Path]:
    """Mount what `make_ext4` made; the kernel replays the journal."""
    return mounted(folder, "-o", "loop", str(image))


def cut_power(folder: Path) -> None:
    """The file system ends at once, as if the power failed: what was not made durable is lost (ext4, xfs)."""
    with _opened(folder) as descriptor:
        fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def break_disk(folder: Path) -> None:
    """Report an error to the kernel as if the disk had one: it becomes read-only under open files."""
    source = subprocess.run(
        ["findmnt", "--noheadings", "--output", "SOURCE", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    trigger = Path("/sys/fs/ext4") / Path(source).name / "trigger_fs_error"
    if not trigger.exists():
        pytest.skip("this kernel has no way to report an error of a disk")
    trigger.write_text("a test\n")
    with pytest.raises(OSError, match="Read-only"):
        (folder / "probe").write_text("x")


def fill(folder: Path) -> list[Path]:
    """Until not one more byte can be written; the files to remove."""
    coarse, fine = folder / "coarse-filler", folder / "fine-filler"
    for path, piece in ((coarse, b"x" * (1 << 20)), (fine, b"x")):
        with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(piece) == len(piece):
                pass
    return [coarse, fine]


def use_up_inodes(folder: Path) -> list[Path]:
    """Until not one more file can be made; the files to remove."""
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            path = folder / f"filler-{len(made)}"
            path.touch(exist_ok=False)
            made.append(path)
    return made
