"""strace, attached to a child that waits: counts system calls, kills at one of them, or makes them fail."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.torture.deeds_models import Order
from tests.torture.forks import PATIENCE_S, Done, Forks, Hung

CALLS: Final = (
    "openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "mkdir",
    "mkdirat", "unlink", "unlinkat", "rmdir", "link", "linkat", "ftruncate", "fallocate", "close",
)  # fmt: skip
"""What changes a disk, or opens and closes what is on it."""
READS: Final = ("read", "pread64", "newfstatat", "getdents64")
"""What only looks: it is killed nowhere, and fails with EIO alone."""
_MARK: Final = "getpriority"
_LINE: Final = re.compile(r"^(?:\d+ +)?(\w+)\(", re.MULTILINE)


def traced(
    forks: Forks,
    order: Order,
    calls: Sequence[str],
    inject: str = "",
    *,
    mistake: str = "",
    trace: Path | None = None,
) -> tuple[Done, str]:
    """Do a deed under strace; also returns the lines of the calls, as strace prints them.

    Args:
        inject: as of strace's ``-e inject=``; nothing if empty.
        trace: descriptors with their paths, as `tests.runtime.durable_order` reads them, go to this file.
    """
    pid = forks.begin(order, mistake=mistake, waits=True)
    forks.wait_ready()
    command = ["strace", "-qq", "-s", "0", "-e", "signal=none", "-e", f"trace={_MARK},{','.join(calls)}"]
    if inject:
        command += ["-e", f"inject={inject}"]
    if trace is not None:
        command.append("-y")
    tracer = subprocess.Popen(
        [*command, "-p", str(pid)], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, bufsize=0
    )
    try:
        assert tracer.stderr is not None
        first = tracer.stderr.readline().decode()
        if _MARK not in first:
            raise Hung(f"strace cannot attach: {first.strip() or 'the child was gone'}")
        forks.board.begin()
        lines = _read_all(tracer.stderr.fileno())
        done = forks.finish()
    finally:
        forks.kill()
        tracer.kill()
        tracer.wait()
        if tracer.stderr is not None:
            tracer.stderr.close()
    kept = "\n".join(line for line in lines.splitlines() if _MARK not in line)
    if trace is not None:
        trace.write_text("\n".join(f"{pid} {line}" for line in kept.splitlines()) + "\n")
    return done, kept


def _read_all(descriptor: int) -> str:
    """All that strace says until its child has ended."""
    deadline = time.monotonic() + PATIENCE_S
    pieces: list[bytes] = []
    while True:
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise Hung("a traced child hangs")
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return b"".join(pieces).decode(errors="replace")
        pieces.append(piece)


def count(forks: Forks, order: Order, mistake: str = "") -> tuple[Counter[str], Done]:
    """How often a deed does each call, and what came of it when nothing was done to it."""
    done, lines = traced(forks, order, (*CALLS, *READS), mistake=mistake)
    return Counter(_LINE.findall(lines)), done
