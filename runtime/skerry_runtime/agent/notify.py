"""Word to the service manager (sd_notify): ready, alive, stopping. Standard library only, never blocking.

"Alive" has to be earned: since the last time, every worker that answers gave a golden sample its recorded
answer, and the outbox' thread went once through its database. A daemon that only spins is restarted. What
the agent knows and repairs itself holds nothing back: a worker that is being replaced, a disk that says an
error. A restart would give no more there, and would end the model that still answers from memory.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final

from .log import get_logger
from .loop import Loop

START_SECONDS: Final = 90.0
"""A model that does not answer by then does not keep the unit from being ready."""
EXTEND_SECONDS: Final = 60.0
"""What is asked for at a time while starting, verifying or stopping."""
LOOK_SECONDS: Final = 5.0
"""The longest pause between two looks; an eighth of half the watchdog's interval if that is shorter."""
_START_LOOK_SECONDS: Final = 0.25
_log = get_logger("notify")


class Notifier:
    """The datagram socket of the service manager, if there is one."""

    def __init__(self, address: str) -> None:
        """``address``: a path, an abstract name with a leading ``@``, or empty for none."""
        self._socket: socket.socket | None = None
        if address[:1] in ("/", "@"):
            self._address = "\0" + address[1:] if address[0] == "@" else address
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @property
    def enabled(self) -> bool:
        return self._socket is not None

    def send(self, *lines: str) -> bool:
        """One datagram of ``KEY=value`` lines; False if nobody took it. A full queue is not waited for."""
        if self._socket is None:
            return False
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            _log.debug("the service manager was not reached", extra={"error": str(error)})
            return False
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def take_environment(environment: MutableMapping[str, str]) -> tuple[Notifier, float]:
    """The service manager's socket, and its watchdog's interval in seconds (0: none).

    The variables are removed, so that no child speaks in the daemon's name (sd_notify(3),
    sd_watchdog_enabled(3)).
    """
    address = environment.pop("NOTIFY_SOCKET", "")
    microseconds = environment.pop("WATCHDOG_USEC", "")
    for_process = environment.pop("WATCHDOG_PID", "")
    watched = microseconds.isdecimal() and for_process in ("", str(os.getpid()))
    return Notifier(address), int(microseconds) / 1e6 if watched else 0.0


class Watchdog:
    """Decides when "alive" was earned. Pure: time and evidence come in."""

    def __init__(self, seconds: float, now: float, evidence: Mapping[str, object]) -> None:
        """``seconds``: the manager's interval; pings go at half of it. ``evidence`` as of `look`, now."""
        self._half = seconds / 2
        self._last = now
        self._at_last = dict(evidence)
        self.pings = 0
        self.withheld = 0
        """Looks in a row at which a ping was due and not earned."""
        self.missing: tuple[str, ...] = ()
        """What had not proved itself at the last of them."""

    def due(self, now: float) -> bool:
        return now - self._last >= self._half

    def look(self, now: float, evidence: Mapping[str, object]) -> bool:
        """Whether to ping now.

        Args:
            now: seconds of a monotonic clock.
            evidence: for everything that must move, a mark that changes when it has. What was not there at
                the last ping has proved itself by coming up.
        """
        if not self.due(now):
            return False
        self.missing = tuple(
            sorted(name for name, mark in evidence.items() if self._at_last.get(name, _NEW) == mark)
        )
        if self.missing:
            self.withheld += 1
            return False
        self.withheld = 0
        self.pings += 1
        self._last, self._at_last = now, dict(evidence)
        return True


_NEW: Final = object()


class Heart:
    """Tells the manager how the daemon is; runs in the daemon's loop, and not at all without a manager."""

    def __init__(
        self,
        loop: Loop,
        notifier: Notifier,
        seconds: float,
        *,
        evidence: Callable[[], Mapping[str, object]],
        probe: Callable[[], None],
        starting: Callable[[], bool],
        verifying: Callable[[], bool],
        words: Callable[[], str],
    ) -> None:
        """See `Watchdog`.

        Args:
            evidence: what must move, with its marks.
            probe: sends something through the outbox, so that its mark moves.
            starting: a model that is installed does not answer yet.
            verifying: an update is being prepared.
            words: the state in a line, for ``systemctl status``.
        """
        self._loop, self._notifier = loop, notifier
        self._seconds = seconds if notifier.enabled else 0.0
        self._evidence, self._probe = evidence, probe
        self._starting, self._verifying, self._words = starting, verifying, words
        self._began = time.monotonic()
        self._watchdog = Watchdog(seconds, self._began, {})
        self._ready = self._ended = False
        self._said = ""
        self._probed = False

    def start(self) -> None:
        if self._notifier.enabled:
            self._watchdog = Watchdog(self._seconds, time.monotonic(), self._evidence())
            self._beat()

    def stopping(self) -> None:
        """The daemon ends; it may take a while, for answers in flight are finished."""
        self._ended = True
        self._notifier.send("STOPPING=1", "STATUS=stopping", _extend())

    def close(self) -> None:
        self._notifier.close()

    def status(self) -> dict[str, Any]:
        """For ``skerry-runtime status --json``."""
        return {
            "manager": self._notifier.enabled,
            "ready": self._ready,
            "watchdog_s": self._seconds,
            "pings": self._watchdog.pings,
            "withheld": self._watchdog.withheld,
            "missing": list(self._watchdog.missing),
        }

    def _beat(self) -> None:
        if self._ended:
            return
        lines = self._lines(time.monotonic())
        if lines:
            self._notifier.send(*lines)
        self._loop.call_later(self._pause(), self._beat)

    def _lines(self, now: float) -> list[str]:
        lines = []
        if not self._ready:
            if self._starting() and now - self._began < START_SECONDS:
                lines.append(_extend())
            else:
                self._ready = True
                lines.append("READY=1")
        elif self._verifying():
            lines.append(_extend())
        if self._seconds and self._earned(now):
            lines.append("WATCHDOG=1")
        words = self._words()
        if words != self._said:
            self._said = words
            lines.append(f"STATUS={words}")
        return lines

    def _earned(self, now: float) -> bool:
        """Ping or not; between pings the outbox is asked once, when one is due at every look."""
        earned = self._watchdog.look(now, self._evidence())
        if earned:
            self._probed = False
        elif not self._probed or self._watchdog.due(now):
            self._probed = True
            self._probe()
        if self._watchdog.withheld == 1:
            _log.warning("the watchdog waits", extra={"missing": ", ".join(self._watchdog.missing)})
        return earned

    def _pause(self) -> float:
        longest = LOOK_SECONDS if self._ready else _START_LOOK_SECONDS
        return min(longest, self._seconds / 16) if self._seconds else longest


def _extend() -> str:
    return f"EXTEND_TIMEOUT_USEC={EXTEND_SECONDS * 1e6:.0f}"
