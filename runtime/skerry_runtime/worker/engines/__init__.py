"""Engines behind one protocol, chosen by the name in the manifest; none is imported until asked for."""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from skerry_contract.errors import EngineError
from skerry_contract.manifest import Execution

Array = NDArray[Any]
"""Any array: its dtype is the tensor's datatype."""

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Datatypes of the Open Inference Protocol, without BYTES, which is no number."""


ONE_THREAD: Final = Execution()
"""The default: the processor, one thread."""


Content = bytes | mmap.mmap
"""A file's bytes for a guard to look at: of a mapped one only the pages that it touches are read."""


class OpenModel(Protocol):
    """A model's file, hashed through the descriptor behind `path`: see `model_file.ModelFile`."""

    @property
    def path(self) -> str:
        """Where an engine opens this very file, whatever its name stands for by now."""

    def content(self) -> Content:
        """Raises `EngineError` if there is nothing in it."""

    def resident_bytes(self) -> int:
        """How much of it is mapped into this process and in memory now: what the kernel may drop."""


class Signature(NamedTuple):
    """One input or output as the engine sees it."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 where free."""


class Session(Protocol):
    """A loaded model. `run` may be called from several threads."""

    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]
    stateful: bool
    """Whether it keeps something from one inference to the next, until `reset`."""
    execution: str
    """Where it runs, for people: providers, threads, and what was wanted in vain."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """One inference. Raises `EngineError` (failed) or `MemoryBudgetError` (memory refused)."""

    def reset(self) -> None:
        """Forget what the model keeps inside from one inference to the next (variables of TFLite)."""

    def mapped_bytes(self) -> int:
        """Bytes of the model in memory that the kernel may drop, as they are mapped from its file."""


class Engine(Protocol):
    """One inference library, imported."""

    name: str
    version: str

    def load(self, model: bytes | OpenModel, execution: Execution = ONE_THREAD) -> Session:
        """Build a session from the very bytes or the very file that was hashed.

        Raises `EngineError` (not loadable) or `MemoryBudgetError` (memory refused).
        """


class _Known(NamedTuple):
    module: str
    extra: str


_REGISTRY: Final[Mapping[str, _Known]] = {
    "onnx": _Known("skerry_runtime.worker.engines.onnx", "onnx"),
    "tflite": _Known("skerry_runtime.worker.engines.tflite", "tflite"),
}


def import_engine(name: str) -> Engine:
    """Import the library behind an engine's name.

    Raises:
        EngineError: the name is not known here, or its library is not installed.
    """
    known = _REGISTRY.get(name)
    if known is None:
        raise EngineError(
            f"the engine {name!r} is not known to this version of the runtime",
            hint=f"It runs {', '.join(sorted(_REGISTRY))}: pack such a variant, or update Skerry.",
        )
    try:
        module = importlib.import_module(known.module)
        engine: Engine = module.load_engine()
    except ImportError as error:
        raise EngineError(
            f"the library of the engine {name!r} cannot be imported: {error}",
            hint=f"pip install 'skerry[{known.extra}]'",
        ) from error
    return engine


def import_available() -> tuple[Engine, ...]:
    """Every engine whose library is installed: the zygote imports them once for all its workers."""
    found = []
    for name in _REGISTRY:
        try:
            found.append(import_engine(name))
        except EngineError:
            continue
    return tuple(found)
