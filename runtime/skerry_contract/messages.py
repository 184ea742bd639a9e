"""Messages between device and fleet: JSON <-> frozen dataclasses (``docs/spec/mqtt-v1.md``).

Unknown fields are ignored, so that either side may be newer. Times are milliseconds since 1970 (UTC)
unless named otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Any, Final, TypeVar

import msgspec

from .digests import Digest, parse_digest
from .errors import InputError, MessageError, SkerryError, from_code
from .limits import DEFAULT_LIMITS
from .manifest import NAME

PROTOCOL: Final = 1
DESIRED_PAYLOAD_TYPE: Final = "application/vnd.skerry.desired.v1+json"
"""DSSE payload type of a signed `DesiredState`."""

Whole = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What a database column holds."""
Amount = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
ModelName = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME}\Z")]
"""As in a manifest; a device may use it as the name of a folder."""


class Presence(StrEnum):
    """``st`` channel; a will says LOST."""

    ONLINE = "online"
    SLEEPING = "sleeping"
    OFFLINE = "offline"
    LOST = "lost"


class Phase(StrEnum):
    """How far a device is with the bundle that is desired of it."""

    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    STAGED = "staged"
    SELF_TEST = "self_test"
    PROBATION = "probation"
    CONFIRMED = "confirmed"
    ROLLED_BACK = "rolled_back"
    """It was active and is no more; the previous one answers."""
    REJECTED = "rejected"
    """It never became active."""


FINAL_PHASES: Final = frozenset({Phase.CONFIRMED, Phase.ROLLED_BACK, Phase.REJECTED})


class Severity(StrEnum):
    """Graded response to drift (``docs/spec/mqtt-v1.md``, fleet alerts)."""

    INFO = "info"
    WARN = "warn"
    MAJOR = "major"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """A `SkerryError` on the wire; the HTTP API uses the same codes."""

    code: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: SkerryError) -> ErrorReport:
        return cls(code=error.code, message=error.message[:2000], hint=error.hint[:1000])

    def to_error(self) -> SkerryError:
        return from_code(self.code, self.message, self.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    name: str
    """As in a variant: ``onnx`` or ``tflite``."""
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """What a device has; variants are chosen by it."""

    arch: str
    """As ``platform.machine()``: aarch64, x86_64, armv7l."""
    cores: Whole
    ram_bytes: Whole
    isa: tuple[str, ...] = ()
    device_class: str = ""
    """Name of a device profile, if known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """First message of every connection."""

    protocol: Whole
    boot: str
    """Boot identifier, 32 hexadecimal digits."""
    epoch: Whole
    """Rises with every connection of the device; a state or report of a lower epoch is stale."""
    agent_version: str
    hardware: Hardware
    engines: tuple[EngineInfo, ...]
    desired_revision: Whole
    capabilities: tuple[str, ...] = ()
    wall_ms: Whole = 0
    clock_quality: Whole = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceMessage:
    state: Presence
    epoch: Whole
    until: Whole = 0
    """Of SLEEPING: when it means to be back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireBlob:
    digest: Digest
    size: Whole

    def __post_init__(self) -> None:
        parse_digest(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probation:
    """A new model is confirmed after both, within the budgets."""

    requests: Whole = 20
    """Answered, counted together with the golden samples that the device runs beside the traffic."""
    seconds: Amount = 60.0
    max_error_rate: Amount = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """Which bundle of one model the device shall run; it points to signed things and carries no authority
    over what they contain."""

    version: str
    release: Whole
    manifest: WireBlob
    """The bundle's identity."""
    signature: WireBlob
    probation: Probation = field(default_factory=Probation)
    jitter_s: Amount = 0.0
    """The device waits a random time up to this before it downloads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSettings:
    """Configuration that the fleet may change."""

    window_seconds: Positive = 3600.0
    window_rows: Whole = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredState:
    """Level-triggered: the newest revision is all that counts. Travels inside a DSSE envelope of
    `DESIRED_PAYLOAD_TYPE`, signed by the fleet's director key over these exact bytes."""

    device: str
    revision: Whole
    expires: Whole
    """After this no new work is accepted; the running model goes on."""
    models: Mapping[ModelName, DesiredModel]
    """By model name. A name that is missing leaves the device's model as it is."""
    settings: DeviceSettings | None = None
    """None leaves the device's own configuration as it is."""
    rollout: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """Truth of one model on the device."""

    active: Digest | None
    """What answers requests now; None in degraded mode."""
    active_version: str = ""
    active_variant: str = ""
    target: Digest | None = None
    """What ``phase`` speaks of."""
    target_version: str = ""
    phase: Phase | None = None
    error: ErrorReport | None = None
    since: Whole = 0
    bytes_done: Whole = 0
    bytes_total: Whole = 0

    def __post_init__(self) -> None:
        for digest in (self.active, self.target):
            if digest is not None:
                parse_digest(digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateReport:
    """``rep`` channel: level-triggered, sent at every change and after every hello."""

    revision: Whole
    epoch: Whole
    models: Mapping[ModelName, ModelReport]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockRequest:
    """``up/blk``: the device pulls ``count`` blocks of a blob from ``offset``."""

    transfer: Whole
    digest: Digest
    offset: Whole
    block: Whole
    count: Whole

    def __post_init__(self) -> None:
        parse_digest(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledge:
    """``dn/ack``: everything of the stream up to ``seq`` is committed; the device may delete it."""

    stream: str
    """16 hexadecimal digits."""
    seq: Whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """``dn/cmd``; dies by message expiry. Verbs: ``report``, ``close_windows``. Not signed, so a command
    never changes what runs."""

    id: str
    verb: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    deadline: Whole = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """``up/ack``."""

    id: str
    ok: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the device's structured log that the fleet keeps: installs, rollbacks, gaps."""

    kind: str
    """Dotted, such as ``update.confirmed`` or ``outbox.gap``."""
    wall_ms: Whole
    mono_ms: Whole
    boot: str
    clock_quality: Whole = 0
    transaction: str = ""
    model: str = ""
    digest: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorReport | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """``evt`` channel: the body of one outbox frame."""

    events: tuple[Event, ...]


T = TypeVar("T")


def encode(message: object) -> bytes:
    """JSON bytes of a message dataclass."""
    return msgspec.json.encode(message)


def decode(
    data: bytes | bytearray | memoryview, kind: type[T], *, max_bytes: int = DEFAULT_LIMITS.message_bytes
) -> T:
    """Read a message.

    Raises:
        MessageError: too large, not UTF-8, not JSON, a missing field or one of another type.
    """
    if len(data) > max_bytes:
        raise MessageError(f"a {kind.__name__} of {len(data)} bytes is over the limit of {max_bytes}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InputError) as error:
        raise MessageError(f"not a {kind.__name__}: {error}") from error
