"""What a model file is, without trusting it: safe to call on any file that somebody sends.

`inspect_model` never parses the file in this process. A disposable child does (see `quarantine`), and this
module only reads back its plain, type-checked answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from skerry_contract.errors import ModelError
from skerry_contract.manifest import TensorSpec

from .quarantine import DEFAULT_QUARANTINE, QuarantineLimits, run_quarantined

DATATYPE_OF_NUMPY: Final[Mapping[str, str]] = {
    "bool": "BOOL", "uint8": "UINT8", "int8": "INT8", "uint16": "UINT16", "int16": "INT16",
    "uint32": "UINT32", "int32": "INT32", "uint64": "UINT64", "int64": "INT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64", "string": "BYTES",
}  # fmt: skip
"""From numpy's names to the datatypes of the Open Inference Protocol v2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One input or output as the file declares it."""

    name: str
    dtype: str
    """numpy's name (``float32``), ``string``, or the ONNX type of what is no tensor (``sequence``)."""
    shape: tuple[int | str | None, ...]
    """A number, the name of a free dimension, or None for a free one without a name."""
    ranked: bool = True
    """False where the file does not even declare how many dimensions there are."""

    def spec(self) -> TensorSpec:
        """The same for a manifest, free dimensions as -1.

        Raises:
            ModelError: neither a tensor nor of a type that the inference protocol knows.
        """
        if self.dtype not in DATATYPE_OF_NUMPY:
            raise ModelError(
                f"{self.name!r} is of type {self.dtype}, which a device cannot serve",
                hint="Export the model with tensors only (skl2onnx: options={'zipmap': False}).",
            )
        shape = tuple(size if isinstance(size, int) else -1 for size in self.shape)
        return TensorSpec(name=self.name, datatype=DATATYPE_OF_NUMPY[self.dtype], shape=shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalFile:
    """A file of weights beside the model."""

    location: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInspection:
    """Everything that is known of a model file after its first, quarantined load."""

    file_name: str
    format: str
    """``onnx`` or ``tflite``: the engine that runs it."""
    sha256: str
    """Of the file itself, in hex; external data has its own."""
    size_bytes: int
    """The file and its external data."""
    ir: int
    opsets: Mapping[str, int]
    """Domain -> version; ``ai.onnx`` for the default domain. Empty for TFLite."""
    producer: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: int
    """In all graphs, subgraphs included."""
    operators: Mapping[str, int]
    """Operator (with its domain where that is not ai.onnx) -> how often, most frequent first."""
    parameters: int
    """Numbers stored in weights."""
    weight_bytes: int
    subgraphs: int
    """Bodies of If, Loop and Scan; beside the main one of TFLite."""
    quantized_operators: int
    external_files: tuple[ExternalFile, ...]
    metadata: Mapping[str, str]
    probe: str
    """Begins with ``ran`` if one inference on zeros worked, else says why not: some models cannot."""
    stateful: bool = False
    """The engine keeps variables of the model from one inference to the next (TFLite alone does)."""

    @property
    def opset(self) -> int:
        """Version of the default domain; 0 if the model imports none."""
        return self.opsets.get("ai.onnx", 0)


def inspect_model(path: Path | str, limits: QuarantineLimits = DEFAULT_QUARANTINE) -> ModelInspection:
    """Load `path` for the first time, in a child with limits, and say what it is.

    Raises:
        ModelError: no such file, no model, truncated, hostile, or it exceeds a limit; the message says which.
    """
    answer = run_quarantined(Path(path), limits)
    try:
        return msgspec.json.decode(answer, type=ModelInspection)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ModelError(
            f"{Path(path).name}: the loading process gave no valid answer ({error})",
            hint="The model may have corrupted its loader: do not use it.",
        ) from error
