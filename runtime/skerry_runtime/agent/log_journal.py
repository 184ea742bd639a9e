"""Lines for journald with fields of their own, by its native protocol; standard library only.

Then ``journalctl SKERRY_TRANSACTION=…`` finds every line of an update. Source:
https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

SOCKET: Final = Path("/run/systemd/journal/socket")
PREFIX: Final = "SKERRY_"
_LONGEST: Final = 48 * 1024
"""Of one value, in bytes: a datagram must fit the socket's buffer."""
_NO_NAME = re.compile(r"[^A-Z0-9_]")


def stderr_is_journal(environment: Mapping[str, str]) -> bool:
    """Whether stderr goes to journald: ``$JOURNAL_STREAM`` names its device and inode (systemd.exec(5))."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class JournalHandler(logging.Handler):
    """Sends records to journald; one that it does not take goes to stderr with a priority prefix instead."""

    def __init__(
        self, line_of: Callable[[logging.LogRecord], Mapping[str, Any]], path: Path = SOCKET
    ) -> None:
        """``line_of`` gives a record's fields."""
        super().__init__()
        self._line_of = line_of
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def emit(self, record: logging.LogRecord) -> None:
        priority = priority_of(record.levelno)
        try:
            self._socket.sendto(encode_fields(self._line_of(record), priority), self._path)
        except OSError:
            print(f"<{priority}>{self.format(record)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._socket.close()
        super().close()


def priority_of(level: int) -> int:
    """Syslog's number of a level of `logging`."""
    return next((number for least, number in ((40, 3), (30, 4), (20, 6)) if level >= least), 7)


def encode_fields(line: Mapping[str, Any], priority: int) -> bytes:
    """A log line as journald's fields: MESSAGE, PRIORITY, and ours with the prefix ``SKERRY_``."""
    fields: dict[str, Any] = {"MESSAGE": line["message"], "PRIORITY": priority}
    fields["SYSLOG_IDENTIFIER"] = "skerry-runtime"
    for key, value in line.items():
        if isinstance(value, Mapping):
            for inner, part in value.items():
                fields[f"{PREFIX}{key}_{inner}"] = part
        elif key not in ("message", "time", "level"):
            fields[PREFIX + key] = value
    return b"".join(_field(key, value) for key, value in fields.items())


def _field(key: str, value: Any) -> bytes:
    name = _NO_NAME.sub("_", key.upper())[:64].encode()
    data = str(value).encode()[:_LONGEST]
    if b"\n" not in data:
        return b"%s=%s\n" % (name, data)
    return b"%s\n%s%s\n" % (name, len(data).to_bytes(8, "little"), data)
