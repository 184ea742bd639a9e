"""Asks an MLflow tracking server for one run. Only where the engineer named a server.

The credentials of MLflow's own clients are used (``MLFLOW_TRACKING_TOKEN``, or ``MLFLOW_TRACKING_USERNAME``
and ``MLFLOW_TRACKING_PASSWORD``), and sent over HTTPS or to this machine only. Redirects are refused.
"""

from __future__ import annotations

import base64
import json
import os
import time
import urllib.request
from typing import IO, Any, Final
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from skerry_contract.errors import AccessError, DataError, InputError, NotFoundError, TransferError

from .mlflow import RUN_ID, MlflowRun, from_answer

_SCHEMES: Final = {"mlflow+http": "http", "mlflow+https": "https"}
_MAX_ANSWER: Final = 8 * 1024 * 1024
_PIECE: Final = 64 * 1024
_SOCKET_SECONDS: Final = 10.0
_ALL_SECONDS: Final = 30.0
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the credentials elsewhere: it stays an answer with a status of 300 and more."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def is_server(reference: str) -> bool:
    return reference.partition("://")[0].lower() in _SCHEMES


def read_server(reference: str) -> MlflowRun:
    """A run, from ``mlflow+https://HOST[/PREFIX]/#RUN_ID``.

    Raises:
        InputError: the reference is of another form.
        AccessError: the server refuses the credentials, or they would go over an open line.
        NotFoundError: it has no such run.
        TransferError: it cannot be reached, or is too slow.
        DataError: it answers with something else.
    """
    parts = urlsplit(reference)
    run_id = parts.fragment.strip("/").rpartition("/")[2]
    if "@" in parts.netloc:
        raise InputError("the address holds a name or a password", hint="Use MLFLOW_TRACKING_TOKEN instead.")
    if not parts.hostname or not RUN_ID.fullmatch(run_id):
        raise InputError(
            f"{reference[:200]!r} names no run of an MLflow server", hint="Write mlflow+https://HOST/#RUN_ID."
        )
    base = f"{_SCHEMES[parts.scheme.lower()]}://{parts.netloc}{parts.path.rstrip('/')}"
    headers = _credentials(base.startswith("https") or parts.hostname in _LOOPBACK)
    request = urllib.request.Request(  # noqa: S310 - the scheme is http or https, see _SCHEMES
        f"{base}/api/2.0/mlflow/runs/get?run_id={quote(run_id)}", headers=headers
    )
    return from_answer(_ask(request, base, run_id), run_id, base)


def _ask(request: urllib.request.Request, base: str, run_id: str) -> Any:
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(request, timeout=_SOCKET_SECONDS) as response:
            data = _read(response, base)
    except HTTPError as error:
        error.close()
        if error.code == 404:
            raise NotFoundError(f"{base} has no MLflow run {run_id}", hint="Is the address right?") from error
        if error.code in (401, 403):
            raise AccessError(f"{base} refuses the credentials", hint="Set MLFLOW_TRACKING_TOKEN.") from error
        raise TransferError(f"{base} answered {error.code}", hint="Is this a tracking server?") from error
    except (URLError, OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise TransferError(f"{base} cannot be reached: {why}", hint="Is the server running?") from error
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{base} did not answer in JSON", hint="Is this a tracking server?") from error


def _read(response: IO[bytes], base: str) -> bytes:
    """The whole answer, while it is small and comes in time."""
    end, data = time.monotonic() + _ALL_SECONDS, bytearray()
    while piece := response.read(_PIECE):
        data += piece
        if len(data) > _MAX_ANSWER:
            raise DataError(
                f"{base} answered with more than {_MAX_ANSWER} bytes", hint="Is it a tracking server?"
            )
        if time.monotonic() > end:
            raise TransferError(f"{base} is too slow", hint="Try again, or export the run to a file.")
    return bytes(data)


def _credentials(safe: bool) -> dict[str, str]:
    token = os.environ.get("MLFLOW_TRACKING_TOKEN", "")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    if not token and not user:
        return {}
    if not safe:
        raise AccessError(
            "credentials would go over plain HTTP", hint="Write mlflow+https://, or unset MLFLOW_TRACKING_*."
        )
    if token:
        return {"Authorization": f"Bearer {token}"}
    pair = f"{user}:{os.environ.get('MLFLOW_TRACKING_PASSWORD', '')}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
