"""Shared memory for a client of the Unix socket: tensors pass through a memfd, doorbells through two pipes.

Guarantees against the client, which shares the memory: it cannot resize it (sealed, so the worker never
gets SIGBUS); shapes come from the doorbell alone; inputs are copied before they are judged, so what is judged
is what runs and what is counted. And it cannot leave pages on the worker's account by keeping a descriptor:
the inputs' memory is allocated by the client and then sealed against losing pages, so the worker makes none
there, and all pages of the outputs' are given back.

Guarantee to the client: a request whose number is in `TAKEN` is answered unless this process dies; one
that is not was never seen, and may be sent again.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import numpy as np

from skerry_contract.digests import prefix8
from skerry_contract.errors import InputError, OverloadedError, SkerryError

from ...eager_poll import EagerPoll
from ...shared_memory import (
    ALIVE,
    CONSUMED,
    LENGTH,
    MAPPED,
    NONFINITE_INPUT,
    OK,
    PAGE,
    PROTOCOL,
    TAKEN,
    TARGET,
    WORDS,
    Layout,
    Refusal,
    Wish,
    answer_struct,
    free_axes,
    free_sizes,
    request_struct,
    shapes,
)
from ..engines import Array
from ..inference import Answer
from ..limits import ServeLimits
from .api import DIGEST_HEADER, Api, status_of
from .protocol import check_bool, check_rows, check_tensor
from .shared_layout import misshapen, output_view, plan, view_of
from .wire import Head

if TYPE_CHECKING:
    from .http import ByteBudget

_F_SEAL_FUTURE_WRITE: Final = 0x10
"""Since Linux 5.1: who has the memory mapped may write, nobody else; and nobody takes pages out."""
_MFD_NOEXEC_SEAL: Final = 8
_BLOCK: Final = 512
"""Unit of st_blocks."""
_MESSAGE: Final = 400
_HINT: Final = 200
"""Characters of an error, six bytes each in JSON at worst, so that an answer fits a page."""
_PAUSE_MS: Final = 5
_LATER: Final = "Try again later, or use HTTP."


class Client(Protocol):
    """The connection that shares memory; it says when to end, and is told who is waiting for whom."""

    @property
    def leaving(self) -> bool:
        """Whether to end after this answer."""

    @property
    def alone(self) -> bool:
        """Whether no other client is likely to want this process meanwhile."""

    def begin_request(self) -> None: ...

    def end_request(self) -> None: ...


def wants_shared_memory(head: Head) -> bool:
    """Whether a request asks to leave HTTP for this protocol."""
    upgrade, connection = head.headers.get("upgrade", ""), head.headers.get("connection", "")
    return head.path == TARGET and upgrade.lower() == PROTOCOL and "upgrade" in connection.lower()


class SharedMemory:
    """All memory that a server shares: so many clients, so many bytes."""

    def __init__(self, api: Api, limits: ServeLimits, budget: ByteBudget) -> None:
        self._api, self._limits, self._budget = api, limits, budget
        self._places = threading.BoundedSemaphore(limits.shared_clients)

    def serve(self, sock: socket.socket, wish: bytes, client: Client) -> None:
        """Answer one client until it, the server or the time for idle clients ends it.

        Raises:
            InputError, OverloadedError: the client's wish cannot be met; nothing was sent yet.
            OSError: the client left before it was answered.
        """
        layout = self._layout(wish)
        with ExitStack() as held:
            if not self._places.acquire(blocking=False):
                raise OverloadedError("too many clients share memory", hint=_LATER)
            held.callback(self._places.release)
            size = layout.inputs_bytes + layout.outputs_bytes
            if not self._budget.reserve(size):
                raise OverloadedError("too much memory is shared already", hint=_LATER)
            held.callback(self._budget.release, size)
            try:
                session = Session(self._api, layout)
            except OSError as error:
                raise OverloadedError(f"no memory can be shared: {error.strerror}", hint=_LATER) from error
            held.callback(session.close, sock, self._limits.farewell_s)
            session.hand_over(sock)
            if sock.recv(1) != MAPPED or not session.fix_inputs():
                return
            session.answer(sock, client, self._limits.idle_s)

    def _layout(self, text: bytes) -> Layout:
        try:
            wish = msgspec.json.decode(text or b"{}", type=Wish)
        except msgspec.MsgspecError as error:
            raise InputError(f"the wish for shared memory is malformed: {error}") from error
        return plan(self._api.inference.model.generation, wish, self._limits.shared_bytes)


class Session:
    """The two memories and the two pipes of one client."""

    def __init__(self, api: Api, layout: Layout) -> None:
        """Raises `OSError` if the kernel has none of them left."""
        self._api, self._layout = api, layout
        self._inference = api.inference
        self._specs = {spec.name: spec for spec in api.inference.model.generation.manifest.inputs}
        self._bools = [spec for spec in self._specs.values() if spec.datatype == "BOOL"]
        self._digest8 = prefix8(api.inference.model.generation.bundle)
        self._request, self._answer = request_struct(layout.inputs), answer_struct(layout.outputs)
        self._pack = self._answer.pack
        self._answered = 0
        self._sizes: bytes | None = None
        """Free sizes of the last request; they are the same most of the time."""
        self._given: dict[str, Array] = {}
        """The inputs as they make them, where the client may change them at any time."""
        with ExitStack() as undo:
            inputs, outputs = _memory(layout.inputs_bytes, undo), _memory(layout.outputs_bytes, undo)
            fcntl.fcntl(outputs, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
            self._inputs_memory = mmap.mmap(inputs, layout.inputs_bytes, access=mmap.ACCESS_READ)
            self._memory = mmap.mmap(outputs, layout.outputs_bytes)
            self._doorbell, requests = _pipe(undo)
            answers, self._reply = _pipe(undo)
            self._theirs = [inputs, outputs, requests, answers]
            os.set_blocking(self._reply, False)
            undo.pop_all()
        self._words = memoryview(self._memory)[: struct.calcsize(WORDS)].cast("I")
        self._words[ALIVE] = 1
        self._results = {
            region.name: view_of(region, region.shape, self._memory)
            for region in layout.outputs
            if -1 not in region.shape
        }

    def hand_over(self, sock: socket.socket) -> None:
        """Switch protocols: say what is where, and give the client its ends."""
        head = (
            f"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n"
            f"{DIGEST_HEADER}: {self._layout.digest}\r\n\r\n"
        ).encode("latin-1")
        layout = msgspec.json.encode(self._layout)
        data = head + LENGTH.pack(len(layout)) + layout
        sent = socket.send_fds(sock, [data], self._theirs)
        sock.sendall(data[sent:])
        while len(self._theirs) > 1:
            os.close(self._theirs.pop())

    def fix_inputs(self) -> bool:
        """Seal the inputs' memory against losing pages; False if some were not allocated before.

        Raises:
            OSError: the client sealed it itself.
        """
        fcntl.fcntl(self._theirs[0], fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL)
        return os.fstat(self._theirs[0]).st_blocks * _BLOCK >= self._layout.inputs_bytes

    def answer(self, sock: socket.socket, client: Client, idle_s: float) -> None:
        """Until someone ends it. Raises `OSError` if an answer finds no reader."""
        poll = EagerPoll()
        poll.register(self._doorbell, select.POLLIN)
        poll.register(sock.fileno(), select.POLLIN | select.POLLRDHUP)
        timeout_ms, size = int(idle_s * 1000), self._request.size
        doorbell, rung = self._doorbell, (self._doorbell, select.POLLIN)
        words, record = self._words, self._inference.record
        client.end_request()
        while not client.leaving:
            events = poll.wait(timeout_ms, eager=client.alone)
            if rung not in events:
                return  # the client is gone, idle for too long, or asked to go
            client.begin_request()
            message = os.read(doorbell, size)
            if len(message) != size:
                return  # not our protocol: there is no way to find the next request
            number = LENGTH.unpack_from(message)[0]
            words[TAKEN] = number
            reply, answer = self._run(number, message)
            try:
                os.write(self._reply, reply)
                self._answered = number
            finally:
                if answer is not None:
                    record(answer)
            client.end_request()

    def close(self, sock: socket.socket, patience_s: float) -> None:
        """Give everything back, once the client has read its last answer."""
        for descriptor in (self._doorbell, self._reply, *self._theirs):
            os.close(descriptor)
        self._wait_for_consumption(sock, patience_s)
        self._words[ALIVE] = 0
        with suppress(OSError):  # a kernel without it: the pages go with the client's last descriptor
            self._memory.madvise(mmap.MADV_REMOVE)

    def _wait_for_consumption(self, sock: socket.socket, patience_s: float) -> None:
        give_up = time.monotonic() + patience_s
        poll = select.poll()
        poll.register(sock, 0)  # POLLHUP is always told: the client closed
        while self._answered != self._words[CONSUMED] and time.monotonic() < give_up:
            if any(event & select.POLLHUP for _, event in poll.poll(_PAUSE_MS)):
                return

    def _run(self, number: int, message: bytes) -> tuple[bytes, Answer | None]:
        """What to send, and what to count then."""
        answer = None
        try:
            answer = self._inference.infer(self._inputs(message))
            sizes = self._place(answer.outputs)
        except SkerryError as error:
            return self._refusal(number, error), answer
        flags = NONFINITE_INPUT if answer.nonfinite_input else 0
        nanoseconds = int(answer.microseconds * 1000)
        return self._pack(number, OK, flags, nanoseconds, self._digest8, *sizes), answer

    def _inputs(self, message: bytes) -> dict[str, Array]:
        """Private copies. Raises `InputError` if they are not what the model takes."""
        if message[LENGTH.size :] != self._sizes:
            self._given = self._shaped(self._request.unpack(message)[1:])
            self._sizes = message[LENGTH.size :]
        inputs = {name: view.copy() for name, view in self._given.items()}
        for spec in self._bools:
            check_bool(spec, inputs[spec.name].view(np.uint8))
        return inputs

    def _shaped(self, sizes: Sequence[int]) -> dict[str, Array]:
        views = {}
        for region, shape in zip(self._layout.inputs, shapes(self._layout.inputs, sizes), strict=True):
            check_tensor(self._specs[region.name], region.datatype, shape)
            views[region.name] = view_of(region, shape, self._inputs_memory)
        check_rows(views, self._specs)
        return views

    def _place(self, outputs: Mapping[str, Array]) -> list[int]:
        """Write them where the client looks; their free sizes."""
        sizes: list[int] = []
        for region in self._layout.outputs:
            array = outputs[region.name]
            view = self._results.get(region.name)
            if view is None:
                view = output_view(region, array, self._memory)
                sizes += free_sizes(region, array.shape)
            elif view.shape != array.shape:
                raise misshapen(region, array)
            view[...] = array
        return sizes

    def _refusal(self, number: int, error: SkerryError) -> bytes:
        body = Refusal(error.message[:_MESSAGE], error.code, error.hint[:_HINT])
        none = [0] * free_axes(self._layout.outputs)
        fixed = self._pack(number, status_of(error), 0, 0, self._digest8, *none)
        return fixed + msgspec.json.encode(body)


def _memory(size: int, undo: ExitStack) -> int:
    """A descriptor of memory that nobody can resize any more."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        memfd = os.memfd_create("skerry-shm", flags | _MFD_NOEXEC_SEAL)
    except OSError:
        memfd = os.memfd_create("skerry-shm", flags)  # before Linux 6.3
    undo.callback(os.close, memfd)
    os.ftruncate(memfd, size)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return memfd


def _pipe(undo: ExitStack) -> tuple[int, int]:
    """A pipe of one page: what a client floods it with stays small."""
    ends = os.pipe2(os.O_CLOEXEC)
    for end in ends:
        undo.callback(os.close, end)
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PAGE)
    return ends
