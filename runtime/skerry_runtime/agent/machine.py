"""What this machine has, read from the kernel and the installed packages without importing any engine."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from skerry_contract.messages import EngineInfo, Hardware

_CPUINFO: Final = Path("/proc/cpuinfo")
_FLAGS: Final[Mapping[str, frozenset[str]]] = {
    "neon": frozenset({"neon", "asimd"}),
    "dotprod": frozenset({"asimddp"}),
    "fp16": frozenset({"asimdhp"}),
    "i8mm": frozenset({"i8mm"}),
    "avx2": frozenset({"avx2"}),
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
}
"""Names of instruction sets in device profiles, and the kernel's flags for them."""
_PACKAGES: Final = {"onnxruntime": "onnx", "ai-edge-litert": "tflite", "tflite-runtime": "tflite"}
"""Library -> engine; of two for one engine the worker prefers the first."""


def hardware(device_class: str) -> Hardware:
    """This machine."""
    return Hardware(
        arch=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        isa=instruction_sets(_cpu_flags()),
        device_class=device_class,
    )


def instruction_sets(flags: Iterable[str]) -> tuple[str, ...]:
    """The profile names of the kernel's CPU flags.

    >>> instruction_sets(["fp", "asimd", "asimddp"])
    ('dotprod', 'neon')
    """
    have = set(flags)
    return tuple(sorted(name for name, aliases in _FLAGS.items() if have & aliases))


def engines() -> tuple[EngineInfo, ...]:
    """The inference engines that are installed, each by the library that a worker takes."""
    found: dict[str, str] = {}
    for package, name in _PACKAGES.items():
        if name not in found and (version := version_of(package)):
            found[name] = version
    return tuple(EngineInfo(name=name, version=version) for name, version in found.items())


@cache
def agent_version() -> str:
    """Of this software."""
    return version_of("skerry") or "0+source"


def version_of(package: str) -> str:
    """Version of an installed package, or nothing.

    From the names of the metadata folders (``NAME-VERSION.dist-info``, PEP 376, PEP 491), because
    importlib.metadata costs the agent 5 MB for the same answer.
    """
    prefix = package.replace("-", "_") + "-"
    for folder in sys.path:
        with contextlib.suppress(OSError):
            for entry in os.listdir(folder or "."):
                if entry.endswith(".dist-info") and entry.lower().startswith(prefix):
                    return entry[len(prefix) : -len(".dist-info")]
    return ""


def _cpu_flags() -> set[str]:
    """Flags that every core has."""
    try:
        text = _CPUINFO.read_text()
    except OSError:
        return set()
    cores = [
        set(line.partition(":")[2].split())
        for line in text.splitlines()
        if line.split(":")[0].strip() in ("flags", "Features")
    ]
    return set.intersection(*cores) if cores else set()
