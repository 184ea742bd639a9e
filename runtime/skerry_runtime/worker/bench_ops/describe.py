"""What this machine is, as far as it bears on timings and on whether a model fits. Reads the kernel alone."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import StorageError
from skerry_contract.limits import KIB

from ...agent import machine

_CPU: Final = Path("/sys/devices/system/cpu")
_MODEL_FILES: Final = (Path("/proc/device-tree/model"), Path("/sys/class/dmi/id/product_name"))
LIBRARIES: Final = ("onnxruntime", "ai-edge-litert", "tflite-runtime")
"""Inference libraries, as device profiles name them."""
_STEADY: Final = ("performance", "")
"""Frequency governors that keep the clock; nothing where the kernel does not steer it."""


def describe(store: Path = Path("/")) -> dict[str, Any]:
    """This machine. `store` is where models are kept: its file system is the flash that counts.

    Raises:
        StorageError: `store` cannot be looked at.
    """
    try:
        flash = shutil.disk_usage(store)
    except OSError as error:
        raise StorageError(f"{store} cannot be looked at: {error.strerror}") from error
    hardware = machine.hardware("")
    libc, libc_version = platform.libc_ver()
    memory = _fields(Path("/proc/meminfo"))
    return {
        "title": _title(),
        "arch": hardware.arch,
        "cpu": _cpu_name(),
        "cores": hardware.cores,
        "isa": list(hardware.isa),
        "ram_total_bytes": hardware.ram_bytes,
        "ram_available_bytes": int(memory.get("MemAvailable", "0").split()[0]) * KIB,
        "flash_total_bytes": flash.total,
        "flash_free_bytes": flash.free,
        "libc": libc,
        "libc_version": libc_version,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "packages": _packages(),
        "governor": (governor := _text(_CPU / "cpu0/cpufreq/scaling_governor")),
        "notes": list(_notes(governor)),
    }


def _notes(governor: str) -> list[str]:
    """What may have disturbed the timings."""
    notes = []
    if governor not in _STEADY:
        notes.append(f"the frequency governor is {governor!r}: short loads may have run below full speed")
    now, most = (_text(_CPU / f"cpu0/cpufreq/{name}") for name in ("scaling_cur_freq", "cpuinfo_max_freq"))
    if now.isdecimal() and most.isdecimal() and int(now) < 0.8 * int(most):
        notes.append(f"the processor ran at {int(now) // 1000} of {int(most) // 1000} MHz afterwards")
    counts = (_text(path) for path in _CPU.glob("cpu*/thermal_throttle/core_throttle_count"))
    if throttled := sum(int(count) for count in counts if count.isdecimal()):
        notes.append(f"the processor was throttled by heat {throttled} times since it was started")
    with contextlib.suppress(OSError):
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > cores + 0.5:
            notes.append(f"the load was {load:.1f} on {cores} cores: other programs took part of the time")
    return notes


def _packages() -> dict[str, str]:
    """Inference libraries and their versions."""
    return {name: version for name in LIBRARIES if (version := machine.version_of(name))}


def _title() -> str:
    return next((text for path in _MODEL_FILES if (text := _text(path))), "") or platform.node()


def _cpu_name() -> str:
    fields = _fields(Path("/proc/cpuinfo"))
    for key in ("model name", "Model", "Hardware"):
        if fields.get(key):
            return fields[key]
    part = fields.get("CPU part", "")
    return f"{platform.machine()} CPU part {part}" if part else platform.machine()


def _fields(path: Path) -> dict[str, str]:
    """``key: value`` lines of a file of /proc, the first of each key."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
