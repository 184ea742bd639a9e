"""One line for people and one event for the fleet, of everything that matters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from skerry_contract.errors import SkerryError
from skerry_contract.messages import ErrorReport, Event

from .clock import SystemClock
from .log import get_logger
from .outbox import Stamp

_log = get_logger("agent")


class Journal:
    """Writes the log and the outbox; never waits."""

    def __init__(self, clock: SystemClock, boot: str, add: Callable[[Event, bool], None]) -> None:
        """``add`` takes an event, and whether it is critical: committed at once, never given up."""
        self._clock = clock
        self._boot = boot
        self._add = add

    def stamp(self) -> Stamp:
        """Now, by the device's clocks."""
        return Stamp(
            boot=bytes.fromhex(self._boot),
            mono_ns=int(self._clock.monotonic() * 1e9),
            wall_ms=self._clock.now_ms(),
            quality=self._clock.quality(),
        )

    def event(
        self,
        kind: str,
        message: str,
        *,
        critical: bool = True,
        transaction: str = "",
        model: str = "",
        digest: str | None = None,
        error: SkerryError | ErrorReport | None = None,
        **data: Any,
    ) -> None:
        """Say that something happened."""
        report = ErrorReport.of(error) if isinstance(error, SkerryError) else error
        _log.log(
            logging.WARNING if report else logging.INFO,
            message,
            extra={
                "kind": kind,
                "transaction": transaction,
                "model": model,
                "digest": (digest or "")[:19],
                "error": report.to_error() if report else None,
                **data,
            },
        )
        stamp = self.stamp()
        self._add(
            Event(
                kind=kind,
                wall_ms=stamp.wall_ms,
                mono_ms=stamp.mono_ns // 1_000_000,
                boot=self._boot,
                clock_quality=stamp.quality,
                transaction=transaction,
                model=model,
                digest=digest or "",
                data={"message": message, **data},
                error=report,
            ),
            critical,
        )
