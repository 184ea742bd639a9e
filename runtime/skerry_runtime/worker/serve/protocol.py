"""The Open Inference Protocol v2 as bytes <-> arrays, with the binary tensor data extension. Pure.

Sources: https://github.com/open-inference/open-inference-protocol and Triton's
``extension_binary_data.md``. A tensor's name, datatype, shape and size are checked before anything of its
size is made (attack M14).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import msgspec
import numpy as np

from skerry_contract.errors import InputError
from skerry_contract.manifest import Manifest, TensorSpec

from ..engines import DTYPES, Array

_RANK = 16
_NAME = 256


class RequestInput(msgspec.Struct, frozen=True):
    """One input tensor of a request."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw()
    """Empty if the tensor is binary."""


class RequestOutput(msgspec.Struct, frozen=True):
    """One output that a request asks for."""

    name: str
    parameters: dict[str, Any] = {}


class Request(msgspec.Struct, frozen=True):
    """The JSON object of ``infer``."""

    inputs: list[RequestInput]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[RequestOutput] = []


class InferRequest(msgspec.Struct, frozen=True):
    """A checked request."""

    id: str
    inputs: dict[str, Array]
    outputs: Mapping[str, bool]
    """The wanted outputs, in order; true where as binary data."""
    timeout_us: int | None = None
    """How long the client lets it wait for the engine."""


_request_decoder = msgspec.json.Decoder(Request)
_encoder = msgspec.json.Encoder()


class Codec:
    """One model's requests and answers. What follows from its manifest alone is worked out once."""

    def __init__(self, manifest: Manifest) -> None:
        self._inputs = {spec.name: spec for spec in manifest.inputs}
        self._datatypes = {spec.name: spec.datatype for spec in manifest.outputs}
        self._all = {binary: dict.fromkeys(self._datatypes, binary) for binary in (False, True)}
        """The wanted outputs of a request that names none."""
        self._named = {"model_name": manifest.name, "model_version": manifest.version}

    def decode(self, body: memoryview, json_bytes: int | None) -> InferRequest:
        """Read the body of ``infer``, inside `overflow_is_infinity`.

        Args:
            body: JSON, then the binary tensor data if any.
            json_bytes: length of the JSON (``Inference-Header-Content-Length``); None if it is the whole
                body, 0 if the body is nothing but the bytes of the model's one input.

        Raises:
            InputError: anything outside the protocol or the model's inputs.
        """
        if json_bytes == 0:
            return self._decode_raw(body)
        length = len(body) if json_bytes is None else json_bytes
        if length > len(body):
            raise InputError(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
        try:
            request = _request_decoder.decode(body[:length])
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InputError(
                f"the request is not what the Open Inference Protocol asks for: {error}"
            ) from error
        _refuse_extensions(request.parameters)
        inputs: dict[str, Array] = {}
        at = length
        for tensor in request.inputs:
            spec = self._inputs.get(tensor.name)
            if spec is None or tensor.name in inputs:
                problem = "given twice" if spec else "not one of the model"
                raise InputError(
                    f"the input {tensor.name[:_NAME]!r} is {problem}",
                    hint=f"The model takes: {', '.join(self._inputs)}.",
                )
            _refuse_extensions(tensor.parameters)
            count = check_tensor(spec, tensor.datatype, tensor.shape)
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                inputs[tensor.name] = _from_json(tensor, spec, count)
            else:
                inputs[tensor.name] = _from_binary(tensor, spec, count, size, body[at:])
                at += size
        if at != len(body):
            raise InputError(f"{len(body) - at} bytes of the body belong to no input")
        if len(inputs) < len(self._inputs):
            missing = next(name for name in self._inputs if name not in inputs)
            raise InputError(f"the input {missing!r} is missing")
        if len(inputs) > 1:
            check_rows(inputs, self._inputs)
        timeout_us = _timeout(request.parameters)
        return InferRequest(request.id, inputs, self._wanted(request), timeout_us)

    def encode(
        self, request: InferRequest, outputs: Mapping[str, Array], parameters: Mapping[str, Any]
    ) -> tuple[list[bytes], int | None]:
        """The body of the answer.

        Returns:
            Its pieces, and the length of the JSON if binary data follow it, else None.
        """
        tensors: list[dict[str, Any]] = []
        pieces: list[bytes] = []
        for name, binary in request.outputs.items():
            array, datatype = outputs[name], self._datatypes[name]
            tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": array.shape}
            if binary:
                piece = np.ascontiguousarray(array, DTYPES[datatype]).tobytes()
                tensor["parameters"] = {"binary_data_size": len(piece)}
                pieces.append(piece)
            else:
                tensor["data"] = array.ravel().tolist()
            tensors.append(tensor)
        answer = {**self._named, "parameters": parameters, "outputs": tensors}
        if request.id:
            answer["id"] = request.id
        head = _encoder.encode(answer)
        return [head, *pieces], (len(head) if pieces else None)

    def _decode_raw(self, body: memoryview) -> InferRequest:
        """A raw binary request: the shape follows from the number of bytes; all outputs come as binary."""
        if len(self._inputs) != 1:
            raise InputError("a request without JSON is for models with one input")
        (spec,) = self._inputs.values()
        if spec.shape.count(-1) > 1 or spec.datatype not in DTYPES:
            raise InputError(f"the shape of the input {spec.name!r} does not follow from a number of bytes")
        fixed = math.prod(size for size in spec.shape if size != -1) * DTYPES[spec.datatype].itemsize
        free = len(body) // fixed
        shape = [free if size == -1 else size for size in spec.shape]
        tensor = RequestInput(spec.name, shape, spec.datatype)
        count = check_tensor(spec, spec.datatype, shape)
        return InferRequest(
            "", {spec.name: _from_binary(tensor, spec, count, len(body), body)}, self._all[True]
        )

    def _wanted(self, request: Request) -> Mapping[str, bool]:
        default = request.parameters.get("binary_data_output") is True
        if not request.outputs:
            return self._all[default]
        wanted: dict[str, bool] = {}
        for output in request.outputs:
            if output.name not in self._datatypes or output.name in wanted:
                raise InputError(
                    f"the output {output.name[:_NAME]!r} is asked for twice, or not one of the model",
                    hint=f"The model gives: {', '.join(self._datatypes)}.",
                )
            _refuse_extensions(output.parameters)
            wanted[output.name] = output.parameters.get("binary_data", default) is True
        return wanted


def overflow_is_infinity() -> AbstractContextManager[None]:
    """A number beyond FP32 becomes infinity, and is counted as such, as NaN is: without numpy's warnings.

    Entered once a thread, because it costs as much as reading a small tensor.
    """
    return np.errstate(over="ignore", invalid="ignore")


def metadata(manifest: Manifest, platform: str, parameters: Mapping[str, Any]) -> bytes:
    """The answer to ``GET /v2/models/NAME``."""

    def described(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": spec.shape} for spec in specs]

    return _encoder.encode(
        {
            "name": manifest.name,
            "versions": [manifest.version],
            "platform": platform,
            "inputs": described(manifest.inputs),
            "outputs": described(manifest.outputs),
            "parameters": parameters,
        }
    )


def check_tensor(spec: TensorSpec, datatype: str, shape: Sequence[int]) -> int:
    """The number of elements. Raises `InputError` if the model does not take such a tensor."""
    if datatype != spec.datatype:
        raise InputError(f"the input {spec.name!r} is {spec.datatype}, not {datatype[:20]!r}")
    if spec.datatype not in DTYPES:
        raise InputError(f"the input {spec.name!r} is {spec.datatype}, which this server does not take")
    fits = len(shape) == len(spec.shape) <= _RANK and all(
        [size >= 1 and wanted in (-1, size) for size, wanted in zip(shape, spec.shape, strict=True)]
    )
    if not fits:
        raise InputError(
            f"the input {spec.name!r} has shape {list(shape[:_RANK])}, the model takes {list(spec.shape)}",
            hint="-1 stands for any size of at least 1.",
        )
    return math.prod(shape)


def check_rows(inputs: Mapping[str, Array], specs: Mapping[str, TensorSpec]) -> None:
    """Where axis 0 is free it is the batch, one for all. Raises `InputError` if it differs."""
    rows = {len(array) for name, array in inputs.items() if specs[name].shape[:1] == (-1,)}
    if len(rows) > 1:
        raise InputError(f"the inputs have different numbers of rows: {sorted(rows)}")


def check_bool(spec: TensorSpec, raw: Array) -> None:
    """Raises `InputError` if the bytes of a BOOL tensor are neither 0 nor 1: engines count on it."""
    if int(raw.max()) > 1:
        raise InputError(f"the input {spec.name!r} is BOOL and holds bytes that are neither 0 nor 1")


def _from_binary(tensor: RequestInput, spec: TensorSpec, count: int, size: Any, rest: memoryview) -> Array:
    dtype = DTYPES[spec.datatype]
    wanted = count * dtype.itemsize
    if len(memoryview(tensor.data)):
        raise InputError(f"the input {spec.name!r} has both data and binary_data_size")
    if type(size) is not int or size != wanted or wanted > len(rest):
        raise InputError(
            f"the input {spec.name!r} of shape {tensor.shape} has {wanted} bytes; "
            f"binary_data_size is {str(size)[:20]} and {len(rest)} bytes are there"
        )
    if spec.datatype == "BOOL":
        check_bool(spec, np.frombuffer(rest[:wanted], np.uint8))
    array = np.frombuffer(rest[:wanted], dtype).reshape(tensor.shape)
    # Where it begins follows from the length of the JSON. Off its natural place every reader would copy it.
    return array if array.flags.aligned else array.copy()


def _from_json(tensor: RequestInput, spec: TensorSpec, count: int) -> Array:
    view = memoryview(tensor.data)
    if not len(view):
        raise InputError(f"the input {spec.name!r} has no data")
    if count > len(view) // 2 + 1:  # an element and its comma take two bytes or more
        raise InputError(f"the input {spec.name!r} has fewer elements than its shape {tensor.shape} says")
    dtype = DTYPES[spec.datatype]
    nested = bytes(view[1:64]).lstrip().startswith(b"[")
    try:
        values = _data_decoder(dtype.kind, len(tensor.shape) if nested else 1).decode(view)
        array = _array(values, dtype)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise InputError(f"the input {spec.name!r} holds no {spec.datatype} values: {error}") from error
    if array.size != count or (nested and list(array.shape) != tensor.shape):
        raise InputError(f"the input {spec.name!r} has {array.size} elements, its shape is {tensor.shape}")
    return array.reshape(tensor.shape)


def _array(values: Any, dtype: np.dtype[Any]) -> Array:
    if dtype.kind not in "iu":
        return np.array(values, dtype)
    wide = np.array(values, np.uint64 if dtype == np.uint64 else np.int64)
    bounds = np.iinfo(dtype)
    if wide.size and not (bounds.min <= int(wide.min()) and int(wide.max()) <= bounds.max):
        raise ValueError(f"they must be {bounds.min} to {bounds.max}")
    return wide.astype(dtype, copy=False)


@cache
def _data_decoder(kind: str, depth: int) -> msgspec.json.Decoder[Any]:
    """For lists, nested ``depth`` deep, of what a numpy dtype's kind holds."""
    inner: Any = {"f": float, "b": bool}.get(kind, int)
    for _ in range(depth):
        inner = list[inner]
    return msgspec.json.Decoder(inner)


def _timeout(parameters: Mapping[str, Any]) -> int | None:
    """``timeout`` in microseconds; None or 0: no bound of the client's own."""
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    if type(timeout) is not int or timeout < 0:
        raise InputError("the parameter 'timeout' is a number of microseconds, 0 or more")
    return timeout or None


def _refuse_extensions(parameters: Mapping[str, Any]) -> None:
    """Extensions that would change the meaning of a request are refused; other parameters are ignored."""
    if not parameters:
        return
    for name in ("shared_memory_region", "classification", "sequence_id"):
        if parameters.get(name):
            raise InputError(f"the parameter {name!r} belongs to an extension that this server has not")
