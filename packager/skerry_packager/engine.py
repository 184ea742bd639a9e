"""Sessions of the device's own engines: what is proved here is what runs there.

This module must be imported before anything else imports onnxruntime: the runtime's engine switches off the
library's telemetry first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final

import numpy as np

from skerry_contract.errors import EngineError, MemoryBudgetError, ModelError
from skerry_contract.manifest import TensorSpec
from skerry_runtime.worker.engines import Engine, Signature, import_engine
from skerry_runtime.worker.engines.onnx import OnnxEngine

Feed = Mapping[str, np.ndarray]
"""One complete set of model inputs, each with its batch axis."""

ENGINE = OnnxEngine()
_NO_KERNEL: Final = "Could not find an implementation"
"""What onnxruntime says of an operator that it knows, but not for these types."""


@cache
def engine_of(name: str) -> Engine:
    """The device's engine of that name, imported once. Raises `EngineError` if its library is missing."""
    return ENGINE if name == ENGINE.name else import_engine(name)


class Session:
    """A loaded model, one thread. Raises `ModelError` in the constructor if the engine does not load it."""

    __slots__ = ("_session", "engine", "input_names", "inputs", "output_names", "outputs")

    def __init__(self, model: bytes, engine: str = ENGINE.name) -> None:
        self.engine = engine
        try:
            self._session = engine_of(engine).load(model)
        except (EngineError, MemoryBudgetError) as error:
            raise ModelError(
                f"the engine does not load it: {brief(error)}",
                hint="The engine lacks this operator for numbers of these types: export the model as float32."
                if _NO_KERNEL in str(error)
                else "Check that the model runs in its own library before it is packed.",
            ) from error
        self.inputs: tuple[Signature, ...] = self._session.inputs
        self.outputs: tuple[Signature, ...] = self._session.outputs
        self.input_names = tuple(signature.name for signature in self.inputs)
        self.output_names = tuple(signature.name for signature in self.outputs)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The inputs as a manifest says them."""
        return _specs(self.inputs)

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The outputs as a manifest says them."""
        return _specs(self.outputs)

    def reset(self) -> None:
        """Forget what the model keeps from one inference to the next; most keep nothing."""
        self._session.reset()

    def run(self, feed: Feed, names: Sequence[str] | None = None) -> list[np.ndarray]:
        """The outputs in the model's order, or those of `names`.

        Raises:
            ModelError: the engine failed on this input.
        """
        try:
            results = self._session.run(feed)
        except (EngineError, MemoryBudgetError) as error:
            raise ModelError(
                f"the model fails on this input: {brief(error)}",
                hint="Check the shapes and values of the data against what the model was trained on.",
            ) from error
        return [np.asarray(results[name]) for name in names or self.output_names]


def _specs(signatures: Sequence[Signature]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name=s.name, datatype=s.datatype, shape=s.shape) for s in signatures)


def brief(error: BaseException) -> str:
    """The engine's message without its prefix, source paths and line breaks."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"/\S+/(\S+\.(?:cc|h)):\d+ ", r"\1 ", text)
    return " ".join(text.split())[:300] or type(error).__name__
