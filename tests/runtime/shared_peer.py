"""A client of shared memory that knows only the specification, and keeps to it as far as a test wants."""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import struct
from types import TracebackType
from typing import Any

from tests.runtime.worker_harness import TIMEOUT

REQUEST = b"POST /v2/shared-memory HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: skerry-shm/1\r\n"
ANSWER = struct.Struct("=IHHQ8s")
TAKEN, CONSUMED, ALIVE = 0, 1, 2


class Peer:
    """One connection: the parts that the worker handed over."""

    def __init__(
        self, listener: socket.socket, wish: dict[str, Any] | None = None, *, begin: bool = True
    ) -> None:
        """``begin``: allocate the inputs and say so."""
        body = json.dumps(wish or {}).encode()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(listener.getsockname())
        self.sock.sendall(REQUEST + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        data, descriptors, _, _ = socket.recv_fds(self.sock, 1 << 16, 4)
        self.head, _, rest = data.partition(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 101 "), data
        (length,) = struct.unpack_from("=I", rest)
        assert len(rest) == 4 + length
        self.layout: dict[str, Any] = json.loads(rest[4:])
        self.inputs_fd, self.outputs_fd, self.doorbell, self.replies = descriptors
        if begin:
            os.posix_fallocate(self.inputs_fd, 0, self.layout["inputs_bytes"])
        self.inputs = mmap.mmap(self.inputs_fd, self.layout["inputs_bytes"])
        self.outputs = mmap.mmap(self.outputs_fd, self.layout["outputs_bytes"])
        if begin:
            self.sock.sendall(b"m")

    def ring(self, number: int, *sizes: int) -> None:
        os.write(self.doorbell, struct.pack(f"={1 + len(sizes)}I", number, *sizes))

    def reply(self) -> tuple[int, int, bytes]:
        """Number, status and what follows the fixed part; status 0 at the end of the session."""
        assert select.select([self.replies], [], [], TIMEOUT)[0], "no reply came"
        data = os.read(self.replies, 4096)
        if not data:
            return 0, 0, b""
        number, status, _, _, _ = ANSWER.unpack_from(data)
        return number, status, data[ANSWER.size :]

    def output(self, name: str, size: int) -> bytes:
        """The first bytes of an output."""
        at = self.region("outputs", name)["offset"]
        return self.outputs[at : at + size]

    def put(self, name: str, data: bytes) -> None:
        at = self.region("inputs", name)["offset"]
        self.inputs[at : at + len(data)] = data

    def region(self, memory: str, name: str) -> dict[str, Any]:
        return next(region for region in self.layout[memory] if region["name"] == name)

    def word(self, index: int) -> int:
        return int(struct.unpack_from("=I", self.outputs, 4 * index)[0])

    def set_word(self, index: int, value: int) -> None:
        struct.pack_into("=I", self.outputs, 4 * index, value)

    def close(self) -> None:
        """End the session; the memory stays mapped, and its descriptors open."""
        self.sock.close()
        for descriptor in (self.doorbell, self.replies):
            os.close(descriptor)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.sock.fileno() >= 0:
            self.close()
        os.close(self.inputs_fd)
        os.close(self.outputs_fd)
        self.inputs.close()
        self.outputs.close()
