"""Real models inside packages, unpacked by ``.ci/bootstrap models``; the list is ``tests/models.lock``."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / ".models"


def real_model(path: str) -> Path:
    """A file of one of the packages, such as ``magika/magika/models/standard_v3_3/model.onnx``.

    Fails, and never skips: a test that needs a real model says nothing without it.
    """
    found = MODELS / path
    if not found.is_file():
        pytest.fail(f".models/{path} is missing: run '.ci/bootstrap models' (make test does)")
    return found
