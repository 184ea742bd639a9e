"""How a model of the benchmark is made: its file, and rows of data with labels, the same on every machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
MODELS = ROOT / ".models"
"""Unpacked packages of ``tests/models.lock``."""
MORE_MODELS = ROOT / ".envs" / "bench-models"
"""Unpacked packages of ``benchmarks/packager/models.lock``."""


@dataclass(frozen=True, slots=True)
class Data:
    """All rows of a model, before they are split."""

    inputs: Mapping[str, np.ndarray]
    """Input name -> ``[rows, *shape with batch axis]``, of a sequence model ``[rows, steps, *shape]``."""
    labels: np.ndarray | None = None


Make = Callable[[Path], Data]
"""Writes ``model.onnx`` or ``model.tflite`` into the folder and returns the rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    name: str
    metric: str
    make: Make
    output: str = ""
    engine: str = "onnx"
    group: str = "named"
    rows: tuple[int, int, int] = (64, 200, 200)
    """Calibration, evaluation, test."""
    sequences: bool = False
    states: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def packaged(path: str, root: Path = MODELS) -> Path:
    """A file of a package that carries a model. Raises FileNotFoundError with what to do."""
    found = root / path
    if not found.is_file():
        raise FileNotFoundError(f"{found} is missing: 'make bench-packager' fetches it")
    return found


def copy_model(path: str, folder: Path, root: Path = MODELS) -> Path:
    source = packaged(path, root)
    target = folder / f"model{source.suffix}"
    target.write_bytes(source.read_bytes())
    return target
