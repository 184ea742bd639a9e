"""What a fleet server is told at start: options of ``skerry fleet serve`` or ``SKERRY_FLEET_*`` variables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from skerry_contract.errors import ConfigError, MessageError
from skerry_contract.limits import DEFAULT_LIMITS, MIB
from skerry_contract.topics import check_id

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Settings(BaseSettings):
    """Checked once, then fixed. Build it with `load_settings`, which speaks plain errors."""

    model_config = SettingsConfigDict(env_prefix="SKERRY_FLEET_", frozen=True, extra="forbid")

    data: Path = Path("skerry-fleet")
    """Folder of everything that the server keeps."""
    org: str = "local"
    host: str = "127.0.0.1"
    """Address that the HTTP API listens on."""
    port: int = Field(default=8420, ge=0, le=65535)
    broker_host: str = "127.0.0.1"
    """Address under which devices reach the broker."""
    broker_port: int = Field(default=1883, ge=0, le=65535)
    tls_ca: str = ""
    """Path, on the device, of the PEM file that the broker's certificate is checked against; empty: no
    TLS."""
    trust: Annotated[tuple[Path, ...], NoDecode] = ()
    """PEM files of the engineers' public keys whose bundles are accepted (in a variable: separated by
    ``:``)."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further ``Host`` names that the API answers to (in a variable: separated by ``:``)."""
    max_bundle_bytes: int = Field(default=DEFAULT_LIMITS.bundle_bytes, gt=0)
    max_body_bytes: int = Field(default=1 * MIB, gt=0)
    """Of every request but an upload."""
    window_seconds: float = Field(default=3600.0, gt=0)
    """Length of the windows that a newly enrolled device summarises."""
    window_rows: int = Field(default=100_000, gt=0)
    """A window also ends after this many requests."""
    desired_ttl_s: int = Field(default=7 * 86_400, ge=60)
    """How long a device may act on a signed desired state; it is signed again at half of it."""

    @field_validator("trust", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part for part in value.split(":") if part) if isinstance(value, str) else value

    @field_validator("org")
    @classmethod
    def _identifier(cls, value: str) -> str:
        try:
            return check_id(value)
        except MessageError as error:
            raise ValueError(error.message) from error

    @property
    def hosts(self) -> tuple[str, ...]:
        """Every ``Host`` name that is answered. An address that means "all" is no name."""
        own = () if self.host in ("0.0.0.0", "::", "") else (self.host,)  # noqa: S104 compared, never bound
        return tuple(dict.fromkeys((*_LOOPBACK, *own, *self.allowed_hosts)))


def load_settings(**options: Any) -> Settings:
    """Options win over variables; an option that is None was not given.

    Raises:
        ConfigError: a value that cannot be used, named.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the setting {where!r} cannot be used: {first['msg']}") from error
