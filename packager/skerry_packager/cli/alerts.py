"""``skerry alerts``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .. import console
from .options import client_of, json_option, server_options


@click.group()
def alerts() -> None:
    """See what the fleet server noticed.

    \b
    Example:
      skerry alerts list
    """


@alerts.command("list")
@server_options
@json_option
def list_alerts(server: str, token: str, token_file: Path | None, insecure: bool, as_json: bool) -> None:
    """List the alerts, the newest first.

    \b
    Example:
      skerry alerts list
      skerry alerts list --json | jq '.alerts[] | select(.severity == "critical")'
    """
    found = client_of(server, token, token_file, insecure).alerts()
    if as_json:
        console.print_json({"alerts": found})
        return
    if not found:
        console.say("There are no alerts.")
        return
    console.table(
        ("alert", "severity", "state", "since", "device", "model", "what"),
        (
            (
                alert.get("id"),
                alert.get("severity"),
                _state(alert),
                console.time_of(alert.get("raised_ms")),
                alert.get("device"),
                alert.get("model"),
                alert.get("title"),
            )
            for alert in found
        ),
    )


@alerts.command()
@click.argument("alert")
@server_options
@json_option
def acknowledge(
    alert: str, server: str, token: str, token_file: Path | None, insecure: bool, as_json: bool
) -> None:
    """Say that an alert was seen.

    \b
    Example:
      skerry alerts acknowledge 17
    """
    answer = client_of(server, token, token_file, insecure).acknowledge(alert)
    if as_json:
        console.print_json(answer)
        return
    console.facts(
        [("alert", answer.get("id", alert)), ("state", _state(answer)), ("what", answer.get("title"))]
    )


def _state(alert: Mapping[str, Any]) -> str:
    if alert.get("resolved_ms"):
        return "over"
    return "acknowledged" if alert.get("acknowledged_ms") else "open"
