"""From device profiles to the targets that variants are chosen for."""

from __future__ import annotations

from collections.abc import Sequence

from skerry_runtime.worker.bench_ops.describe import describe

from .costs import read_table
from .engine import ENGINE
from .latency import Estimator, Measurement, Peaks, is_here
from .profiles import DeviceProfile, load_profile, profile_names
from .results import Target


def target_of(
    profile: DeviceProfile,
    *,
    size_bytes: int = 0,
    ram_bytes: int = 0,
    latency_p95_us: int = 0,
    max_slowdown: float = 0.0,
    measurements: Sequence[Measurement] = (),
) -> Target:
    """A profile's limits, and what is known of latencies there.

    Args:
        size_bytes, ram_bytes, latency_p95_us: replace the profile's; 0 leaves them. What this host measures
            of RAM is a prediction for a device, hence the profile's safety factor on it.
        max_slowdown: see `skerry_packager.results.Target`.
        measurements: timings from devices, of this profile and others.

    Raises:
        InputError, ConfigError: the profile's operator table cannot be read.
    """
    engines = {engine.name: engine.version for engine in profile.engines}
    onnx = next((engine for engine in profile.engines if engine.name == "onnxruntime"), None)
    return Target(
        name=profile.name,
        size_bytes=size_bytes or profile.size_bytes,
        ram_bytes=ram_bytes or profile.predicted_ram_bytes,
        latency_p95_us=latency_p95_us or profile.latency_p95_us,
        max_ir=int(onnx.max_ir.value) if onnx and onnx.max_ir else 0,
        max_opset=int(onnx.max_opset.value) if onnx and onnx.max_opset else 0,
        arch=profile.arch,
        isa=tuple(profile.facts["cpu.isa"].value),
        engines=engines,
        flash_bytes=profile.flash_bytes,
        max_slowdown=max_slowdown,
        estimate=estimator(profile, measurements),
    )


def known_targets() -> tuple[Target, ...]:
    """The profiles that come with Skerry: where a model that fits nowhere else may fit."""
    return tuple(target_of(load_profile(name)) for name in profile_names())


def estimator(profile: DeviceProfile, measurements: Sequence[Measurement] = ()) -> Estimator:
    """What is known of latencies on a profile. Raises as `target_of`."""
    table = read_table(profile.operators) if profile.operators else None
    return Estimator(
        profile=profile.name,
        engines={engine.name: engine.version for engine in profile.engines},
        measurements=measurements,
        table=table,
        peaks=peaks(profile),
        here=table is not None and is_here(table, describe(), ENGINE.version),
    )


def peaks(profile: DeviceProfile) -> Peaks | None:
    """The profile's ``[speed]``."""
    if "speed.fp32_gflops" not in profile.facts:
        return None
    names = ("fp32_gflops", "int8_gops", "memory_gb_s", "node_us")
    numbers = {name: profile.number(f"speed.{name}") for name in names}
    fp16 = profile.number("speed.fp16_gflops") if "speed.fp16_gflops" in profile.facts else 0.0
    return Peaks(**numbers, fp16_gflops=fp16)
