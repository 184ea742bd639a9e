"""Runs models in the TFLite engine of whatever environment this is started in; a program, not a test.

    python tflite_runs.py RESULT.npz MODEL...

Each model gets three inferences on seeded numbers, a reset, and the first one again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from skerry_runtime.worker.engines import DTYPES, Session, import_engine


def feed(session: Session, seed: int) -> dict[str, np.ndarray]:
    """Numbers that suit images (0 to 1) or fill int8."""
    rng = np.random.default_rng(seed)
    found = {}
    for port in session.inputs:
        shape = [1 if size < 0 else size for size in port.shape]
        dtype = DTYPES[port.datatype]
        numbers = rng.random(shape) if dtype.kind == "f" else rng.integers(-128, 128, shape)
        found[port.name] = numbers.astype(dtype)
    return found


def main(result: str, *models: str) -> None:
    engine = import_engine("tflite")
    arrays = {"library": np.array(f"{getattr(engine, 'library', '')} {engine.version}")}
    for model in models:
        session = engine.load(Path(model).read_bytes())
        for step, seed in enumerate((0, 1, 2, 0)):
            if step == 3:
                session.reset()
            for name, array in session.run(feed(session, seed)).items():
                arrays[f"{Path(model).name}/{step}/{name}"] = array
    np.savez(result, **arrays)  # type: ignore[arg-type] # numpy's stub mistakes them for allow_pickle


if __name__ == "__main__":
    main(*sys.argv[1:])
