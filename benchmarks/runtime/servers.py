"""Who answers: our daemon and its peers, each with the request that it understands, and its answer."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np

from .children import ROOT, Child, ChildError, environment
from .device import CommandError, free_port, wait_for_port

PEERS: Final = Path(__file__).parent / "peers"
ENVIRONMENTS: Final = ("serve-fastapi", "serve-mlserver", "serve-bentoml")
_READY_S: Final = 60.0
TOLERANCE: Final = 1e-5
"""Largest difference of an answer to that of the raw session: JSON may round the ninth digit."""


def http_request(path: str, body: bytes, *headers: str) -> str:
    """A whole request, in base64 for the load generator's line."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers, "", ""]
    return b64encode("\r\n".join(lines).encode() + body).decode()


JSON: Final = "Content-Type: application/json"


def oip_json(model: str, tensor: str, row: np.ndarray) -> str:
    """Open Inference Protocol, numbers as text."""
    data = {"name": tensor, "shape": list(row.shape), "datatype": "FP32", "data": row.ravel().tolist()}
    return http_request(f"/v2/models/{model}/infer", json.dumps({"inputs": [data]}).encode(), JSON)


def oip_binary(model: str, tensor: str, row: np.ndarray) -> str:
    """Open Inference Protocol, binary tensors both ways."""
    raw = row.astype("<f4").tobytes()
    data = {
        "name": tensor, "shape": list(row.shape), "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }  # fmt: skip
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [data]}).encode()
    return http_request(
        f"/v2/models/{model}/infer", head + raw, "Content-Type: application/octet-stream",
        f"Inference-Header-Content-Length: {len(head)}",
    )  # fmt: skip


def rows_json(path: str, row: np.ndarray) -> str:
    """``{"data": [[...]]}``, as people write it for FastAPI and BentoML."""
    return http_request(path, json.dumps({"data": row.tolist()}).encode(), JSON)


def from_oip(head: str, body: bytes) -> np.ndarray:
    """The first output of an answer in the protocol."""
    lower = head.lower()
    if "inference-header-content-length:" in lower:
        size = int(lower.partition("inference-header-content-length:")[2].split("\r\n")[0])
        output = json.loads(body[:size])["outputs"][0]
        return np.frombuffer(body[size:], "<f4").reshape(output["shape"])
    output = json.loads(body)["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def from_rows(_head: str, body: bytes) -> np.ndarray:
    found = json.loads(body)
    return np.array(found["data"] if isinstance(found, dict) else found, np.float32)


@dataclass
class Server:
    """One that answers, with a load generator of its own; a context manager."""

    name: str
    address: Sequence[str]
    """As the load generator takes it: ``unix PATH`` or ``HOST PORT``."""
    request: str
    read: Callable[[str, bytes], np.ndarray]
    command: Sequence[str] = ()
    """Empty: it runs already."""
    more: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        if self.command:
            self._log = tempfile.TemporaryFile()
            self._process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment(**self.more),
                stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
            )  # fmt: skip
            try:
                wait_for_port(int(self.address[1]), self._process)
            except CommandError as error:
                self._end()
                raise CommandError(f"{self.name}: {error}: {self._said()}") from error
        self.client = Child("client", *self.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.__exit__(kind, value, trace)
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def _said(self) -> str:
        if not self.command:
            return ""
        self._log.seek(0)
        return self._log.read()[-1500:].decode(errors="replace")

    def wait_ready(self) -> None:
        """Until it answers 200: some listen before their model is loaded. Raises `CommandError`."""
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                self.client.ask(do="one", request=self.request)
                return
            except ChildError as error:
                gone = self._process is not None and self._process.poll() is not None
                if gone or time.monotonic() > deadline:
                    raise CommandError(f"{self.name} does not answer: {error}: {self._said()}") from error
                time.sleep(0.1)

    def check(self, wanted: np.ndarray, tolerance: float = TOLERANCE) -> None:
        """Raises `CommandError` if it does not answer what the raw session does."""
        self.wait_ready()
        answer = self.client.ask(do="one", request=self.request)
        found = self.read(answer["head"], b64decode(answer["body"]))
        if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=0, atol=tolerance):
            raise CommandError(f"{self.name} answers {found!r}, raw ORT {wanted!r}")

    def p50(self, count: int) -> float:
        """Microseconds."""
        return float(self.client.ask(do="latency", request=self.request, count=count)["p50"])

    def rate(self, connections: int, seconds: float) -> dict[str, Any]:
        return self.client.ask(do="rate", request=self.request, connections=connections, seconds=seconds)


def raw_answer(raw: Child) -> np.ndarray:
    found = raw.ask(do="outputs")
    return np.frombuffer(b64decode(found["data"]), "<f4").reshape(found["shape"])


def _python(name: str) -> str:
    path = ROOT / ".envs" / name / "bin" / "python"
    if not path.exists():
        raise CommandError(f".envs/{name} is missing: run '.ci/bootstrap env benchmarks/runtime/envs/*.lock'")
    return str(path)


def fastapi(model: Path, row: np.ndarray, *, fast: bool = False) -> Server:
    """Plain uvicorn, as ``pip install fastapi uvicorn`` gives it; ``fast`` as ``uvicorn[standard]`` does."""
    port = str(free_port())
    parts = ("uvloop", "httptools") if fast else ("asyncio", "h11")
    command = [_python("serve-fastapi"), str(PEERS / "fastapi_app.py"), str(model), port, *parts]
    name = "FastAPI, uvloop, httptools" if fast else "FastAPI"
    return Server(name, ("127.0.0.1", port), rows_json("/infer", row), from_rows, command)


def mlserver(model: Path, tensor: str, row: np.ndarray, folder: Path) -> Server:
    """Its defaults: one worker process beside the one that answers."""
    ports = [free_port() for _ in range(3)]
    folder.mkdir()
    settings = {"host": "127.0.0.1", "debug": False}
    settings |= dict(zip(("http_port", "grpc_port", "metrics_port"), ports, strict=True))
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(
        json.dumps(
            {"name": "digits", "implementation": "mlserver_app.OnnxModel", "parameters": {"uri": str(model)}}
        )
    )
    command = [_python("serve-mlserver"), "-c", "from mlserver.cli import main; main()", "start", str(folder)]
    more = {"PYTHONPATH": str(PEERS)}
    request = oip_json("digits", tensor, row)
    return Server("MLServer", ("127.0.0.1", str(ports[0])), request, from_oip, command, more, folder)


def bentoml(model: Path, row: np.ndarray, folder: Path) -> Server:
    """Its defaults: one worker."""
    port = str(free_port())
    folder.mkdir()
    command = [
        _python("serve-bentoml"), "-m", "bentoml", "serve", "bentoml_app:Digits",
        "--working-dir", str(PEERS), "--host", "127.0.0.1", "--port", port,
    ]  # fmt: skip
    more = {"BENCH_MODEL": str(model), "BENTOML_HOME": str(folder), "BENTOML_DO_NOT_TRACK": "1"}
    return Server("BentoML", ("127.0.0.1", port), rows_json("/infer", row), from_rows, command, more, folder)


def ours(address: str, name: str, request: str) -> Server:
    return Server(name, ("unix", address), request, from_oip)
