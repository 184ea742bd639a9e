"""The methods of the benchmark: what runs, in which environment, for which models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Method:
    """``module[:variant]`` of this folder, and the environment under ``.envs`` that it runs in."""

    name: str
    child: str
    environment: str
    engines: tuple[str, ...]
    title: str


_ONNX: Final = ("onnx",)
_TFLITE: Final = ("tflite",)

METHODS: Final = (
    Method("ours", "ours", "", ("onnx", "tflite"), "skerry pack"),
    Method("ort-dynamic", "ort:dynamic", "bench-ort-tools", _ONNX, "onnxruntime quantize_dynamic"),
    Method("ort-static", "ort:static", "bench-ort-tools", _ONNX, "onnxruntime quantize_static"),
    Method(
        "ort-static-channel",
        "ort:static-channel",
        "bench-ort-tools",
        _ONNX,
        "the same per channel, its bugs worked around",
    ),
    Method("fp16-common", "half:common", "bench-ort-tools", _ONNX, "onnxconverter-common float16"),
    Method(
        "fp16-transformers", "half:transformers", "bench-ort-tools", _ONNX, "onnxruntime.transformers float16"
    ),
    Method("fp16-auto", "half:auto", "bench-ort-tools", _ONNX, "onnxconverter-common auto_mixed_precision"),
    Method("int4", "int4", "bench-ort-tools", _ONNX, "onnxruntime MatMulNBits"),
    Method("nncf", "nncf", "bench-nncf", _ONNX, "NNCF quantize"),
    Method("litert-dynamic", "litert:dynamic", "bench-litert", _TFLITE, "LiteRT quantizer, dynamic range"),
    Method("litert-static", "litert:static", "bench-litert", _TFLITE, "LiteRT quantizer, static int8"),
)

RUNTIMES: Final = {
    "onnx": ("bench-ort-tools", "bench-ort-1.23", "bench-ort-1.28"),
    "tflite": ("bench-litert",),
}
"""Environments that load each made model; the first one judges it, the others must be able to run it."""
