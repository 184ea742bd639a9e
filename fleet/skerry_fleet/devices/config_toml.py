"""The device configuration that enrolment hands out: one TOML file, read by ``skerry-runtime``."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from skerry_contract.errors import InputError

DATA_DIR: Final = "/var/lib/skerry"
_MOST: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What all devices of a fleet are told alike."""

    org: str
    broker_host: str
    broker_port: int
    tls_ca: str
    engineers: Sequence[str]
    """PEM."""
    director: str
    """PEM."""
    window_seconds: float
    window_rows: int


def check_data_dir(path: str) -> None:
    """Raises `InputError`: a device cannot be told to keep its data there."""
    # Control and other invisible characters, halves of surrogate pairs, separators of lines.
    kinds = {unicodedata.category(character) for character in path}
    visible = not any(kind.startswith("C") or kind in ("Zl", "Zp") for kind in kinds)
    if not path.startswith("/") or not visible or len(path) > _MOST:
        raise InputError(
            f"{path[:80]!r} cannot be the data folder of a device",
            hint=f"Give an absolute path on the device of at most {_MOST} characters, such as {DATA_DIR}.",
        )


def render(site: Site, *, device: str, device_class: str, password: str, data_dir: str = DATA_DIR) -> str:
    """Every option is written out, also where it has its default, so that the file explains itself."""
    sections: Mapping[str, Mapping[str, object]] = {
        "fleet": {
            "host": site.broker_host,
            "port": site.broker_port,
            "username": device,
            "password": password,
            "tls_ca": site.tls_ca,
            "reconnect_seconds": 120,
        },
        "trust": {"engineers": list(site.engineers), "director": site.director},
        "serve": {"socket": "", "http": "", "token": ""},
        "budgets": {"ram_mb": 0, "latency_p95_ms": 0},
        "windows": {"seconds": site.window_seconds, "rows": site.window_rows},
        "telemetry": {"buffer_mb": 64},
        "flash": {"tbw": 0, "card_gb": 0, "cycles": 0, "amplification": 0},
    }
    top = {"device": device, "org": site.org, "data_dir": data_dir, "device_class": device_class}
    lines = [_line(name, value) for name, value in top.items()]
    for section, options in sections.items():
        lines += ["", f"[{section}]", *(_line(name, value) for name, value in options.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, value: object) -> str:
    # JSON's strings, numbers and lists of strings are TOML's, but for DEL, which TOML wants escaped.
    return f"{name} = {json.dumps(value, ensure_ascii=True)}".replace("\x7f", "\\u007f")
