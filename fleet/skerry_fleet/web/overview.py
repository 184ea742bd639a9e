"""What the overview shows, gathered from the services and put into words; no HTTP, no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from skerry_contract.digests import Digest, short
from skerry_contract.messages import Phase, Presence

from ..alerts.views import AlertView
from ..devices.views import DeviceView
from ..rollouts.states import ACTIVE, FAILED, IN_FLIGHT, State, Step
from ..rollouts.views import RolloutDetail, WaveView
from ..wiring import Services

DEVICES_SHOWN: Final = 200
ROLLOUTS_SHOWN: Final = 5
ALERTS_SHOWN: Final = 20

_MINUTE: Final = 60_000
_ROLLOUT_TONE: Final[Mapping[State, str]] = {
    State.RUNNING: "busy",
    State.PAUSED: "warn",
    State.HALTED: "bad",
    State.REVERTING: "bad",
    State.REVERTED: "bad",
    State.COMPLETED: "good",
}
_SEVERITY_TONE: Final = {"info": "idle", "warn": "warn", "major": "bad", "critical": "bad"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A few words with a tone: good, busy, warn, bad or idle."""

    text: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLine:
    """One model on one device: desired against reported."""

    name: str
    desired: str
    reported: str
    variant: str
    chip: Chip
    error: str
    progress: int | None
    """Percent of the download."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLine:
    id: str
    labels: list[str]
    presence: Chip
    seen: str
    models: list[ModelLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaveLine:
    number: int
    reaches: str
    chip: Chip
    reasons: list[str]
    dots: list[Chip]
    """One a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutCard:
    id: str
    title: str
    chip: Chip
    confirmed: int
    devices: int
    coverage: int
    """Percent confirmed."""
    since: str
    unfolded: bool
    """Of those that are over, only the newest is shown in full."""
    waves: list[WaveLine]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertLine:
    chip: Chip
    title: str
    detail: str
    device: str
    seen: str
    acknowledged: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    org: str
    at: str
    devices: int
    online: int
    gone: int
    ordered: int
    """Devices of which something is desired, of those that are shown."""
    converged: int
    running_rollouts: int
    models: int
    open_alerts: int
    device_lines: list[DeviceLine]
    more_devices: bool
    rollouts: list[RolloutCard]
    alerts: list[AlertLine]


def gather(services: Services) -> Overview:
    """Everything that the page shows, as of now."""
    now = services.clock.now_ms()
    presence = services.devices.presence_counts()
    page = services.devices.devices(limit=DEVICES_SHOWN)
    rollouts = [
        services.rollouts.rollout(view.id) for view in services.rollouts.rollouts(limit=ROLLOUTS_SHOWN).items
    ]
    alerts = services.alerts.alerts(only_open=True, limit=ALERTS_SHOWN).items
    lines = [_device(view, now) for view in page.items]
    return Overview(
        org=services.settings.org,
        at=datetime.fromtimestamp(now / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        devices=sum(presence.values()),
        online=presence.get(Presence.ONLINE, 0),
        gone=presence.get(Presence.LOST, 0) + presence.get(Presence.OFFLINE, 0),
        ordered=sum(bool(view.desired) for view in page.items),
        converged=sum(_has_what_is_desired(view) for view in page.items),
        running_rollouts=sum(rollout.state in ACTIVE for rollout in rollouts),
        models=len(services.models.models(limit=500).items),
        open_alerts=len(alerts),
        device_lines=lines,
        more_devices=page.next is not None,
        rollouts=[
            _rollout(rollout, now, unfolded=rollout.state in ACTIVE or place == 0)
            for place, rollout in enumerate(rollouts)
        ],
        alerts=[_alert(alert, now) for alert in alerts],
    )


def ago(then_ms: int | None, now_ms: int) -> str:
    """
    >>> ago(0, 90_000)
    '1 min ago'
    >>> ago(None, 0)
    'never'
    """
    if then_ms is None:
        return "never"
    passed = max(0, now_ms - then_ms)
    for size, name in ((24 * 60 * _MINUTE, "d"), (60 * _MINUTE, "h"), (_MINUTE, "min")):
        if passed >= size:
            return f"{passed // size} {name} ago"
    return f"{passed // 1000} s ago"


def _has_what_is_desired(view: DeviceView) -> bool:
    active = {name: told.active for name, told in view.reported.items()}
    return bool(view.desired) and all(wish.digest == active.get(name) for name, wish in view.desired.items())


def _device(view: DeviceView, now: int) -> DeviceLine:
    tones = {
        Presence.ONLINE: "good",
        Presence.SLEEPING: "idle",
        Presence.OFFLINE: "warn",
        Presence.LOST: "bad",
    }
    presence = (
        Chip(text=view.presence, tone=tones[Presence(view.presence)])
        if view.presence
        else Chip(text="never seen", tone="idle")
    )
    return DeviceLine(
        id=view.id,
        labels=[f"{label}={value}" for label, value in sorted(view.labels.items())],
        presence=presence,
        seen=ago(view.last_seen_ms, now),
        models=[_model(view, name) for name in sorted({*view.desired, *view.reported})],
    )


def _model(view: DeviceView, name: str) -> ModelLine:
    desired, reported = view.desired.get(name), view.reported.get(name)
    active = reported.active if reported else None
    error = reported.error if reported else None
    if reported is not None and reported.phase not in (
        None,
        Phase.CONFIRMED,
        Phase.ROLLED_BACK,
        Phase.REJECTED,
    ):
        chip = Chip(text=f"{reported.phase} {reported.target_version}".replace("_", " "), tone="busy")
    elif desired is None or desired.digest == active:
        failed = reported is not None and reported.phase in (Phase.ROLLED_BACK, Phase.REJECTED)
        text = (
            f"{reported.phase} {reported.target_version}".replace("_", " ")
            if reported and failed
            else "as desired"
        )
        chip = Chip(text=text, tone="warn" if failed else "good")
    else:
        chip = Chip(text="waits for the device", tone="idle")
    downloading = reported is not None and reported.phase == Phase.DOWNLOADING and reported.bytes_total > 0
    return ModelLine(
        name=name,
        desired=desired.version if desired else "-",
        reported=_version(reported.active_version, active) if reported else "-",
        variant=reported.active_variant if reported else "",
        chip=chip,
        error=f"{error.code}: {error.message}" if error else "",
        progress=100 * reported.bytes_done // reported.bytes_total if reported and downloading else None,
    )


def _version(version: str, digest: str | None) -> str:
    if digest is None:
        return "nothing"
    return version or short(Digest(digest))


def _rollout(rollout: RolloutDetail, now: int, *, unfolded: bool) -> RolloutCard:
    confirmed = rollout.phases.get(Step.CONFIRMED, 0)
    tone = _ROLLOUT_TONE.get(rollout.state, "idle")
    if tone == "good" and any(rollout.phases.get(step) for step in FAILED):
        tone = "warn"
    return RolloutCard(
        id=rollout.id,
        title=f"{rollout.model} {rollout.version}",
        chip=Chip(text=rollout.state, tone=tone),
        confirmed=confirmed,
        devices=rollout.devices,
        coverage=100 * confirmed // rollout.devices if rollout.devices else 0,
        since=ago(rollout.created_ms, now),
        unfolded=unfolded,
        waves=[_wave(wave, over=rollout.final) for wave in rollout.waves],
    )


def _wave(wave: WaveView, *, over: bool) -> WaveLine:
    passed = "warn" if any(member.phase in FAILED for member in wave.devices) else "good"
    tone = {"pass": passed, "fail": "bad", "hold": "busy" if wave.begun_ms is not None else "idle"}
    text = wave.verdict.decision.upper() if wave.begun_ms is not None else "never began" if over else "waits"
    dots = []
    for member in wave.devices:
        if member.unknown:
            dots.append(Chip(text=f"{member.device}: offline since before the offer", tone="idle"))
        else:
            why = f" ({member.error.code}: {member.error.message})" if member.error else ""
            told = f"{member.device}: {member.phase.replace('_', ' ')}{why}"
            dots.append(Chip(text=told, tone=_dot(member.phase)))
    return WaveLine(
        number=wave.number,
        reaches=wave.reaches,
        chip=Chip(text=text, tone=tone[wave.verdict.decision]),
        reasons=wave.verdict.reasons if wave.begun_ms is not None else [],
        dots=dots,
    )


def _dot(step: Step) -> str:
    if step is Step.CONFIRMED:
        return "good"
    if step in FAILED:
        return "bad"
    return "busy" if step in IN_FLIGHT else "idle"


def _alert(alert: AlertView, now: int) -> AlertLine:
    return AlertLine(
        chip=Chip(text=alert.severity, tone=_SEVERITY_TONE.get(alert.severity, "warn")),
        title=alert.title,
        detail=alert.detail,
        device=alert.device,
        seen=ago(alert.updated_ms, now),
        acknowledged=alert.acknowledged_by,
    )
