"""The daemon in a control group of 64 MB: serving, then an update, which needs a second worker for a while.

Pages of files are charged to whoever reads them first, so those of the interpreter and the libraries are
dropped from the page cache before. What another process has mapped at that moment stays, and is not charged.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..children import ChildError
from ..device import CommandError, Device
from ..gates import Figure
from ..servers import Server, oip_json, ours
from ..world import World

LIMIT = 64_000_000
_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Group:
    """A memory control group, of the first or the second kind."""

    folder: Path
    second: bool

    @property
    def peak(self) -> int:
        name = "memory.peak" if self.second else "memory.max_usage_in_bytes"
        return int((self.folder / name).read_text())

    @property
    def anonymous(self) -> int:
        """What cannot be dropped and read again."""
        words = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        return int(words["anon" if self.second else "rss"])

    @property
    def killed(self) -> int:
        """Processes that the kernel ended for want of memory."""
        events = self.folder / ("memory.events" if self.second else "memory.oom_control")
        words = dict(line.split() for line in events.read_text().splitlines())
        return int(words["oom_kill"])


@contextmanager
def group(limit: int) -> Iterator[Group]:
    """A new group. Raises OSError where none can be made."""
    second = not _V1.is_dir()
    folder = (_V2 if second else _V1) / f"skerry-bench-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
        yield Group(folder, second)
    finally:
        deadline = time.monotonic() + 10
        while folder.exists() and time.monotonic() < deadline:
            with suppress(OSError):
                folder.rmdir()
            time.sleep(0.05)


def measure(world: World) -> dict[str, Figure]:
    bundle, requests = world.bundle("digits"), world.pick(1000, 5000)
    try:
        with group(LIMIT) as limited:
            return {"64mb": _measure(world, limited, bundle, requests)}
    except PermissionError as error:
        return {"64mb": Figure(value=None, detail=f"it takes root to make a control group: {error}")}


def _measure(world: World, limited: Group, bundle: Path, requests: int) -> Figure:
    device = world.device(bundle)
    device.prefix = ("sh", "-c", f'echo $$ > {limited.folder}/cgroup.procs && exec "$@"', "sh")
    _evict()
    with device:
        said = []
        try:
            began = time.monotonic()
            device.start()
            said.append(f"start {time.monotonic() - began:.1f} s, {limited.anonymous / 1e6:.1f} MB anonymous")
            request = oip_json("digits", "pixels", world.model("digits").rows[:1])
            with ours(device.socket_of("digits"), "skerry", request) as server:
                p50 = server.p50(requests)
                said.append(f"{requests} requests, p50 {p50:.0f} us")
                peak, killed = limited.peak, limited.killed
                if not world.quick:
                    said.append(_update(device, server, world.bundle("digits", "1.1.0")))
        except (CommandError, ChildError) as error:
            said.append(_brief(error))
            return Figure(value=limited.peak / 1e6, failed=True, detail="; ".join(said))
        if limited.killed:
            said.append(f"{limited.killed} processes killed for want of memory")
        return Figure(value=peak / 1e6, failed=killed > 0, detail="; ".join(said))


def _update(device: Device, server: Server, bundle: Path) -> str:
    """Whether there is room for an update, too: shown, not judged."""
    try:
        device.wait_confirmed("digits")
        device.install(bundle)
        server.p50(100)
    except (CommandError, ChildError) as error:
        return f"an update fails: {_brief(error)}"
    return "an update passes"


def _brief(error: Exception) -> str:
    """Its beginning: after that comes the log."""
    return " ".join(str(error).split())[:200]


def _evict() -> None:
    """Drop the libraries' pages that nobody has mapped from the page cache."""
    roots = {Path(sys.prefix), Path(sys.base_prefix) / "lib", Path(__file__).resolve().parents[3] / "runtime"}
    for root in roots:
        for path in root.rglob("*"):
            if path.suffix in (".so", ".py", ".pyc") or ".so." in path.name:
                with suppress(OSError), path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
