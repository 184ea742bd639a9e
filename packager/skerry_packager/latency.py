"""How long a variant takes on a device that is not here, and how that is known.

In this order: what was *measured* there; what a table of operator timings from such a device *predicts*; what
the profile's peak figures suggest, which is *not verified* by anything. Each comes as an interval. This
host's own timing stands for a device only where the profile describes this very machine and engine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ConfigError, InputError
from skerry_contract.limits import MIB
from skerry_runtime.worker.bench_ops.describe import LIBRARIES
from skerry_runtime.worker.bench_ops.work import Work

from .costs import OperatorTable
from .requirements import is_tflite
from .results import Estimate, VariantResult

MEASUREMENTS_SCHEMA: Final = "skerry-measurements/1"
_MAX_BYTES: Final = 16 * MIB
_ENTRY: Final = frozenset(("digest", "profile", "engine", "version", "p50_us", "p95_us", "source"))
_MODEL_SPREAD: Final = 0.3
"""What the sum of operators misses of a whole model, in log units: kernels of unusual shapes, caches. Root
mean square over twelve real models and int8 forms on x86_64: 0.29 (0.54 to 1.20 times the measured)."""
_Z: Final = 1.645
"""Standard deviations to either side: 90%."""
_UNKNOWN_SHARE: Final = 0.5
"""With more of the time in operators that the table does not know, it predicts nothing."""
_PEAK_FACTOR: Final = 3.0
"""How far a figure from peak numbers may be off, to either side."""
_EFFICIENCY: Final = 0.4
"""Of the peak arithmetic that real layers reach on one core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """What one core of a device reaches at best, from its data sheet or by guess."""

    fp32_gflops: float
    int8_gops: float
    memory_gb_s: float
    node_us: float
    """Of an operator that has nothing to do."""
    fp16_gflops: float = 0.0
    """0 if it does not calculate in fp16: then it is as slow as fp32."""

    def us(self, work: Work) -> float:
        """Roofline (Williams et al., 2009): bound by arithmetic or by memory, whichever takes longer."""
        rate = {"int8": self.int8_gops, "fp16": self.fp16_gflops}.get(work.datatype, 0.0) or self.fp32_gflops
        arithmetic = work.flops / (rate * _EFFICIENCY * 1e3)
        return self.node_us + max(arithmetic, work.bytes / (self.memory_gb_s * 1e3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One model file, timed on a device."""

    digest: str
    profile: str
    engine: str
    """Inference library, as in profiles."""
    version: str
    p50_us: float
    p95_us: float
    source: str
    """Which device, and when: for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimator:
    """What is known of the latency on one profile: calling it estimates a variant."""

    profile: str
    engines: Mapping[str, str] = field(default_factory=dict)
    """Inference library -> version there."""
    measurements: Sequence[Measurement] = ()
    table: OperatorTable | None = None
    peaks: Peaks | None = None
    here: bool = False
    """Whether the profile describes this very machine, see `is_here`."""

    def __call__(self, variant: VariantResult) -> Estimate | None:
        return (
            self._measured(variant)
            or (from_host(variant) if self.here else None)
            or self._from_table(variant)
            or (from_peaks(variant.operations, self.peaks, self.profile) if self.peaks else None)
        )

    def _from_table(self, variant: VariantResult) -> Estimate | None:
        """Only of the engine that runs the variant: the kernels of another one tell nothing."""
        if self.table is None or is_tflite(variant.model) != (self.table.engine == "tflite"):
            return None
        return from_table(variant.operations, self.table)

    def _measured(self, variant: VariantResult) -> Estimate | None:
        for entry in self.measurements:
            installed = self.engines.get(entry.engine, entry.version)
            if (entry.digest, entry.profile, entry.version) == (variant.digest, self.profile, installed):
                return Estimate(
                    p50_us=entry.p50_us,
                    low_us=min(entry.p50_us, entry.p95_us),
                    high_us=entry.p95_us,
                    provenance=f"measured on {entry.source} with {entry.engine} {entry.version}",
                )
        return None


def from_host(variant: VariantResult) -> Estimate | None:
    """This host's own timing, where the profile describes this host."""
    if variant.latency is None:
        return None
    return Estimate(
        p50_us=variant.latency.p50_us,
        low_us=variant.latency.p50_us,
        high_us=variant.latency.p95_us,
        provenance="measured on this machine, which the profile describes",
    )


def from_table(operations: Sequence[Work], table: OperatorTable) -> Estimate | None:
    """The sum of a table's costs; None if nothing is known of the operators, or too little."""
    if not operations:
        return None
    cost = table.cost(operations)
    if cost.unknown > _UNKNOWN_SHARE:
        return None
    factor = math.exp(_Z * math.hypot(cost.spread, _MODEL_SPREAD))
    return _interval(
        cost.us,
        factor,
        f"predicted from operators timed on {table.machine['title']} with {table.engine} {table.version}",
    )


def from_peaks(operations: Sequence[Work], peaks: Peaks, profile: str) -> Estimate | None:
    """A rough figure from peak numbers."""
    if not operations:
        return None
    us = sum(peaks.us(work) for work in operations)
    return _interval(us, _PEAK_FACTOR, f"not verified: predicted from the peak figures of profile {profile}")


def _interval(us: float, factor: float, provenance: str) -> Estimate:
    return Estimate(
        p50_us=round(us, 1),
        low_us=round(us / factor, 1),
        high_us=round(us * factor, 1),
        provenance=provenance,
    )


def is_here(table: OperatorTable, machine: Mapping[str, Any], version: str) -> bool:
    """Whether a table is of this very machine and engine.

    Args:
        machine: as `skerry_runtime.worker.bench_ops.describe.describe` gives it, here.
        version: of the engine that variants are timed with here.
    """
    same = all(table.machine[key] == machine[key] for key in ("title", "arch", "cpu", "cores", "isa"))
    return same and table.version == version


def read_measurements(path: Path) -> tuple[Measurement, ...]:
    """Timings from devices, from a file that ``devices/README.md`` describes.

    Raises:
        InputError: it cannot be read.
        ConfigError: it is no such file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", hint="Give a file of measurements.") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: measurements have at most {_MAX_BYTES} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, "it is not JSON") from error
    if not isinstance(raw, dict) or set(raw) != {"schema", "measurements"}:
        raise _wrong(path, "it needs the keys schema and measurements, and no other")
    if raw["schema"] != MEASUREMENTS_SCHEMA or not isinstance(raw["measurements"], list):
        raise _wrong(path, f"its schema is not {MEASUREMENTS_SCHEMA!r}")
    return tuple(_measurement(item, path, number) for number, item in enumerate(raw["measurements"]))


def _measurement(item: Any, path: Path, number: int) -> Measurement:
    if not isinstance(item, dict) or set(item) != _ENTRY:
        raise _wrong(path, f"measurements[{number}] needs the keys {', '.join(sorted(_ENTRY))}, and no other")
    for key in ("p50_us", "p95_us"):
        value = item[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise _wrong(path, f"measurements[{number}].{key} is {str(value)[:40]!r}")
    for key in _ENTRY - {"p50_us", "p95_us"}:
        if not isinstance(item[key], str) or not item[key].strip():
            raise _wrong(path, f"measurements[{number}].{key} is no text")
    if item["engine"] not in LIBRARIES:
        raise _wrong(path, f"measurements[{number}].engine is none of {', '.join(LIBRARIES)}")
    return Measurement(**item)


def _wrong(path: Path, why: str) -> ConfigError:
    return ConfigError(f"{path} holds no measurements: {why}", hint="devices/README.md describes the format.")
