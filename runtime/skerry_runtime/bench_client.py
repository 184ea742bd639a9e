"""A lean client of a model's Unix socket that measures it: golden inputs as JSON and as binary tensors.

What is timed is what a program on this device sees: one request on an open connection, until the last byte of
its answer. Every answer must be 200; anything else ends the measurement.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import EngineError, UnavailableError

from .worker.engines import DTYPES, Array
from .worker.generation import load_generation

KINDS: Final = ("json", "binary")
WARM_UP: Final = 20
_TIMEOUT_S: Final = 60.0
_BINARY: Final = {"binary_data_output": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one way to ask; latencies in microseconds."""

    kind: str
    requests: int
    p50_us: float
    p95_us: float
    p99_us: float
    per_second: float
    """Requests a second with ``connections`` at once."""
    connections: int


def golden_requests(folder: Path, name: str) -> dict[str, list[bytes]]:
    """Whole HTTP requests by kind, one for each golden sample of a generation. Raises `SlotError`."""
    generation = load_generation(folder)
    found: dict[str, list[bytes]] = {kind: [] for kind in KINDS}
    for sample in generation.golden.samples:
        tensors = [
            (spec.name, spec.datatype, sample.inputs[spec.name]) for spec in generation.manifest.inputs
        ]
        found["json"].append(
            _request(name, json.dumps({"inputs": [_as_json(*tensor) for tensor in tensors]}))
        )
        head = {"parameters": _BINARY, "inputs": [_as_binary(*tensor) for tensor in tensors]}
        data = b"".join(array.astype(DTYPES[datatype]).tobytes() for _, datatype, array in tensors)
        found["binary"].append(_request(name, json.dumps(head), data))
    return found


def measure(path: str, kind: str, requests: Sequence[bytes], count: int, connections: int) -> Figures:
    """Latency of one client, then throughput of several.

    Args:
        path: the model's socket.
        kind: of the requests, for the result.
        requests: whole requests, sent in turns.
        count: how many are measured, each time.
        connections: clients at once for the throughput.

    Raises:
        UnavailableError: nothing answers there.
        EngineError: a request failed.
    """
    with _Client(path) as client:
        client.run(requests, WARM_UP)
        times = sorted(client.run(requests, count))
    each = max(1, count // connections)
    clients = [_Client(path) for _ in range(connections)]
    try:
        seconds = _together(clients, requests, each)
    finally:
        for client in clients:
            client.close()
    return Figures(
        kind=kind,
        requests=count,
        p50_us=_quantile(times, 0.50),
        p95_us=_quantile(times, 0.95),
        p99_us=_quantile(times, 0.99),
        per_second=each * connections / seconds,
        connections=connections,
    )


class _Client:
    """One connection that stays open."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_S)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise UnavailableError(
                f"no model answers at {path}: {error.strerror}", hint="See 'skerry-runtime status'."
            ) from error

    def __enter__(self) -> _Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def run(self, requests: Sequence[bytes], count: int) -> list[float]:
        """Ask ``count`` times; microseconds of each."""
        times = []
        try:
            for index in range(count):
                request = requests[index % len(requests)]
                begin = time.perf_counter_ns()
                self._socket.sendall(request)
                self._answer()
                times.append((time.perf_counter_ns() - begin) / 1000)
        except OSError as error:
            raise UnavailableError(f"the model's socket broke off: {error}") from error
        return times

    def _answer(self) -> None:
        data = self._socket.recv(1 << 16)
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        head = data[:end].lower()
        length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        missing = end + 4 + length - len(data)
        body = data[end + 4 :]
        while missing > 0:
            piece = self._more()
            missing -= len(piece)
            body += piece
        if not head.startswith(b"http/1.1 200"):
            raise EngineError(
                f"the model answered {head[9:12].decode()}: {body[:300].decode(errors='replace')}"
            )

    def _more(self) -> bytes:
        piece = self._socket.recv(1 << 20)
        if not piece:
            raise ConnectionResetError("the server closed the connection")
        return piece


def _together(clients: Sequence[_Client], requests: Sequence[bytes], each: int) -> float:
    """Seconds from a common start until the last client is done."""
    gate = threading.Barrier(len(clients) + 1)
    failures: list[EngineError | UnavailableError] = []

    def run(client: _Client) -> None:
        gate.wait()
        try:
            client.run(requests, each)
        except (EngineError, UnavailableError) as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(client,), daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    gate.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - begin


def _request(name: str, text: str, data: bytes = b"") -> bytes:
    body = text.encode()
    head = f"POST /v2/models/{name}/infer HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Content-Length: {len(body) + len(data)}\r\n"
    if data:
        head += f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(body)}\r\n"
    else:
        head += "Content-Type: application/json\r\n"
    return head.encode() + b"\r\n" + body + data


def _as_json(name: str, datatype: str, array: Array) -> Mapping[str, Any]:
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}


def _as_binary(name: str, datatype: str, array: Array) -> Mapping[str, Any]:
    size = array.size * DTYPES[datatype].itemsize
    parameters = {"binary_data_size": size}
    return {"name": name, "shape": list(array.shape), "datatype": datatype, "parameters": parameters}


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
