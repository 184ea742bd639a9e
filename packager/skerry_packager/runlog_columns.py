"""The tables of the log of packaging runs: every column with its type and its meaning, in one place.

``docs/experiment-tracking.md`` lists the same columns; a test compares the two. A column is only ever added:
a log of an older schema keeps its rows, with NULL where it knew nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

SCHEMA: Final = 3
"""``PRAGMA user_version`` of the file."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    kind: type
    """``int``, ``float`` or ``str``."""
    about: str
    json: bool = False
    """Whether the text is JSON."""


def _json(about: str) -> Column:
    return Column(str, about, json=True)


RUNS: Final[Mapping[str, Column]] = {
    "id": Column(int, "number of the run"),
    "started": Column(str, "ISO 8601, UTC"),
    "seconds": Column(float, "how long it took"),
    "outcome": Column(str, "packed or failed"),
    "error_code": Column(str, "stable code of the error that ended it"),
    "error": Column(str, "what was wrong"),
    "error_hint": Column(str, "what to do about it"),
    "name": Column(str, "model name"),
    "version": Column(str, "semantic version"),
    "release": Column(int, "release counter"),
    "source_file": Column(str, "path of the model as it was given"),
    "source_digest": Column(str, "sha256 of that file"),
    "source_format": Column(str, "onnx or tflite"),
    "source_bytes": Column(int, "size of that file"),
    "objective": Column(str, "what was minimized: size, latency or ram"),
    "task": Column(str, "what the model does, as told or found"),
    "metric": Column(str, "what judged the variants"),
    "labelled": Column(int, "1 if labels were found"),
    "max_drop": Column(float, "largest accepted upper bound of the loss"),
    "profiles": _json("names of the device profiles"),
    "targets": _json(
        "profile -> its limits: size, flash, RAM in bytes, latency in µs, architecture, engines"
    ),
    "choices": _json("profile -> variants chosen, best first, and its Pareto set"),
    "chosen": _json("variants in the bundle, best first"),
    "options": _json("options of the command that change the outcome"),
    "command": _json("the command line, argument by argument, without its password"),
    "bundle": Column(str, "path of the bundle"),
    "bundle_digest": Column(str, "digest of its manifest"),
    "bundle_bytes": Column(int, "size of the bundle"),
    "notes": _json("what a person should know"),
    "splits": _json("split -> rows and sha256"),
    "golden_rows": _json("rows of the evaluation data that became golden samples"),
    "preprocessing": _json("what was done to the raw data before the model saw it"),
    "states": _json("output -> input of a stateful model"),
    "lineage": _json("where the model comes from: told, imported and seen"),
    "environment": _json("versions that packed it"),
}
"""One row for each call of ``skerry pack``."""

VARIANTS: Final[Mapping[str, Column]] = {
    "run": Column(int, "number of the run"),
    "position": Column(int, "order in which it was tried; fp32 is 0"),
    "name": Column(str, "variant"),
    "verdict": Column(str, "ok, skipped, crash, nan, shape, accuracy or slow"),
    "chosen": Column(int, "1 if it is the best of a profile"),
    "chosen_for": _json("profiles that it is the best of"),
    "fallback_for": _json("profiles that it stands behind the best of"),
    "pareto_for": _json("profiles in whose Pareto set it is"),
    "reason": Column(str, "the verdict as a sentence"),
    "lost": _json("profile -> why it was not chosen"),
    "digest": Column(str, "sha256 of the model file"),
    "size": Column(int, "bytes of the model file"),
    "size_ratio": Column(float, "size over that of fp32"),
    "ir": Column(int, "ONNX IR version"),
    "opset": Column(int, "ai.onnx opset"),
    "metric": Column(str, "what judged it"),
    "output": Column(str, "the output that loses most, which the figures are about"),
    "samples": Column(int, "rows of the search split"),
    "reference": Column(float, "fp32's figure on the search split"),
    "score": Column(float, "the variant's figure there"),
    "drop": Column(float, "its mean loss there"),
    "drop_bound": Column(float, "upper 95% bound of that loss"),
    "exact_bound": Column(float, "exact 95% bound of disagreement, where no row disagrees"),
    "mean_kl": Column(float, "mean Kullback-Leibler divergence from fp32, nats"),
    "sqnr_db": Column(float, "signal to quantization noise, dB"),
    "max_abs_error": Column(float, "largest difference of any output"),
    "held_out_samples": Column(int, "rows of the held-out split"),
    "held_out_reference": Column(float, "fp32's figure on the held-out split"),
    "held_out_score": Column(float, "the variant's figure there"),
    "held_out_drop": Column(float, "its mean loss there"),
    "held_out_bound": Column(float, "upper 95% bound of that loss"),
    "held_out_exact_bound": Column(float, "as exact_bound, on the held-out split"),
    "latency_p50_us": Column(float, "median latency on the packing host, µs"),
    "latency_p95_us": Column(float, "95th percentile there, µs"),
    "latency_ratio": Column(float, "median of the paired ratios to fp32 there"),
    "latency_best_ratio": Column(float, "fastest run of the variant over the fastest of fp32"),
    "latency_pairs": Column(int, "how many pairs"),
    "estimates": _json("profile -> latency there: p50, low, high in µs, and provenance"),
    "slowdowns": _json("profile -> latency there as a multiple of fp32's, where it is known"),
    "ram_bytes": Column(int, "peak memory: measured if it was, else predicted"),
    "ram_predicted_bytes": Column(int, "lower bound from the graph"),
    "ram_upper_bytes": Column(int, "upper bound from the graph"),
    "ram_measured_bytes": Column(int, "peak of a fresh process on the packing host"),
    "load_ms": Column(float, "time to load the model there"),
    "sensitivity": _json("of a mixed-precision variant: node, operator, bytes saved, noise, kept in float"),
    "recipe": _json("how it was made"),
    "note": Column(str, "a remark of its maker"),
}
"""One row for each variant of a run."""
