"""The LiteRT quantizer's recipes for TFLite models: dynamic range, and static with int8 activations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..prepared import Prepared

_CALIBRATION = 32


def make(prepared: Prepared, out: Path, variant: str) -> dict[str, Any]:
    """``dynamic`` or ``static``. Raises what the quantizer raises."""
    from litert_quantizer import Quantizer, recipe

    work = Quantizer(str(prepared.model))
    if variant == "dynamic":
        work.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        made = work.quantize()
    else:
        work.load_quantization_recipe(recipe.static_wi8_ai8())
        rows = prepared.rows("calibration")
        signature = _signature(prepared)
        feeds = [
            {signature[1].get(name, name): array[row] for name, array in rows.items()}
            for row in range(min(_CALIBRATION, len(next(iter(rows.values())))))
        ]
        made = work.quantize(work.calibrate({signature[0]: feeds}))
    made.export_model(str(out / "model.tflite"), overwrite=True)
    return {}


def _signature(prepared: Prepared) -> tuple[str, dict[str, str]]:
    """The name of the only signature, and tensor name -> its name there."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(prepared.model))
    interpreter.allocate_tensors()
    signatures = interpreter.get_signature_list()
    if not signatures:
        return "serving_default", {}
    key = next(iter(signatures))
    runner = interpreter.get_signature_runner(key)
    names = {details["name"]: name for name, details in runner.get_input_details().items()}
    return key, names
