"""The story of the demo, act by act. Every line of its closing table is measured in the act that it names."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from skerry_contract.limits import MIB

from ..fleet_client import FleetClient
from . import digits
from .processes import PLAN, Processes, free_ports

DEVICES = ("door-1", "door-2", "gate-1", "gate-2", "yard-1")
RAM_BUDGET_MB = 128
"""MiB that each device grants to a model: plenty for versions 1 and 2."""
WINDOW_S = 3.0


class StoryError(Exception):
    """The story cannot go on: what was awaited did not happen."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the closing table."""

    claim: str
    measured: str
    holds: bool


@dataclass
class Story:
    """Plays the acts in one folder with real processes; `lines` fills up as it goes."""

    folder: Path
    console: Console
    lines: list[Line] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.processes = Processes(self.folder)
        self.http_port, self.broker_port, self.uplink_port = free_ports(3)
        self.server = f"http://127.0.0.1:{self.http_port}"
        self.data = digits.load()
        self.environment: dict[str, str] = {}
        self.canaries: set[str] = set()
        self.away_since = 0.0
        self.rollout_2 = ""

    def play(self) -> None:
        """All acts. Raises `StoryError` or `SkerryError` when the story breaks off."""
        self.models_and_keys()
        self.fleet_and_devices()
        self.first_version()
        self.second_version_while_one_is_away()
        self.version_that_does_not_fit()
        self.back_from_offline()
        self.dark_camera()
        self.every_request()

    # --- acts -------------------------------------------------------------------------------------

    def models_and_keys(self) -> None:
        self.act("An engineer trains a digit reader on real handwritten digits and makes a signing key")
        self.calibration, self.evaluation = digits.write_data(self.data, self.folder)
        np.savez(self.folder / "live.npz", image=self.data.live[0], labels=self.data.live[1])
        self.train(1)
        self.skerry("keys", "init", "--out", str(self.folder), "--name", "engineer", "--no-password")

    def fleet_and_devices(self) -> None:
        self.act(
            "A fleet server starts with its MQTT broker; five devices are enrolled and start their daemons"
        )
        options = ["--data", str(self.folder / "fleet"), "--org", "demo"]
        options += ["--trust", str(self.folder / "engineer.pub")]
        options += ["--port", str(self.http_port), "--broker-port", str(self.broker_port)]
        self.processes.start("fleet", [*_program("skerry"), "fleet", "serve", *options])
        token = self.folder / "fleet" / "admin.token"
        self.wait("the fleet server answers", lambda: token.exists() and FleetClient(self.server).healthy())
        self.fleet = FleetClient(self.server, token.read_text().strip())
        self.environment = {"SKERRY_SERVER": self.server, "SKERRY_TOKEN_FILE": str(token)}
        for device in DEVICES:
            self.enrol(device)
        self.uplink()
        for device in DEVICES:
            self.processes.start(
                device, [*_program("skerry-runtime"), "run", "--config", str(self.config(device))]
            )
        self.wait("five devices are online", lambda: self.online() == set(DEVICES))
        sockets = {device: str(self.folder / device / "run" / "skerry.sock") for device in DEVICES}
        (self.folder / PLAN).write_text(json.dumps(sockets))
        self.light()
        self.processes.start(
            "cameras", [sys.executable, "-m", "skerry_packager.demo.cameras", str(self.folder)]
        )
        self.say(
            f"online: {', '.join(DEVICES)}. Each has a camera application that asks its daemon all the time."
        )

    def first_version(self) -> None:
        self.act("Version 1.0.0 is packed, signed, published and rolled out in waves")
        packed = self.pack(1)
        self.publish(1)
        began = time.monotonic()
        rollout = self.roll_out(1)
        done = self.wait_rollout(rollout, "completed")
        running = self.running("1.0.0")
        self.line(
            "1.0.0 goes out in waves, smallest first",
            f"waves of {_sizes(done)} devices, {len(running)} of {len(DEVICES)} confirmed in {_took(began)}",
            running == set(DEVICES) and len(done["waves"]) == 3,
        )
        self.line(
            "the packer chose the smallest variant that keeps its promises",
            _choice(packed),
            _chosen(packed)["size"] < next(v["size"] for v in packed["variants"] if v["name"] == "fp32"),
        )
        self.wait("every camera gets answers", lambda: all(c["images"] for c in self.counts().values()))

    def second_version_while_one_is_away(self) -> None:
        away = DEVICES[-1]
        self.act(f"{away} loses its network; meanwhile 2.0.0, a better reader, goes to the others")
        self.processes.end("uplink", signal.SIGKILL)
        self.away_since = time.monotonic()
        self.wait(f"the fleet notices that {away} is gone", lambda: away not in self.online())
        self.train(2)
        self.pack(2)
        self.publish(2)
        self.rollout_2 = self.roll_out(2)
        others = set(DEVICES) - {away}
        self.wait("2.0.0 is confirmed on the other four", lambda: self.running("2.0.0") == others, 60)
        before = self.seen(away, "1.0.0")
        self.wait(f"{away} still answers offline", lambda: self.seen(away, "1.0.0") > before + 100)
        self.wait("2.0.0 answers on the others", lambda: all(self.seen(d, "2.0.0") > 600 for d in others))
        one, two = self.live_accuracy("1.0.0"), self.live_accuracy("2.0.0")
        self.line(
            "2.0.0 follows and reads better on the devices' own images",
            f"4 of 4 reachable devices; right on {two:.1%} of the images, 1.0.0 on {one:.1%}",
            self.running("2.0.0") == others and two > one,
        )

    def version_that_does_not_fit(self) -> None:
        self.act("Version 3.0.0 is as good on the bench, but needs too much memory on the devices")
        self.train(3)
        bench = _chosen(self.pack(3))["ram_bytes"] / MIB
        self.say(f"on the bench, an image at a time: {bench:.0f} MiB. Devices grant {RAM_BUDGET_MB} MiB.")
        self.publish(3)
        before = self.counts()
        # Long enough for a camera's request on a busy machine: golden samples alone need little memory.
        halted = self.wait_rollout(self.roll_out(3, probation_seconds=8), ("halted", "reverting", "reverted"))
        wave = {device["device"]: device for device in halted["waves"][0]["devices"]}
        self.canaries = set(wave)
        self.wait("the first wave answers with 2.0.0 again", lambda: wave.keys() <= self.running("2.0.0"))
        self.say(f"the gate said: {' '.join(halted['waves'][0]['verdict']['reasons'])}")
        tried = {device for device in DEVICES if self.seen(device, "3.0.0")}
        placed = {placement["device"] for placement in self.fleet.placements("digits", "3.0.0")}
        never = set(DEVICES) - placed - tried
        self.line(
            "3.0.0 fits on the bench and not on a device: stopped at the first wave",
            f"{bench:.0f} MiB on the bench, {RAM_BUDGET_MB} granted; rollout {halted['state']}; "
            f"{', '.join(sorted(tried)) or 'nobody'} answered with it, {len(never)} devices never ran it",
            bench < RAM_BUDGET_MB
            and bool(tried)
            and tried <= wave.keys()
            and never == set(DEVICES) - set(wave),
        )
        failed = [device for device in wave.values() if device["phase"] == "rolled_back"]
        code = (failed[0]["error"] or {}).get("code", "") if failed else ""
        after = self.counts()
        lost = sum(after[d]["failures"] - before[d]["failures"] for d in DEVICES)
        asked = sum(after[d]["requests"] - before[d]["requests"] for d in DEVICES)
        self.line(
            "the device itself rolled it back, and every request was answered",
            f"{len(failed)} rolled back ({code}); {asked - lost} of {asked} requests answered meanwhile",
            bool(failed) and code == "budget.memory" and asked > 0 and not lost,
        )

    def dark_camera(self) -> None:
        dark = next(device for device in DEVICES[:-1] if device not in self.canaries)
        self.act(f"The camera of {dark} goes dark")
        quiet = self.drift_alerts()
        began = time.monotonic()
        seen = {device: len(self.fleet.windows(device)) for device in DEVICES}
        self.light({dark: 0.2})
        self.wait("a drift alert", self.drift_alerts, 60)
        took = _took(began)
        alert = self.drift_alerts()[0]
        self.say(f"{alert['severity']}: {alert['title']}. {alert['detail']}")
        features = [feature["name"] for feature in alert["data"]["features"]]
        self.line(
            "a dark camera raises a drift alert that names the device and the features",
            f"{alert['device']}: {', '.join(features[:3])}; {took} after it went dark",
            alert["device"] == dark and "image.brightness" in features,
        )
        self.wait(
            "three more windows of every camera",
            lambda: all(len(self.fleet.windows(device)) >= seen[device] + 3 for device in DEVICES),
        )
        others = {alert["device"] for alert in self.drift_alerts()} - {dark}
        windows = sum(len(self.fleet.windows(device)) for device in DEVICES)
        self.line(
            "no other drift alert was raised, before or after",
            f"{len(quiet) + len(others)} in {windows} windows of {len(DEVICES)} devices",
            not quiet and not others,
        )
        self.light()

    def back_from_offline(self) -> None:
        away = DEVICES[-1]
        self.act(f"{away} gets its network back")
        buffered = self.device_status(away)["outbox"]["waiting_rows"]
        offline = _took(self.away_since)
        self.uplink()
        self.wait(f"{away} has caught up with 2.0.0", lambda: away in self.running("2.0.0"), 60)
        self.wait("its buffer is empty", lambda: self.device_status(away)["outbox"]["waiting_rows"] <= 1, 60)
        lost = self.device_status(away)["outbox"]["lost"]
        windows = self.fleet.windows(away)
        there = (
            f"{len(windows)} windows of it, no number missing or twice"
            if _complete(windows)
            else f"{_numbers(windows)}"
        )
        self.line(
            f"{away}, offline for {offline}, lost nothing",
            f"{buffered} rows waited, {lost} were lost; the fleet has {there}",
            _complete(windows) and buffered > 0 and not lost,
        )
        state = self.wait_rollout(self.rollout_2, "completed")["state"]
        self.line(
            "and caught up with what it had missed",
            f"runs 2.0.0; rollout of 2.0.0 {state}",
            away in self.running("2.0.0"),
        )

    def every_request(self) -> None:
        counts = self.counts()
        asked = sum(c["requests"] for c in counts.values())
        failed = sum(c["failures"] for c in counts.values())
        images = sum(sum(c["images"].values()) for c in counts.values())
        slowest = max(c["slowest_ms"] for c in counts.values())
        reason = next((f" ({d}: {c['last_failure']})" for d, c in counts.items() if c["failures"]), "")
        self.line(
            "from the first model on, every request on every device was answered",
            f"{asked - failed:,} of {asked:,} requests, {images:,} images; slowest {slowest:.0f} ms{reason}",
            failed == 0 and asked > 500 and all(c["requests"] > 50 for c in counts.values()),
        )
        died = self.processes.died()
        self.line("no process died on its own", ", ".join(died) or "none did", not died)

    # --- steps ------------------------------------------------------------------------------------

    def train(self, version: int) -> None:
        right = digits.train(version, self.data, self.folder / f"digits-{version}.onnx")
        self.say(f"trained digits {version}.0.0: right on {right:.1%} of images it never saw")

    def pack(self, version: int) -> dict[str, Any]:
        return self.skerry(
            "pack", str(self.folder / f"digits-{version}.onnx"), "--name", "digits",
            "--version", f"{version}.0.0", "--release", str(version), "--profile", "x86-gateway",
            "--calibration", str(self.calibration), "--evaluation", str(self.evaluation),
            "--monitor", "image", "--task", "classification", "--labels", ",".join(map(str, range(10))),
            "--key", str(self.folder / "engineer.key"), "--run-log", str(self.folder / "runs.db"),
            "--out", str(self.bundle(version)),
        )  # fmt: skip

    def publish(self, version: int) -> None:
        self.skerry("publish", str(self.bundle(version)))

    def roll_out(self, version: int, probation_seconds: int = 2) -> str:
        started = self.skerry(
            "rollout", "start", "digits", f"{version}.0.0", "--wave", "20%", "--wave", "60%",
            "--wave", "100%", "--probation-requests", "20", "--probation-seconds",
            str(probation_seconds), "--deadline", "40",
        )  # fmt: skip
        return str(started["id"])

    def enrol(self, device: str) -> None:
        self.skerry(
            "devices", "add", device, "--label", f"site={device[:4]}",
            "--data-dir", str(self.folder / device), "--out", str(self.config(device)),
        )  # fmt: skip
        port = self.uplink_port if device == DEVICES[-1] else self.broker_port
        wanted = {
            "port": str(port),
            "ram_mb": str(RAM_BUDGET_MB),
            "seconds": str(WINDOW_S),
            "reconnect_seconds": "4",
        }
        text = self.config(device).read_text()
        for key, value in wanted.items():
            text, found = re.subn(rf"(?m)^{key} *=.*$", f"{key} = {value}", text)
            if found != 1:
                raise StoryError(f"the device configuration names {key} {found} times")
        self.config(device).write_text(text)

    def uplink(self) -> None:
        ports = [str(self.uplink_port), str(self.broker_port)]
        self.processes.start("uplink", [sys.executable, "-m", "skerry_packager.demo.uplink", *ports])

    def light(self, dark: dict[str, float] | None = None) -> None:
        draft = self.folder / "scene.json.tmp"
        draft.write_text(json.dumps({"light": dark or {}}))
        os.replace(draft, self.folder / "scene.json")

    # --- what is seen -----------------------------------------------------------------------------

    def online(self) -> set[str]:
        return {device["id"] for device in self.fleet.devices() if device["presence"] == "online"}

    def running(self, version: str) -> set[str]:
        """Devices whose last report says that this version is active and not on probation."""
        found = set()
        for device in self.fleet.devices():
            report = (device.get("reported") or {}).get("digits") or {}
            if report.get("active_version") == version and report.get("phase") != "probation":
                found.add(device["id"])
        return found

    def drift_alerts(self) -> list[Mapping[str, Any]]:
        return [alert for alert in self.fleet.alerts() if alert["kind"] == "drift"]

    def counts(self) -> dict[str, dict[str, Any]]:
        counts: dict[str, dict[str, Any]] = json.loads((self.folder / "counts.json").read_text())
        return counts

    def seen(self, device: str, version: str) -> int:
        return int(self.counts()[device]["images"].get(version, 0))

    def live_accuracy(self, version: str) -> float:
        counts = self.counts().values()
        right = sum(c["correct"].get(version, 0) for c in counts)
        return float(right / max(1, sum(c["images"].get(version, 0) for c in counts)))

    def device_status(self, device: str) -> dict[str, Any]:
        return self.run(
            [*_program("skerry-runtime"), "status", "--config", str(self.config(device)), "--json"]
        )

    def config(self, device: str) -> Path:
        return self.folder / f"{device}.toml"

    def bundle(self, version: int) -> Path:
        return self.folder / f"digits-{version}.0.0.skerry"

    # --- telling and waiting ----------------------------------------------------------------------

    def act(self, title: str) -> None:
        self.console.print(f"\n[bold cyan]{escape(title)}[/]", highlight=False)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:6.1f} s[/]  {escape(text)}", highlight=False)

    def line(self, claim: str, measured: str, holds: bool) -> None:
        self.lines.append(Line(claim, measured, holds))
        mark = "[green]holds[/]" if holds else "[bold red]DOES NOT HOLD[/]"
        self.console.print(
            f"[dim]{time.monotonic() - self.began:6.1f} s[/]  {mark}  {escape(claim)}: {escape(measured)}",
            highlight=False,
        )

    def skerry(self, *arguments: str) -> dict[str, Any]:
        """Run a command as a person would, show it, return what it says in JSON."""
        shown = " ".join(
            argument.replace(f"{self.folder}/", "").replace(str(self.folder), ".") for argument in arguments
        )
        self.say(f"$ skerry {shown if len(shown) < 140 else shown[:137] + '...'}")
        return self.run([*_program("skerry"), *arguments, "--json"])

    def run(self, command: list[str]) -> dict[str, Any]:
        environment = {**os.environ, **self.environment}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        if result.returncode:
            raise StoryError(
                f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}{result.stderr}"
            )
        answer: dict[str, Any] = json.loads(result.stdout)
        return answer

    def wait(self, what: str, condition: Callable[[], object], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise StoryError(f"waited {seconds:.0f} s in vain: {what}")
            if died := self.processes.died():
                tails = "\n".join(f"--- {name}.log\n{self.processes.log_tail(name)}" for name in died)
                raise StoryError(f"{', '.join(died)} ended on its own while waiting: {what}\n{tails}")
            time.sleep(0.2)
        self.say(what)

    def wait_rollout(self, rollout: str, states: str | tuple[str, ...]) -> Mapping[str, Any]:
        """Follow a rollout, telling each verdict once; one that ends otherwise breaks the story off."""
        wanted = (states,) if isinstance(states, str) else states
        told: set[str] = set()
        deadline = time.monotonic() + 90
        while True:
            state = self.fleet.rollout(rollout)
            for number, wave in enumerate(state["waves"], 1):
                news = f"wave {number} ({len(wave['devices'])} devices): {wave['verdict']['decision']}"
                if wave["verdict"]["decision"] != "hold" and news not in told:
                    told.add(news)
                    self.say(news)
            if state["state"] in wanted:
                return state
            if state["state"] not in ("draft", "running") or time.monotonic() > deadline:
                raise StoryError(f"rollout {rollout} is {state['state']}, not {' or '.join(wanted)}: {state}")
            time.sleep(0.2)


def _program(name: str) -> list[str]:
    """The console script beside this interpreter."""
    script = Path(sys.executable).with_name(name)
    if not script.exists():
        raise StoryError(f"{script} is missing: install Skerry into this environment")
    return [str(script)]


def _chosen(packed: dict[str, Any]) -> dict[str, Any]:
    """The variant that the devices will run: the best one for the profile."""
    best = packed["choices"][0]["variants"][0]
    return next(variant for variant in packed["variants"] if variant["name"] == best)


def _choice(packed: dict[str, Any]) -> str:
    best, tried = _chosen(packed), packed["variants"]
    full = next(variant for variant in tried if variant["name"] == "fp32")
    return f"{best['name']} of {len(tried)} tried: {best['size']:,} bytes, fp32 has {full['size']:,}"


def _numbers(windows: list[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The numbers of the windows by version: a device counts on within what one worker process closes."""
    found: dict[str, list[int]] = {}
    for window in windows:
        found.setdefault(window["version"], []).append(window["seq"])
    return {version: sorted(numbers) for version, numbers in found.items()}


def _complete(windows: list[Mapping[str, Any]]) -> bool:
    groups = _numbers(windows).values()
    return all(numbers == list(range(numbers[0], numbers[0] + len(numbers))) for numbers in groups)


def _sizes(rollout: Mapping[str, Any]) -> str:
    return ", ".join(str(len(wave["devices"])) for wave in rollout["waves"])


def _took(since: float) -> str:
    return f"{time.monotonic() - since:.0f} s"
