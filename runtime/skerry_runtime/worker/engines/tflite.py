"""TensorFlow Lite, by ai-edge-litert or else its predecessor tflite-runtime: the only file that imports them.

One thread, nothing from outside the model's bytes, and no byte parsed before `tflite_guard` has read them.
Inputs and outputs are called as the model's only signature calls them, else as its tensors are named.
Quantized inputs and outputs are served as they are, in INT8 or UINT8.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from skerry_contract.errors import EngineError, MemoryBudgetError, SkerryError

from . import Array, Engine, Session, Signature
from .tflite_guard import Port, check_tflite

_NO_MEMORY: Final = ("bad_alloc", "ailed to allocate", "std::length_error", "out of memory")
_FAILURES: Final = (RuntimeError, ValueError, TypeError, SystemError)


class TfliteSession:
    """One interpreter behind a lock: interpreters are not thread-safe."""

    def __init__(self, model: bytes, engine: TfliteEngine) -> None:
        outline = check_tflite(model)
        self._model, self._engine = model, engine
        self._ports, self._results = outline.inputs, outline.outputs
        self._lock = threading.Lock()
        self.inputs = tuple(_signature(port) for port in outline.inputs)
        self.outputs = tuple(_signature(port) for port in outline.outputs)
        self.stateful = outline.stateful
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._interpreter = self._build()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if set(inputs) != {port.name for port in self._ports}:
            raise EngineError(
                f"the inputs are {sorted(inputs)}, the model's {sorted(port.name for port in self._ports)}"
            )
        with self._lock:
            self._fit(inputs)
            try:
                for port in self._ports:
                    self._interpreter.set_tensor(port.index, inputs[port.name])
                self._interpreter.invoke()
                return {port.name: self._interpreter.get_tensor(port.index) for port in self._results}
            except (*_FAILURES, MemoryError) as error:
                raise self._engine.translate(error, "cannot run the model") from error

    def reset(self) -> None:
        """A new interpreter: `reset_all_variables` of both libraries does not touch resource variables."""
        if self.stateful:
            with self._lock:
                self._interpreter = self._build()

    def _build(self) -> Any:
        """Raises `EngineError` or `MemoryBudgetError`."""
        try:
            interpreter = self._engine.interpreter(model_content=self._model, num_threads=1)
            interpreter.allocate_tensors()
        except (*_FAILURES, MemoryError) as error:
            raise self._engine.translate(error, "cannot load the model") from error
        details = {entry["index"]: entry for entry in interpreter.get_input_details()}
        self._shapes = {
            port.name: tuple(int(size) for size in details[port.index]["shape"]) for port in self._ports
        }
        return interpreter

    def _fit(self, inputs: Mapping[str, Array]) -> None:
        """Give free dimensions the sizes of these inputs."""
        wanted = {port: inputs[port.name].shape for port in self._ports if -1 in port.shape}
        changed = {port: shape for port, shape in wanted.items() if shape != self._shapes[port.name]}
        if not changed:
            return
        for port, shape in changed.items():
            if 0 in shape:
                raise EngineError(f"the input {port.name!r} is empty: {list(shape)}")
        try:
            for port, shape in changed.items():
                self._interpreter.resize_tensor_input(port.index, shape, strict=True)
            self._interpreter.allocate_tensors()
        except (*_FAILURES, MemoryError) as error:
            self._interpreter = self._build()  # it is unusable after a size that it could not take
            raise self._engine.translate(error, "cannot take inputs of these shapes") from error
        self._shapes.update({port.name: shape for port, shape in changed.items()})


class TfliteEngine:
    """One of the two libraries, imported."""

    name = "tflite"

    def __init__(self, library: str, version: str, interpreter: Any) -> None:
        self.library, self.version, self.interpreter = library, version, interpreter

    def load(self, model: bytes) -> Session:
        return TfliteSession(model, self)

    def translate(self, error: Exception, what: str) -> SkerryError:
        text = " ".join(str(error).split())
        # ai-edge-litert says nothing at all where its arena gets no memory.
        if isinstance(error, MemoryError) or not text or any(sign in text for sign in _NO_MEMORY):
            return MemoryBudgetError(
                f"{self.library} {what}: it asked for more memory than it may have",
                hint="Choose a smaller variant, or raise the RAM budget.",
            )
        return EngineError(
            f"{self.library} {self.version} {what}: {text[:500]}",
            hint="Check that this version of the engine has the model's operators, or update the engine.",
        )


def load_engine() -> Engine:
    """The newer library if it is installed, else the older one.

    Raises:
        ImportError: neither is installed.
        EngineError: only tflite-runtime is, beside a numpy that it was not made for.
    """
    if importlib.util.find_spec("ai_edge_litert") is not None:
        import ai_edge_litert
        from ai_edge_litert.interpreter import Interpreter

        return TfliteEngine("ai-edge-litert", ai_edge_litert.__version__, Interpreter)
    if importlib.util.find_spec("tflite_runtime") is not None and int(np.__version__.split(".")[0]) >= 2:
        # Its import succeeds, with a page of warnings; then every Interpreter dies of `_ARRAY_API not found`.
        raise EngineError(
            f"tflite-runtime does not work with numpy 2 (here: {np.__version__})",
            hint="pip install 'numpy<2', or its successor: pip install 'skerry[tflite]'",
        )
    import tflite_runtime
    from tflite_runtime.interpreter import Interpreter as LegacyInterpreter

    return TfliteEngine("tflite-runtime", tflite_runtime.__version__, LegacyInterpreter)


def _signature(port: Port) -> Signature:
    return Signature(port.name, port.datatype, port.shape)
