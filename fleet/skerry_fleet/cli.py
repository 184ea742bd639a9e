"""``skerry fleet``: run the fleet server. Errors become exit codes in the ``skerry`` command."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .server import Addresses


@click.group()
def fleet() -> None:
    """Run the fleet server.

    \b
    Example:
      skerry fleet serve --trust engineer.pub
    """


@fleet.command()
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of everything that the server keeps. [default: ./skerry-fleet]",
)
@click.option("--org", help="Name of the organisation, part of every topic. [default: local]")
@click.option("--host", help="Address that the HTTP API listens on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the HTTP API. [default: 8420]")
@click.option(
    "--broker-host",
    help="Address under which devices reach the broker. [default: 127.0.0.1]",
)
@click.option(
    "--broker-listen", help="Address that the broker listens on, if it is another. [default: --broker-host]"
)
@click.option("--broker-port", type=click.IntRange(0, 65535), help="Port of the broker. [default: 1883]")
@click.option(
    "--trust",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    metavar="PUBKEY",
    help="Public key (PEM) of an engineer whose bundles are accepted; several may be given.",
)
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Further name under which the API is reached, such as that of a proxy before it.",
)
@click.option("--window-seconds", type=float, help="Length of the windows of devices. [default: 3600]")
@click.option(
    "--insecure-dev",
    is_flag=True,
    help="Allow other machines to reach the broker without TLS. Not for production.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON when it is ready.")
def serve(
    as_json: bool,
    insecure_dev: bool,
    broker_listen: str | None,
    trust: tuple[Path, ...],
    allowed_hosts: tuple[str, ...],
    **options: Any,
) -> None:
    """Run the fleet server with its broker, until Ctrl-C or SIGTERM.

    It keeps everything in one folder and listens on loopback alone, unless told otherwise. The first start
    makes the administrator's token and the key that signs desired states: keep a backup of the folder. Port 0
    takes a free port. Most options can also be given as a variable, such as SKERRY_FLEET_DATA.

    \b
    Example:
      skerry keys init --name engineer
      skerry fleet serve --trust engineer.pub
    """
    # These take a second to import: not for --help.
    from .mosquitto import age_note, find_mosquitto, mosquitto_version
    from .server import serve as run
    from .settings import load_settings

    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(trust=trust or None, allowed_hosts=allowed_hosts or None, **options)
    note = age_note(mosquitto_version(find_mosquitto()))
    if note:
        click.echo(f"note: {note}", err=True)
    if insecure_dev:
        click.echo("warning: --insecure-dev: passwords of devices may cross the network in clear", err=True)
    ready = _print_json if as_json else _print_text
    run(settings, ready=ready, broker_listen=broker_listen, insecure=insecure_dev)
    if not as_json:
        click.echo("stopped", err=True)


def _print_json(addresses: Addresses) -> None:
    told = {
        "ready": True,
        "url": addresses.url,
        "broker": addresses.broker,
        "data": str(addresses.data),
        "token_file": str(addresses.token_file),
        "pid": addresses.pid,
    }
    click.echo(json.dumps(told))


def _print_text(addresses: Addresses) -> None:
    click.echo(
        f"""\
The fleet server is ready.

  API and overview  {addresses.url}
  Broker            {addresses.broker}
  Token             {addresses.token_file}
  Data              {addresses.data}

Next, in another terminal:

  export SKERRY_SERVER={addresses.url} SKERRY_TOKEN_FILE={addresses.token_file}
  skerry publish BUNDLE.skerry
  skerry devices --help

Ctrl-C stops the server and its broker."""
    )
