"""A device's surroundings for the agent's tests, all real: signed bundles of real models, a broker, a daemon.

The fleet is played by `Headquarters`: it holds a director key, serves blocks and acknowledges telemetry.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from tests.builders import new_signer
from tests.runtime import impatient_daemon
from tests.runtime.model_zoo import ZooModel, counting_loop, digit_images
from tests.runtime.model_zoo import digits as digits_model
from tests.waiting import wait_until

from skerry_contract import signing
from skerry_contract.bundle import write_bundle
from skerry_contract.digests import Digest, digest_of, hex_of
from skerry_contract.envelope import seal
from skerry_contract.errors import UnavailableError
from skerry_contract.frames import BlockFrame, OutboxFrame
from skerry_contract.manifest import BlobRef, Budgets, Manifest, Tolerance, Variant
from skerry_contract.messages import (
    DESIRED_PAYLOAD_TYPE,
    Acknowledge,
    BlockRequest,
    DesiredModel,
    DesiredState,
    DeviceSettings,
    Probation,
    WireBlob,
    decode,
    encode,
)
from skerry_contract.tensors import DTYPE_OF_DATATYPE, Tensor, write_tensors
from skerry_contract.topics import DeviceDown, DeviceUp, Down, Up, parse_topic
from skerry_runtime.agent.control import request as control_request
from skerry_runtime.worker.engines import DTYPES, import_engine

TIMEOUT = 60.0
ORG, DEVICE = "acme", "pi-7"
QUICK = Probation(requests=0, seconds=0.0)
"""Over as soon as the new worker has reported once."""
LONG = Probation(requests=100_000, seconds=3600.0)
"""Nobody waits for its end."""


# --- bundles ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A signed bundle and its parts."""

    manifest: Manifest
    manifest_bytes: bytes
    signature: bytes
    blobs: Mapping[Digest, bytes]

    @property
    def digest(self) -> Digest:
        return digest_of(self.manifest_bytes)

    def everything(self) -> dict[Digest, bytes]:
        """Also the manifest and the signature, by digest."""
        return {**self.blobs, self.digest: self.manifest_bytes, digest_of(self.signature): self.signature}

    def write(self, folder: Path) -> Path:
        path = folder / f"{self.manifest.name}-{self.manifest.version}.skerry"
        pieces = write_bundle(self.manifest, self.manifest_bytes, self.signature, self.blobs.__getitem__)
        path.write_bytes(b"".join(pieces))
        return path

    def desired(self, **changes: Any) -> DesiredModel:
        return DesiredModel(
            version=self.manifest.version,
            release=self.manifest.release,
            manifest=WireBlob(digest=self.digest, size=len(self.manifest_bytes)),
            signature=WireBlob(digest=digest_of(self.signature), size=len(self.signature)),
            **{"probation": Probation(requests=3, seconds=0.5), **changes},
        )


def make_bundle(
    signer: signing.EcdsaSigner,
    *,
    version: str = "1.0.0",
    release: int = 1,
    model: ZooModel | None = None,
    wrong_golden: bool = False,
    answers: Sequence[Mapping[str, np.ndarray]] = (),
    **changes: Any,
) -> Made:
    """A bundle of a real model; what it must answer is what the engine answers, unless it is made wrong.

    ``answers`` are taken instead of running the model, which may never end.
    """
    zoo = model or digits_model()
    blobs: dict[Digest, bytes] = {}

    def add(data: bytes) -> BlobRef:
        blobs[digest_of(data)] = data
        return BlobRef(digest=digest_of(data), size=len(data))

    if not answers:
        session = import_engine("onnx").load(zoo.data)
        answers = [session.run(sample) for sample in zoo.golden]
    if wrong_golden:
        answers = [{name: value + 1 for name, value in answer.items()} for answer in answers]
    manifest = Manifest(
        name=zoo.name,
        version=version,
        release=release,
        inputs=zoo.inputs,
        outputs=zoo.outputs,
        variants=(
            Variant(
                id="fp32",
                engine="onnx",
                model=add(zoo.data),
                golden_outputs=add(_stacked("outputs", zoo.outputs, answers)),
                tolerances={spec.name: Tolerance(atol=1e-4, rtol=1e-3) for spec in zoo.outputs},
            ),
        ),
        golden_inputs=add(_stacked("inputs", zoo.inputs, zoo.golden)),
        monitoring=add(zoo.spec.to_bytes()),
        budgets=Budgets(latency_p95_us=1_000_000),
    )
    manifest = replace(manifest, **changes)
    data = manifest.to_bytes()
    return Made(
        manifest=manifest,
        manifest_bytes=data,
        signature=signing.sign_bundle(manifest, data, signer),
        blobs=blobs,
    )


def other_digits(producer: str = "another training run") -> ZooModel:
    """The same digit reader as other bytes."""
    model = onnx.load_from_string(digits_model().data)
    model.producer_name = producer
    return replace(digits_model(), data=model.SerializeToString())


def endless(signer: signing.EcdsaSigner, **changes: Any) -> Made:
    """A bundle that says to read digits; its self-test burns the processor for centuries."""
    model = replace(counting_loop(), name="digits", golden=({"times": np.array([1 << 60], np.int64)},))
    return make_bundle(signer, model=model, answers=[{"count": np.zeros(1, np.float32)}], **changes)


def _stacked(prefix: str, specs: Any, samples: Any) -> bytes:
    tensors = {}
    for spec in specs:
        stack = np.stack([sample[spec.name] for sample in samples]).astype(DTYPES[spec.datatype])
        name = f"{prefix}/{spec.name}"
        tensors[name] = Tensor(DTYPE_OF_DATATYPE[spec.datatype], stack.shape, stack.tobytes())
    return write_tensors(tensors)


# --- the broker and the fleet ------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Broker:
    """A real mosquitto on a free loopback port; `start` and `stop` as often as wanted."""

    def __init__(self, folder: Path, *, password: str = "") -> None:
        self.port = free_port()
        self._config = folder / "mosquitto.conf"
        lines = [f"listener {self.port} 127.0.0.1", "max_queued_messages 10000", "log_dest none"]
        if password:
            passwords = folder / "passwords"
            passwords.write_text(f"{DEVICE}:{password}\nhq:hq\n")
            subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
            passwords.chmod(0o644)
            lines += ["allow_anonymous false", f"password_file {passwords}"]
        else:
            lines.append("allow_anonymous true")
        if os.geteuid() == 0:
            lines.append("user root")
        self._config.write_text("\n".join(lines) + "\n")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["mosquitto", "-c", str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(self._answers, "the broker")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False


class Headquarters:
    """The fleet's side of the protocol, as small as it can be."""

    def __init__(self, broker: Broker, *, username: str = "", password: str = "") -> None:
        self.director = new_signer()
        self.blobs: dict[Digest, bytes] = {}
        self.messages: list[tuple[Up, bytes, bool]] = []
        self.frames: list[OutboxFrame] = []
        self.committed: dict[bytes, int] = {}
        self.acknowledging = True
        self.serving_blocks = True
        self.listening = True
        """What arrives while it is not is neither answered nor committed."""
        self.revision = 0
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"hq-{os.urandom(4).hex()}")
        if username:
            self._client.username_pw_set(username, password)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe(f"skerry/1/{ORG}/d/+/up/+", qos=1)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def publish_bundle(self, made: Made) -> None:
        self.blobs.update(made.everything())

    def desire(
        self, *made: Made, settings: DeviceSettings | None = None, expires_in_s: float = 3600, **changes: Any
    ) -> bytes:
        """Publish the next desired state, retained; gives the envelope."""
        self.revision += 1
        state = DesiredState(
            device=DEVICE,
            revision=self.revision,
            expires=int((time.time() + expires_in_s) * 1000),
            models={bundle.manifest.name: bundle.desired(**changes) for bundle in made},
            settings=settings,
        )
        envelope = seal(DESIRED_PAYLOAD_TYPE, encode(state), self.director)
        self.send(Down.DESIRED, envelope, retain=True)
        return envelope

    def send(self, channel: Down, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        topic = str(DeviceDown(ORG, DEVICE, channel))
        self._client.publish(topic, payload, qos=qos, retain=retain).wait_for_publish(10)

    def reports(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for channel, payload, _ in list(self.messages) if channel is Up.REPORT]

    def events(self) -> list[dict[str, Any]]:
        """Of the event rows that were committed, in order."""
        seen: dict[tuple[bytes, int], OutboxFrame] = {}
        for frame in list(self.frames):
            if frame.body[:1] == b"{":
                seen[frame.stream, frame.first] = frame
        return [event for frame in seen.values() for event in json.loads(frame.body)["events"]]

    def phases(self, model: str = "digits") -> list[tuple[str, str]]:
        """Version and phase of every report, without repetitions."""
        found: list[tuple[str, str]] = []
        for report in self.reports():
            if (entry := report["models"].get(model)) is not None:
                item = (entry["target_version"], entry["phase"])
                if not found or found[-1] != item:
                    found.append(item)
        return found

    def wait_report(self, check: Callable[[dict[str, Any]], bool], model: str = "digits") -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            for report in reversed(self.reports()):
                entry: dict[str, Any] | None = report["models"].get(model)
                if entry is not None and check(entry):
                    return entry
            return None

        result: dict[str, Any] = wait_until(found, "a report")
        return result

    def _on_message(self, client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        topic = parse_topic(message.topic)
        assert isinstance(topic, DeviceUp)
        self.messages.append((topic.channel, bytes(message.payload), bool(message.retain)))
        if not self.listening:
            return
        if topic.channel is Up.BLOCK_REQUEST and self.serving_blocks:
            self._serve(decode(message.payload, BlockRequest))
        elif topic.channel in (Up.TELEMETRY, Up.EVENTS):
            self._commit(OutboxFrame.decode(bytes(message.payload)))

    def _serve(self, request: BlockRequest) -> None:
        data = self.blobs[request.digest]
        for index in range(request.count):
            offset = request.offset + index * request.block
            block = BlockFrame(
                transfer=request.transfer, offset=offset, data=data[offset : offset + request.block]
            )
            self._client.publish(str(DeviceDown(ORG, DEVICE, Down.BLOCK)), block.encode(), qos=0)

    def _commit(self, frame: OutboxFrame) -> None:
        """Accept in order, acknowledge cumulatively."""
        self.frames.append(frame)
        done = self.committed.get(frame.stream, 0)
        if frame.first > done and (frame.prev <= done or frame.prev <= frame.acked):
            self.committed[frame.stream] = done = frame.last
        if self.acknowledging:
            answer = encode(Acknowledge(stream=frame.stream.hex(), seq=done))
            self._client.publish(str(DeviceDown(ORG, DEVICE, Down.ACKNOWLEDGE)), answer, qos=1)


# --- the device --------------------------------------------------------------------------------------


@dataclass
class Device:
    """A daemon in a process of its own."""

    folder: Path
    engineer: signing.EcdsaSigner
    broker: Broker | None = None
    headquarters: Headquarters | None = None
    password: str = "any"
    extra: str = ""
    settings: Mapping[str, float] = field(default_factory=dict)
    """Constants of the agent that are other ones here; see `impatient_daemon`."""
    tracer: Sequence[str] = ()
    """A command in front of the daemon's, which must become the daemon."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def config(self) -> Path:
        return self.folder / "device.toml"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "daemon.log"

    def write_config(self) -> Path:
        keys = self.engineer.verifier.pem.decode()
        text = f'device = "{DEVICE}"\norg = "{ORG}"\ndata_dir = "{self.data}"\n{self.extra}\n'
        text += f'[trust]\nengineers = ["""{keys}"""]\n'
        if self.broker is not None and self.headquarters is not None:
            text += f'director = """{self.headquarters.director.verifier.pem.decode()}"""\n'
            text += f'[fleet]\nhost = "127.0.0.1"\nport = {self.broker.port}\npassword = "{self.password}"\n'
        self.config.write_text(text)
        self.config.chmod(0o600)
        return self.config

    def start(self) -> None:
        """Until it answers."""
        self.spawn()
        wait_until(self.is_up, "the daemon")

    def spawn(self) -> None:
        """Start it; it may refuse to run."""
        self.write_config()
        with self.log.open("ab") as log:
            command = [*self.tracer, sys.executable]
            if self.settings:
                changes = (f"{name}={value}" for name, value in self.settings.items())
                command += [impatient_daemon.__file__, *changes, "--"]
            else:
                command += ["-m", "skerry_runtime.cli"]
            command += ["run", "--config", str(self.config), "--log", "text"]
            self.process = subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)

    def is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(UnavailableError):
            return bool(self.status()["pid"] == self.process.pid)
        return False

    def kill(self) -> None:
        """SIGKILL the agent alone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)

    def ask(self, do: str, **arguments: Any) -> Any:
        return self._ask({"do": do, **arguments})

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = self._ask({"do": "status"})
        return result

    def model(self, name: str = "digits") -> dict[str, Any]:
        result: dict[str, Any] = self.status()["models"].get(name, {})
        return result

    def install(self, bundle: Path) -> dict[str, Any]:
        with bundle.open("rb") as file:
            result: dict[str, Any] = self._ask({"do": "install"}, (file.fileno(),))
        return result

    def workers(self, role: str) -> list[int]:
        """Process numbers of the workers of a role, ``serve`` or ``preflight``, whoever is their parent."""
        status = self.status()
        parents = {str(status["pid"]), str(status["zygote_pid"])}
        found = []
        for file in Path("/proc").glob("[0-9]*/status"):
            with contextlib.suppress(OSError):
                lines = dict(
                    line.split(":\t", 1) for line in file.read_text().splitlines() if ":\t" in line
                )
                right = lines["PPid"] in parents and lines["Name"] == f"skerry-{role}"[:15]
                if right and not lines["State"].startswith("Z"):
                    found.append(int(lines["Pid"]))
        return found

    def quarantined(self, made: Made) -> bool:
        return (self.data / "models" / made.manifest.name / "state" / "bad" / hex_of(made.digest)).exists()

    def wait_state(self, state: str, version: str = "", name: str = "digits") -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            model = self.model(name)
            right = model and model["state"] == state and (not version or model["target_version"] == version)
            return model if right else None

        try:
            result: dict[str, Any] = wait_until(reached, f"{name} {version} {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log.read_text()}") from error
        return result

    def infer(self, rows: int = 1, sock: Path | None = None) -> dict[str, Any]:
        """Ask for an answer over the Unix socket; the parsed answer with its status."""
        return infer(sock or self.data / "run" / "skerry.sock", rows)

    def _ask(self, message: Mapping[str, Any], descriptors: tuple[int, ...] = ()) -> Any:
        for line in control_request(self.data / "run" / "agent.sock", message, descriptors):
            if "result" in line:
                return line["result"]
        raise AssertionError("no result")


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(str(self._path))


def image_request(rows: int = 1) -> bytes:
    images = digit_images()[0][:rows]
    tensor = {
        "name": "image",
        "shape": list(images.shape),
        "datatype": "FP32",
        "data": images.ravel().tolist(),
    }
    return json.dumps({"inputs": [tensor]}).encode()


def infer(path: Path, rows: int = 1) -> dict[str, Any]:
    connection = UnixConnection(path)
    try:
        connection.request("POST", "/v2/models/digits/infer", image_request(rows))
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
    finally:
        connection.close()
    assert response.status == 200, answer
    return answer


class Hammer:
    """Clients that ask all the time, each request on a new connection; every failure is kept."""

    def __init__(self, path: Path, clients: int = 2) -> None:
        self._path = path
        self._stop = threading.Event()
        self.answers: dict[str, int] = {}
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Hammer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                version = infer(self._path)["model_version"]
                self.answers[version] = self.answers.get(version, 0) + 1
            except (OSError, http.client.HTTPException, ValueError, AssertionError) as error:
                self.failures.append(repr(error))
            time.sleep(0.005)


@contextlib.contextmanager
def running(device: Device) -> Iterator[Device]:
    """A device that is stopped at the end, whatever happens."""
    device.start()
    try:
        yield device
    finally:
        if device.process is not None and device.process.poll() is None:
            device.process.terminate()
            try:
                device.process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                device.process.kill()
                raise
