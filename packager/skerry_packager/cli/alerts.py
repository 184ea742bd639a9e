"""``skerry alerts``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .. import console
from .options import json_option, with_client

if TYPE_CHECKING:
    from ..fleet_client import FleetClient


@click.group()
def alerts() -> None:
    """See what the fleet server noticed.

    \b
    Example:
      skerry alerts list
    """


@alerts.command("list")
@with_client
@json_option
def list_alerts(client: FleetClient, as_json: bool) -> None:
    """List the alerts, the newest first.

    \b
    Example:
      skerry alerts list
      skerry alerts list --json | jq '.alerts[] | select(.severity == "critical")'
    """
    found = client.alerts()
    if as_json:
        console.print_json({"alerts": found})
        return
    if not found:
        console.say("There are no alerts.")
        return
    console.table(
        ("alert", "severity", "state", "since", "about", "what"),
        (
            (
                alert.get("id"),
                alert.get("severity"),
                _state(alert),
                console.time_of(alert.get("raised_ms")),
                " ".join(str(alert[key]) for key in ("device", "model") if alert.get(key)),
                alert.get("title"),
            )
            for alert in found
        ),
        whole=("alert", "severity", "state", "since"),
    )


@alerts.command()
@click.argument("alert")
@with_client
@json_option
def acknowledge(alert: str, client: FleetClient, as_json: bool) -> None:
    """Say that an alert was seen.

    \b
    Example:
      skerry alerts acknowledge 17
    """
    answer = client.acknowledge(alert)
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
