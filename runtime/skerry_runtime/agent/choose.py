"""Which variant of a bundle this device runs, and why. Pure.

The order is the packager's: variants selected for the device's class first, best first, then the others as
listed. The first that the device can run is taken; if there is none, the error says what each one lacks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from skerry_contract.errors import IncompatibleError
from skerry_contract.limits import MIB
from skerry_contract.manifest import Manifest, Variant
from skerry_contract.messages import EngineInfo, Hardware

_ARCHITECTURES = {"arm64": "aarch64", "amd64": "x86_64"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    variant: Variant
    reason: str
    """A sentence for people."""


def choose_variant(
    manifest: Manifest, hardware: Hardware, engines: Sequence[EngineInfo], *, ram_budget_bytes: int = 0
) -> Choice:
    """The best variant that runs here.

    Args:
        ram_budget_bytes: the device's own limit for a model's process; 0 takes the machine's whole memory.

    Raises:
        IncompatibleError: none does; the message names what is missing for each.
    """
    if manifest.device_classes and hardware.device_class not in manifest.device_classes:
        raise IncompatibleError(
            f"{manifest.name} {manifest.version} is for {', '.join(manifest.device_classes)},"
            f" and this device is {hardware.device_class or 'of no class'}",
            hint="Set device_class in the device's configuration, or pack the model for its class.",
        )
    obstacles: list[str] = []
    for variant in _in_order(manifest, hardware.device_class):
        lacking = _lacking(variant, hardware, engines, ram_budget_bytes)
        if not lacking:
            return Choice(variant=variant, reason=_reason(variant, hardware, obstacles))
        obstacles.append(f"{variant.id} needs {' and '.join(lacking)}")
    raise IncompatibleError(
        f"no variant of {manifest.name} {manifest.version} runs here: {'; '.join(obstacles)}",
        hint="Install the engine, raise the RAM budget, or pack a variant for this device.",
    )


def _in_order(manifest: Manifest, device_class: str) -> list[Variant]:
    chosen = [variant for variant in manifest.variants if device_class and device_class in variant.profiles]
    return chosen + [variant for variant in manifest.variants if variant not in chosen]


def _lacking(
    variant: Variant, hardware: Hardware, engines: Sequence[EngineInfo], ram_budget_bytes: int
) -> list[str]:
    """What the device does not have, in words."""
    needs, lacking = variant.requires, []
    versions = [engine.version for engine in engines if engine.name == variant.engine]
    if not versions:
        lacking.append(f"the engine {variant.engine}, which is not installed")
    elif needs.min_engine and not any(_at_least(version, needs.min_engine) for version in versions):
        lacking.append(f"{variant.engine} {needs.min_engine} (here: {', '.join(versions)})")
    arch = _architecture(hardware.arch)
    if needs.architectures and arch not in map(_architecture, needs.architectures):
        lacking.append(f"a processor {' or '.join(needs.architectures)} (here: {arch})")
    if missing := sorted(set(needs.isa) - set(hardware.isa)):
        lacking.append(f"the instructions {', '.join(missing)}")
    ram = min(filter(None, (hardware.ram_bytes, ram_budget_bytes)), default=0)
    if ram and needs.ram_bytes > ram:
        lacking.append(f"{needs.ram_bytes / MIB:.0f} MiB of memory (here: {ram / MIB:.0f})")
    return lacking


def _reason(variant: Variant, hardware: Hardware, obstacles: Sequence[str]) -> str:
    if hardware.device_class and hardware.device_class in variant.profiles:
        why = f"best variant for the class {hardware.device_class} that runs here"
    else:
        why = "first variant of the bundle that runs here"
    passed_over = f"; passed over: {'; '.join(obstacles)}" if obstacles else ""
    return f"{variant.id} ({variant.engine}): {why}{passed_over}"


def _architecture(name: str) -> str:
    return _ARCHITECTURES.get(name.lower(), name.lower())


def _at_least(version: str, wanted: str) -> bool:
    """Dotted numbers; what follows the first other character of a part counts nothing."""
    return _numbers(version) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(found.group()) if (found := re.match(r"\d+", part)) else 0 for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
