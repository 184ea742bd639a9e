"""The process in which `quantizer` lets the LiteRT quantizer run: it may crash, and prints as it likes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def main(request: dict[str, Any]) -> None:
    """Quantize ``model.tflite`` in ``request["folder"]`` to ``quantized.tflite``."""
    from litert_quantizer import Quantizer, recipe
    from litert_quantizer.algorithm_manager import AlgorithmName
    from litert_quantizer.qtyping import TFLOperationName

    from .quantizer import SIGNATURE

    folder = Path(request["folder"])
    quantizer = Quantizer((folder / "model.tflite").read_bytes())
    result = None
    if request["mode"] == "dynamic":
        quantizer.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    else:
        quantizer.load_quantization_recipe(recipe.static_wi8_ai8())
        for edge in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):
            quantizer.update_quantization_recipe(
                regex=".*", operation_name=edge, algorithm_key=AlgorithmName.NO_QUANTIZE
            )
        feeds = [_feed(path, request["names"]) for path in sorted(folder.glob("feed*.npz"))]
        result = quantizer.calibrate({SIGNATURE: feeds}, num_threads=1)
    quantized = quantizer.quantize(result, enable_progress_bar=False, enable_progress_report=False)
    (folder / "quantized.tflite").write_bytes(quantized.quantized_model)


def _feed(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[f"input{place}"] for place, name in enumerate(names)}
