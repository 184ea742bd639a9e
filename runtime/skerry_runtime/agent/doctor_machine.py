"""What ``skerry-runtime doctor`` looks at of the machine: processor, memory, swap, heat, clock."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from skerry_contract.errors import SkerryError
from skerry_contract.limits import KIB, MIB

from . import machine
from .choose import choose_variant
from .clock import BUILD_MS, KernelTimes, read_number
from .doctor import Check, Finding, Patient, fail, ok, output, warn
from .slots import Generation, ModelSlots, installed_models
from .store import Store

PROCESSES_BYTES: Final = 48 * MIB
"""What agent and zygote take beside the models' workers."""
HOT_CELSIUS: Final = 80.0
"""Where a Raspberry Pi begins to slow down."""
_LOW_MEMORY: Final = 32 * MIB
_THROTTLED: Final = {
    0: "under-voltage",
    1: "a capped frequency",
    2: "throttling",
    3: "the soft limit of heat",
}
"""Bits of ``vcgencmd get_throttled``; the same 16 higher for what happened since the boot."""


def processor(patient: Patient) -> Iterator[Finding]:
    """What it is, and that what is installed has what it needs: files, engine, instructions, memory."""
    hardware, engines = machine.hardware(patient.config.device_class), machine.engines()
    flags = (
        f"with {', '.join(hardware.isa)}" if hardware.isa else "without the instructions that variants use"
    )
    yield ok("processor", f"{hardware.arch}, {hardware.cores} cores, {flags}")
    for name, generation in _generations(patient.config.data_dir):
        if isinstance(generation, SkerryError):
            yield fail("processor", f"{name}: {generation.message}", generation.hint or "Install it again.")
            continue
        variant = generation.manifest.variant(generation.info.variant)
        alone = replace(generation.manifest, variants=(variant,), device_classes=())
        limit = patient.config.budgets.ram_bytes
        try:
            choose_variant(alone, hardware, engines, ram_budget_bytes=limit)
        except SkerryError as error:
            yield fail("processor", error.message, error.hint)
        else:
            flags = f" with {' '.join(variant.requires.isa)}" if variant.requires.isa else ""
            yield ok("processor", f"{name} {generation.manifest.version} ({variant.id}) runs here{flags}")


def memory(patient: Patient) -> Iterator[Finding]:
    limit = cgroup_limit(patient.root, str(patient.status["pid"]) if patient.status else "self")
    budget = patient.config.budgets.ram_bytes
    ram = _meminfo(patient.root)
    total, most = ram.get("MemTotal", 0), min(filter(None, (limit, ram.get("MemTotal", 0))), default=0)
    wanted = budget + PROCESSES_BYTES
    what = f"a cgroup limit of {limit / MIB:.0f} MiB" if limit and limit < total else "the machine's memory"
    if most and wanted > most:
        text = f"budgets.ram_mb and the runtime take up to {wanted / MIB:.0f} MiB, over {what}"
        yield fail("memory", text, "Lower budgets.ram_mb, or raise the limit (MemoryMax= of the unit).")
    elif not budget:
        yield warn(
            "memory", "budgets.ram_mb sets no limit for a model", "Set it, so that none fills the machine."
        )
    else:
        yield ok("memory", f"a model's {budget / MIB:.0f} MiB fit into {what}")
    if ram and ram.get("MemAvailable", 0) < _LOW_MEMORY:
        yield warn(
            "memory", f"{ram.get('MemAvailable', 0) / MIB:.0f} MiB are available", "End other programs."
        )


def swap(patient: Patient) -> Iterator[Finding]:
    lines = _read(patient.root / "proc/swaps").splitlines()[1:]
    on_flash = [line.split()[0] for line in lines if line and "zram" not in line.split()[0]]
    if on_flash:
        text = f"swap on {', '.join(on_flash)}: it wears flash out and makes answers late"
        yield warn("swap", text, "Use zram instead, or swapoff.")
    else:
        yield ok("swap", "in compressed memory" if lines else "none")


def heat(patient: Patient) -> Iterator[Finding]:
    zones = patient.root / "sys/class/thermal"
    found = [
        int(text) / 1000
        for zone in sorted(zones.glob("thermal_zone*"))
        if _is_number(text := _read(zone / "temp"))
    ]
    if found and max(found) >= HOT_CELSIUS:
        yield warn(
            "heat",
            f"{max(found):.0f} °C: the processor slows down",
            "Cool it; latencies are not to be trusted.",
        )
    elif found:
        yield ok("heat", f"{max(found):.0f} °C")
    if shutil.which("vcgencmd"):
        yield from throttling(output(["vcgencmd", "get_throttled"]))


def throttling(answer: str) -> Iterator[Finding]:
    """What a Raspberry Pi says of itself, such as ``throttled=0x50005``. Pure."""
    number = re.fullmatch(r"throttled=(0x[0-9a-fA-F]+)\s*", answer)
    if number is None:
        return
    bits = int(number[1], 16)
    now = [name for bit, name in _THROTTLED.items() if bits >> bit & 1]
    before = [name for bit, name in _THROTTLED.items() if bits >> (bit + 16) & 1]
    if now or before:
        text = f"the board reports {', '.join(now or before)}" + ("" if now else " since it was started")
        yield warn("heat", text, "Use a stronger power supply, and cool it.")


# --- time ---------------------------------------------------------------------------------------------


def clock(patient: Patient) -> Iterator[Finding]:
    floor = max(BUILD_MS, read_number(patient.config.data_dir / "state" / "time-floor"))
    if patient.now_ms < floor:
        now, past = (
            time.strftime("%Y-%m-%d %H:%M", time.gmtime(ms / 1000)) for ms in (patient.now_ms, floor)
        )
        text = f"it says {now} UTC, and this device knows that {past} is past"
        yield fail(
            "clock",
            text,
            "Let it synchronise (systemd-timesyncd, chrony). Serving goes on; expired orders are refused.",
        )
    times = KernelTimes()
    synchronised = times.synchronised()
    if not synchronised:
        yield warn(
            "clock",
            "not synchronised",
            "Enable systemd-timesyncd or chrony, and check that UDP port 123 is open.",
        )
    elif patient.now_ms >= floor:
        yield ok("clock", "synchronised")
    if not times.hardware_clock():
        yield ok(
            "clock",
            "no clock with a battery: after a power cut the last saved time counts until it synchronises",
        )


MACHINE_CHECKS: Final[tuple[Check, ...]] = (processor, memory, swap, heat, clock)


# --- parts --------------------------------------------------------------------------------------------


def cgroup_limit(root: Path, process: str) -> int:
    """The smallest memory limit above a process, version 1 or 2, in bytes; 0 if there is none."""
    limits = []
    for line in _read(root / "proc" / process / "cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = base / path.lstrip("/")
        for place in (folder, *folder.parents):
            if _is_number(text := _read(place / name)) and int(text) < 1 << 60:
                limits.append(int(text))
            if place == base:
                break
    return min(limits, default=0)


def _generations(data: Path) -> Iterator[tuple[str, Generation | SkerryError]]:
    for name, folder in installed_models(data / "models").items() if (data / "models").is_dir() else ():
        try:
            slots = ModelSlots(folder, Store(data / "store"))
            pointers = (slots.pending(), slots.current())
            for number in {pointer.gen for pointer in pointers if pointer is not None}:
                yield name, slots.load(number)
        except SkerryError as error:
            yield name, error


def _meminfo(root: Path) -> dict[str, int]:
    found = re.findall(r"(\w+):\s+(\d+) kB", _read(root / "proc/meminfo"))
    return {name: int(kilobytes) * KIB for name, kilobytes in found}


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
