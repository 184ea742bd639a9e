"""From the start of the daemon's process to the first answer of a model."""

from __future__ import annotations

import os
import socket
import time
from base64 import b64decode

from ..client import missing_bytes
from ..device import CommandError
from ..gates import Figure
from ..servers import oip_json
from ..spread import spread
from ..world import World

_LONGEST_S = 60.0


def measure(world: World) -> dict[str, Figure]:
    request = b64decode(oip_json("digits", "pixels", world.model("digits").rows[:1]))
    times = []
    with world.device(world.bundle("digits")) as device:
        for _ in range(world.pick(5, 15)):
            begin = time.perf_counter()
            device.launch()
            while not _answers(str(device.socket), request):
                if time.perf_counter() - begin > _LONGEST_S:
                    raise CommandError(f"no answer: {device.log_tail()}")
                time.sleep(0.002)
            times.append(time.perf_counter() - begin)
            device.stop()
    load = os.getloadavg()[0]
    return {"start": spread(times).figure(f"{len(times)} starts, files in the page cache, load {load:.1f}")}


def _answers(path: str, request: bytes) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(_LONGEST_S)
        try:
            sock.connect(path)
            sock.sendall(request)
            data = sock.recv(1 << 16)
            while missing_bytes(data):
                data += sock.recv(1 << 16)
        except OSError:
            return False
    return data[9:12] == b"200"
