"""A device profile out of what a device says of itself: the operator table that ``bench-ops`` made there.

Facts that were read or timed are ``measured``; what is a choice, such as a budget, is ``assumed``, and its
source is the rule that gave it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ConfigError, InputError
from skerry_contract.limits import MIB

from .costs import OperatorTable
from .profiles import ARCHITECTURES, ENGINES, SCHEMA, parse_profile

ONNX_LIMITS: Final[Mapping[str, tuple[int, int]]] = {"1.23": (11, 23), "1.28": (13, 26), "1.32": (14, 28)}
"""Version of onnxruntime -> (IR, opset) that it loads at most, by loading models of rising IR and opset."""
_SPEED_FAMILIES: Final[Mapping[str, str]] = {
    "fp32": "fp32_gflops",
    "int8": "int8_gops",
    "fp16": "fp16_gflops",
}


def profile_toml(name: str, table: OperatorTable, operators: str) -> str:
    """The text of a profile, checked to load.

    Args:
        name: of the profile.
        table: what was measured on the device.
        operators: path of the table's file, relative to the profile's.

    Raises:
        InputError: `name` cannot name a profile.
        ConfigError: the device cannot be described: an unknown architecture or C library, no known engine.
    """
    machine = table.machine
    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?", name):
        raise InputError(f"{name!r} cannot name a profile", hint="Use lower-case letters, digits and '-'.")
    if machine["arch"] not in ARCHITECTURES or machine["libc"] != "glibc":
        raise ConfigError(
            f"{machine['title']}: architecture {machine['arch']!r} with C library {machine['libc']!r}",
            hint=f"Profiles know {' and '.join(ARCHITECTURES)} with glibc.",
        )
    packages = {key: version for key, version in machine["packages"].items() if key in ENGINES}
    if not packages:
        raise ConfigError(
            f"{machine['title']} has no inference engine", hint=f"Install one of {', '.join(ENGINES)}."
        )
    when = f"read by skerry-runtime bench-ops on the device, {table.made}"
    text = "".join(
        (
            f"# Written by 'skerry profile measure'. Budgets are assumed: replace them with your own.\n"
            f"schema = {_text(SCHEMA)}\nname = {_text(name)}\ntitle = {_text(machine['title'])}\n"
            f"arch = {_text(machine['arch'])}\naccelerators = []\noperators = {_text(operators)}\n",
            "\n[cpu]\n",
            f"model = {_text(machine['cpu'])}\n",
            _fact("cores", machine["cores"], "measured", when),
            _fact("isa", machine["isa"], "measured", when),
            *_room(machine, when),
            "\n[os]\nlibc = \"glibc\"\n",
            _fact("glibc", _short(machine["libc_version"]), "measured", when),
            _fact("python", _short(machine["python"]), "measured", when),
            "\n[threads]\n",
            _fact(
                "cap", max(1, machine["cores"] // 2), "assumed",
                "half of the cores: the rest of the board goes on working",
            ),
            *_budgets(machine),
            *_speed(table, when),
            *_engines(packages, when),
        )
    )  # fmt: skip
    _check(text, name)
    return text


def _room(machine: Mapping[str, Any], when: str) -> list[str]:
    ram, flash = _megabytes(machine)
    return [
        "\n[memory]\n",
        _fact("total_mb", machine["ram_total_bytes"] // MIB, "measured", when),
        _fact("available_for_model_mb", ram, "assumed", f"half of what was free ({when})"),
        "\n[flash]\n",
        _fact("total_mb", machine["flash_total_bytes"] // MIB, "measured", when),
        _fact("available_for_models_mb", flash, "assumed", f"half of what was free, both slots ({when})"),
    ]


def _megabytes(machine: Mapping[str, Any]) -> tuple[int, int]:
    """RAM and flash for models, by rule: half of what is free."""
    return (
        max(1, machine["ram_available_bytes"] // MIB // 2),
        max(2, min(machine["flash_free_bytes"] // MIB // 2, machine["flash_total_bytes"] // MIB - 1)),
    )


def _budgets(machine: Mapping[str, Any]) -> list[str]:
    ram, flash = _megabytes(machine)
    return [
        "\n[budgets]\n",
        _fact("latency_p50_ms", 50, "assumed", "twenty answers a second"),
        _fact("latency_p95_ms", 75, "assumed", "one and a half times the median budget"),
        _fact("ram_mb", max(1, ram * 3 // 4), "assumed", "three quarters of memory.available_for_model_mb"),
        _fact("size_mb", max(1, flash // 2), "assumed", "half of flash.available_for_models_mb: two slots"),
        _fact("load_ms", 5000, "assumed", "what a restart may cost before the device answers again"),
        "\n[safety]\n",
        _fact("ram", 1.2, "assumed", "margin on a predicted RAM figure"),
        _fact("latency", 1.3, "assumed", "margin on a predicted latency"),
    ]


def _speed(table: OperatorTable, when: str) -> list[str]:
    """The best rates over the table: peaks for whoever has no use for the table itself."""
    rates: dict[str, float] = {}
    for point in table.points:
        if point["kind"].startswith(("conv", "matmul")):
            key = _SPEED_FAMILIES[point["datatype"]]
            rates[key] = max(rates.get(key, 0.0), point["flops"] / point["us"] / 1e3)
    streams = [p["bytes"] / p["us"] / 1e3 for p in table.points if p["kind"] in ("unary", "binary", "copy")]
    if not streams or not {"fp32_gflops", "int8_gops"} <= set(rates):
        return []
    if "fp16" not in table.machine["isa"]:
        rates.pop("fp16_gflops", None)
    nodes = min(line.overhead for line in table.lines.values()) or min(p["us"] for p in table.points)
    timed = "timed" + when.removeprefix("read")
    return [
        "\n[speed]\n",
        *(
            _fact(key, _rounded(rate), "measured", f"the best layer {timed}")
            for key, rate in sorted(rates.items())
        ),
        _fact("memory_gb_s", _rounded(max(streams)), "measured", f"the best element-wise operator {timed}"),
        _fact("node_us", _rounded(nodes), "measured", f"the least operator {timed}"),
    ]


def _engines(packages: Mapping[str, str], when: str) -> list[str]:
    lines = []
    for name, version in sorted(packages.items()):
        lines.append(f"\n[[engines]]\nname = {_text(name)}\nversion = {_text(version)}\n")
        if name == "onnxruntime":
            (ir, opset), known = _limits(version)
            how = f"models of rising IR and opset loaded with onnxruntime {known}"
            lines.append(_fact("max_ir", ir, "measured" if known == _short(version) else "assumed", how))
            lines.append(
                _fact("max_opset", opset, "measured" if known == _short(version) else "assumed", how)
            )
    return lines


def _limits(version: str) -> tuple[tuple[int, int], str]:
    """(IR, opset) of the newest known version that is not above this one, and which that is."""
    mine = tuple(map(int, _short(version).split(".")))
    known = [key for key in ONNX_LIMITS if tuple(map(int, key.split("."))) <= mine]
    key = known[-1] if known else next(iter(ONNX_LIMITS))
    return ONNX_LIMITS[key], key


def _check(text: str, name: str) -> None:
    import tomllib

    parse_profile(tomllib.loads(text), f"{name}.toml", Path())


def _fact(key: str, value: Any, provenance: str, source: str) -> str:
    shown = _text(value) if isinstance(value, str) else json.dumps(value)
    return f'{key} = {{ value = {shown}, provenance = "{provenance}", source = {_text(source)} }}\n'


def _text(value: object) -> str:
    """A TOML basic string: JSON's escapes are TOML's, but for DEL."""
    return json.dumps("".join(c for c in str(value) if c.isprintable())[:400] or "unknown")


def _short(version: str) -> str:
    match = re.match(r"\d+\.\d+", version)
    if match is None:
        raise ConfigError(f"{version[:40]!r} is no version", hint="Run skerry-runtime bench-ops again.")
    return match[0]


def _rounded(value: float) -> float:
    """Three digits: the rest is noise."""
    return float(f"{value:.3g}") if math.isfinite(value) and value > 0 else 0.001
