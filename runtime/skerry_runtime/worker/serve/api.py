"""The Open Inference Protocol's endpoints: a parsed request in, an answer out. Knows no socket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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
from .protocol import decode_request, encode_response, metadata
from .wire import BINARY, Head, HttpError, Response, error_response, of_error, parse_length

_STATUS: Final[tuple[tuple[type[SkerryError], int], ...]] = (
    (InputError, 400),
    (NotFoundError, 404),
    (OverloadedError, 503),
    (EngineError, 500),
    (MemoryBudgetError, 500),
)
_PLATFORMS: Final = {"onnx": "onnxruntime_onnx", "tflite": "litert_tflite"}
DIGEST_HEADER: Final = "X-Skerry-Digest"
RETRY: Final = ("Retry-After", "1")


@dataclass(frozen=True, slots=True)
class Served:
    """An answer, and what to count once it was sent."""

    response: Response
    answer: Answer | None = None


class Api:
    """The endpoints of one model."""

    def __init__(self, inference: Inference, ready: Callable[[], bool]) -> None:
        """``ready`` says whether the model takes requests."""
        generation = inference.model.generation
        self.inference, self._ready = inference, ready
        self._manifest = generation.manifest
        self._parameters: dict[str, Any] = {
            "skerry_digest": generation.bundle,
            "skerry_variant": generation.variant.id,
        }
        self._digest = (DIGEST_HEADER, generation.bundle)
        platform = _PLATFORMS[generation.variant.engine]
        described = {**self._parameters, "labels": list(self._manifest.labels)}
        self._metadata = metadata(self._manifest, platform, described)

    def serve(self, head: Head, body: memoryview) -> Served:
        """Answer one request; every answer names the model's digest."""
        try:
            served = self._route(head, body)
        except HttpError as error:
            return Served(self.refusal(error))
        except SkerryError as error:
            status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
            served = Served(of_error(status, error, [RETRY] if status == 503 else []))
        return Served(self._signed(served.response), served.answer)

    def refusal(self, error: HttpError) -> Response:
        """The answer to a request that HTTP itself forbids."""
        return self._signed(error_response(error.status, error.message, headers=error.headers))

    def _signed(self, response: Response) -> Response:
        headers = (*response.headers, self._digest)
        return Response(response.status, response.body, response.content_type, headers)

    def _route(self, head: Head, body: memoryview) -> Served:
        match head.path.rstrip("/").split("/")[1:]:
            case ["v2"]:
                self._only(head, "GET")
                return _json({"name": "skerry", "version": VERSION, "extensions": ["binary_tensor_data"]})
            case ["v2", "health", "live"]:
                self._only(head, "GET")
                return _json({"live": True})
            case ["v2", "health", "ready"]:
                self._only(head, "GET")
                return self._readiness()
            case ["v2", "models", name, "versions", version, *rest]:
                self._check_model(name, version)
                return self._model(head, body, rest)
            case ["v2", "models", name, *rest]:
                self._check_model(name, self._manifest.version)
                return self._model(head, body, rest)
        raise NotFoundError(f"there is nothing at {head.path[:200]}", hint="See GET /v2/models/NAME.")

    def _model(self, head: Head, body: memoryview, rest: list[str]) -> Served:
        match rest:
            case []:
                self._only(head, "GET")
                return Served(Response(200, [self._metadata]))
            case ["ready"]:
                self._only(head, "GET")
                return self._readiness(self._manifest.name)
            case ["infer"]:
                self._only(head, "POST")
                return self._infer(head, body)
        raise NotFoundError(f"there is nothing at {head.path[:200]}", hint="See GET /v2/models/NAME.")

    def _infer(self, head: Head, body: memoryview) -> Served:
        if head.headers.get("content-encoding", "identity") != "identity":
            raise HttpError(415, "send the body without a content coding")
        text = head.headers.get("inference-header-content-length")
        json_bytes = None if text is None else parse_length(text, "Inference-Header-Content-Length")
        request = decode_request(body, json_bytes, self._manifest)
        answer = self.inference.infer(request.inputs)
        parameters = self._parameters
        if answer.nonfinite_input:
            parameters = {**parameters, "skerry_nonfinite_input": True}
        pieces, length = encode_response(request, answer.outputs, self._manifest, parameters)
        if length is None:
            return Served(Response(200, pieces), answer)
        headers = [("Inference-Header-Content-Length", str(length))]
        return Served(Response(200, pieces, BINARY, headers), answer)

    def _readiness(self, name: str = "") -> Served:
        ready = self._ready()
        body = msgspec.json.encode({**({"name": name} if name else {}), "ready": ready})
        return Served(Response(200, [body]) if ready else Response(503, [body], headers=[RETRY]))

    def _check_model(self, name: str, version: str) -> None:
        if (name, version) != (self._manifest.name, self._manifest.version):
            raise NotFoundError(
                f"the model {name[:100]!r} in version {version[:40]!r} is not served here",
                hint=f"Served: {self._manifest.name} {self._manifest.version}.",
            )

    @staticmethod
    def _only(head: Head, method: str) -> None:
        if head.method != method:
            raise HttpError(405, f"{head.method} is not allowed here", headers=[("Allow", method)])


def _json(value: object) -> Served:
    return Served(Response(200, [msgspec.json.encode(value)]))
