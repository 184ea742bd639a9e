"""The daemon: wires the parts, serves at once, then listens to the fleet.

Order of a start: lock, recovery, the good generation of every model, and only then the network. Everything
that decides runs in one loop; the outbox, the link and long jobs have threads of their own, and none of them
is ever waited for by what serves.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import StorageError
from skerry_contract.messages import encode
from skerry_contract.topics import Up

from ..config import DeviceConfig
from ..ipc import Window
from . import lean, machine, notify, trust
from .clock import SystemClock, WindowNumbers, boot_id
from .context import Context
from .data_folder import check_format, check_owner
from .fetch import Fetcher
from .files import make_folder
from .fleet import Fleet, Parts
from .imports import Failed, Imports, Then
from .jobs import Jobs
from .journal import Journal
from .listeners import Listeners
from .lock import Lock
from .log import name_transactions
from .loop import Loop
from .model import Model
from .models import Models
from .room import Room
from .serving import Surroundings
from .slot_view import slots_of
from .store import Store
from .telemetry import Telemetry
from .trust_keys import TrustedKeys
from .vital_signs import VitalSigns
from .workers import Workers

REPORT_SECONDS: Final = 5.0
"""Between two reports of a download's progress."""
STOP_SECONDS: Final = 15.0
_SETTLED_SECONDS: Final = 30.0
"""After which nothing of the start is needed any more."""


class Daemon:
    """See the module's text. Methods are called in the loop's thread unless they say otherwise."""

    def __init__(self, config: DeviceConfig) -> None:
        """Open everything that can fail for a reason that a person must hear of at once.

        Raises:
            ConflictError: another daemon runs on the same folder.
            StorageError: the data folder cannot be used.
            UnavailableError: a port is taken.
            ConfigError: the fleet's CA file cannot be used.
        """
        self._config = config
        self._began = time.monotonic()
        self._stopping = False
        data, state = config.data_dir, config.data_dir / "state"
        make_folder(data)
        check_owner(data)
        self._lock = Lock(data / "lock")
        check_format(data / "format")
        for folder in (state, config.run_dir, data / "models"):
            make_folder(folder)
        self.loop = Loop()
        self._boot = boot_id()
        self._clock = SystemClock(state / "time-floor")
        self._hardware = machine.hardware(config.device_class)
        self._engines = machine.engines()
        self._listeners = Listeners(config.serve, config.run_dir)
        self._models = Models(data / "models", state / "front", self._listeners, self._make_model)
        # The outbox, the fetcher and the models speak to the fleet, which is told of them below.
        self._telemetry = Telemetry(
            data / "outbox.db",
            config.buffer_bytes,
            lambda channel, payload: self._fleet.publish(channel, payload),
            lambda: self._journal.stamp(),
            config.flash,
        )
        self._journal = Journal(
            self._clock,
            self._boot,
            lambda event, critical: self._telemetry.add_event(event, critical=critical),
        )
        store = Store(data / "store")
        fetcher = Fetcher(
            store, lambda request: self._fleet.publish(Up.BLOCK_REQUEST, encode(request), qos=0)
        )
        self._fleet = Fleet(
            Parts(
                config=config,
                loop=self.loop,
                clock=self._clock,
                journal=self._journal,
                telemetry=self._telemetry,
                fetcher=fetcher,
                models=self._models,
                hardware=self._hardware,
                engines=self._engines,
                boot=self._boot,
                state=state,
                close_windows=self.close_windows,
            )
        )
        self._workers = Workers(self.loop)
        self._context = self._make_context(store, fetcher, WindowNumbers(state / "windows", self._boot))
        self._imports = Imports(self._models, self._context)
        self._signs = VitalSigns(self._models, self._telemetry, self._fleet)
        self._keys = TrustedKeys(self._context, self._signs.starting)
        notifier, watchdog_s = notify.take_environment(os.environ)
        self._heart = notify.Heart(
            self.loop,
            notifier,
            watchdog_s,
            evidence=self._signs.evidence,
            probe=self._signs.probe,
            starting=self._signs.starting,
            verifying=lambda: self._imports.busy or not self._models.settled,
            words=self._signs.words,
        )
        name_transactions(self._models.transaction)

    def _make_context(self, store: Store, fetcher: Fetcher, numbers: WindowNumbers) -> Context:
        config = self._config
        return Context(
            config=config,
            loop=self.loop,
            jobs=Jobs(self.loop),
            store=store,
            fetcher=fetcher,
            workers=self._workers,
            surroundings=Surroundings(
                workers=self._workers,
                sockets=self._models.open_sockets,
                first_window=numbers.take,
                settings=self._fleet.settings,
                boot=self._boot,
                tcp_token=config.serve.token,
                ram_bytes=self._hardware.ram_bytes,
            ),
            clock=self._clock,
            journal=self._journal,
            device=trust.Device(
                hardware=self._hardware, engines=self._engines, ram_budget_bytes=config.budgets.ram_bytes
            ),
            changed=self._fleet.report,
            window=self._on_window,
            obey=self._fleet.obey_kept,
            idle=lambda: not self._imports.busy and self._models.settled,
            silent=self._models.fall_silent,
            room=Room(config.budgets.ram_bytes, self._models.taken),
        )

    def _make_model(self, name: str, folder: Path) -> Model:
        return Model(name, folder, self._context)

    # --- life -------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or `stop`."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.loop.call_soon(self.stop))
        lean.few_arenas()
        self._workers.start()
        self._telemetry.start()
        self._models.start()
        names = ", ".join(model.name for model in self._models)
        self._journal.event(
            "agent.started",
            f"skerry-runtime {machine.agent_version()} serves {names or 'no model yet'}",
            device=self._config.device,
            boot=self._boot,
        )
        self._tick()
        self._fleet.start()
        self._heart.start()
        self._keys.start()
        self.loop.call_later(_SETTLED_SECONDS, lean.give_back)
        self.loop.run()
        self._end()

    def stop(self) -> None:
        """Drain the workers, tell the fleet, end."""
        if self._stopping:
            return
        self._stopping = True
        self._heart.stopping()
        self._journal.event("agent.stopping", "stopping: answers in flight are finished", critical=False)
        for model in self._models:
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
        self._fleet.stop(3.0)
        self._telemetry.stop(5.0)
        self._heart.close()
        self.loop.close()
        self._lock.release()

    def _tick(self) -> None:
        """Now and then: the clock's floor, the progress of downloads."""
        with suppress(StorageError):
            self._clock.tick()
        self._clock.tell(self._journal.event)
        self._models.start_waiting()
        if not self._models.settled:
            self._fleet.report()
        if not self._stopping:
            self.loop.call_later(REPORT_SECONDS, self._tick)

    def _on_window(self, window: Window) -> None:
        self._telemetry.add_window(window.summary)

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
            "fleet": self._fleet.status(),
            "trust": self._keys.status(),
            "clock": self._clock.status(),
            "windows": asdict(self._fleet.settings()),
            "serve": {
                "socket": str(self._config.serve.socket),
                "http": f"{http[0]}:{http[1]}" if http else None,
            },
            "engines": {engine.name: engine.version for engine in self._engines},
            "models": {
                model.name: {
                    **model.status(),
                    "socket": str(self._models.socket_path(model.name)),
                    "slots": slots_of(model.slots),
                }
                for model in sorted(self._models, key=lambda model: model.name)
            },
            "outbox": asdict(outbox),
            "service": self._heart.status(),
        }

    def import_bundle(self, descriptor: int, then: Then, failed: Failed) -> None:
        """Verify an open bundle file and begin its install; see `Imports.begin`."""
        self._imports.begin(descriptor, then, failed)

    def roll_back(self, name: str, why: str) -> dict[str, str]:
        """Raises `NotFoundError`, `ConflictError` or `SlotError`; without a name there must be one model."""
        model = self._models.find(name)
        return {"name": model.name, "version": model.roll_back(why)}

    def close_windows(self) -> int:
        """Close the current window of every model that answers; returns how many."""
        answering = [model for model in self._models if model.serving.worker is not None]
        for model in answering:
            model.serving.close_window()
        return len(answering)
