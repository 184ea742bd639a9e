"""``skerry rollout``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from .. import console
from .options import duration, json_option, label, wave, with_client

if TYPE_CHECKING:
    from ..fleet_client import FleetClient

_POLL_S: Final = 1.0

watch_option = click.option(
    "--watch",
    is_flag=True,
    help="Follow it to its end; exit code 1 unless it completes. Ctrl-C leaves it running.",
)


@click.group()
def rollout() -> None:
    """Bring a published version to the devices, in waves.

    Each wave must prove itself before the next begins: devices that fail go back to what they ran before,
    by themselves, and a failed wave stops the rollout.

    \b
    Example:
      skerry rollout start digits 1.0.0 --wave 20% --wave 100% --watch
      skerry rollout status
    """


@rollout.command()
@click.argument("model")
@click.argument("version")
@click.option(
    "--wave",
    "waves",
    type=wave,
    multiple=True,
    default=("20%", "50%", "100%"),
    show_default=True,
    metavar="SHARE",
    help="How far a wave reaches in all: 20% of the devices, or 3 devices; repeat it, rising.",
)
@click.option(
    "--select",
    "selector",
    type=label,
    multiple=True,
    metavar="KEY=VALUE",
    help="Only devices with this label.",
)
@click.option(
    "--deadline",
    type=duration,
    default="1h",
    show_default=True,
    help="A device that is silent for longer has failed: 90s, 15m, 2h, 1d.",
)
@click.option(
    "--max-failures",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Devices that may fail, in all waves together.",
)
@click.option(
    "--probation-requests",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Requests that a device answers before it confirms.",
)
@click.option(
    "--probation-seconds",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    help="Time that a device runs it before it confirms.",
)
@watch_option
@with_client
@json_option
def start(
    model: str,
    version: str,
    waves: tuple[float | int, ...],
    selector: tuple[tuple[str, str], ...],
    deadline: float,
    max_failures: int,
    probation_requests: int,
    probation_seconds: float,
    watch: bool,
    client: FleetClient,
    as_json: bool,
) -> None:
    """Start a rollout of a published VERSION of MODEL.

    \b
    Example:
      skerry rollout start digits 1.0.0
      skerry rollout start digits 1.1.0 --wave 1 --wave 5 --wave 100 --select site=gate-3 --watch
    """
    if len({type(reach) for reach in waves}) > 1 or list(waves) != sorted(set(waves)):
        raise click.UsageError("Waves must rise, and be all shares (20%) or all numbers of devices (3).")
    started = client.start_rollout(
        {
            "model": model,
            "version": version,
            "waves": list(waves),
            "selector": dict(selector) or None,
            "probation": {"requests": probation_requests, "seconds": probation_seconds},
            "deadline_s": deadline,
            "max_failures": max_failures,
        }
    )
    if watch:
        _watch(client, str(started.get("id")), as_json)
    elif as_json:
        console.print_json(started)
    else:
        _show(started)
        console.say(f"next: skerry rollout status {started.get('id')} --watch")


@rollout.command()
@click.argument("rollout_id", metavar="[ID]", required=False)
@watch_option
@with_client
@json_option
def status(
    rollout_id: str | None,
    watch: bool,
    client: FleetClient,
    as_json: bool,
) -> None:
    """Show a rollout, or list all of them.

    Why a gate passed, holds or failed is shown with each wave.

    \b
    Example:
      skerry rollout status
      skerry rollout status 3f9c2a --watch
    """
    if rollout_id is None:
        if watch:
            raise click.UsageError("--watch needs the ID of a rollout.")
        _list(client.rollouts(), as_json)
    elif watch:
        _watch(client, rollout_id, as_json)
    elif as_json:
        console.print_json(client.rollout(rollout_id))
    else:
        _show(client.rollout(rollout_id))


def _steer(verb: str, text: str) -> None:
    @rollout.command(verb, help=f"{text}\n\n\b\nExample:\n  skerry rollout {verb} 3f9c2a")
    @click.argument("rollout_id", metavar="ID")
    @with_client
    @json_option
    def steer(rollout_id: str, client: FleetClient, as_json: bool) -> None:
        changed = client.steer_rollout(rollout_id, verb)
        console.print_json(changed) if as_json else _show(changed)


_steer("pause", "Pause a rollout: no device is offered it from now on.")
_steer("resume", "Resume a paused rollout.")
_steer("abort", "Abort a rollout: devices that have not confirmed it yet go back to what they ran before.")
_steer("revert", "Revert a rollout: every device goes back to what it ran before.")


def _watch(client: FleetClient, rollout_id: str, as_json: bool) -> None:
    """Print what changes until the rollout ends; exit code 1 unless it completed."""
    told: dict[str, str] = {}
    while True:
        state = client.rollout(rollout_id)
        if not as_json:
            for subject, news in _news(state):
                if told.get(subject) != news:
                    told[subject] = news
                    console.say(f"{subject}: {news}")
        if state.get("final"):
            break
        try:
            time.sleep(_POLL_S)
        except KeyboardInterrupt:
            console.warn(f"the rollout goes on: 'skerry rollout status {rollout_id}' shows it")
            click.get_current_context().exit(130)
    console.print_json(state) if as_json else _show(state)
    if state.get("state") != "completed":
        click.get_current_context().exit(1)


def _news(state: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What there is to tell: subject and its present state."""
    news = []
    for number, stage in enumerate(state.get("waves") or (), 1):
        for device in stage.get("devices") or ():
            if device.get("phase"):
                news.append((f"wave {number}, {device.get('device')}", _phase(device)))
        decision, reasons = _verdict(stage)
        if decision:
            # While it holds, the devices' own lines tell the rest of its reasons.
            told = reasons[:1] if decision == "hold" else reasons
            news.append((f"gate {number}", ". ".join([decision, " ".join(told)]) if told else decision))
    return [*news, ("rollout", ". ".join([str(state.get("state")), *_own_reason(state)]))]


def _show(state: Mapping[str, Any]) -> None:
    console.facts(
        [
            ("rollout", state.get("id")),
            ("model", f"{state.get('model')} {state.get('version')}"),
            ("state", state.get("state")),
            ("reason", " ".join(_own_reason(state))),
        ]
    )
    console.say()
    waves = list(enumerate(state.get("waves") or (), 1))
    console.table(
        ("wave", "reaches", "device", "phase", "error"),
        (row for number, stage in waves for row in _rows(number, stage)),
        right=("wave",),
        whole=("reaches", "device", "phase"),
    )
    for number, stage in waves:
        decision, reasons = _verdict(stage)
        if decision:
            console.say(f"gate {number}: {decision}")
            for reason in reasons:
                console.say(f"  {reason}")


def _rows(number: int, stage: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A line for each device, one for a wave without any."""
    devices: list[Mapping[str, Any]] = list(stage.get("devices") or ()) or [{}]
    return [
        (number, stage.get("reaches"), device.get("device"), _state(device), _error(device))
        for device in devices
    ]


def _state(device: Mapping[str, Any]) -> str:
    text = str(device.get("phase") or "")
    return f"{text} (offline)" if text and device.get("unknown") else text


def _error(device: Mapping[str, Any]) -> str:
    error = device.get("error") or {}
    return f"{error['code']}: {error.get('message', '')}" if error.get("code") else ""


def _phase(device: Mapping[str, Any]) -> str:
    return f"{device.get('phase')} ({_error(device)})" if _error(device) else _state(device)


def _verdict(stage: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What the gate of a wave says, and why, in whole sentences."""
    verdict = stage.get("verdict") or {}
    return str(verdict.get("decision") or ""), [str(reason) for reason in verdict.get("reasons") or ()]


def _own_reason(state: Mapping[str, Any]) -> list[str]:
    """Why a rollout is where it is, unless a gate has said the same."""
    reason = str(state.get("reason") or "")
    said = {" ".join(_verdict(stage)[1]) for stage in state.get("waves") or ()}
    return [reason] if reason and reason not in said else []


def _list(rollouts: list[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        console.print_json({"rollouts": rollouts})
        return
    if not rollouts:
        console.say("There was no rollout yet: 'skerry rollout start' starts one.")
        return
    console.table(
        ("rollout", "model", "state", "wave", "started", "devices"),
        (
            (
                item.get("id"),
                f"{item.get('model')} {item.get('version')}",
                item.get("state"),
                f"{item.get('wave')} of {item.get('wave_count')}",
                console.time_of(item.get("created_ms")),
                ", ".join(f"{count} {phase}" for phase, count in (item.get("phases") or {}).items()),
            )
            for item in rollouts
        ),
        whole=("rollout", "state", "wave", "started"),
    )
