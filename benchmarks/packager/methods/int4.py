"""onnxruntime's weight-only int4 for MatMul, with its defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..prepared import Prepared


def make(prepared: Prepared, out: Path) -> dict[str, Any]:
    """Raises what onnxruntime raises."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(prepared.model))
    quantizer.process()
    quantizer.model.save_model_to_file(str(out / "model.onnx"), False)
    return {}
