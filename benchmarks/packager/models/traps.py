"""Forms in which models arrive and trip tools: already quantized, and with operators of onnxruntime's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .convnet import make_digits_convnet
from .recipe import Data
from .writing import make_orientation


def make_quantized_convnet(folder: Path) -> Data:
    """The digits network as onnxruntime's static quantization leaves it, per channel."""
    import os

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    data = make_digits_convnet(folder)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(data.inputs["image"][:64])

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {"image": row}

    quantized = folder / "quantized.onnx"
    quantize_static(
        folder / "model.onnx", quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True
    )
    os.replace(quantized, folder / "model.onnx")
    return data


def make_fused_orientation(folder: Path) -> Data:
    """PP-OCR's classifier after onnxruntime's own optimizer: fused operators of the domain com.microsoft."""
    import onnxruntime

    data = make_orientation(folder)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "fused.onnx")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    (folder / "fused.onnx").replace(folder / "model.onnx")
    return data
