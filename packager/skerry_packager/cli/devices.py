"""``skerry devices``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from skerry_contract.errors import ConflictError, InputError, StorageError

from .. import console
from .options import absolute_path, json_option, label, with_client

if TYPE_CHECKING:
    from ..fleet_client import FleetClient

DEFAULT_DATA_DIR: Final = "/var/lib/skerry"


@click.group()
def devices() -> None:
    """See and enrol the devices of the fleet.

    \b
    Example:
      skerry devices add pi-7 --label site=gate-3 --out pi-7.toml
      skerry devices list
    """


@devices.command("list")
@with_client
@json_option
def list_devices(client: FleetClient, as_json: bool) -> None:
    """List the devices, with what runs on each.

    \b
    Example:
      skerry devices list
      skerry devices list --json | jq '.devices[] | select(.presence == "lost") | .id'
    """
    found = client.devices()
    if as_json:
        console.print_json({"devices": found})
        return
    if not found:
        console.say("There are no devices yet: 'skerry devices add' enrols one.")
        return
    console.table(
        ("device", "presence", "last seen", "labels", "runs"),
        (
            (
                device.get("id"),
                device.get("presence") or "never seen",
                console.time_of(device.get("last_seen_ms")),
                _labels(device),
                "; ".join(
                    _running(name, report) for name, report in sorted((device.get("reported") or {}).items())
                ),
            )
            for device in found
        ),
        whole=("device", "presence", "last seen"),
    )


@devices.command()
@click.argument("device")
@with_client
@json_option
def show(device: str, client: FleetClient, as_json: bool) -> None:
    """Show one device: hardware, what is desired of it, what it reported.

    \b
    Example:
      skerry devices show pi-7
    """
    found = client.device(device)
    if as_json:
        console.print_json(found)
        return
    known, hardware = found.get("device") or {}, found.get("hardware") or {}
    engines = (f"{item.get('name')} {item.get('version')}" for item in found.get("engines") or ())
    console.facts(
        [
            ("device", known.get("id")),
            ("presence", known.get("presence") or "never seen"),
            ("last seen", console.time_of(known.get("last_seen_ms"))),
            ("class", known.get("device_class")),
            ("labels", _labels(known)),
            ("hardware", _hardware(hardware) if hardware else ""),
            ("engines", ", ".join(engines)),
            ("agent", known.get("agent_version")),
        ]
    )
    reports, desired = known.get("reported") or {}, known.get("desired") or {}
    console.say()
    console.table(
        ("model", "desired", "runs", "variant", "phase", "error"),
        (
            _model_row(name, desired.get(name) or {}, reports.get(name) or {})
            for name in sorted({*reports, *desired})
        ),
        whole=("model", "desired", "runs", "variant", "phase"),
    )
    console.say()
    console.table(
        ("ran", "health", "from", "to", "digest"),
        (
            (
                f"{item.get('model')} {item.get('version')}",
                item.get("health"),
                console.time_of(item.get("from_ms")),
                console.time_of(item.get("to_ms")) or "now",
                console.short_digest(item.get("digest")),
            )
            for item in found.get("placements") or ()
        ),
        whole=("health", "from", "to", "digest"),
    )


@devices.command()
@click.argument("device")
@click.option(
    "--label", "labels", type=label, multiple=True, metavar="KEY=VALUE", help="Label; may be repeated."
)
@click.option(
    "--class", "device_class", default="", metavar="PROFILE", help="Device profile that it belongs to."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write the device's configuration; DEVICE.toml if not given.",
)
@click.option(
    "--data-dir",
    type=absolute_path,
    default=DEFAULT_DATA_DIR,
    show_default=True,
    metavar="DIR",
    help="Folder on the device for models and state. Without root there, name one of its user's own, such "
    "as /srv/skerry.",
)
@with_client
@json_option
def add(
    device: str,
    labels: tuple[tuple[str, str], ...],
    device_class: str,
    out: Path | None,
    data_dir: str,
    client: FleetClient,
    as_json: bool,
) -> None:
    """Enrol a device, and write the configuration that its daemon runs with.

    The file holds the device's password, which the server gives away once only. Bring it to the device by a
    safe way; it is readable by you alone.

    \b
    Example:
      skerry devices add pi-7 --label site=gate-3 --class raspberry-pi-4 --out pi-7.toml
      scp pi-7.toml pi-7:/etc/skerry/device.toml
      skerry devices add pi-8 --data-dir /srv/skerry
    """
    path = out or Path(f"{device}.toml")
    # The file is made first: a password that cannot be kept must not be asked for.
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise ConflictError(f"{path} exists", hint="Choose another file by --out.") from error
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}", hint="Choose another file by --out."
        ) from error
    kept = False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            answer = client.add_device(device, dict(labels), device_class, data_dir)
            file.write(str(answer.get("config_toml", "")))
            file.flush()
            os.fsync(file.fileno())
        kept = True
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror}",
            hint=f"{device} is enrolled but its password is lost: remove the device and add it again.",
        ) from error
    finally:
        if not kept:
            path.unlink(missing_ok=True)
    if as_json:
        console.print_json(
            {**{key: answer[key] for key in answer if key != "config_toml"}, "config": str(path)}
        )
        return
    console.facts([("device", answer.get("id", device)), ("configuration", f"{path}  (holds its password)")])
    console.say(f"next: skerry-runtime run --config {path}")


@devices.command()
@click.argument("device", metavar="ID")
@with_client
@json_option
def remove(device: str, client: FleetClient, as_json: bool) -> None:
    """Remove a device from the fleet: its password is void at once.

    It goes on with the model that it runs, and tells nobody any more. To bring it back, add it again and give
    it the new configuration.

    \b
    Example:
      skerry devices remove pi-7
    """
    client.remove_device(device)
    if as_json:
        console.print_json({"removed": device})
        return
    console.facts([("removed", device)])


def _model_row(name: str, desired: Mapping[str, Any], report: Mapping[str, Any]) -> tuple[object, ...]:
    error = report.get("error") or {}
    return (
        name,
        desired.get("version"),
        report.get("active_version"),
        report.get("active_variant"),
        report.get("phase"),
        f"{error.get('code')}: {error.get('message')}" if error else "",
    )


def _running(name: str, report: Mapping[str, Any]) -> str:
    text = f"{name} {report.get('active_version') or 'none'}"
    phase = report.get("phase")
    return (
        text
        if phase in (None, "", "confirmed")
        else f"{text} ({phase} {report.get('target_version', '')})".strip()
    )


def _labels(device: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in sorted((device.get("labels") or {}).items()))


def _hardware(hardware: Mapping[str, Any]) -> str:
    isa = " ".join(hardware.get("isa") or ())
    text = f"{hardware.get('arch')}, {hardware.get('cores')} cores, {console.size(hardware.get('ram_bytes'))}"
    return f"{text}, {isa}" if isa else text
