"""What the agent remembers of the newest update of a model: made durable before every action.

It is for reports and for going on; the truth about what runs is in the pointers (`slots`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from skerry_contract.digests import Digest
from skerry_contract.errors import InputError
from skerry_contract.messages import ErrorReport, Probation

from .files import write_durably
from .slots import Generation
from .update import UpdateState


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One update, and the last order of the fleet that was obeyed."""

    state: UpdateState = UpdateState.IDLE
    transaction: str = ""
    """Names the update in logs and events."""
    revision: int = 0
    """Desired revision that was last looked at for this model."""
    source: str = ""
    """``fleet`` or ``file``."""
    target: Digest | None = None
    signature: Digest | None = None
    manifest_size: int = 0
    signature_size: int = 0
    version: str = ""
    release: int = 0
    probation: Probation = field(default_factory=Probation)
    jitter_s: float = 0.0
    variant: str = ""
    reason: str = ""
    """Why this variant."""
    generation: int = 0
    """The generation that was built."""
    self_tests: int = 0
    """Begun and not finished; a model that takes the machine down with it is quarantined by this."""
    error: ErrorReport | None = None
    since: int = 0


def read_record(path: Path) -> Record:
    """The record, or an empty one if there is none that is readable."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, InputError):
        return Record()


def write_record(path: Path, record: Record) -> None:
    """WRITE. Raises `StorageError`."""
    write_durably(path, msgspec.json.encode(record))


def record_of(generation: Generation, state: UpdateState) -> Record:
    """A record rebuilt from a generation, where the file was lost."""
    return Record(
        state=state,
        target=generation.digest,
        version=generation.manifest.version,
        release=generation.manifest.release,
        variant=generation.info.variant,
        generation=generation.number,
    )
