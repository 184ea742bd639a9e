"""What everything is compared with: ONNX Runtime called from Python with nothing around it.

``python -m benchmarks.runtime.raw MODEL ROWS.npz [default]``: one thread, as every server here has;
``default``: two threads, and all other options as they are. Nothing is imported before it is needed, since
the process's memory is measured.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from .children import serve
from .processes import memory_of
from .spread import quantile


class Raw:
    """A session and one row."""

    def __init__(self, model: str, rows: str, *, default: bool) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2 if default else 1
        if not default:
            options.inter_op_num_threads = 1
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name
        with np.load(rows, allow_pickle=False) as stored:
            self._feed = {self._name: stored[self._name][:1].copy()}
        self._kept: list[Any] = []
        """Open connections: they are part of what is measured."""

    def outputs(self) -> dict[str, Any]:
        """Of the row, as float32."""
        found = self._session.run(None, self._feed)[0]
        return {"shape": list(found.shape), "data": b64encode(found.astype("<f4").tobytes()).decode()}

    def latency(self, count: int) -> dict[str, Any]:
        """Microseconds of a call."""
        run, feed, clock, times = self._session.run, self._feed, time.perf_counter_ns, []
        for _ in range(count):
            begin = clock()
            run(None, feed)
            times.append((clock() - begin) / 1000)
        return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99)}

    def paced(self, per_second: float, seconds: float) -> dict[str, Any]:
        """Calls at a fixed rate; processor seconds of this whole process meanwhile."""
        cpu, begin = time.process_time(), time.monotonic()
        for number in range(round(per_second * seconds)):
            time.sleep(max(0.0, begin + number / per_second - time.monotonic()))
            self._session.run(None, self._feed)
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
        return {"cpu": time.process_time() - cpu, "seconds": time.monotonic() - begin}

    def become_floor(self, broker: int, database: str) -> dict[str, Any]:
        """Take on what no device does without: a connection to a broker, an open database."""
        import paho.mqtt.client as mqtt
        from paho.mqtt.enums import CallbackAPIVersion

        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="floor")
        client.connect("127.0.0.1", broker)
        client.loop_start()
        deadline = time.monotonic() + 30
        while not client.is_connected():
            if time.monotonic() > deadline:
                raise RuntimeError("the broker does not answer")
            time.sleep(0.02)
        stored = sqlite3.connect(database)
        stored.execute("PRAGMA journal_mode=WAL")
        with stored:
            stored.execute("CREATE TABLE outbox (seq INTEGER PRIMARY KEY, body BLOB)")
            stored.execute("INSERT INTO outbox VALUES (1, zeroblob(200))")
        client.publish("floor", b"x", qos=1).wait_for_publish(30)
        self._kept += [client, stored]
        return {}

    def memory(self) -> dict[str, Any]:
        """Bytes of this process now."""
        import os

        found = memory_of(os.getpid())
        return {"unevictable": found.unevictable, "rss": found.rss, "private_dirty": found.private_dirty}


def main(arguments: Sequence[str]) -> None:
    model, rows, *rest = arguments
    with contextlib.redirect_stdout(sys.stderr):
        raw = Raw(str(Path(model)), rows, default=rest == ["default"])
    serve(
        {
            "outputs": raw.outputs, "latency": raw.latency, "paced": raw.paced,
            "become_floor": raw.become_floor, "memory": raw.memory,
        }
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
