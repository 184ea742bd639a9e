"""ONNX Runtime: the only file of the runtime that imports it.

Threads that do not spin, no arena, nothing from outside the model's bytes: a session costs what its model
costs, and an idle one costs no CPU. A file in the ORT format is mapped and its weights are used where they
lie, so that the memory that they take is the kernel's to drop (docs/adr/0014).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from typing import Final

# Since 1.32 the library begins a telemetry thread, writes a database under ~/.cache and uploads, unless
# told not to before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# A session must not take options from inside the model file.
os.environ.pop("ORT_LOAD_CONFIG_FROM_MODEL", None)

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from skerry_contract.errors import EngineError, MemoryBudgetError, SkerryError
from skerry_contract.manifest import Execution

from . import ONE_THREAD, Array, Engine, OpenModel, Session, Signature
from .model_file import ModelFile
from .onnx_bound import Bound, Symbols, buffers_for
from .onnx_guard import check_self_contained
from .ort_guard import ORT_MARK
from .providers import plan_for

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
_MAPPED_CONFIG: Final = {
    "session.load_model_format": "ORT",
    "session.use_memory_mapped_ort_model": "1",
    "session.use_ort_model_bytes_for_initializers": "1",
    "session.disable_prepacking": "1",
}
"""Weights packed into another layout would be a second copy, and one that no kernel may drop."""
FAILURES = (
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
    """A session of ONNX Runtime."""

    stateful = False

    def __init__(self, model: bytes | OpenModel, execution: Execution) -> None:
        content = model if isinstance(model, bytes) else model.content()
        mapped = content[4:8] == ORT_MARK
        check_self_contained(content)
        del content
        if mapped and isinstance(model, bytes):
            model = ModelFile.of(model)  # The library uses the bytes after they are freed.
        plan = plan_for(execution, ort.get_available_providers(), len(os.sched_getaffinity(0)))
        options = _options(plan.threads, _CONFIG | (_MAPPED_CONFIG if mapped else {}))
        try:
            try:
                self._session = _session(model, options, plan.providers)
            except FAILURES:
                if len(plan.providers) == 1:
                    raise
                self._session = _session(model, options, plan.providers[-1:])
            taken, given = self._session.get_inputs(), self._session.get_outputs()
        except (*FAILURES, MemoryError) as error:
            raise _translate(error, "cannot load the model") from error
        self._mapped = model if mapped and not isinstance(model, bytes) else None
        self.execution = plan.told(self._session.get_providers())
        self.inputs = tuple(_signature(node) for node in taken)
        self.outputs = tuple(_signature(node) for node in given)
        self._names = [signature.name for signature in self.outputs]
        self._taken = list(zip(self.inputs, map(_symbols, taken), strict=True))
        self._given = list(zip(self.outputs, map(_symbols, given), strict=True))
        self._binding = threading.Lock()
        self._bound: Bound | None = None
        self._bindable = True
        self._seen: list[tuple[int, ...]] = []
        self._tried = False

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        try:
            # Whoever finds the buffers taken runs without them: two threads never wait for one another here.
            if self._bindable and self._binding.acquire(blocking=False):
                try:
                    if self._bound is not None and self._bound.fits(inputs):
                        return self._bound.run(inputs)
                finally:
                    self._binding.release()
            results = self._session.run(self._names, inputs)
        except (*FAILURES, MemoryError) as error:
            raise _translate(error, "cannot run the model") from error
        if not all(isinstance(result, np.ndarray) for result in results):
            raise EngineError("the model has an output that is no tensor")
        outputs = dict(zip(self._names, results, strict=True))
        if self._bindable:
            self._prepare(inputs, outputs)
        return outputs

    def _prepare(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Bind where the same shapes come a second time, and it pays."""
        shapes = [array.shape for array in inputs.values()]
        if shapes != self._seen:
            self._seen, self._tried = shapes, False
            return
        if self._tried:
            return
        self._tried = True
        buffers = buffers_for(inputs, self._taken, self._given)
        if buffers is None or any(buffers[1][name].shape != array.shape for name, array in outputs.items()):
            return
        with self._binding:
            try:
                self._bound = Bound(self._session, *buffers)
            except (*FAILURES, TypeError):
                self._bindable, self._bound = False, None  # An engine that refuses is not asked again.

    def reset(self) -> None:
        """A session of ONNX Runtime keeps nothing: states are inputs and outputs."""

    def mapped_bytes(self) -> int:
        return 0 if self._mapped is None else self._mapped.resident_bytes()


class OnnxEngine:
    """ONNX Runtime, imported."""

    name = "onnx"
    version: str = ort.__version__

    def __init__(self) -> None:
        ort.set_default_logger_severity(4)

    def load(self, model: bytes | OpenModel, execution: Execution = ONE_THREAD) -> Session:
        return OnnxSession(model, execution)


def load_engine() -> Engine:
    return OnnxEngine()


def _session(
    model: bytes | OpenModel, options: ort.SessionOptions, providers: Sequence[str]
) -> ort.InferenceSession:
    """Without the library's own fallback, which says it on stdout and opens the file again by its name."""
    source = model if isinstance(model, bytes) else model.path
    return ort.InferenceSession(source, options, providers=list(providers), enable_fallback=0)


def _options(threads: int, config: Mapping[str, str]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    return options


def _symbols(node: ort.NodeArg) -> Symbols:
    return tuple(size if isinstance(size, int) and size >= 0 else size or "" for size in node.shape)


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
