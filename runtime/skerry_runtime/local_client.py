"""A client of a model's Unix socket, for people at a prompt. numpy is imported only to read its files."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import InputError, UnavailableError, from_code

INFER_SECONDS: Final = 60.0
_DATATYPES: Final = {
    "bool": "BOOL", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
}  # fmt: skip
"""From numpy's names to the Open Inference Protocol's."""


def request_from(path: Path, first_input: Callable[[], str]) -> bytes:
    """An Open Inference Protocol request from a ``.npy``, ``.npz`` or ``.json`` file.

    Args:
        path: the file.
        first_input: gives the name of the model's first input, which a ``.npy`` file does not say.

    Raises:
        InputError: the file cannot be read, or holds a type that the protocol does not know.
    """
    if path.suffix == ".json":
        try:
            body = path.read_bytes()
            json.loads(body)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is not a JSON file: {error}") from error
        return body
    if path.suffix not in (".npy", ".npz"):
        raise InputError(f"{path} has the suffix {path.suffix!r}", hint="Give a .npy, .npz or .json file.")
    import numpy as np

    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = dict(loaded) if path.suffix == ".npz" else {first_input(): loaded}
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a numpy file: {error}") from error
    inputs = []
    for name, array in arrays.items():
        if str(array.dtype) not in _DATATYPES:
            raise InputError(
                f"{name} in {path} has the type {array.dtype}", hint=f"Known: {', '.join(_DATATYPES)}."
            )
        datatype = _DATATYPES[str(array.dtype)]
        inputs.append(
            {"name": name, "shape": list(array.shape), "datatype": datatype, "data": array.ravel().tolist()}
        )
    return json.dumps({"inputs": inputs}).encode()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=INFER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(INFER_SECONDS)
        self.sock.connect(self._path)


def ask(path: str, method: str, url: str, body: bytes | None = None) -> Any:
    """One request over a Unix socket; the parsed JSON answer.

    Raises:
        UnavailableError: nothing answers there.
        InputError: the request is wrong.
        EngineError: the model failed.
    """
    connection = _UnixConnection(path)
    try:
        connection.request(method, url, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        answer = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(
            f"no model answers at {path}: {error}", hint="See 'skerry-runtime status'."
        ) from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        message = (
            answer.get("error", "the request failed") if isinstance(answer, dict) else "the request failed"
        )
        raise from_code("input" if response.status < 500 else "engine", f"{message} (HTTP {response.status})")
    return answer
