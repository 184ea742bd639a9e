"""What all models of a device share; made once by the daemon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ..config import DeviceConfig
from ..ipc import Window
from . import trust
from .clock import SystemClock
from .fetch import Fetcher
from .jobs import Jobs
from .journal import Journal
from .loop import Loop
from .room import Room
from .serving import Surroundings
from .store import Store
from .workers import Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The parts of the daemon that a model works with."""

    config: DeviceConfig
    loop: Loop
    jobs: Jobs
    store: Store
    fetcher: Fetcher
    workers: Workers
    surroundings: Surroundings
    clock: SystemClock
    journal: Journal
    device: trust.Device
    changed: Callable[[], None]
    """The report changed: tell the fleet."""
    window: Callable[[Window], None]
    """A window was closed."""
    obey: Callable[[], None]
    """Look again at the fleet's last order."""
    idle: Callable[[], bool]
    """No model is being updated: the store may be collected."""
    silent: Callable[[str], None]
    """Nothing answers for this model any more."""
    room: Room = field(default_factory=Room)
    """The memory that all models share."""
