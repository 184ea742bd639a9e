"""ONNX Runtime: the only file of the runtime that imports it.

One thread that does not spin, no arena, nothing from outside the model's bytes: a session costs what its
model costs, and an idle one costs no CPU.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

# Since 1.32 the library begins a telemetry thread, writes a database under ~/.cache and uploads, unless
# told not to before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A session must not take options from inside the model file.
os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from skerry_contract.errors import EngineError, MemoryBudgetError, SkerryError

from . import Array, Engine, Session, Signature
from .onnx_guard import check_self_contained

_DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
}
_CONFIG = {
    "session.intra_op.allow_spinning": "0",
    "session.inter_op.allow_spinning": "0",
    "session.use_env_allocators": "0",
}
_FAILURES = (
    states.EngineError,
    states.EPFail,
    states.Fail,
    states.InvalidArgument,
    states.InvalidGraph,
    states.InvalidProtobuf,
    states.ModelLoadCanceled,
    states.ModelLoaded,
    states.ModelRequiresCompilation,
    states.NoModel,
    states.NoSuchFile,
    states.NotFound,
    states.NotImplemented,
    states.RuntimeException,
    RuntimeError,
    ValueError,
)
_NO_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "std::length_error")


class OnnxSession:
    """A session of ONNX Runtime on the CPU."""

    stateful = False

    def __init__(self, model: bytes) -> None:
        check_self_contained(model)
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 4
        for key, value in _CONFIG.items():
            options.add_session_config_entry(key, value)
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except (*_FAILURES, MemoryError) as error:
            raise _translate(error, "cannot load the model") from error
        self.inputs = tuple(_signature(node) for node in self._session.get_inputs())
        self.outputs = tuple(_signature(node) for node in self._session.get_outputs())
        self._names = [signature.name for signature in self.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            results = self._session.run(self._names, inputs)
        except (*_FAILURES, MemoryError) as error:
            raise _translate(error, "cannot run the model") from error
        if not all(isinstance(result, np.ndarray) for result in results):
            raise EngineError("the model has an output that is no tensor")
        return dict(zip(self._names, results, strict=True))

    def reset(self) -> None:
        """A session of ONNX Runtime keeps nothing: states are inputs and outputs."""


class OnnxEngine:
    """ONNX Runtime, imported."""

    name = "onnx"
    version: str = ort.__version__

    def __init__(self) -> None:
        ort.set_default_logger_severity(4)

    def load(self, model: bytes) -> Session:
        return OnnxSession(model)


def load_engine() -> Engine:
    return OnnxEngine()


def _signature(node: ort.NodeArg) -> Signature:
    inner = node.type.removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return Signature(node.name, _DATATYPES.get(inner, node.type), shape)


def _translate(error: Exception, what: str) -> SkerryError:
    text = str(error)
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return MemoryBudgetError(
            f"ONNX Runtime {what}: it asked for more memory than it may have",
            hint="Choose a smaller variant, or raise the RAM budget.",
        )
    return EngineError(
        f"ONNX Runtime {ort.__version__} {what}: {text[:500]}",
        hint="Check opset and IR version against this engine's version, or update the engine.",
    )
