"""How agent, zygote and workers talk: one message a datagram over a socketpair, descriptors beside it.

The agent holds one channel to the zygote, which forks, and one to every worker. All messages are the
tagged dataclasses below; a closed channel means that the peer is dead.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from skerry_contract.errors import UnavailableError
from skerry_contract.messages import ErrorReport

MAX_MESSAGE = 160 * 1024
_MAX_FDS = 8


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages; the tag is the class name."""


class Spawn(Message, frozen=True, kw_only=True):
    """Agent -> zygote: fork a worker. Descriptors beside it: its channel, then the listening sockets."""

    id: int
    role: str
    """``preflight`` or ``serve``."""
    become: bool = False
    """Do not fork: be the worker, and a zygote no more."""
    generation: str
    """Folder of the generation (verified, immutable) to load."""
    sockets: tuple[str, ...] = ()
    """Kind of each listening descriptor: ``unix`` or ``tcp``."""
    ram_limit_bytes: int = 0
    """Hard limit (RLIMIT_DATA beyond what the zygote has mapped); 0 sets none."""
    window_seconds: float = 3600.0
    window_rows: int = 100_000
    first_window: int = 1
    """Sequence number of the first window that this worker closes, unique within the boot."""
    boot: str = ""
    tcp_token: str = ""
    """Bearer token that TCP clients must present; empty asks for none."""


class Preload(Message, frozen=True, kw_only=True):
    """Agent -> zygote: import an engine now, once for all workers that are forked from here on."""

    engine: str
    proved: bool
    """Whether it is known that the import does not end the process that does it."""


class Spawned(Message, frozen=True, kw_only=True):
    """Zygote -> agent."""

    id: int
    pid: int


class Exited(Message, frozen=True, kw_only=True):
    """Zygote -> agent: a worker ended; ``status`` as of ``waitpid``."""

    pid: int
    status: int


class Ready(Message, frozen=True, kw_only=True):
    """Worker -> agent: loaded and warm (serve), or the self-test passed (preflight)."""

    load_ms: float
    latency_p50_us: float
    latency_p95_us: float
    rss_bytes: int
    """Peak so far, without the pages of a mapped model."""
    engine_version: str
    execution: str = ""
    """Where it runs, for people: providers, threads, and what was wanted in vain."""


class Failed(Message, frozen=True, kw_only=True):
    """Worker -> agent: it cannot serve."""

    error: ErrorReport


class Accept(Message, frozen=True, kw_only=True):
    """Agent -> worker: begin, or go on, accepting connections."""


class Drain(Message, frozen=True, kw_only=True):
    """Agent -> worker: accept no more, answer what is in flight, close idle connections, stay warm."""

    deadline_s: float


class Drained(Message, frozen=True, kw_only=True):
    """Worker -> agent: nothing is in flight any more; the open window was closed and sent."""


class Stop(Message, frozen=True, kw_only=True):
    """Agent -> worker or zygote: close the window, end."""


class Retire(Message, frozen=True, kw_only=True):
    """Agent -> zygote: end, but let the workers live. Only after all of them sent `Adopted`."""


class Adopt(Message, frozen=True, kw_only=True):
    """Agent -> worker: die with this process, which is its parent; 0: with none, and answer `Adopted`."""

    parent: int


class Adopted(Message, frozen=True, kw_only=True):
    """Worker -> agent: it outlives its zygote now."""


class CloseWindow(Message, frozen=True, kw_only=True):
    """Agent -> worker: close the current window now and go on."""


class Settings(Message, frozen=True, kw_only=True):
    """Agent -> worker: from the next window on."""

    window_seconds: float
    window_rows: int


class Window(Message, frozen=True, kw_only=True):
    """Worker -> agent: a closed window, encoded by `skerry_contract.summary`."""

    seq: int
    rows: int
    summary: bytes


class Health(Message, frozen=True, kw_only=True):
    """Worker -> agent, about once a second: totals since the worker began, extremes since the last."""

    requests: int
    failures: int
    """Requests that failed by the model's or the engine's fault (never the client's)."""
    latency_p95_us: float
    """Of the last seconds' inferences, without queueing; 0 if none."""
    rss_bytes: int
    in_flight: int
    canary_ok: bool
    """The last golden sample that ran beside the traffic was right."""
    canaries: int = 0
    """Golden samples that ran beside the traffic and were right, since the worker began."""


AnyMessage = (
    Spawn
    | Preload
    | Spawned
    | Exited
    | Ready
    | Failed
    | Accept
    | Drain
    | Drained
    | Stop
    | Retire
    | Adopt
    | Adopted
    | CloseWindow
    | Settings
    | Window
    | Health
)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AnyMessage)


@dataclass(slots=True)
class Channel:
    """One end of a ``SOCK_SEQPACKET`` pair; a message is whole or not there."""

    sock: socket.socket

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (left, right):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_MESSAGE)
        return cls(left), cls(right)

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Raises `UnavailableError` if the peer is gone."""
        data = _encoder.encode(message)
        try:
            if descriptors:
                rights = array.array("i", descriptors)
                self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            else:
                self.sock.send(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise UnavailableError("the process at the other end is gone") from error

    def receive(self) -> tuple[AnyMessage, list[int]] | None:
        """The next message and its descriptors; None when the peer is gone. Blocks unless the socket says
        otherwise."""
        rights = array.array("i")
        try:
            data, ancillary, _, _ = self.sock.recvmsg(
                MAX_MESSAGE, socket.CMSG_LEN(_MAX_FDS * rights.itemsize)
            )
        except ConnectionResetError:
            return None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                rights.frombytes(payload[: len(payload) - len(payload) % rights.itemsize])
        if not data:
            return None
        return _decoder.decode(data), list(rights)

    def close(self) -> None:
        self.sock.close()
