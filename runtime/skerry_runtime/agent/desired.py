"""The newest order of the fleet, kept so that a device without a network goes on where it was.

What is kept was verified before it was written; the file is the device's own. The envelope stays with it, so
that a retained copy that the broker repeats at every connection is recognised without verifying it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from skerry_contract.errors import InputError, MessageError
from skerry_contract.messages import DesiredState, decode

from .files import write_durably


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """As written to the file."""

    revision: int = 0
    envelope: bytes = b""
    payload: bytes = b""

    def state(self) -> DesiredState | None:
        """None if nothing was ever ordered."""
        try:
            return decode(self.payload, DesiredState) if self.payload else None
        except MessageError:
            return None


class DesiredFile:
    """The file ``state/desired``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.kept = self._read()

    def keep(self, desired: DesiredState, envelope: bytes, payload: bytes) -> None:
        """Remember a verified order, durably; in memory also if that raises `StorageError`."""
        self.kept = Kept(revision=desired.revision, envelope=envelope, payload=payload)
        write_durably(self._path, msgspec.json.encode(self.kept))

    def _read(self) -> Kept:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, InputError):
            return Kept()
