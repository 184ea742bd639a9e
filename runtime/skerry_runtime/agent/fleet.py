"""The fleet's side of the daemon: its messages come in here, and what it is told goes out here.

Nothing of a message is obeyed but a desired state whose signature verified; commands only ask. Reports are
level-triggered: the whole truth each time, so that a lost one does no harm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry_contract.errors import (
    ExpiredError,
    InputError,
    MessageError,
    RollbackError,
    SkerryError,
    StorageError,
)
from skerry_contract.messages import (
    PROTOCOL,
    Acknowledge,
    Command,
    CommandResult,
    DesiredState,
    DeviceSettings,
    EngineInfo,
    ErrorReport,
    Hardware,
    Hello,
    UpdateReport,
    decode,
    encode,
)
from skerry_contract.topics import Down, Up

from ..config import DeviceConfig
from . import machine, trust_process
from .clock import SystemClock, read_number
from .desired import DesiredFile
from .fetch import Fetcher
from .files import write_durably
from .journal import Journal
from .link import Done, Identity, MqttLink
from .log import get_logger
from .loop import Loop
from .models import Models
from .telemetry import Telemetry

_log = get_logger("fleet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the daemon shares with its fleet's side."""

    config: DeviceConfig
    loop: Loop
    clock: SystemClock
    journal: Journal
    telemetry: Telemetry
    fetcher: Fetcher
    models: Models
    hardware: Hardware
    engines: tuple[EngineInfo, ...]
    boot: str
    state: Path
    """Folder of the daemon's own files."""
    close_windows: Callable[[], int]


class Fleet:
    """Implements `link.Listener`; the other methods are called in the loop's thread unless they say so."""

    def __init__(self, parts: Parts) -> None:
        """Raises `ConfigError` if the CA file cannot be used."""
        self._p = parts
        self._config = parts.config
        self._desired = DesiredFile(parts.state / "desired")
        self._verifying: bytes | None = None
        self._epoch_file = parts.state / "epoch"
        self._epoch = _last_epoch(self._epoch_file)
        self._connected_epoch = 0
        self._state = "off"
        self._error: ErrorReport | None = None
        self._link: MqttLink | None = None
        if self._config.fleet is not None:
            self._state = "connecting"
            identity = Identity(org=self._config.org, device=self._config.device)
            self._link = MqttLink(self._config.fleet, identity, self, self._next_epoch)

    def start(self) -> None:
        """Connect, and go on with the last order as soon as the loop runs."""
        if self._link is not None:
            self._link.start()
        self._p.loop.call_soon(self.obey_kept)

    def stop(self, timeout: float) -> None:
        if self._link is not None:
            self._link.stop(timeout)

    def publish(self, channel: Up, payload: bytes, qos: int = 1) -> bool:
        """False if there is no connection. Any thread."""
        return self._link is not None and self._link.publish(channel, payload, qos=qos)

    def report(self) -> None:
        """The whole truth, if there is a connection; else it is sent with the next one."""
        report = UpdateReport(
            revision=self._desired.kept.revision,
            epoch=self._connected_epoch,
            models={model.name: model.report() for model in self._p.models},
        )
        self.publish(Up.REPORT, encode(report))

    def settings(self) -> DeviceSettings:
        """The fleet's, if it says anything; else the configuration's."""
        desired = self._desired.kept.state()
        if desired is not None and desired.settings is not None:
            return desired.settings
        return DeviceSettings(
            window_seconds=self._config.windows.seconds, window_rows=self._config.windows.rows
        )

    def obey_kept(self) -> None:
        """Go on with the last order, unless it has expired."""
        desired = self._desired.kept.state()
        if desired is not None and desired.expires > self._p.clock.now_ms():
            self._obey(desired)
        elif desired is not None:
            expired = ExpiredError("the last order of the fleet has expired; what runs goes on")
            self._p.journal.event("desired.expired", "waiting for a new order", critical=False, error=expired)

    def status(self) -> dict[str, Any]:
        """For people, as plain JSON."""
        error = self._error
        return {
            "state": self._state,
            "epoch": self._epoch,
            "revision": self._desired.kept.revision,
            "error": error and {"code": error.code, "message": error.message, "hint": error.hint},
        }

    # --- link.Listener: the link's thread ---------------------------------------------------------

    def link_up(self, epoch: int) -> None:
        hello = Hello(
            protocol=PROTOCOL,
            boot=self._p.boot,
            epoch=epoch,
            agent_version=machine.agent_version(),
            hardware=self._p.hardware,
            engines=self._p.engines,
            desired_revision=self._desired.kept.revision,
            wall_ms=self._p.clock.now_ms(),
            clock_quality=self._p.clock.quality(),
        )
        self.publish(Up.HELLO, encode(hello))
        self._p.fetcher.set_online(True)
        self._p.telemetry.connected(True)

        def up() -> None:
            self._state, self._error, self._connected_epoch = "connected", None, epoch
            self.report()

        self._p.loop.call_soon(up)

    def link_down(self, error: SkerryError) -> None:
        self._p.fetcher.set_online(False)
        self._p.telemetry.connected(False)

        def down() -> None:
            self._state, self._error, self._connected_epoch = "connecting", ErrorReport.of(error), 0

        self._p.loop.call_soon(down)

    def link_message(self, channel: Down, payload: bytes, done: Done) -> None:
        if channel is Down.BLOCK:
            self._p.fetcher.deliver(payload)
            done()
            return

        def handle() -> None:
            try:
                self._handle(channel, payload)
            except SkerryError as error:
                self._p.journal.event(
                    "message.refused", f"a message on {channel} was refused", critical=False, error=error
                )
            finally:
                done()

        self._p.loop.call_soon(handle)

    def _next_epoch(self) -> int:
        """A number higher than of any connection before, also across restarts."""
        self._epoch += 1
        try:
            write_durably(self._epoch_file, b"%d" % self._epoch)
        except StorageError as error:
            self._epoch = max(self._epoch, _epoch_of_clock())
            _log.warning("the connection's epoch cannot be stored", extra={"error": error})
        return self._epoch

    # --- messages ---------------------------------------------------------------------------------

    def _handle(self, channel: Down, payload: bytes) -> None:
        if not payload:
            return  # A retained message was cleared.
        match channel:
            case Down.DESIRED:
                self._on_desired(payload)
            case Down.ACKNOWLEDGE:
                self._p.telemetry.acknowledged(decode(payload, Acknowledge))
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
            self._p.clock.now_ms(),
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
            self._p.journal.event(
                "desired.accepted",
                f"desired revision {desired.revision}",
                critical=False,
                rollout=desired.rollout,
            )
            self._obey(desired)

        def refused(error: SkerryError) -> None:
            self._verifying = None
            self._p.journal.event(
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

    def _obey(self, desired: DesiredState) -> None:
        for name, order in desired.models.items():
            try:
                self._p.models.get(name).desire(order, desired.revision)
            except SkerryError as error:
                self._p.journal.event(
                    "desired.refused", f"the order for {name[:64]} was refused", error=error
                )
        for model in self._p.models:
            model.serving.configure()
        self.report()

    def _on_command(self, command: Command) -> None:
        """Commands are not signed, so none of them may change what runs: that takes a desired state."""
        result: Mapping[str, Any] = {}
        error: SkerryError | None = None
        try:
            if command.deadline and self._p.clock.now_ms() > command.deadline:
                raise ExpiredError(f"the command {command.verb[:40]!r} came after its deadline")
            match command.verb:
                case "report":
                    self.report()
                case "close_windows":
                    result = {"windows": self._p.close_windows()}
                case verb:
                    raise InputError(
                        f"this version does not know the command {verb[:40]!r}",
                        hint="Known: report, close_windows.",
                    )
        except SkerryError as refusal:
            error = refusal
        self._p.journal.event("command", f"command {command.verb[:40]}", critical=False, error=error)
        answer = CommandResult(
            id=command.id, ok=error is None, result=result, error=ErrorReport.of(error) if error else None
        )
        self.publish(Up.COMMAND_RESULT, encode(answer))

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
                self._p.loop.call_soon(lambda error=error: failed(error))  # type: ignore[misc]
            else:
                self._p.loop.call_soon(lambda: then(result))

        threading.Thread(target=run, name="trust", daemon=True).start()


def _last_epoch(file: Path) -> int:
    """As stored; where the file is damaged, a number that is surely higher."""
    return read_number(file) or (_epoch_of_clock() if file.exists() else 0)


def _epoch_of_clock() -> int:
    """Seconds since 1970: above any count of connections."""
    return time.time_ns() // 1_000_000_000
