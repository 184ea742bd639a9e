"""A program's way to a model of the same machine: tensors in shared memory, no HTTP and no JSON a request.

>>> from skerry_runtime import LocalClient                                      # doctest: +SKIP
>>> with LocalClient("/run/skerry/infer.sock") as client:                       # doctest: +SKIP
...     answer = client.infer({"image": pixels})
...     answer["probabilities"], answer.digest

Guarantee: a request is answered once, or an error says that it may have run. One that the worker never saw is
sent again by itself: a hot swap is not noticed. docs/spec/shared-memory-v1.md has the protocol.
"""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Final

import msgspec
import numpy as np

from skerry_contract.errors import (
    EngineError,
    InputError,
    OverloadedError,
    SkerryError,
    UnavailableError,
    from_code,
)

from .eager_poll import EagerPoll
from .shared_memory import (
    ALIVE,
    ANSWER,
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
    Region,
    Wish,
    answer_struct,
    free_axes,
    free_sizes,
    request_struct,
    shapes,
)
from .worker.engines import DTYPES, Array

_TRIES: Final = 5
"""For a request that no worker has seen."""
_HEAD_BYTES: Final = 1 << 20
_STATUS_LINE: Final = b"HTTP/1.1 "
_DESCRIPTORS: Final = 4
_LAST_NUMBER: Final = (1 << 32) - 1


class Outputs(dict[str, Array]):
    """The output arrays by name, the caller's own, and what is known about this answer."""

    __slots__ = ("digest", "microseconds", "nonfinite_input")

    digest: str
    """Of the bundle that answered."""
    microseconds: float
    """Of the inference itself, without queueing."""
    nonfinite_input: bool
    """Whether the inputs held NaN or infinity; the outputs are finite all the same."""


class LocalClient:
    """A connection to one model; thread-safe, one request at a time. For more at once, have more clients.

    `input` is for one thread alone, as is a client after ``fork``.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, rows: int = 1, free: int = 0, timeout_s: float = 60.0
    ) -> None:
        """Connect.

        Args:
            path: the model's Unix socket.
            rows: the largest batch, for a model whose axis 0 is free.
            free: the largest size of any other axis that the model leaves free.
            timeout_s: the longest that anything may take; the server ends a hanging inference by itself.

        Raises:
            UnavailableError: nothing answers there, or it does not share memory.
            InputError: the model has a tensor without a bounded size: use HTTP.
            OverloadedError: too many clients, or too much memory is shared.
        """
        self._path, self._timeout_s = os.fspath(path), timeout_s
        self._wish = Wish(rows, free)
        self._lock = threading.Lock()
        self._given: dict[str, Array] = {}
        self._closed = False
        self._session: _Session | None = None
        self._layout = self._connected().layout

    @property
    def layout(self) -> Layout:
        """What the worker said that was connected to last: model, version, digest, tensors."""
        return self._layout

    def input(self, name: str, shape: Sequence[int] | None = None) -> Array:
        """A writable array where the worker reads: ``infer()`` then copies nothing.

        It stays valid for ever; after a hot swap it is copied until it is asked for again.

        Args:
            name: of the input.
            shape: where the model leaves sizes free; else the model's own.

        Raises:
            InputError: there is no such input, or it has no such shape.
            UnavailableError, OverloadedError: as when connecting.
        """
        with self._lock:
            array = self._connected().input(name, shape)
            self._given[name] = array
            return array

    def infer(self, inputs: Mapping[str, Array] | None = None) -> Outputs:
        """Run the model.

        Args:
            inputs: an array for each input, of the model's datatype and shape; without it, those that
                `input` gave.

        Raises:
            InputError: the arrays are not what the model takes, or not finite and so is the answer.
            EngineError, MemoryBudgetError: the model failed.
            OverloadedError: the queue is full.
            UnavailableError: there is no server, or it ended in the middle: then the request may have run.
        """
        with self._lock:
            arrays = self._given if inputs is None else inputs
            for _ in range(_TRIES):
                session = self._session or self._connected()
                try:
                    return session.infer(arrays)
                except _UnseenError:
                    self._disconnect()
                except UnavailableError:
                    self._disconnect()
                    raise
                except SkerryError:
                    raise  # that was the answer
                except BaseException:
                    self._disconnect()  # interrupted: the answer may still come, and would be the next one's
                    raise
        raise self._turned_away()

    def close(self) -> None:
        """Give the memory back; arrays of `input` stay readable."""
        with self._lock:
            self._closed = True
            self._disconnect()

    def __enter__(self) -> LocalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> _Session:
        if self._closed:
            raise UnavailableError("this client is closed", hint="Make another one.")
        for _ in range(_TRIES):
            if self._session is not None:
                return self._session
            try:
                self._session = _Session(self._path, self._wish, self._timeout_s)
                self._layout = self._session.layout
            except _UnseenError:
                continue  # a worker that just then ended
        raise self._turned_away()

    def _turned_away(self) -> UnavailableError:
        return UnavailableError(
            f"the server at {self._path} closed {_TRIES} connections", hint="See 'skerry-runtime status'."
        )

    def _disconnect(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


class _UnseenError(Exception):
    """The worker ended the session and never saw the request."""


class _Session:
    """One connection: its memory, its pipes, and the arrays on them."""

    def __init__(self, path: str, wish: Wish, timeout_s: float) -> None:
        self._timeout_ms = int(timeout_s * 1000)
        with ExitStack() as undo:
            try:
                sock = undo.enter_context(socket.socket(socket.AF_UNIX))
                sock.settimeout(timeout_s)
                sock.connect(path)
                head, rest, descriptors = _switch(sock, wish, undo)
                layout = _read_layout(sock, head, rest, descriptors)
                inputs, outputs, self._doorbell, self._replies = descriptors
                os.posix_fallocate(inputs, 0, layout.inputs_bytes)
                self._inputs_memory = _map(inputs, layout.inputs_bytes)
                self._memory = _map(outputs, layout.outputs_bytes)
                sock.sendall(MAPPED)
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _UnseenError from error
            except (OSError, ValueError, IndexError) as error:  # ValueError: msgspec, and what is no number
                raise UnavailableError(
                    f"no model shares memory at {path}: {error}", hint="See 'skerry-runtime status'."
                ) from error
            os.close(inputs)
            os.close(outputs)
            undo.pop_all()
        self.layout, self._sock = layout, sock
        self._words = memoryview(self._memory)[: struct.calcsize(WORDS)].cast("I")
        self._poll = EagerPoll()
        self._poll.register(self._replies, select.POLLIN)
        self._request, self._answer = request_struct(layout.inputs), answer_struct(layout.outputs)
        self._number = 0
        self._sizes = (1,) * free_axes(layout.inputs)
        self._targets = _arrays(layout.inputs, self._sizes, self._inputs_memory)
        """The inputs' arrays as the last request shaped them: they keep their shapes most of the time."""
        self._answered_sizes = bytes(self._answer.size - ANSWER.size)
        self._results = _arrays(layout.outputs, (0,) * free_axes(layout.outputs), self._memory)

    def input(self, name: str, shape: Sequence[int] | None) -> Array:
        region = self._region(name)
        array = self._targets[name]
        wanted = region.shape if shape is None else tuple(shape)
        return array if array.shape == wanted else self._reshaped(name, wanted)

    def infer(self, inputs: Mapping[str, Array]) -> Outputs:
        self._number = number = self._number % _LAST_NUMBER + 1
        self._put(inputs)
        try:
            os.write(self._doorbell, self._request.pack(number, *self._sizes))
        except BrokenPipeError as error:
            raise _UnseenError from error
        if not self._poll.wait(self._timeout_ms):
            seconds = self._timeout_ms / 1000
            raise UnavailableError(f"no answer came in {seconds:g} s; the request may have run")
        reply = os.read(self._replies, PAGE)
        if not reply:
            self._end_without_answer(number)
        return self._take(number, reply)

    def close(self) -> None:
        self._sock.close()
        os.close(self._doorbell)
        os.close(self._replies)

    def _put(self, inputs: Mapping[str, Array]) -> None:
        """Copy what is not there already. Raises `InputError`."""
        if len(inputs) != len(self._targets):
            raise self._wrong(inputs)
        for name, target in self._targets.items():
            array = inputs.get(name)
            if array is target:
                continue
            if array is None:
                raise self._wrong(inputs)
            if array.shape != target.shape:
                target = self._reshaped(name, array.shape)
            if array.dtype != target.dtype:
                raise InputError(
                    f"the input {name!r} is {array.dtype}, not {target.dtype}", hint="Convert it with astype."
                )
            target[...] = array

    def _reshaped(self, name: str, shape: tuple[int, ...]) -> Array:
        """The array of an input in another shape, which is the next request's. Raises `InputError`."""
        region = self._region(name)
        fits = len(shape) == len(region.shape) and all(
            size >= 1 and wanted in (-1, size) for size, wanted in zip(shape, region.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"the input {name!r} has shape {list(shape)}, the model takes {list(region.shape)}",
                hint="-1 stands for any size of at least 1.",
            )
        if math.prod(shape) * DTYPES[region.datatype].itemsize > region.capacity:
            raise InputError(
                f"{name!r} of shape {list(shape)} does not fit the memory of {region.capacity} bytes",
                hint="Connect with more 'rows' or a larger 'free'.",
            )
        array = self._targets[name] = _array(region, shape, self._inputs_memory)
        self._sizes = tuple(
            size
            for region in self.layout.inputs
            for size in free_sizes(region, self._targets[region.name].shape)
        )
        return array

    def _take(self, number: int, reply: bytes) -> Outputs:
        if len(reply) < self._answer.size:
            raise UnavailableError("the server's answer is not of this protocol", hint="Update Skerry.")
        answered, status, flags, nanoseconds, _ = ANSWER.unpack_from(reply)
        if answered != number:
            raise UnavailableError("the server answered another request", hint="Update Skerry.")
        if status != OK:
            self._words[CONSUMED] = number
            raise _error(status, reply[self._answer.size :])
        sizes = reply[ANSWER.size :]
        if sizes != self._answered_sizes:
            self._results = _arrays(self.layout.outputs, self._answer.unpack(reply)[5:], self._memory)
            self._answered_sizes = sizes
        outputs = Outputs()
        for name, view in self._results.items():
            outputs[name] = view.copy()
        if not self._words[ALIVE]:
            raise UnavailableError("the answer was not fetched in time; the request has run")
        self._words[CONSUMED] = number
        outputs.digest = self.layout.digest
        outputs.microseconds = nanoseconds / 1000
        outputs.nonfinite_input = flags & NONFINITE_INPUT != 0
        return outputs

    def _end_without_answer(self, number: int) -> None:
        if self._words[TAKEN] != number:
            raise _UnseenError
        raise UnavailableError(
            "the worker ended before it answered; the request may have run",
            hint="See 'skerry-runtime logs'.",
        )

    def _region(self, name: str) -> Region:
        region = next((region for region in self.layout.inputs if region.name == name), None)
        if region is None:
            raise self._wrong([name])
        return region

    def _wrong(self, names: Iterable[str]) -> InputError:
        takes = ", ".join(self._targets)
        return InputError(f"the inputs are {sorted(names)}", hint=f"The model takes: {takes}.")


def _arrays(regions: Sequence[Region], sizes: Sequence[int], memory: mmap.mmap) -> dict[str, Array]:
    made = zip(regions, shapes(regions, sizes), strict=True)
    return {region.name: _array(region, shape, memory) for region, shape in made}


def _array(region: Region, shape: tuple[int, ...], memory: mmap.mmap) -> Array:
    return np.ndarray(shape, DTYPES[region.datatype], memory, region.offset)


def _switch(sock: socket.socket, wish: Wish, undo: ExitStack) -> tuple[bytes, bytes, list[int]]:
    """Ask for shared memory: the answer's head, what followed it so far, and the descriptors beside it."""
    body = msgspec.json.encode(wish)
    sock.sendall(
        f"POST {TARGET} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: {PROTOCOL}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    data, descriptors = b"", list[int]()
    while b"\r\n\r\n" not in data:
        if len(data) > _HEAD_BYTES:
            raise ValueError("its answer does not end")
        piece, received, _, _ = socket.recv_fds(sock, 1 << 16, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        for descriptor in received:
            undo.callback(os.close, descriptor)
        descriptors += received
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest, descriptors


def _read_layout(sock: socket.socket, head: bytes, rest: bytes, descriptors: list[int]) -> Layout:
    """The worker's first message. Raises what it says instead, or `ValueError`."""
    status = int(head.removeprefix(_STATUS_LINE)[:3])
    if status != 101:
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        raise _error(status, _exactly(sock, rest, length))
    if len(descriptors) != _DESCRIPTORS:
        raise ValueError(f"it handed over {len(descriptors)} descriptors")
    rest = _exactly(sock, rest, LENGTH.size)
    (length,) = LENGTH.unpack_from(rest)
    return msgspec.json.decode(_exactly(sock, rest, LENGTH.size + length)[LENGTH.size :], type=Layout)


def _exactly(sock: socket.socket, data: bytes, size: int) -> bytes:
    if size > _HEAD_BYTES:
        raise ValueError(f"its answer has {size} bytes")
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        data += piece
    return data


def _map(memfd: int, size: int) -> mmap.mmap:
    if not fcntl.fcntl(memfd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        raise ValueError("its memory could be taken away")
    return mmap.mmap(memfd, size)


def _error(status: int, body: bytes) -> SkerryError:
    """What the server refused a request with."""
    refusal: Any
    try:
        refusal = msgspec.json.decode(body, type=Refusal)
    except msgspec.MsgspecError:
        refusal = Refusal(f"the server answered {status}: {json.dumps(body[:200].decode(errors='replace'))}")
    if refusal.code:
        return from_code(refusal.code, refusal.error, refusal.hint)
    if status == 503:
        return OverloadedError(refusal.error, hint="Try again in a second.")
    kind = InputError if status < 500 else EngineError
    return kind(refusal.error, hint=refusal.hint)
