"""The Open Inference Protocol's endpoints: a parsed request in, an answer out. Knows no socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from skerry_contract.errors import (
    EngineError,
    InputError,
    MemoryBudgetError,
    NotFoundError,
    OverloadedError,
    SkerryError,
)

from ..inference import Answer, Inference
from ..version import VERSION
from .protocol import Codec, metadata
from .wire import BINARY, Head, HttpError, Response, error_response, header_line, of_error, parse_length

_STATUS: Final[tuple[tuple[type[SkerryError], int], ...]] = (
    (InputError, 400),
    (NotFoundError, 404),
    (OverloadedError, 503),
    (EngineError, 500),
    (MemoryBudgetError, 500),
)
_PLATFORMS: Final = {"onnx": "onnxruntime_onnx", "tflite": "litert_tflite"}
DIGEST_HEADER: Final = "X-Skerry-Digest"
_SERVER: Final = {"name": "skerry", "version": VERSION, "extensions": ["binary_tensor_data"]}
RETRY: Final = ("Retry-After", "1")


class Served(msgspec.Struct, frozen=True):
    """An answer, and what to count once it was sent."""

    response: Response
    answer: Answer | None = None


class Api:
    """The endpoints of one model."""

    def __init__(self, inference: Inference, ready: Callable[[], bool]) -> None:
        """``ready`` says whether the model takes requests."""
        generation = inference.model.generation
        manifest = self._manifest = generation.manifest
        self.inference, self._ready = inference, ready
        self._codec = Codec(manifest)
        self._parameters: dict[str, Any] = {
            "skerry_digest": generation.bundle,
            "skerry_variant": generation.variant.id,
        }
        self.signature: Final = header_line(DIGEST_HEADER, generation.bundle)
        """The header that names the model's digest: every answer has it."""
        platform = _PLATFORMS[generation.variant.engine]
        described = {**self._parameters, "labels": list(manifest.labels)}
        self._metadata = metadata(manifest, platform, described)
        self._routes: dict[str, tuple[str, Callable[[Head, memoryview], Served]]] = {
            "/v2": ("GET", lambda head, body: _json(_SERVER)),
            "/v2/health/live": ("GET", lambda head, body: _json({"live": True})),
            "/v2/health/ready": ("GET", lambda head, body: self._readiness()),
        }
        newest = f"/v2/models/{manifest.name}"
        for model in (newest, f"{newest}/versions/{manifest.version}"):
            self._routes |= {
                model: ("GET", lambda head, body: Served(Response(200, [self._metadata]))),
                f"{model}/ready": ("GET", lambda head, body: self._readiness(manifest.name)),
                f"{model}/infer": ("POST", self._infer),
            }

    def serve(self, head: Head, body: memoryview) -> Served:
        """Answer one request, inside `overflow_is_infinity`."""
        try:
            route = self._routes.get(head.path) or self._routes.get(head.path.rstrip("/"))
            if route is None:
                raise self._nothing_at(head.path)
            method, answer = route
            if head.method != method:
                raise HttpError(405, f"{head.method} is not allowed here", headers=[("Allow", method)])
            return answer(head, body)
        except HttpError as error:
            return Served(self.refusal(error))
        except SkerryError as error:
            return Served(self.failure(error))

    def failure(self, error: SkerryError) -> Response:
        """The answer to a request that the model, or this server, cannot satisfy."""
        status = status_of(error)
        return of_error(status, error, [RETRY] if status == 503 else [])

    def refusal(self, error: HttpError) -> Response:
        """The answer to a request that HTTP itself forbids."""
        return error_response(error.status, error.message, headers=error.headers)

    def _infer(self, head: Head, body: memoryview) -> Served:
        if head.headers.get("content-encoding", "identity") != "identity":
            plain = ("Accept-Encoding", "identity")  # RFC 9110, 15.5.16
            raise HttpError(415, "send the body without a content coding", headers=[plain])
        text = head.headers.get("inference-header-content-length")
        json_bytes = None if text is None else parse_length(text, "Inference-Header-Content-Length")
        request = self._codec.decode(body, json_bytes)
        answer = self.inference.infer(request.inputs, request.timeout_us)
        parameters = self._parameters
        if answer.nonfinite_input:
            parameters = {**parameters, "skerry_nonfinite_input": True}
        pieces, length = self._codec.encode(request, answer.outputs, parameters)
        if length is None:
            return Served(Response(200, pieces), answer)
        headers = [("Inference-Header-Content-Length", str(length))]
        return Served(Response(200, pieces, BINARY, headers), answer)

    def _readiness(self, name: str = "") -> Served:
        ready = self._ready()
        body = msgspec.json.encode({**({"name": name} if name else {}), "ready": ready})
        return Served(Response(200, [body]) if ready else Response(503, [body], headers=[RETRY]))

    def _nothing_at(self, path: str) -> NotFoundError:
        own = self._manifest
        match path.rstrip("/").split("/")[1:]:
            case ["v2", "models", name, "versions", version, *_]:
                served = (name, version) == (own.name, own.version)
            case ["v2", "models", name, *_]:
                served, version = name == own.name, ""
            case _:
                served = True
        if served:
            return NotFoundError(f"there is nothing at {path[:200]}", hint="See GET /v2/models/NAME.")
        asked = f"the model {name[:100]!r}" + (f" in version {version[:40]!r}" if version else "")
        return NotFoundError(f"{asked} is not served here", hint=f"Served: {own.name} {own.version}.")


def status_of(error: SkerryError) -> int:
    """As HTTP has it."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def _json(value: object) -> Served:
    return Served(Response(200, [msgspec.json.encode(value)]))
