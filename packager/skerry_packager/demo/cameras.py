"""The applications on the devices: each sends real images to its own daemon, and checks the answers.

``python -m skerry_packager.demo.cameras FOLDER`` runs one thread a device. ``FOLDER/scene.json`` says which
cameras see what and may change at any time; ``FOLDER/counts.json`` is what they counted, rewritten often.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .processes import PLAN

FRAMES = 12
"""Images in one request."""
PERIOD_S = 0.08
_TIMEOUT_S = 20.0


@dataclass
class Counts:
    """What one camera's application saw."""

    requests: int = 0
    failures: int = 0
    last_failure: str = ""
    images: dict[str, int] = field(default_factory=dict)
    """Images answered, by the version that answered."""
    correct: dict[str, int] = field(default_factory=dict)
    slowest_ms: float = 0.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(self._path)


class Camera(threading.Thread):
    """One application. It begins when its device has a model, and from then on counts every request."""

    def __init__(
        self, folder: Path, device: str, sock: str, images: npt.NDArray[Any], labels: npt.NDArray[Any]
    ) -> None:
        super().__init__(name=device, daemon=True)
        self.counts = Counts()
        self._folder, self._device, self._sock = folder, device, sock
        self._images, self._labels = images, labels

    def run(self) -> None:
        rng = np.random.default_rng(abs(hash(self._device)) % 1000)
        connection = UnixConnection(self._sock)
        while not _ready(connection):
            time.sleep(PERIOD_S)
        while True:
            begin = time.monotonic()
            chosen = rng.integers(0, len(self._labels), FRAMES)
            images = self._images[chosen] * self._light()
            try:
                version, digits = _ask(connection, images)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.counts.failures += 1
                self.counts.last_failure = f"{type(error).__name__}: {error}"
                connection.close()
            else:
                right = int((digits == self._labels[chosen]).sum())
                self.counts.images[version] = self.counts.images.get(version, 0) + FRAMES
                self.counts.correct[version] = self.counts.correct.get(version, 0) + right
            took = time.monotonic() - begin
            self.counts.requests += 1
            self.counts.slowest_ms = max(self.counts.slowest_ms, round(took * 1e3, 1))
            time.sleep(max(0.0, PERIOD_S - took))

    def _light(self) -> float:
        """1 in daylight; little when the camera went dark."""
        scene = json.loads((self._folder / "scene.json").read_text())
        return float(scene["light"].get(self._device, 1.0))


def _ready(connection: UnixConnection) -> bool:
    try:
        connection.request("GET", "/v2/models/digits/ready")
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        connection.close()
        return False
    return response.status == 200


def _ask(connection: UnixConnection, images: npt.NDArray[Any]) -> tuple[str, npt.NDArray[Any]]:
    """Raises `ValueError` unless the answer is a 200 with one row of probabilities an image."""
    tensor = {
        "name": "image",
        "datatype": "FP32",
        "shape": list(images.shape),
        "data": [round(float(value), 4) for value in images.ravel()],
    }
    body = json.dumps({"inputs": [tensor]})
    connection.request("POST", "/v2/models/digits/infer", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise ValueError(f"HTTP {response.status}: {answer[:200].decode(errors='replace')}")
    document = json.loads(answer)
    scores = np.array(document["outputs"][0]["data"]).reshape(len(images), -1)
    return str(document["model_version"]), scores.argmax(1)


def main(folder: Path) -> None:
    """Run all cameras of the demo until the process is ended."""
    plan = json.loads((folder / PLAN).read_text())
    live = np.load(folder / "live.npz")
    cameras = [Camera(folder, device, sock, live["image"], live["labels"]) for device, sock in plan.items()]
    for camera in cameras:
        camera.start()
    while True:
        draft = folder / "counts.json.tmp"
        draft.write_text(json.dumps({camera.name: asdict(camera.counts) for camera in cameras}))
        os.replace(draft, folder / "counts.json")
        time.sleep(0.2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
