"""TensorFlow Lite, by ai-edge-litert or else its predecessor tflite-runtime: the only file that imports them.

Nothing from outside the model's bytes, and no byte parsed before `tflite_guard` has read them.
Inputs and outputs are called as the model's only signature calls them, else as its tensors are named.
Quantized inputs and outputs are served as they are, in INT8 or UINT8.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np

from skerry_contract.errors import EngineError, MemoryBudgetError, SkerryError
from skerry_contract.manifest import Execution

from . import ONE_THREAD, Array, Engine, OpenModel, Session, Signature
from .providers import plan_for
from .tflite_guard import Port, check_tflite

_NO_MEMORY: Final = ("bad_alloc", "ailed to allocate", "std::length_error", "out of memory")
_FAILURES: Final = (RuntimeError, ValueError, TypeError, SystemError)


class TfliteSession:
    """One interpreter behind a lock: interpreters are not thread-safe."""

    def __init__(self, model: bytes | OpenModel, engine: TfliteEngine, execution: Execution) -> None:
        outline = check_tflite(model if isinstance(model, bytes) else model.content())
        # Both libraries map a file that they open by its name.
        self._source = {"model_content": model} if isinstance(model, bytes) else {"model_path": model.path}
        self._model, self._engine = model, engine
        # The libraries take XNNPACK by themselves where it helps; other delegates are libraries of others.
        plan = plan_for(execution, (), len(os.sched_getaffinity(0)))
        self._threads, self.execution = plan.threads, plan.told(())
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

    def mapped_bytes(self) -> int:
        """None are counted: most weights are packed into memory of their own beside the file."""
        return 0

    def _build(self) -> Any:
        """Raises `EngineError` or `MemoryBudgetError`."""
        try:
            with self._engine.quietly():
                interpreter = self._engine.interpreter(**self._source, num_threads=self._threads)
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
        self._talkative = True

    def load(self, model: bytes | OpenModel, execution: Execution = ONE_THREAD) -> Session:
        return TfliteSession(model, self, execution)

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Around the first model of a process, when the library says to the terminal what it is made of."""
        if not self._talkative:
            yield
            return
        self._talkative = False
        with _without_announcements():
            yield

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


@contextmanager
def _without_announcements() -> Iterator[None]:
    """What is written to standard error in the block comes after it, without lines of the level INFO."""
    try:
        terminal = os.dup(2)
    except OSError:  # there is no standard error to keep clean
        yield
        return
    heard = os.memfd_create("skerry-heard", os.MFD_CLOEXEC)
    os.dup2(heard, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        with open(heard, "rb") as file:
            file.seek(0)
            for line in file:
                if not line.startswith(b"INFO:"):
                    os.write(2, line)


def _signature(port: Port) -> Signature:
    return Signature(port.name, port.datatype, port.shape)
