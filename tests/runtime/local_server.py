"""A serving worker's HTTP front in this process, with limits that a test can reach."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.runtime.model_zoo import ZooModel, lay_out
from tests.runtime.worker_harness import TIMEOUT, listen_tcp, listen_unix

from skerry_runtime.worker.engines import Array, Session
from skerry_runtime.worker.generation import load_generation
from skerry_runtime.worker.inference import Inference
from skerry_runtime.worker.limits import DEFAULT_SERVE_LIMITS, ServeLimits
from skerry_runtime.worker.loaded import load_model
from skerry_runtime.worker.observer import Observer
from skerry_runtime.worker.serve.api import Api
from skerry_runtime.worker.serve.http import HttpServer


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalServer:
    """The parts of a running server."""

    unix: socket.socket
    tcp: socket.socket
    inference: Inference
    http: HttpServer

    @property
    def observer(self) -> Observer:
        return self.inference.observer


@contextmanager
def local_server(
    folder: Path, model: ZooModel, *, limits: ServeLimits = DEFAULT_SERVE_LIMITS, token: str = ""
) -> Iterator[LocalServer]:
    """Serve a model on a Unix socket and on loopback."""
    loaded = load_model(load_generation(lay_out(folder / "generation", model)))
    inference = Inference(loaded, Observer(loaded.generation), limits)
    unix, tcp = listen_unix(folder / "s"), listen_tcp()
    server = HttpServer([(unix, "unix"), (tcp, "tcp")], Api(inference, lambda: True), limits, token=token)
    server.accept()
    try:
        yield LocalServer(unix=unix, tcp=tcp, inference=inference, http=server)
    finally:
        server.close()
        unix.close()
        tcp.close()


@dataclass
class Held:
    """A model so slow that it answers when it is let go, and not before."""

    real: Session
    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.began.release()
        assert self.go.wait(TIMEOUT)
        return self.real.run(inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@contextmanager
def slow_server(folder: Path, model: ZooModel, limits: ServeLimits) -> Iterator[tuple[LocalServer, Held]]:
    """As `local_server`; its model answers when it is let go."""
    with local_server(folder, model, limits=limits) as server:
        held = Held(server.inference.model.session)
        server.inference.model = replace(server.inference.model, session=held)
        try:
            yield server, held
        finally:
            held.go.set()
