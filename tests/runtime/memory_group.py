"""A control group of the kernel that limits the memory of all processes in it: a small board on a large machine."""

from __future__ import annotations

import contextlib
import os
import site
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

import pytest
from tests.waiting import wait_until

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


class MemoryGroup:
    """Use as a context manager; what still runs in it at the end is killed.

    Skips the test where groups cannot be made.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._new = not (_V1 / "memory.limit_in_bytes").exists()
        self._folder = (_V2 if self._new else _V1) / f"skerry-test-{os.getpid()}-{os.urandom(3).hex()}"

    def __enter__(self) -> MemoryGroup:
        if os.geteuid() != 0:
            pytest.skip("only root can make a control group")
        if self._new and "memory" not in _read(_V2 / "cgroup.subtree_control").split():
            pytest.skip("this machine has no control groups for memory that a test may use")
        try:
            self._folder.mkdir()
        except OSError as error:
            pytest.skip(f"this machine lets nobody make a control group: {error.strerror}")
        (self._folder / ("memory.max" if self._new else "memory.limit_in_bytes")).write_text(
            str(self._limit_bytes)
        )
        with contextlib.suppress(OSError):  # a kernel without swap has no such file
            (self._folder / ("memory.swap.max" if self._new else "memory.memsw.limit_in_bytes")).write_text(
                "0" if self._new else str(self._limit_bytes)
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        wait_until(self._removed, "the end of the control group")

    def processes(self) -> list[int]:
        return [int(pid) for pid in _read(self._folder / "cgroup.procs").split()]

    @property
    def entering(self) -> Sequence[str]:
        """In front of a command: it runs in the group, with the same process number."""
        return ("sh", "-c", f'echo $$ > {self._folder}/cgroup.procs && exec "$@"', "sh")

    @property
    def oom_kills(self) -> int:
        """Processes that the kernel killed for lack of memory."""
        return self._fields("memory.events" if self._new else "memory.oom_control")["oom_kill"]

    def report(self) -> str:
        """For people, in MiB: the highest use, and what is held now."""
        peak = _read(self._folder / ("memory.peak" if self._new else "memory.max_usage_in_bytes")).strip()
        stat = self._fields("memory.stat")
        anonymous = stat.get("anon", stat.get("total_rss", 0))
        mapped = stat.get("file_mapped", stat.get("total_mapped_file", 0))
        limit_hits = self._fields("memory.events").get("max", 0) if self._new else int(
            _read(self._folder / "memory.failcnt")
        )
        return (
            f"peak {int(peak or 0) / 2**20:.1f}, anonymous {anonymous / 2**20:.1f}, mapped {mapped / 2**20:.1f} MiB;"
            f" {limit_hits} times at the limit, {self.oom_kills} killed"
        )

    def _fields(self, name: str) -> dict[str, int]:
        return {key: int(value) for key, value in map(str.split, _read(self._folder / name).splitlines())}

    def _removed(self) -> bool:
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        return not self._folder.exists()


def forget_files() -> None:
    """Drop Python's files and the libraries' from the page cache, so that who reads them next is charged.

    Pages that another process has mapped stay.
    """
    paths = sysconfig.get_paths()
    for folder in {paths["stdlib"], paths["platstdlib"], paths["purelib"], paths["platlib"], *site.getsitepackages()}:
        for file in _libraries(Path(folder)):
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _libraries(folder: Path) -> Iterator[Path]:
    for pattern in ("**/*.so", "**/*.so.*", "numpy/**/*.pyc", "onnxruntime/**/*.pyc", "paho/**/*.pyc", "*.pyc"):
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
