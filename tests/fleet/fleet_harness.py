"""A fleet server without sockets, a clock that is set by hand, and devices that say what a test lets them
say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient
from tests.builders import BundleBuilder

from skerry_contract.digests import Digest
from skerry_contract.envelope import open_envelope
from skerry_contract.messages import (
    DESIRED_PAYLOAD_TYPE,
    DesiredState,
    EngineInfo,
    ErrorReport,
    Hardware,
    Hello,
    ModelReport,
    Phase,
    Presence,
    PresenceMessage,
    UpdateReport,
    decode,
)
from skerry_contract.signing import EcdsaSigner, load_verifier
from skerry_fleet.app import create_app
from skerry_fleet.settings import Settings, load_settings
from skerry_fleet.wiring import Services, build_services

BASE = "http://127.0.0.1:8420"
START_MS = 1_800_000_000_000


class ManualClock:
    """Time passes when a test says so."""

    def __init__(self) -> None:
        self.ms = START_MS

    def now_ms(self) -> int:
        return self.ms

    def sleep(self, seconds: float) -> None:
        self.ms += int(seconds * 1000)


@dataclass
class Device:
    """A simulated device: one model, the newest desired state that it was sent, an epoch for each
    connection."""

    id: str
    services: Services
    model: str = "digits"
    epoch: int = 0
    revision: int = 0
    active: Digest | None = None
    active_version: str = ""

    def connect(self) -> None:
        self.epoch += 1
        hello = Hello(
            protocol=1,
            boot="b" * 32,
            epoch=self.epoch,
            agent_version="0.1.0",
            hardware=Hardware(arch="aarch64", cores=4, ram_bytes=1 << 30),
            engines=(EngineInfo(name="onnx", version="1.23.2"),),
            desired_revision=self.revision,
        )
        self.services.devices.record_hello(self.id, hello)

    def vanish(self) -> None:
        """The connection breaks: the broker publishes the will."""
        message = PresenceMessage(state=Presence.LOST, epoch=self.epoch)
        self.services.devices.record_presence(self.id, message)

    def desired(self) -> DesiredState:
        """The newest desired state, read as a device reads it: only if the director signed it."""
        rows = [row for row in self.services.devices.outbox() if row.device == self.id]
        key = load_verifier(self.services.director.public_pem.encode())
        payload = open_envelope(rows[-1].payload, DESIRED_PAYLOAD_TYPE, [key])
        return decode(payload, DesiredState)

    def take(self) -> DesiredState:
        """Receive the newest desired state."""
        state = self.desired()
        self.revision = state.revision
        return state

    def say(
        self,
        phase: Phase | None,
        target: Digest | None,
        version: str = "",
        *,
        error: ErrorReport | None = None,
        bytes_done: int = 0,
    ) -> None:
        """Report; the active model is what the device last confirmed, or what is on probation."""
        on_probation = phase is Phase.PROBATION
        told = ModelReport(
            active=target if on_probation else self.active,
            active_version=version if on_probation else self.active_version,
            active_variant="int8",
            target=target,
            target_version=version,
            phase=phase,
            error=error,
            bytes_done=bytes_done,
            bytes_total=1000,
        )
        report = UpdateReport(revision=self.revision, epoch=self.epoch, models={self.model: told})
        self.services.devices.record_report(self.id, report)

    def install(self) -> None:
        """Take what is desired through all phases to confirmation."""
        state = self.take()
        wish = state.models[self.model]
        digest = wish.manifest.digest
        for phase in (Phase.DOWNLOADING, Phase.STAGED, Phase.PROBATION):
            self.say(phase, digest, wish.version)
        self.active, self.active_version = digest, wish.version
        self.say(Phase.CONFIRMED, digest, wish.version)

    def fail(
        self, code: str = "budget.memory", message: str = "412 MB of memory, 300 MB are granted"
    ) -> None:
        """Take what is desired up to probation and roll it back."""
        wish = self.take().models[self.model]
        for phase in (Phase.DOWNLOADING, Phase.STAGED, Phase.PROBATION):
            self.say(phase, wish.manifest.digest, wish.version)
        error = ErrorReport(code=code, message=message)
        self.say(Phase.ROLLED_BACK, wish.manifest.digest, wish.version, error=error)


@dataclass
class Fleet:
    """The services, and a client that holds the token."""

    services: Services
    client: TestClient
    clock: ManualClock
    signer: EcdsaSigner
    token: str
    devices: dict[str, Device] = field(default_factory=dict)

    def publish(self, version: str, release: int, **changes: Any) -> Digest:
        """A bundle whose model differs with its version. Returns its digest."""
        models = {"int8": f"model {changes.get('name', 'digits')} {version}".encode()}
        bundle = BundleBuilder(version=version, release=release, models=models, signer=self.signer, **changes)
        answer = self.client.post("/v1/bundles", content=bundle.build())
        assert answer.status_code in (200, 201), answer.text
        return Digest(answer.json()["digest"])

    def enrol(self, *names: str, online: bool = True, **labels: str) -> list[Device]:
        for name in names:
            answer = self.client.post("/v1/devices", json={"id": name, "labels": labels})
            assert answer.status_code == 201, answer.text
            self.devices[name] = Device(name, self.services)
            if online:
                self.devices[name].connect()
        return [self.devices[name] for name in names]

    def roll_out(self, version: str, **options: Any) -> str:
        """Start a rollout and let the engine look at it. Returns its id."""
        body = {"model": "digits", "version": version, **options}
        answer = self.client.post("/v1/rollouts", json=body)
        assert answer.status_code == 201, answer.text
        self.services.engine.tick()
        return str(answer.json()["id"])

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """After the engine has looked at it."""
        self.services.engine.tick()
        found: dict[str, Any] = self.client.get(f"/v1/rollouts/{rollout_id}").json()
        return found

    def members(self, rollout_id: str, wave: int) -> list[Device]:
        """The devices of a wave, from 1."""
        return [
            self.devices[item["device"]] for item in self.rollout(rollout_id)["waves"][wave - 1]["devices"]
        ]

    def settle(self, rollout_id: str) -> dict[str, Any]:
        """Every device installs what it is offered, until the rollout ends."""
        for _ in range(50):
            state = self.rollout(rollout_id)
            if state["final"]:
                return state
            for wave in state["waves"]:
                for item in wave["devices"]:
                    if item["phase"] == "offered":
                        self.devices[item["device"]].install()
        raise AssertionError(f"the rollout does not end: {state}")


@contextmanager
def running_fleet(folder: Path, signer: EcdsaSigner, **options: Any) -> Iterator[Fleet]:
    """A server on a data folder; it may be opened again after it was closed."""
    folder.mkdir(exist_ok=True)
    key = folder / "engineer.pub"
    key.write_bytes(signer.verifier.pem)
    settings: Settings = load_settings(data=folder / "fleet", trust=(key,), org="acme", **options)
    clock = ManualClock()
    services = build_services(settings, clock=clock)
    token = (folder / "fleet" / "admin.token").read_text().strip()
    # Without its lifespan: the engine acts when a test says so.
    app = create_app(services, broker_state=lambda: "running")
    client = TestClient(app, base_url=BASE, headers={"Authorization": f"Bearer {token}"})
    try:
        yield Fleet(services, client, clock, signer, token)
    finally:
        client.close()
        services.close()
