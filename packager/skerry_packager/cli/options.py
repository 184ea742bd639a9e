"""Options and types of values that several commands share."""

from __future__ import annotations

import functools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from skerry_contract.errors import AccessError

F = TypeVar("F", bound=Callable[..., Any])

EXISTING_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
DEFAULT_TOKEN_FILE: Final = Path("skerry-fleet/admin.token")
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|d)?")
_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LABEL: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,62})=(.{0,256})")

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")
password_env_option = click.option(
    "--password-env",
    metavar="VAR",
    help="Environment variable with the key's password; asked for if not given.",
)


def public_key_option(*, required: bool) -> Callable[[F], F]:
    return click.option(
        "--key",
        "keys",
        type=EXISTING_FILE,
        multiple=True,
        required=required,
        metavar="PUB",
        help="Public key (PEM) of an engineer that you trust; several may be given, one must match.",
    )


def with_client(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--server``, ``--token``, ``--token-file`` and ``--insecure``, as one ``client``."""
    options = (
        click.option(
            "--server", envvar="SKERRY_SERVER", show_envvar=True, default="http://127.0.0.1:8420",
            show_default=True, metavar="URL", help="Address of the fleet server.",
        ),
        click.option(
            "--token", envvar="SKERRY_TOKEN", show_envvar=True, default="", metavar="TOKEN",
            help="Token of the API. Others on this machine can see it: prefer --token-file.",
        ),
        click.option(
            "--token-file", envvar="SKERRY_TOKEN_FILE", show_envvar=True, default=None,
            type=click.Path(dir_okay=False, path_type=Path),
            help=f"File that holds the token. For a local server: {DEFAULT_TOKEN_FILE}, if it exists.",
        ),
        click.option(
            "--insecure", is_flag=True, help="Allow to send the token to another machine over plain HTTP."
        ),
    )  # fmt: skip

    @functools.wraps(command)
    def called(
        *args: Any, server: str, token: str, token_file: Path | None, insecure: bool, **kwargs: Any
    ) -> Any:
        from ..fleet_client import FleetClient, find_token

        found = find_token(server, token, token_file, DEFAULT_TOKEN_FILE)
        return command(*args, client=FleetClient(server, found, insecure=insecure), **kwargs)

    for option in reversed(options):
        called = option(called)
    return called


def duration(value: str) -> float:
    """Seconds, from ``90``, ``90s``, ``15m``, ``2h`` or ``1d``."""
    match = _DURATION.fullmatch(str(value))
    if match is None:
        raise click.BadParameter(f"{value!r} is no duration; write 90s, 15m, 2h or 1d.")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def loss(value: str) -> float:
    """A fraction, from ``1pt`` or ``1%`` (one point), or ``0.01``."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(pt|pts|%)?", str(value).strip())
    fraction = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= fraction < 1:
        raise click.BadParameter(f"{value!r} is no loss; write 1pt (one point), 1% or 0.01.")
    return fraction


def wave(value: str) -> float | int:
    """A share of the devices, from ``20%``, or a number of devices, from ``3``."""
    text = str(value)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)%", text):
        share = float(match[1]) / 100
        if 0 < share <= 1:
            return share
    elif re.fullmatch(r"[1-9]\d{0,8}", text):
        return int(text)
    raise click.BadParameter(f"{text!r} is no wave; write 20% of the devices, or 3 for three devices.")


def absolute_path(value: str) -> str:
    """A path on a device, from its root."""
    text = str(value)
    if not text.startswith("/") or "\0" in text or any(part == ".." for part in text.split("/")):
        raise click.BadParameter(f"{text!r} is no absolute path; write /var/lib/skerry or the like.")
    return text


class Limit(click.FloatRange):
    """A finite number, not so small that it would be rounded to nothing: 0 means no limit."""

    def __init__(self, least: float = 0.001) -> None:
        super().__init__(least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no limit.", param, ctx)
        return number


def label(value: str) -> tuple[str, str]:
    """``KEY=VALUE``."""
    match = _LABEL.fullmatch(str(value))
    if match is None:
        raise click.BadParameter(f"{value!r} is no label; write KEY=VALUE, such as site=gate-3.")
    return match[1], match[2]


def key_password(key: Path, variable: str | None) -> bytes | None:
    """The key's password, from the environment, else from the person at the terminal, if it has one."""
    from .. import console
    from ..keys import needs_password, open_to_others, password_from

    if open_to_others(key):
        console.warn(f"other users of this machine can read {key}: chmod 600 {key}")
    if variable:
        return password_from(variable)
    if not needs_password(key):
        return None
    if not sys.stdin.isatty():
        raise AccessError(
            f"{key} has a password", hint="Name the environment variable that holds it by --password-env."
        )
    return str(click.prompt(f"Password of {key}", hide_input=True, err=True)).encode()
