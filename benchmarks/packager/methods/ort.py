"""onnxruntime's own quantizers with their documented defaults, after its own preparation where that works."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..prepared import Prepared
from ..sessions import Feed, first_feeds, open_runner

_CALIBRATION = 64


def _prepare(model: Path, out: Path) -> tuple[Path, str]:
    """`quant_pre_process`, without symbolic shapes where it raises; else the source itself."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready, failed = out.parent / f"{out.name}-prepared.onnx", ""
    for skip in (False, True):
        try:
            quant_pre_process(str(model), str(ready), skip_symbolic_shape=skip)
        except Exception as error:  # noqa: BLE001 - the tool's own failure is noted, and the source taken
            failed = f"quant_pre_process: {type(error).__name__}: {error}"
        else:
            return ready, "prepared without symbolic shapes" if skip else "prepared"
    return model, failed


def _reader(feeds: list[Feed]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feed] = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self._feeds, None)
            return None if feed is None else dict(feed)

    return Reader()


def calibration_feeds(prepared: Prepared) -> list[Feed]:
    facts = prepared.facts
    runner = open_runner(prepared.model)
    return first_feeds(runner, prepared.rows("calibration"), facts.sequences, facts.states, _CALIBRATION)


def make(prepared: Prepared, out: Path, variant: str) -> dict[str, Any]:
    """``dynamic``, ``static`` or ``static-channel``. Raises what onnxruntime raises."""
    from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static

    source, note = _prepare(prepared.model, out)
    target = out / "model.onnx"
    if variant == "dynamic":
        quantize_dynamic(source, target)
    elif variant == "static":
        quantize_static(source, target, _reader(calibration_feeds(prepared)))
    else:
        # With its known failures avoided: opset 13, and the option without which Gemm raises.
        raised = _raise_opset(source, out)
        quantize_static(
            raised,
            target,
            _reader(calibration_feeds(prepared)),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
        )
    return {"note": note}


def _raise_opset(model: Path, out: Path) -> Path:
    import onnx

    loaded = onnx.load(model)
    opset = next(item.version for item in loaded.opset_import if item.domain in ("", "ai.onnx"))
    if opset >= 13:
        return model
    raised = out.parent / f"{out.name}-raised.onnx"
    onnx.save(onnx.version_converter.convert_version(loaded, 17), raised)
    return raised
