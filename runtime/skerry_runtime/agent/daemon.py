"""The daemon: wires the parts, serves at once, then listens to the fleet.

Order of a start: lock, recovery, the good generation of every model, and only then the network. Everything
that decides runs in one loop; the outbox, the link and long jobs have threads of their own, and none of them
is ever waited for by what serves.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import (
    ConflictError,
    ExpiredError,
    InputError,
    MessageError,
    NotFoundError,
    RollbackError,
    SkerryError,
    StorageError,
    UnavailableError,
)
from skerry_contract.manifest import NAME
from skerry_contract.messages import (
    PROTOCOL,
    Acknowledge,
    Command,
    CommandResult,
    DesiredState,
    DeviceSettings,
    ErrorReport,
    Hello,
    UpdateReport,
    decode,
    encode,
)
from skerry_contract.topics import Down, Up

from ..config import DeviceConfig
from ..ipc import Window
from . import machine, trust, trust_process
from .clock import SystemClock, WindowNumbers, boot_id, read_number
from .context import Context
from .desired import DesiredFile
from .fetch import Fetcher
from .files import make_folder, write_durably
from .jobs import Jobs
from .journal import Journal
from .link import Done, Identity, MqttLink
from .listeners import Listeners
from .lock import Lock
from .log import get_logger
from .loop import Loop
from .model import Model
from .outbox import Stamp
from .serving import Surroundings
from .slots import installed_models
from .store import Store
from .telemetry import Telemetry
from .workers import Workers

REPORT_SECONDS: Final = 5.0
"""Between two reports of a download's progress."""
STOP_SECONDS: Final = 15.0
_log = get_logger("agent")


@dataclass(slots=True)
class LinkState:
    """For ``status``."""

    state: str = "off"
    error: ErrorReport | None = None
    epoch: int = 0


class Daemon:
    """See the module's text. Methods are called in the loop's thread unless they say otherwise."""

    def __init__(self, config: DeviceConfig) -> None:
        """Open everything that can fail for a reason that a person must hear of at once.

        Raises:
            ConflictError: another daemon runs on the same folder.
            StorageError: the data folder cannot be used.
            UnavailableError: a port is taken.
        """
        self._config = config
        self._began = time.monotonic()
        data, state = config.data_dir, config.data_dir / "state"
        for folder in (data, state, config.run_dir, data / "models"):
            make_folder(folder)
        self._lock = Lock(data / "lock")
        self._state = state
        self._boot = boot_id()
        self.loop = Loop()
        self._clock = SystemClock(state / "time-floor")
        self._desired = DesiredFile(state / "desired")
        self._listeners = Listeners(config.serve, config.run_dir)
        self._front = _read_line(state / "front")
        self._link_state = LinkState(state="connecting" if config.fleet else "off")
        self._epoch = _last_epoch(state / "epoch")
        self._telemetry = Telemetry(data / "outbox.db", config.buffer_bytes, self._publish, self._stamp)
        self._journal = Journal(
            self._clock,
            self._boot,
            lambda event, critical: self._telemetry.add_event(event, critical=critical),
        )
        self._hardware = machine.hardware(config.device_class)
        self._engines = machine.engines()
        self._jobs = Jobs(self.loop)
        self._store = Store(data / "store")
        self._fetcher = Fetcher(
            self._store, lambda request: self._publish(Up.BLOCK_REQUEST, encode(request), qos=0)
        )
        self._workers = Workers(self.loop)
        numbers = WindowNumbers(state / "windows", self._boot)
        self._context = Context(
            config=config,
            loop=self.loop,
            jobs=self._jobs,
            store=self._store,
            fetcher=self._fetcher,
            workers=self._workers,
            surroundings=Surroundings(
                workers=self._workers,
                sockets=self._sockets_of,
                first_window=numbers.take,
                settings=self._settings,
                boot=self._boot,
                tcp_token=config.serve.token,
                ram_bytes=self._hardware.ram_bytes,
            ),
            clock=self._clock,
            journal=self._journal,
            device=trust.Device(
                hardware=self._hardware, engines=self._engines, ram_budget_bytes=config.budgets.ram_bytes
            ),
            changed=self._report,
            window=self._on_window,
            idle=lambda: not self._importing and all(model.settled for model in self._models.values()),
            silent=self._fall_silent,
        )
        self._models: dict[str, Model] = {}
        self._importing = False
        self._verifying: bytes | None = None
        self._stopping = False
        self._link = (
            MqttLink(config.fleet, Identity(org=config.org, device=config.device), self, self._next_epoch)
            if config.fleet
            else None
        )

    # --- life -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.loop.call_soon(self.stop))
        self._telemetry.start()
        self._workers.start()
        for name, folder in installed_models(self._config.data_dir / "models").items():
            self._add_model(name, folder).start()
        self._journal.event(
            "agent.started",
            f"skerry-runtime {machine.agent_version()} serves {', '.join(self._models) or 'no model yet'}",
            device=self._config.device,
            boot=self._boot,
        )
        self._tick()
        if self._link is not None:
            self._link.start()
        self.loop.call_soon(self._obey_kept)
        self.loop.run()
        self._end()

    def stop(self) -> None:
        """Drain the workers, tell the fleet, end."""
        if self._stopping:
            return
        self._stopping = True
        self._journal.event("agent.stopping", "stopping: answers in flight are finished", critical=False)
        for model in self._models.values():
            model.stop()
        give_up = time.monotonic() + STOP_SECONDS

        def wait() -> None:
            if self._workers.alive() and time.monotonic() < give_up:
                self.loop.call_later(0.05, wait)
            else:
                self.loop.stop()

        wait()

    def _end(self) -> None:
        self._workers.close()
        self._listeners.close()
        with suppress(StorageError):
            self._clock.tick()
        if self._link is not None:
            self._link.stop(3.0)
        self._telemetry.stop(5.0)
        self.loop.close()
        self._lock.release()

    def _tick(self) -> None:
        """Now and then: the clock's floor, the progress of downloads."""
        with suppress(StorageError):
            self._clock.tick()
        if any(not model.settled for model in self._models.values()):
            self._report()
        if not self._stopping:
            self.loop.call_later(REPORT_SECONDS, self._tick)

    # --- for the control socket -------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Plain JSON; see ``skerry-runtime status --json``."""
        outbox = self._telemetry.status()
        http = self._listeners.tcp_address
        return {
            "version": machine.agent_version(),
            "device": self._config.device,
            "org": self._config.org,
            "pid": os.getpid(),
            "zygote_pid": self._workers.zygote_pid,
            "uptime_s": round(time.monotonic() - self._began, 1),
            "boot": self._boot,
            "fleet": {
                "state": self._link_state.state,
                "epoch": self._epoch,
                "revision": self._desired.kept.revision,
                "error": _error_json(self._link_state.error),
            },
            "serve": {
                "socket": str(self._config.serve.socket),
                "http": f"{http[0]}:{http[1]}" if http else None,
            },
            "engines": {engine.name: engine.version for engine in self._engines},
            "models": {
                name: {
                    **model.status(),
                    "socket": str(self._listeners.socket_path(name, name == self._front)),
                }
                for name, model in sorted(self._models.items())
            },
            "outbox": {
                "stream": outbox.stream,
                "waiting_rows": outbox.waiting_rows,
                "used_bytes": outbox.used_bytes,
                "acknowledged": outbox.acknowledged,
                "gaps": outbox.gaps,
                "lost": outbox.lost,
                "error": outbox.error,
            },
        }

    def import_bundle(
        self, descriptor: int, then: Callable[[dict[str, str]], None], failed: Callable[[SkerryError], None]
    ) -> None:
        """Verify an open bundle file and begin its install; takes the descriptor over.

        ``then`` gets name, version, digest, variant, reason and transaction.
        """

        def over() -> None:
            os.close(descriptor)
            self._importing = False

        def verified(answer: trust.BundleAnswer) -> None:
            over()
            try:
                transaction = self._model(answer.name).install(answer)
            except SkerryError as error:
                failed(error)
                return
            then(
                {
                    "name": answer.name,
                    "version": answer.version,
                    "digest": answer.manifest,
                    "variant": answer.variant,
                    "reason": answer.reason,
                    "transaction": transaction,
                }
            )

        def refused(error: SkerryError) -> None:
            over()
            self._journal.event("update.refused", "a bundle file was refused", error=error)
            failed(error)

        if self._importing:
            os.close(descriptor)
            failed(ConflictError("another bundle file is being imported", hint="Wait until it is finished."))
            return
        self._importing = True
        request = trust.ImportFile(
            fd=descriptor,
            store=str(self._store.folder),
            engineers=self._config.trust.engineers,
            floors={name: model.floor for name, model in self._models.items()},
            device=self._context.device,
        )
        self._jobs.submit(lambda _: trust_process.import_file(request), verified, refused)

    def roll_back(self, name: str, why: str) -> dict[str, str]:
        """Raises `NotFoundError`, `ConflictError` or `SlotError`; without a name there must be one model."""
        model = self._named(name)
        return {"name": model.name, "version": model.roll_back(why)}

    def close_windows(self) -> int:
        """Close the current window of every model that answers; returns how many."""
        answering = [model for model in self._models.values() if model.serving.worker is not None]
        for model in answering:
            model.serving.close_window()
        return len(answering)

    # --- link.Listener: the link's thread ---------------------------------------------------------

    def link_up(self, epoch: int) -> None:
        hello = Hello(
            protocol=PROTOCOL,
            boot=self._boot,
            epoch=epoch,
            agent_version=machine.agent_version(),
            hardware=self._hardware,
            engines=self._engines,
            desired_revision=self._desired.kept.revision,
            wall_ms=self._clock.now_ms(),
            clock_quality=self._clock.quality(),
        )
        self._publish(Up.HELLO, encode(hello))
        self._fetcher.set_online(True)
        self._telemetry.connected(True)

        def up() -> None:
            self._link_state = LinkState(state="connected", epoch=epoch)
            self._report()

        self.loop.call_soon(up)

    def link_down(self, error: SkerryError) -> None:
        self._fetcher.set_online(False)
        self._telemetry.connected(False)

        def down() -> None:
            self._link_state = LinkState(state="connecting", error=ErrorReport.of(error))

        self.loop.call_soon(down)

    def link_message(self, channel: Down, payload: bytes, done: Done) -> None:
        if channel is Down.BLOCK:
            self._fetcher.deliver(payload)
            done()
            return

        def handle() -> None:
            try:
                self._handle(channel, payload)
            except SkerryError as error:
                self._journal.event(
                    "message.refused", f"a message on {channel} was refused", critical=False, error=error
                )
            finally:
                done()

        self.loop.call_soon(handle)

    def _next_epoch(self) -> int:
        """A number higher than of any connection before, also across restarts."""
        self._epoch += 1
        try:
            write_durably(self._state / "epoch", b"%d" % self._epoch)
        except StorageError as error:
            self._epoch = max(self._epoch, _epoch_of_clock())
            _log.warning("the connection's epoch cannot be stored", extra={"error": error})
        return self._epoch

    def _publish(self, channel: Up, payload: bytes, qos: int = 1) -> bool:
        """Any thread."""
        return self._link is not None and self._link.publish(channel, payload, qos=qos)

    # --- messages ---------------------------------------------------------------------------------

    def _handle(self, channel: Down, payload: bytes) -> None:
        if not payload:
            return  # A retained message was cleared.
        match channel:
            case Down.DESIRED:
                self._on_desired(payload)
            case Down.ACKNOWLEDGE:
                self._telemetry.acknowledged(decode(payload, Acknowledge))
            case Down.COMMAND:
                self._on_command(decode(payload, Command))
            case _:
                raise MessageError(f"this version does not know the channel {channel}")

    def _on_desired(self, envelope: bytes) -> None:
        if envelope in (self._desired.kept.envelope, self._verifying):
            return
        self._verifying = envelope
        director, revision, now = (
            self._config.trust.director,
            self._desired.kept.revision,
            self._clock.now_ms(),
        )

        def verified(answer: tuple[DesiredState, bytes]) -> None:
            self._verifying = None
            desired, payload = answer
            if desired.revision <= self._desired.kept.revision:
                return
            try:
                self._desired.keep(desired, envelope, payload)
            except StorageError as error:
                _log.error(
                    "the desired state cannot be stored; it is obeyed all the same", extra={"error": error}
                )
            self._journal.event(
                "desired.accepted",
                f"desired revision {desired.revision}",
                critical=False,
                rollout=desired.rollout,
            )
            self._obey(desired)

        def refused(error: SkerryError) -> None:
            self._verifying = None
            self._journal.event(
                "desired.refused",
                "a desired state was refused",
                critical=not isinstance(error, RollbackError),
                error=error,
            )

        # Not behind a long download: an order that stops it must get through.
        self._urgent(
            lambda: trust_process.verify_desired(
                envelope, director=director, device=self._config.device, last_revision=revision, now_ms=now
            ),
            verified,
            refused,
        )

    def _obey_kept(self) -> None:
        """At a start: go on with the last order, unless it has expired."""
        desired = self._desired.kept.state()
        if desired is not None and desired.expires > self._clock.now_ms():
            self._obey(desired)
        elif desired is not None:
            expired = ExpiredError("the last order of the fleet has expired; what runs goes on")
            self._journal.event("desired.expired", "waiting for a new order", critical=False, error=expired)

    def _obey(self, desired: DesiredState) -> None:
        for name, order in desired.models.items():
            try:
                self._model(name).desire(order, desired.revision)
            except SkerryError as error:
                self._journal.event("desired.refused", f"the order for {name[:64]} was refused", error=error)
        for model in self._models.values():
            model.serving.configure()
        self._report()

    def _on_command(self, command: Command) -> None:
        """Commands are not signed, so none of them may change what runs: that takes a desired state."""
        result: Mapping[str, Any] = {}
        error: SkerryError | None = None
        try:
            if command.deadline and self._clock.now_ms() > command.deadline:
                raise ExpiredError(f"the command {command.verb[:40]!r} came after its deadline")
            match command.verb:
                case "report":
                    self._report()
                case "close_windows":
                    result = {"windows": self.close_windows()}
                case verb:
                    raise InputError(
                        f"this version does not know the command {verb[:40]!r}",
                        hint="Known: report, close_windows.",
                    )
        except SkerryError as refusal:
            error = refusal
        self._journal.event("command", f"command {command.verb[:40]}", critical=False, error=error)
        answer = CommandResult(
            id=command.id, ok=error is None, result=result, error=ErrorReport.of(error) if error else None
        )
        self._publish(Up.COMMAND_RESULT, encode(answer))

    def _report(self) -> None:
        """Level-triggered: the whole truth, if there is a connection; else it is sent with the next one."""
        report = UpdateReport(
            revision=self._desired.kept.revision,
            epoch=self._link_state.epoch,
            models={name: model.report() for name, model in self._models.items()},
        )
        self._publish(Up.REPORT, encode(report))

    # --- models -----------------------------------------------------------------------------------

    def _add_model(self, name: str, folder: Path) -> Model:
        model = self._models[name] = Model(name, folder, self._context)
        return model

    def _model(self, name: str) -> Model:
        if name not in self._models:
            # It becomes the name of a folder.
            if not re.fullmatch(NAME, name):
                raise InputError(f"{name[:80]!r} is not a model's name")
            self._add_model(name, self._config.data_dir / "models" / name).start()
        return self._models[name]

    def _named(self, name: str) -> Model:
        if name in self._models:
            return self._models[name]
        if not name and len(self._models) == 1:
            return next(iter(self._models.values()))
        known = ", ".join(sorted(self._models)) or "none"
        raise NotFoundError(
            f"there is no model {name!r}" if name else "which model?", hint=f"Installed here: {known}."
        )

    def _sockets_of(self, name: str) -> list[tuple[str, int]]:
        """The first model that ever answers has the configured addresses; others have their own."""
        if not self._front:
            self._front = name
            try:
                write_durably(self._state / "front", name.encode())
            except StorageError as error:
                _log.warning("the front model cannot be stored", extra={"error": error})
        return list(self._listeners.open(name, front=name == self._front))

    def _fall_silent(self, name: str) -> None:
        try:
            self._listeners.refuse(name, front=name == self._front)
        except (UnavailableError, StorageError) as error:
            _log.error("the address could not be taken again", extra={"model": name, "error": error})

    def _settings(self) -> DeviceSettings:
        """The fleet's, if it says anything; else the configuration's."""
        desired = self._desired.kept.state()
        if desired is not None and desired.settings is not None:
            return desired.settings
        return DeviceSettings(
            window_seconds=self._config.windows.seconds, window_rows=self._config.windows.rows
        )

    def _on_window(self, window: Window) -> None:
        self._telemetry.add_window(window.summary)

    def _stamp(self) -> Stamp:
        return self._journal.stamp()

    def _urgent(
        self,
        work: Callable[[], tuple[DesiredState, bytes]],
        then: Callable[[tuple[DesiredState, bytes]], None],
        failed: Callable[[SkerryError], None],
    ) -> None:
        """In a thread of its own: short, and not behind the queue of jobs."""

        def run() -> None:
            try:
                result = work()
            except SkerryError as error:
                self.loop.call_soon(lambda error=error: failed(error))  # type: ignore[misc]
            else:
                self.loop.call_soon(lambda: then(result))

        threading.Thread(target=run, name="trust", daemon=True).start()


def _error_json(error: ErrorReport | None) -> dict[str, str] | None:
    return None if error is None else {"code": error.code, "message": error.message, "hint": error.hint}


def _last_epoch(file: Path) -> int:
    """As stored; where the file is damaged, a number that is surely higher."""
    return read_number(file) or (_epoch_of_clock() if file.exists() else 0)


def _epoch_of_clock() -> int:
    """Seconds since 1970: above any count of connections."""
    return time.time_ns() // 1_000_000_000


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
