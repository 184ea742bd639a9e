"""Role ``serve``: load, warm up, then do what the agent says until it says stop or is gone."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from skerry_contract.errors import SkerryError, UnavailableError
from skerry_contract.messages import ErrorReport

from ..ipc import (
    Accept,
    Adopt,
    Adopted,
    Channel,
    CloseWindow,
    Drain,
    Drained,
    Failed,
    Ready,
    Settings,
    Spawn,
    Stop,
)
from . import process
from .deadline import deadline_s
from .generation import load_generation
from .heartbeat import Heartbeat
from .inference import Inference
from .limits import DEFAULT_SERVE_LIMITS, ServeLimits
from .loaded import LoadedModel, load_model
from .observer import Observer
from .process import THREAD_STACK_BYTES, PeakMemory
from .serve.api import Api
from .serve.http import HttpServer


def serve(
    channel: Channel,
    spawn: Spawn,
    listeners: Sequence[tuple[socket.socket, str]],
    limits: ServeLimits = DEFAULT_SERVE_LIMITS,
) -> int:
    """Serve one generation on the given listening sockets; the process' exit status."""
    memory = PeakMemory()
    try:
        model = load_model(load_generation(Path(spawn.generation)))
        memory.droppable = model.session.mapped_bytes
        latencies = sorted(model.run_golden(k) for k in range(len(model.generation.golden.samples)))
    except SkerryError as error:
        channel.send(Failed(error=ErrorReport.of(error)))
        return 1
    threading.stack_size(THREAD_STACK_BYTES)
    p95_us = latencies[len(latencies) * 95 // 100]
    deadline = deadline_s(p95_us, model.generation.budgets.latency_p95_us, limits.inference_s)
    worker = _Worker(channel, spawn, listeners, model, memory, limits, deadline)
    process.give_back_memory()
    channel.send(
        Ready(
            load_ms=model.load_ms,
            latency_p50_us=latencies[len(latencies) // 2],
            latency_p95_us=p95_us,
            rss_bytes=memory.take(),
            engine_version=model.engine.version,
            execution=model.session.execution,
        )
    )
    try:
        return worker.obey()
    except UnavailableError:
        return 0  # the agent is gone


class _Worker:
    """The parts of a serving worker, and the agent's orders to them."""

    def __init__(
        self,
        channel: Channel,
        spawn: Spawn,
        listeners: Sequence[tuple[socket.socket, str]],
        model: LoadedModel,
        memory: PeakMemory,
        limits: ServeLimits,
        deadline: float,
    ) -> None:
        self._channel = channel
        self._observer = Observer(
            model.generation,
            boot=spawn.boot,
            first_window=spawn.first_window,
            seconds=spawn.window_seconds,
            rows=spawn.window_rows,
        )
        inference = Inference(model, self._observer, limits)
        self._server = HttpServer(listeners, Api(inference, lambda: True), limits, token=spawn.tcp_token)
        self._heartbeat = Heartbeat(channel, inference, self._server, memory, limits, deadline)
        self._heartbeat.start()

    def obey(self) -> int:
        """Until the agent says stop, or its end of the channel closes."""
        while (received := self._channel.receive()) is not None:
            match received[0]:
                case Accept():
                    self._server.accept()
                case Drain(deadline_s=deadline_s):
                    drain = self._server.begin_drain()
                    threading.Thread(target=self._drain, args=(drain, deadline_s), daemon=True).start()
                case CloseWindow():
                    self._close_window()
                case Settings(window_seconds=seconds, window_rows=rows):
                    self._observer.settings(seconds, rows)
                case Adopt(parent=parent):
                    self._adopt(parent)
                case Stop():
                    self._server.close()
                    self._heartbeat.stop()
                    self._close_window()
                    return 0
                case other:
                    print(f"skerry worker: {type(other).__name__} is no order", file=sys.stderr, flush=True)
        return 0

    def _adopt(self, parent: int) -> None:
        if parent:
            process.die_with_parent(parent)
        else:
            process.die_with_nobody()
            self._channel.send(Adopted())

    def _drain(self, drain: int, deadline_s: float) -> None:
        """In its own thread, so that the agent can take it back by `Accept`."""
        try:
            if self._server.end_drain(drain, deadline_s):
                self._close_window()
                self._channel.send(Drained())
        except UnavailableError:
            return  # the agent is gone; the main thread sees it too

    def _close_window(self) -> None:
        self._observer.close_window()
        self._heartbeat.send_windows()
