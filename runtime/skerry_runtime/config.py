"""The device's configuration: one TOML file -> frozen dataclasses, strictly.

An unknown key, a wrong type or an unsafe combination is a `ConfigError` that names the key and the fix;
nothing is silently ignored, because nobody looks at a board again once it hangs on a wall.
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ConfigError, MessageError
from skerry_contract.topics import check_id

from .agent.flash import DEFAULT_ENDURANCE, MAKERS_AMPLIFICATION, Endurance

DEFAULT_PATH: Final = Path("/etc/skerry/device.toml")
MAX_SOCKET_PATH: Final = 107
"""Bytes of a Unix socket's path on Linux."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetConfig:
    """How to reach the broker."""

    host: str
    port: int
    username: str
    password: str = field(repr=False)
    tls_ca: str = ""
    """PEM file of the broker's authority; empty means no TLS."""
    reconnect_seconds: float = 120.0
    """Longest pause between attempts to reach the broker; pauses begin short and are drawn at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustConfig:
    """Public keys, PEM text."""

    engineers: tuple[str, ...] = ()
    """May sign bundles."""
    director: str = ""
    """Signs desired states."""

    def by_place(self) -> dict[str, str]:
        """Each key by its place in the configuration, such as ``trust.engineers[0]``."""
        keys = {f"trust.engineers[{index}]": pem for index, pem in enumerate(self.engineers)}
        return {**keys, "trust.director": self.director} if self.director else keys


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeConfig:
    socket: Path
    http: tuple[str, int] | None = None
    """Host and port; port 0 takes a free one."""
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetsConfig:
    """The device's own limits; 0 sets none."""

    ram_bytes: int = 0
    latency_p95_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowsConfig:
    seconds: float = 3600.0
    rows: int = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    device: str
    org: str
    data_dir: Path
    serve: ServeConfig
    device_class: str = ""
    fleet: FleetConfig | None = None
    trust: TrustConfig = TrustConfig()
    budgets: BudgetsConfig = BudgetsConfig()
    windows: WindowsConfig = WindowsConfig()
    buffer_bytes: int = 64 << 20
    flash: Endurance = DEFAULT_ENDURANCE

    @property
    def run_dir(self) -> Path:
        return self.data_dir / "run"

    @property
    def control_socket(self) -> Path:
        return self.run_dir / "agent.sock"


def load_config(path: Path, *, insecure_dev: bool = False) -> DeviceConfig:
    """Read and check the configuration file.

    Raises:
        ConfigError: missing, unreadable, not TOML, an unknown key, a wrong type or an unsafe combination.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no configuration file {path}",
            hint="Name it with --config; a fleet server writes one when a device is added.",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}",
            hint="Check the file's owner and mode, or run this as the daemon's user or root.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8", hint="Save it as UTF-8.") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", hint="Correct that line.") from error
    return parse_config(raw, insecure_dev=insecure_dev)


def parse_config(raw: Mapping[str, Any], *, insecure_dev: bool = False) -> DeviceConfig:
    """Check a configuration that is already a mapping; see `load_config`."""
    top = _Table(raw, "")
    device = _identifier(top, "device")
    data_dir = Path(top.text("data_dir"))
    if not data_dir.is_absolute():
        raise ConfigError(
            f"data_dir is {str(data_dir)!r}", hint="Give an absolute path such as /var/lib/skerry."
        )
    config = DeviceConfig(
        device=device,
        org=_identifier(top, "org"),
        data_dir=data_dir,
        device_class=top.text("device_class", ""),
        fleet=_fleet(top.table("fleet"), device, insecure_dev) if top.has("fleet") else None,
        trust=_trust(top.table("trust")),
        serve=_serve(top.table("serve"), data_dir, insecure_dev),
        budgets=_budgets(top.table("budgets")),
        windows=_windows(top.table("windows")),
        buffer_bytes=_telemetry(top.table("telemetry")),
        flash=_flash(top.table("flash")),
    )
    top.finish()
    if config.fleet is not None and not config.trust.director:
        raise ConfigError(
            "[fleet] is given but trust.director is not",
            hint="Put the fleet's public director key there: without it no order can be believed.",
        )
    for socket in (config.control_socket, config.serve.socket):
        if len(bytes(socket)) > MAX_SOCKET_PATH:
            raise ConfigError(
                f"the socket path {socket} is longer than {MAX_SOCKET_PATH} bytes",
                hint="Choose a shorter data_dir or serve.socket.",
            )
    return config


class _Table:
    """Takes typed keys out of a TOML table; `finish` refuses what is left."""

    def __init__(self, raw: Mapping[str, Any], name: str) -> None:
        self._left = dict(raw)
        self._known: list[str] = []
        self._name = name

    def where(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def has(self, key: str) -> bool:
        return key in self._left

    def text(self, key: str, *default: str) -> str:
        return str(self._take(key, str, "a string", default))

    def integer(self, key: str, low: int, high: int, *default: int) -> int:
        value = self._take(key, int, "an integer", default)
        if not low <= value <= high:
            raise ConfigError(f"{self.where(key)} is {value}", hint=f"It must be from {low} to {high}.")
        return int(value)

    def number(self, key: str, low: float, high: float, *default: float) -> float:
        value = self._take(key, (int, float), "a number", default)
        if not low <= value <= high:
            raise ConfigError(f"{self.where(key)} is {value}", hint=f"It must be from {low:g} to {high:g}.")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._take(key, list, "a list of strings", ([],))
        if not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{self.where(key)} must be a list of strings")
        return tuple(value)

    def table(self, key: str) -> _Table:
        return _Table(self._take(key, dict, "a table", ({},)), self.where(key))

    def finish(self) -> None:
        for key in self._left:
            raise ConfigError(
                f"{self.where(key)} is not a key of the configuration",
                hint=f"Known here: {', '.join(sorted(self._known))}. Correct or remove it.",
            )

    def _take(self, key: str, kind: type | tuple[type, ...], form: str, default: tuple[Any, ...]) -> Any:
        self._known.append(key)
        if key not in self._left:
            if default:
                return default[0]
            raise ConfigError(f"{self.where(key)} is missing", hint=f"Add it; it is {form}.")
        value = self._left.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"{self.where(key)} must be {form}, not {type(value).__name__}")
        return value


def _identifier(table: _Table, key: str) -> str:
    try:
        return check_id(table.text(key))
    except MessageError as error:
        raise ConfigError(f"{key}: {error}", hint=error.hint) from error


def _fleet(table: _Table, device: str, insecure_dev: bool) -> FleetConfig:
    fleet = FleetConfig(
        host=table.text("host"),
        port=table.integer("port", 1, 65535),
        username=table.text("username", device),
        password=table.text("password"),
        tls_ca=table.text("tls_ca", ""),
        reconnect_seconds=table.number("reconnect_seconds", 1, 86_400, 120.0),
    )
    table.finish()
    if not fleet.tls_ca and not _is_loopback(fleet.host) and not insecure_dev:
        raise ConfigError(
            f"fleet.host is {fleet.host!r} and fleet.tls_ca is empty: the password would travel in the clear",
            hint="Set fleet.tls_ca to the broker's CA file; for a try-out only, start with --insecure-dev.",
        )
    return fleet


def _trust(table: _Table) -> TrustConfig:
    trust = TrustConfig(engineers=table.texts("engineers"), director=table.text("director", ""))
    table.finish()
    for where, pem in trust.by_place().items():
        if "PRIVATE KEY" in pem:
            raise ConfigError(
                f"{where} is a private key", hint="A device needs public keys only. Replace that key."
            )
        if "-----BEGIN PUBLIC KEY-----" not in pem:
            raise ConfigError(f"{where} is not a public key in PEM", hint="Paste the text of the .pub file.")
    return trust


def _serve(table: _Table, data_dir: Path, insecure_dev: bool) -> ServeConfig:
    socket = table.text("socket", "")
    http = table.text("http", "")
    serve = ServeConfig(
        socket=Path(socket) if socket else data_dir / "run" / "skerry.sock",
        http=_address(http) if http else None,
        token=table.text("token", ""),
    )
    table.finish()
    if not serve.socket.is_absolute():
        raise ConfigError(f"serve.socket is {socket!r}", hint="Give an absolute path.")
    if serve.http and not serve.token and not _is_loopback(serve.http[0]) and not insecure_dev:
        raise ConfigError(
            f"serve.http is {http!r}: the network could use the model without a token",
            hint="Set serve.token, or listen on 127.0.0.1; for a try-out only, start with --insecure-dev.",
        )
    return serve


def _budgets(table: _Table) -> BudgetsConfig:
    budgets = BudgetsConfig(
        ram_bytes=int(table.number("ram_mb", 0, 1 << 20, 0) * (1 << 20)),
        latency_p95_us=int(table.number("latency_p95_ms", 0, 3_600_000, 0) * 1000),
    )
    table.finish()
    return budgets


def _windows(table: _Table) -> WindowsConfig:
    windows = WindowsConfig(
        seconds=table.number("seconds", 0.1, 7 * 86400, 3600),
        rows=table.integer("rows", 1, 10_000_000, 100_000),
    )
    table.finish()
    return windows


def _telemetry(table: _Table) -> int:
    megabytes = table.number("buffer_mb", 1, 1 << 16, 64)
    table.finish()
    return int(megabytes * (1 << 20))


def _flash(table: _Table) -> Endurance:
    """What the card stands: the maker's total, or else its size and the cycles of its cells."""
    tbw = table.number("tbw", 0, 1e6, 0)
    card_gb = table.number("card_gb", 0, 1e6, 0)
    cycles = table.integer("cycles", 0, 1_000_000, 0)
    amplification = table.number("amplification", 0, 1000, 0)
    table.finish()
    if 0 < amplification < 1:
        raise ConfigError(
            f"flash.amplification is {amplification:g}: no card writes less than it is given",
            hint="Give 1 or more, or 0 for what is usual.",
        )
    usual = MAKERS_AMPLIFICATION if tbw else DEFAULT_ENDURANCE.amplification
    if tbw and (card_gb or cycles):
        raise ConfigError(
            "flash.tbw is given beside flash.card_gb or flash.cycles, and each says how much the card stands",
            hint="Keep flash.tbw if the maker names it; else card_gb and cycles.",
        )
    return Endurance(
        tbw_bytes=round(tbw * 1e12),
        card_bytes=round(card_gb * 1e9),
        cycles=cycles or DEFAULT_ENDURANCE.cycles,
        amplification=amplification or usual,
    )


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigError(f"serve.http is {text!r}", hint="Write host:port, such as 127.0.0.1:8500.")
    return host.strip("[]"), int(port)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
