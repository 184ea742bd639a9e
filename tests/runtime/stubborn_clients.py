"""Clients that ask again until they are answered, and that know what each version must answer."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import MutableMapping
from pathlib import Path

import numpy as np
from tests.runtime.agent_world import TIMEOUT, UnixConnection, image_request
from tests.runtime.model_zoo import ZooModel, digit_images
from tests.waiting import wait_until

from skerry_runtime.worker.engines import import_engine

_PAUSE_S = 0.005


def right_answer(model: ZooModel, rows: int) -> np.ndarray:
    """What the engine itself answers to the first images, ``[rows, 10]``."""
    (output,) = import_engine("onnx").load(model.data).run({"image": digit_images()[0][:rows]}).values()
    return np.asarray(output)


class StubbornClients:
    """Threads that ask all the time; a request counts once it is answered, however many attempts it takes.

    Nobody is left without an answer: at the end every client still gets that of its last request.
    """

    def __init__(
        self, path: Path, right: MutableMapping[str, np.ndarray], *, rows: int = 1, clients: int = 2
    ) -> None:
        """``right`` is by version; versions may be added while the clients ask."""
        self.right = right
        self.answers: Counter[str] = Counter()
        """Right answers by version."""
        self.wrong: list[str] = []
        """Answers that no version would give."""
        self.failed: Counter[str] = Counter()
        """Attempts by what became of them: an HTTP status, or how the connection broke."""
        self.unanswered = 0
        """Requests that nobody answered in all the time that a test waits."""
        self._path = path
        self._request = image_request(rows)
        self._lock = threading.Lock()
        self._stop, self._abandoned = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> StubbornClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._abandoned.set()  # the test has failed already: its device may be gone
        self.stop()

    def stop(self) -> None:
        """After the answer to the last request of each."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return self.answers.total()

    def wait_answers(self, more: int = 4, version: str = "") -> None:
        """Until so many requests more were answered, by a version if one is named."""
        before = self.answers[version] if version else self.answered
        wait_until(
            lambda: (self.answers[version] if version else self.answered) >= before + more,
            f"{more} answers of {version or 'any version'}",
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            give_up = time.monotonic() + 2 * TIMEOUT
            while not self._attempt():
                if self._abandoned.is_set():
                    return
                if time.monotonic() > give_up:
                    with self._lock:
                        self.unanswered += 1
                    return
                time.sleep(_PAUSE_S)
            time.sleep(_PAUSE_S)

    def _attempt(self) -> bool:
        connection = UnixConnection(self._path)
        try:
            connection.request("POST", "/v2/models/digits/infer", self._request)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            with self._lock:
                self.failed[type(error).__name__] += 1
            return False
        finally:
            connection.close()
        with self._lock:
            if response.status != 200:
                self.failed[str(response.status)] += 1
                return False
            self._check(body)
        return True

    def _check(self, body: bytes) -> None:
        answer = json.loads(body)
        version, (output,) = answer["model_version"], answer["outputs"]
        right = self.right.get(version)
        given = np.array(output["data"], np.float64).reshape(output["shape"])
        if right is None or given.shape != right.shape or not np.allclose(given, right, atol=1e-4):
            self.wrong.append(f"{version}: {answer}")
        else:
            self.answers[version] += 1
