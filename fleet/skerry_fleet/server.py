"""``skerry fleet serve``: everything that runs, started in order and ended in reverse.

Guarantees: ready means that HTTP answers and the broker is connected; what cannot start ends what has
started; after the end no process and no thread of it is left, the broker included; a data folder has one
server at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvicorn

from skerry_contract.errors import ConflictError, StorageError, UnavailableError

from .app import create_app
from .blocks import BlockServer
from .broker import Broker, Listen, free_port
from .devices import sightings
from .drift.service import DriftService
from .mosquitto import SERVER_USER
from .mqtt import Link
from .outbox import drain
from .settings import Settings
from .telemetry.ingest import Ingest
from .telemetry.specs import References
from .ticker import Ticker
from .wiring import build_services

log = logging.getLogger(__name__)

_OUTBOX_S: Final = 1.0
_PRUNE_S: Final = 3600.0
_START_S: Final = 30.0
_GRACE_S: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where a running server is."""

    url: str
    broker: str
    data: Path
    token_file: Path
    pid: int


def serve(
    settings: Settings,
    *,
    ready: Callable[[Addresses], None],
    broker_listen: str | None = None,
    insecure: bool = False,
) -> None:
    """Run until SIGINT or SIGTERM. Call it in the main thread.

    Args:
        settings: see there.
        ready: called once, when everything answers.
        broker_listen: address that the broker listens on, if not `Settings.broker_host`.
        insecure: let devices reach the broker from other machines without TLS.

    Raises:
        UnavailableError: a port is taken, or mosquitto is missing or does not start.
        ConflictError: another server works in the data folder.
        ConfigError, StorageError: a setting or the data folder cannot be used.
    """
    stop = threading.Event()
    with ExitStack() as running:
        running.enter_context(_signals_set(stop))
        running.enter_context(_only_server_in(settings.data))
        connection = running.enter_context(contextlib.closing(_listen(settings.host, settings.port)))
        port = connection.getsockname()[1]
        listen_host = broker_listen or settings.broker_host
        broker_port = settings.broker_port or free_port(listen_host)
        settings = settings.model_copy(update={"port": port, "broker_port": broker_port})
        listen = Listen(host=listen_host, port=broker_port, insecure=insecure)
        web = _start(settings, listen, connection, running)
        if not _answers(settings.host, port, web, stop):
            return
        url_host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(
            Addresses(
                url=f"http://{url_host}:{port}",
                broker=f"mqtt://{settings.broker_host}:{broker_port}",
                data=settings.data.resolve(),
                token_file=(settings.data / "admin.token").resolve(),
                pid=os.getpid(),
            )
        )
        while web.is_alive() and not stop.wait(0.5):
            pass
        if not stop.is_set():
            raise UnavailableError("the HTTP server ended by itself", hint="The log above says why.")


def _start(
    settings: Settings, listen: Listen, connection: socket.socket, running: ExitStack
) -> threading.Thread:
    """Start everything; what is started is put on the stack that ends it. Returns the thread of the HTTP
    server."""
    services = build_services(settings)
    running.callback(services.close)
    broker = Broker(
        settings.data / "broker",
        org=settings.org,
        listen=listen,
        credentials=services.devices.credentials,
    )
    broker.start()
    running.callback(broker.stop)
    services.devices.credential_observers.append(broker.reload)

    references = References(services.db, services.models)
    drift = DriftService(
        db=services.db,
        days=services.days,
        clock=services.clock,
        references=references,
        alerts=services.alerts,
    )
    drift.start()
    running.callback(drift.stop)

    link = Link(
        host=broker.connect_host,
        port=broker.port,
        username=SERVER_USER,
        password=broker.password,
        org=settings.org,
    )
    blocks = BlockServer(services.models.read_block, link)
    blocks.start()
    running.callback(blocks.stop)
    ingest = Ingest(
        db=services.db,
        days=services.days,
        clock=services.clock,
        devices=services.devices,
        journal=services.journal,
        references=references,
        blocks=blocks.submit,
        committed=drift.wake,
        seen=services.sightings.note,
    )
    link.start(ingest.deliver)
    running.callback(link.stop)
    # Now the broker's file knows the server's subscription: after a kill it keeps messages until the link is
    # back.
    broker.save()
    ingest.start(link)
    running.callback(ingest.stop)

    outbox = Ticker("outbox", _OUTBOX_S, lambda: _drop(drain(services.devices, link.retain)))
    services.devices.outbox_observers.append(outbox.wake)
    pruner = Ticker("retention", _PRUNE_S, lambda: _drop(services.days.prune()))
    seen = Ticker("sightings", sightings.INTERVAL_S, services.sightings.write)
    for ticker in (outbox, pruner, seen):
        ticker.start()
        running.callback(ticker.stop)

    app = create_app(services, broker_state=lambda: broker.state)
    return _serve_http(app, connection, running)


def _serve_http(app: Any, connection: socket.socket, running: ExitStack) -> threading.Thread:
    """uvicorn in a thread: in the main thread it would take the signals and end the process before us."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=_GRACE_S
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [connection]}, name="http", daemon=True)

    def end() -> None:
        server.should_exit = True
        thread.join()

    thread.start()
    running.callback(end)
    return thread


def _answers(host: str, port: int, web: threading.Thread, stop: threading.Event) -> bool:
    """Wait until HTTP answers; False if the server is told to stop before."""
    target = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 compared
    deadline = time.monotonic() + _START_S
    while web.is_alive() and time.monotonic() < deadline and not stop.is_set():
        with contextlib.suppress(OSError, http.client.HTTPException):
            with contextlib.closing(http.client.HTTPConnection(target, port, timeout=5)) as probe:
                probe.request("GET", "/healthz")
                if probe.getresponse().status == 200:
                    return True
        stop.wait(0.02)
    if stop.is_set():
        return False
    raise UnavailableError("the HTTP server does not answer", hint="The log above says why.")


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM end the server cleanly; a second one changes nothing."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {kind: signal.signal(kind, lambda *_: stop.set()) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def _only_server_in(data: Path) -> Iterator[None]:
    """Hold the lock of the data folder; it ends with the process, however that ends."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(data / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            f"the data folder {data} cannot be used: {error.strerror}",
            hint="Choose another with --data, or check its permissions and free space.",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"another server works in {data}", hint="Stop it, or choose another folder with --data."
            ) from None
        yield
    finally:
        os.close(descriptor)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise UnavailableError(
            f"the server cannot listen on {host or '*'} port {port}: {error.strerror}",
            hint=f"Stop what uses it (`ss -ltnp 'sport = :{port}'` shows it) or choose another with --port.",
        ) from error


def _drop(_result: object) -> None:
    """A ticker's act returns nothing."""
