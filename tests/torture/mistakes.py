"""Mistakes planted into a child, to prove that this torture can fail. Production code knows nothing of them.

As long as the power stays on and the disk works, none of them changes what the agent does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, Final

import msgspec
from tests.torture.patches import patch

from skerry_contract.frames import OutboxFrame
from skerry_contract.messages import Acknowledge
from skerry_runtime.agent.files import fsync_dir
from skerry_runtime.agent.outbox_file import OutboxFile
from skerry_runtime.agent.slots import Current, ModelSlots, Pending
from skerry_runtime.agent.telemetry import Telemetry


def no_fsync() -> None:
    """Nothing is made durable before it is relied upon."""
    patch(os, "fsync", lambda descriptor: None)


def no_directory_fsync() -> None:
    """The content is safe, and its name is not."""
    honest = os.fsync
    patch(
        os,
        "fsync",
        lambda descriptor: None if stat.S_ISDIR(os.fstat(descriptor).st_mode) else honest(descriptor),
    )


def pointer_in_place() -> None:
    """The pointer is overwritten instead of replaced."""

    def write(self: ModelSlots, name: str, pointer: Pending | Current) -> None:
        with (self.state / name).open("wb") as file:
            file.write(msgspec.json.encode(pointer))
            file.flush()
            os.fsync(file.fileno())
        fsync_dir(self.state)

    patch(ModelSlots, "_write", write)


def fsync_retried() -> None:
    """An fsync that failed is tried once more; the kernel says yes then, and the data is gone."""
    honest = os.fsync

    def again(descriptor: int) -> None:
        try:
            honest(descriptor)
        except OSError:
            honest(descriptor)

    patch(os, "fsync", again)


def outbox_synchronous_normal() -> None:
    """SQLite's recommendation for WAL, which forgets acknowledged commits."""
    honest = OutboxFile._connect

    def connect(self: OutboxFile) -> Any:
        db = honest(self)
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    patch(OutboxFile, "_connect", connect)


def deleted_on_puback() -> None:
    """A row goes when the broker has it, instead of when the fleet has committed it."""
    honest = Telemetry.__init__

    def init(self: Telemetry, path: Any, budget: int, send: Any, *rest: Any, **named: Any) -> None:
        def send_and_forget(channel: Any, payload: bytes) -> bool:
            accepted = bool(send(channel, payload))
            if accepted:
                frame = OutboxFrame.decode(payload)
                self.acknowledged(Acknowledge(stream=frame.stream.hex(), seq=frame.last))
            return accepted

        honest(self, path, budget, send_and_forget, *rest, **named)

    patch(Telemetry, "__init__", init)


MISTAKES: Final[dict[str, Callable[[], None]]] = {
    mistake.__name__: mistake
    for mistake in (
        no_fsync, no_directory_fsync, pointer_in_place, fsync_retried, outbox_synchronous_normal,
        deleted_on_puback,
    )
}  # fmt: skip


def plant(name: str) -> None:
    """Nothing, if there is no name."""
    if name:
        MISTAKES[name]()
