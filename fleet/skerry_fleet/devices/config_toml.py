"""The device configuration that enrolment hands out: one TOML file, read by ``skerry-runtime``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


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


def render(site: Site, *, device: str, device_class: str, password: str) -> str:
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
    }
    top = {"device": device, "org": site.org, "data_dir": "/var/lib/skerry", "device_class": device_class}
    lines = [_line(name, value) for name, value in top.items()]
    for section, options in sections.items():
        lines += ["", f"[{section}]", *(_line(name, value) for name, value in options.items())]
    return "\n".join(lines) + "\n"


def _line(name: str, value: object) -> str:
    # JSON's strings, numbers and lists of strings are TOML's, but for DEL, which TOML wants escaped.
    return f"{name} = {json.dumps(value, ensure_ascii=True)}".replace("\x7f", "\\u007f")
