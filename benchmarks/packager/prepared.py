"""A model with its data on disk, as every process of the benchmark reads it: needs numpy and nothing else.

A folder holds ``model.onnx`` or ``model.tflite`` (external data beside it), ``data.npz``, ``prepared.json``.
A *row* of the data is one complete set of inputs, batch axis included; of a sequence model it is ``[steps,
*one set]``. Of the three splits, methods may see ``calibration``, ours also ``evaluation``, nobody ``test``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np

SPLITS: Final = ("calibration", "evaluation", "test")
LABELS: Final = "#labels"

Rows = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a prepared model beside its bytes and data."""

    name: str
    group: str
    """``named``: the design names it; ``other``: it does not; ``kept``: quantized already, and the right
    answer is the model unharmed."""
    engine: str
    """``onnx`` or ``tflite``."""
    metric: str
    """One of `benchmarks.packager.metrics.METRICS`."""
    output: str
    """Name of the output that the metric reads; empty for all of them."""
    sequences: bool
    """Whether a row is a sequence of steps with memory between them."""
    states: Mapping[str, str]
    """Output -> input at the next step, zeros at first; empty if the engine keeps the memory."""
    note: str
    source: str
    """Digest over everything that the folder was made from."""

    @property
    def file(self) -> str:
        return f"model.{self.engine}"


@dataclass(frozen=True, slots=True)
class Prepared:
    folder: Path
    facts: Facts

    @property
    def model(self) -> Path:
        return self.folder / self.facts.file

    def rows(self, split: str) -> dict[str, np.ndarray]:
        """Input name -> rows."""
        with np.load(self.folder / "data.npz", allow_pickle=False) as stored:
            prefix = f"{split}/"
            return {
                key.removeprefix(prefix): stored[key]
                for key in stored.files
                if key.startswith(prefix) and not key.endswith(LABELS)
            }

    def labels(self, split: str) -> np.ndarray | None:
        with np.load(self.folder / "data.npz", allow_pickle=False) as stored:
            key = f"{split}/{LABELS}"
            return stored[key] if key in stored.files else None


def read_prepared(folder: Path) -> Prepared:
    """Raises OSError, ValueError or TypeError if the folder is not what `write_prepared` writes."""
    return Prepared(folder, Facts(**json.loads((folder / "prepared.json").read_text())))


def write_prepared(
    folder: Path, facts: Facts, rows: Mapping[str, Rows], labels: Mapping[str, np.ndarray | None]
) -> None:
    """Store data and facts; the facts come last, so a folder with facts is complete."""
    arrays = {f"{split}/{name}": array for split in SPLITS for name, array in rows[split].items()}
    arrays |= {f"{split}/{LABELS}": array for split in SPLITS if (array := labels[split]) is not None}
    with (folder / "data.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    (folder / "prepared.json").write_text(json.dumps(asdict(facts), indent=1, sort_keys=True) + "\n")


def file_bytes(folder: Path) -> int:
    """Size of a model with whatever lies beside it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
