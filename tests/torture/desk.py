"""The agent's own models, store and state machine on a desk: one thread, no network, no other process.

Everything that touches the disk is the production code, down to the trust process' answers. Only what runs
beside it is played: the loop never waits, background jobs run at once, a worker is a few lines that may load
the model for real (``engine``), and the fleet hands blocks over when it is asked.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec
from tests.torture.patches import patch
from tests.torture.players import DeskJobs, DeskListeners, DeskWorkers, Play
from tests.torture.release import NAME, Release

from skerry_contract.digests import hex_of
from skerry_contract.frames import BlockFrame
from skerry_contract.messages import (
    BlockRequest,
    DesiredModel,
    DeviceSettings,
    EngineInfo,
    Event,
    Hardware,
    Probation,
    WireBlob,
)
from skerry_runtime import verify_child
from skerry_runtime.agent import trust, trust_process
from skerry_runtime.agent.clock import SystemClock, WindowNumbers
from skerry_runtime.agent.context import Context
from skerry_runtime.agent.fetch import Fetcher
from skerry_runtime.agent.files import make_folder
from skerry_runtime.agent.journal import Journal
from skerry_runtime.agent.model import Model
from skerry_runtime.agent.models import Models
from skerry_runtime.agent.serving import Surroundings
from skerry_runtime.agent.store import Store
from skerry_runtime.config import DeviceConfig, ServeConfig, TrustConfig

T = TypeVar("T")
BOOT = "0" * 32
HARDWARE = Hardware(arch="x86_64", cores=1, ram_bytes=1 << 30)
ENGINES = (EngineInfo(name="onnx", version="99.0"),)
QUICK = Probation(requests=1, seconds=0.0)


class Desk:
    """A daemon's inside on a data folder."""

    def __init__(
        self,
        data: Path,
        releases: Path,
        play: Play | None = None,
    ) -> None:
        self.play = play or Play()
        self.loop = self.play.loop
        self.events: list[Event] = []
        self._revision = 0
        self._engineer, self._blobs = published(releases)
        for folder in (data, data / "state", data / "models"):
            make_folder(folder)
        clock = SystemClock(data / "state" / "time-floor", boot=BOOT)
        store = Store(data / "store")
        fetcher = Fetcher(store, self._send_block)
        fetcher.set_online(True)
        self._fetcher = fetcher
        workers = DeskWorkers(self.play)
        self.listeners = DeskListeners()
        self.models = Models(
            data / "models",
            data / "state" / "front",
            self.listeners,
            lambda name, folder: Model(name, folder, self._context),
        )
        self._context = Context(
            config=DeviceConfig(
                device="desk",
                org="torture",
                data_dir=data,
                serve=ServeConfig(socket=data / "run" / "skerry.sock"),
                trust=TrustConfig(engineers=(self._engineer,)),
            ),
            loop=self.loop,
            jobs=DeskJobs(self.loop),
            store=store,
            fetcher=fetcher,
            workers=workers,
            surroundings=Surroundings(
                workers=workers,
                sockets=self.models.open_sockets,
                first_window=WindowNumbers(data / "state" / "windows", BOOT).take,
                settings=DeviceSettings,
                boot=BOOT,
                tcp_token="",
                ram_bytes=HARDWARE.ram_bytes,
            ),
            clock=clock,
            journal=Journal(clock, BOOT, lambda event, critical: self.events.append(event)),
            device=trust.Device(hardware=HARDWARE, engines=ENGINES, ram_budget_bytes=0),
            changed=lambda: None,
            window=lambda window: None,
            obey=lambda: None,
            idle=lambda: self.models.settled,
            silent=self.models.fall_silent,
        )

    # --- what happens to a device -----------------------------------------------------------------

    def start(self) -> None:
        """As the daemon starts: recovery, then the good generation, then what is on trial."""
        self.models.start()
        for model in self.models:
            if not model.settled and model._runner.record.probation != QUICK:
                model._runner.change(probation=QUICK)
        self.loop.run()

    def install_file(self, file: BinaryIO) -> None:
        """A person gives a bundle file."""
        answer = trust_process.import_file(
            trust.ImportFile(
                fd=file.fileno(),
                store=str(self._context.store.folder),
                engineers=(self._engineer,),
                floors={model.name: model.floor for model in self.models},
                device=self._context.device,
            )
        )
        self.models.get(NAME).install(answer)
        self.model._runner.change(probation=QUICK)
        self.loop.run()

    def order(self, release: Release) -> None:
        """The fleet desires a release: it is pulled block by block."""
        self._revision += 1
        self.models.get(NAME).desire(self._order(release), self._revision)
        self.loop.run()

    def roll_back(self) -> None:
        self.model.roll_back("torture")
        self.loop.run()

    @property
    def model(self) -> Model:
        return self.models.find(NAME)

    def answers(self) -> int | None:
        """The release that gets the requests and has a worker for them."""
        for model in self.models:
            answering = model.serving.answering
            if answering is not None and model.serving.worker is not None:
                return answering.manifest.release
        return None

    def error_codes(self) -> list[str]:
        return [event.error.code for event in self.events if event.error is not None]

    def _order(self, release: Release) -> DesiredModel:
        return DesiredModel(
            version=release.version,
            release=release.number,
            manifest=WireBlob(digest=release.digest, size=release.manifest_size),
            signature=WireBlob(digest=release.signature, size=release.signature_size),
            probation=QUICK,
        )

    def _send_block(self, request: BlockRequest) -> bool:
        data = self._blobs[hex_of(request.digest)]
        for index in range(request.count):
            offset = request.offset + index * request.block
            piece = data[offset : offset + request.block]
            frame = BlockFrame(transfer=request.transfer, offset=offset, data=piece)
            self._fetcher.deliver(frame.encode())
        return True


@cache
def published(releases: Path) -> tuple[str, dict[str, bytes]]:
    """The engineer's public key, and every blob by the hexadecimal digits of its digest."""
    blobs = {path.name: path.read_bytes() for path in (releases / "blobs").iterdir()}
    return (releases / "engineer.pem").read_text(), blobs


def trust_in_process() -> None:
    """Verification happens here instead of in a child of its own: a tracer follows one process."""

    def ask(request: trust.Request, kind: type[T], seconds: float, descriptors: Any = ()) -> T:
        if isinstance(request, trust.ImportFile):
            # The child would have a descriptor of its own, and close it.
            request = msgspec.structs.replace(request, fd=os.dup(request.fd))
        answer = verify_child.answer_to(request)
        if isinstance(answer, trust.Refusal):
            raise answer.error.to_error()
        assert isinstance(answer, kind)
        return answer

    patch(trust_process, "_ask", ask)
