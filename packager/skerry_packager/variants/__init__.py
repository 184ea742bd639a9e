"""Generators of variants: each turns a normalized model into a candidate, or says why it cannot."""

from __future__ import annotations

from .. import engine as engine  # before onnxruntime.quantization imports the library with its telemetry on
