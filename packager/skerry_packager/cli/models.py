"""``skerry models``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from .. import console
from .options import json_option, with_client

if TYPE_CHECKING:
    from ..fleet_client import FleetClient


@click.group()
def models() -> None:
    """See what was published to the fleet server.

    \b
    Example:
      skerry models list
      skerry models show digits
    """


@models.command("list")
@with_client
@json_option
def list_models(client: FleetClient, as_json: bool) -> None:
    """List the models, each with its newest release.

    \b
    Example:
      skerry models list
      skerry models list --json | jq -r '.models[].name'
    """
    found = client.models()
    if as_json:
        console.print_json({"models": found})
        return
    if not found:
        console.say("There are no models yet: 'skerry publish' uploads a bundle.")
        return
    console.table(
        ("model", "task", "versions", "newest", "release", "digest"),
        (
            (
                model.get("name"),
                model.get("task"),
                model.get("versions"),
                model.get("latest_version"),
                model.get("latest_release"),
                console.short_digest(model.get("latest_digest")),
            )
            for model in found
        ),
        right=("versions", "release"),
        whole=("model", "newest", "digest"),
    )


@models.command()
@click.argument("name")
@with_client
@json_option
def show(name: str, client: FleetClient, as_json: bool) -> None:
    """Show the versions of a model, the newest release first.

    \b
    Example:
      skerry models show digits
      skerry models show digits --json | jq -r '.versions[0].digest'
    """
    found = client.versions(name)
    if as_json:
        console.print_json({"model": name, "versions": found})
        return
    console.table(
        ("version", "release", "published", "size", "digest", "variants"),
        (
            (
                version.get("version"),
                version.get("release"),
                console.time_of(version.get("published_ms")),
                console.size(version.get("size")),
                console.short_digest(version.get("digest")),
                _variants(version),
            )
            for version in found
        ),
        right=("release", "size"),
        whole=("version", "published", "digest"),
    )
    for version in found:
        if version.get("quarantined_ms"):
            reason = version.get("quarantine_reason") or "no reason was given"
            console.warn(f"{version.get('version')} is quarantined: {reason}")


def _variants(version: Mapping[str, Any]) -> str:
    return ", ".join(str(variant.get("id")) for variant in version.get("variants") or ())
