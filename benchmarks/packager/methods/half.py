"""fp16 by the converters that people use, and by the search of one of them for what must stay fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..prepared import Prepared
from .ort import calibration_feeds


def make(prepared: Prepared, out: Path, variant: str) -> dict[str, Any]:
    """``common``, ``transformers`` or ``auto``. Raises what the converter raises."""
    import onnx

    model = onnx.load(prepared.model)
    if variant == "common":
        from onnxconverter_common import float16

        made = float16.convert_float_to_float16(model, keep_io_types=True)
    elif variant == "transformers":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        made = convert_float_to_float16(model, keep_io_types=True)
    else:
        from onnxconverter_common import auto_mixed_precision

        made = auto_mixed_precision.auto_convert_mixed_precision(
            model, dict(calibration_feeds(prepared)[0]), rtol=0.01, atol=0.001, keep_io_types=True
        )
    onnx.save(made, out / "model.onnx")
    return {"dtype": str(np.dtype(np.float16))}
