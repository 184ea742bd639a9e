"""NNCF's post-training quantization of ONNX models, with its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..prepared import Prepared
from .ort import calibration_feeds


def make(prepared: Prepared, out: Path) -> dict[str, Any]:
    """Raises what NNCF raises."""
    import nncf
    import onnx

    feeds = [dict(feed) for feed in calibration_feeds(prepared)]
    made = nncf.quantize(onnx.load(prepared.model), nncf.Dataset(feeds), subset_size=len(feeds))
    onnx.save(made, out / "model.onnx")
    return {}
