"""The model formats that can be packed, behind one protocol: what differs between ONNX and TFLite is here."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from skerry_contract.errors import ModelError

from ..engine import Feed
from ..inspect import ModelInspection
from ..results import Target, VariantResult
from ..variants.candidate import Job, Outcome


@dataclass(frozen=True, slots=True)
class Prepared:
    """The one clean form that every variant is made from."""

    data: bytes
    """The ``fp32`` variant, byte for byte."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What the file of a variant says of itself; 0 where the format knows no such number."""

    ir: int
    opset: int


class ModelFormat(Protocol):
    """One format. Implementations keep no state."""

    engine: str
    """Its name in the manifest, and of the runtime's engine."""
    variant_names: Sequence[str]
    """What `generate` tries, in this order."""

    def prepare(
        self, path: Path, inspection: ModelInspection, samples: Sequence[Feed], targets: Sequence[Target]
    ) -> Prepared:
        """Load an approved file and normalize it. Raises `ModelError`."""

    def generate(self, job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        """(name, function that makes it) of each variant."""

    def mapped(self, parent: VariantResult) -> Outcome | None:
        """The low-memory form of a judged variant; None where the format has none."""

    def finish(self, data: bytes) -> bytes:
        """A variant as it is packed: the same answers in fewer bytes, without the names that reports need."""

    def facts(self, data: bytes) -> Facts:
        """Read them from a variant."""

    def memory_bounds(
        self, data: bytes, feed: Feed, sizes: Mapping[str, int] | None = None
    ) -> tuple[int, int]:
        """Lower and upper bound of the peak RAM in bytes, for inputs of the shapes in `feed`.

        Args:
            sizes: of values whose shape follows from data, see `skerry_packager.memory.Probe`.
        """


_MODULES: Final[Mapping[str, str]] = {"onnx": f"{__name__}.onnx", "tflite": f"{__name__}.tflite"}


def format_of(inspection: ModelInspection) -> ModelFormat:
    """The format of an inspected file.

    Raises:
        ModelError: it cannot be packed on this machine.
    """
    try:
        found: ModelFormat = importlib.import_module(_MODULES[inspection.format]).FORMAT
    except ImportError as error:
        raise ModelError(
            f"{inspection.format} models cannot be packed here: {error}",
            hint=f"pip install 'skerry[{inspection.format}]'",
        ) from error
    return found
