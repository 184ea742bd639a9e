"""The harness' side of the fork server: deeds in processes that may be killed, traced or left alone."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from tests.torture.board import Board, Note
from tests.torture.deeds_models import Order

ROOT: Final = Path(__file__).resolve().parents[2]
PATIENCE_S: Final = 120.0
"""A deed takes milliseconds; one that takes longer than this hangs."""


class Hung(AssertionError):
    """A child did not come to its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a child."""

    killed: bool
    notes: tuple[Note, ...]
    end: dict[str, Any] | None
    """What it said at its end; nothing if it was killed before."""

    @property
    def result(self) -> dict[str, Any]:
        """Of a deed that must succeed."""
        assert self.end is not None, "a child died that nobody killed"
        assert not self.end.get("faults"), "\n".join(self.end["faults"])
        assert "raised" not in self.end, self.end
        return self.end


class Forks:
    """One fork server; one child at a time."""

    def __init__(self) -> None:
        descriptor = Board.create()
        self.board = Board(descriptor)
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.torture.fork_server", str(descriptor)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(descriptor,),
            start_new_session=True,
        )
        os.close(descriptor)
        self._child: int | None = None
        self._buffer = b""

    def close(self) -> None:
        self.kill()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def warm_up(self, order: Order) -> None:
        """A deed in the server itself: what it imports late is imported for all children."""
        self.board.clear()
        self._send(order, here=True)
        self._read()
        Done(killed=False, notes=(), end=self._end()).result  # noqa: B018 - raises

    def begin(self, order: Order, *, mistake: str = "", waits: bool = False) -> int:
        """Start a child; its number."""
        self.board.clear()
        self._send(order, mistake=mistake, waits=waits)
        self._child = int(self._read())
        return self._child

    def finish(self) -> Done:
        """Wait for the child's end."""
        assert self._child is not None
        status = int(self._read())
        self._child = None
        return Done(killed=os.WIFSIGNALED(status), notes=tuple(self.board.notes()), end=self._end())

    def kill(self) -> None:
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGKILL)

    def run(self, order: Order, *, mistake: str = "") -> Done:
        """A child from its begin to its end."""
        self.begin(order, mistake=mistake)
        return self.finish()

    def ended(self) -> bool:
        """Whether the child has said all."""
        return self._end() is not None

    def wait_ready(self) -> None:
        """Until a child that waits is ready; a child that fails before has its end noted."""
        deadline = time.monotonic() + PATIENCE_S
        while self.board.empty:
            if time.monotonic() > deadline:
                self.kill()
                raise Hung("a child did not become ready")
            time.sleep(0.001)

    def _end(self) -> dict[str, Any] | None:
        for note in reversed(self.board.notes()):
            if "end" in note.facts:
                end: dict[str, Any] = note.facts["end"]
                return end
        return None

    def _send(self, order: Order, **how: Any) -> None:
        from tests.torture.fork_server import Job

        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(Job(order=order, **how)) + b"\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        """A line of the server."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + PATIENCE_S
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                self.kill()
                raise Hung("a child hangs")
            piece = os.read(descriptor, 4096)
            if not piece:
                raise Hung("the fork server is gone; see its words above")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()


@contextlib.contextmanager
def forks() -> Iterator[Forks]:
    server = Forks()
    try:
        yield server
    finally:
        server.close()
