"""Device profiles: what a class of devices has and allows, every number with its provenance.

The files are described in ``devices/README.md``. A profile is read strictly: a key that is missing, unknown
or of another type is refused by its name, so that a typing error never silently lifts a limit.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from skerry_contract.errors import ConfigError, InputError
from skerry_contract.limits import MIB

SCHEMA: Final = "skerry-device-profile/1"
ARCHITECTURES: Final = ("aarch64", "x86_64")
ENGINES: Final = ("onnxruntime", "tflite-runtime", "ai-edge-litert")
ISA_FLAGS: Final = ("neon", "dotprod", "fp16", "i8mm", "avx2", "vnni")
PROVENANCES: Final = ("measured", "emulated", "predicted", "datasheet", "assumed")

_HERE: Final = Path(__file__).resolve().parent
_FOLDERS: Final = (_HERE / "device_profiles", _HERE.parents[1] / "devices" / "profiles")
"""In an installed wheel; in a checkout."""
_MAX_BYTES: Final = 1 * MIB
_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")

_FACTS: Final[Mapping[str, str]] = {
    "cpu.cores": "count",
    "cpu.isa": "isa",
    "memory.total_mb": "count",
    "memory.available_for_model_mb": "count",
    "flash.total_mb": "count",
    "flash.available_for_models_mb": "count",
    "os.glibc": "version",
    "os.python": "version",
    "threads.cap": "count",
    "budgets.latency_p50_ms": "number",
    "budgets.latency_p95_ms": "number",
    "budgets.ram_mb": "count",
    "budgets.size_mb": "count",
    "budgets.load_ms": "number",
    "safety.ram": "factor",
    "safety.latency": "factor",
}
"""Dotted key -> kind of its value; all are required."""
_SPEED: Final[Mapping[str, str]] = {
    "speed.fp32_gflops": "number",
    "speed.int8_gops": "number",
    "speed.memory_gb_s": "number",
    "speed.node_us": "number",
}
"""The same; all or none of them. ``speed.fp16_gflops`` may come with them."""
_OPTIONAL: Final[Mapping[str, str]] = {"speed.fp16_gflops": "number"}
_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "schema": (SCHEMA,),
    "name": (),
    "title": (),
    "arch": ARCHITECTURES,
    "cpu.model": (),
    "os.libc": ("glibc",),
}
"""Dotted key -> the values that are known; empty if any text will do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A value and where it comes from."""

    value: Any
    provenance: str
    """One of `PROVENANCES`."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileEngine:
    """An inference engine that devices of the class have installed."""

    name: str
    version: str
    max_ir: Fact | None = None
    max_opset: Fact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A GPU or NPU of the class."""

    name: str
    kind: str
    cores: Fact | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """One class of devices."""

    name: str
    title: str
    arch: str
    cpu_model: str
    facts: Mapping[str, Fact]
    """By dotted key, such as ``budgets.ram_mb``."""
    engines: tuple[ProfileEngine, ...]
    accelerators: tuple[Accelerator, ...]
    operators: Path | None = None
    """Operator table of such a device, see `skerry_packager.costs`."""

    def number(self, key: str) -> float:
        """The value of a numeric fact, in the unit of its key."""
        return float(self.facts[key].value)

    @property
    def size_bytes(self) -> int:
        """Largest model file: its budget, and never more than one of the two slots."""
        megabytes = min(self.number("budgets.size_mb"), self.number("flash.available_for_models_mb") / 2)
        return int(megabytes * MIB)

    @property
    def flash_bytes(self) -> int:
        """What the device keeps for models, both slots together."""
        return int(self.number("flash.available_for_models_mb") * MIB)

    @property
    def ram_bytes(self) -> int:
        """What a worker may take at its peak, engine and model together."""
        return int(min(self.number("budgets.ram_mb"), self.number("memory.available_for_model_mb")) * MIB)

    @property
    def predicted_ram_bytes(self) -> int:
        """Highest *predicted* peak that is accepted: `ram_bytes` over the safety factor."""
        return int(self.ram_bytes / self.number("safety.ram"))

    @property
    def latency_p95_us(self) -> int:
        return int(self.number("budgets.latency_p95_ms") * 1000)

    @property
    def load_ms(self) -> int:
        return int(self.number("budgets.load_ms"))

    def engine(self, name: str) -> ProfileEngine:
        """Raises `InputError` if devices of the class do not have it."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        have = ", ".join(engine.name for engine in self.engines)
        raise InputError(
            f"devices of profile {self.name} have no {name}",
            hint=f"They have {have}. Choose another profile.",
        )


def profile_names() -> tuple[str, ...]:
    """The profiles that come with Skerry."""
    return tuple(sorted({path.stem for folder in _FOLDERS for path in folder.glob("*.toml")}))


def load_profile(name_or_path: str) -> DeviceProfile:
    """A profile by its name, or from a file of your own (a path with ``/`` or ending in ``.toml``).

    Raises:
        InputError: no such profile or file.
        ConfigError: the file breaks the schema.
    """
    if "/" in name_or_path or name_or_path.endswith(".toml"):
        return read_profile(Path(name_or_path))
    for folder in _FOLDERS:
        path = folder / f"{name_or_path}.toml"
        if _NAME.fullmatch(name_or_path) and path.is_file():
            return read_profile(path)
    known = profile_names()
    near = get_close_matches(name_or_path, known, n=1)
    raise InputError(
        f"there is no device profile {name_or_path!r}",
        hint=(f"Did you mean {near[0]}? " if near else "")
        + f"Known: {', '.join(known)}. The path of a profile file of your own works too.",
    )


def read_profile(path: Path) -> DeviceProfile:
    """Read and check one profile file. Raises as `load_profile`."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", hint="Give the path of a profile file."
        ) from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: a profile has at most {_MAX_BYTES} bytes")
    try:
        raw = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not TOML: {error}", hint="devices/README.md describes the format."
        ) from error
    profile = parse_profile(raw, str(path), path.parent)
    if path.name != f"{profile.name}.toml":
        raise ConfigError(
            f"{path}: the profile in it is named {profile.name!r}", hint=f"Name it {path.stem!r}."
        )
    return profile


def parse_profile(raw: Mapping[str, Any], where: str, folder: Path = Path()) -> DeviceProfile:
    """Check a parsed file; paths in it are relative to `folder`.

    Raises:
        ConfigError: with the key that is wrong.
    """
    table = _Table(_flatten(raw), where)
    texts = {key: table.text(key, known) for key, known in _TEXTS.items()}
    if not _NAME.fullmatch(texts["name"]):
        raise ConfigError(
            f"{where}: name is {texts['name']!r}", hint="Use lower-case letters, digits and '-'."
        )
    facts = {key: table.fact(key, kind) for key, kind in _FACTS.items()}
    if any(table.has(key) for key in (*_SPEED, *_OPTIONAL)):
        facts |= {key: table.fact(key, kind) for key, kind in _SPEED.items()}
        facts |= {key: table.fact(key, kind) for key, kind in _OPTIONAL.items() if table.has(key)}
    operators = folder / table.text("operators") if table.has("operators") else None
    engines = tuple(_engine(item) for item in table.tables("engines"))
    accelerators = tuple(_accelerator(item) for item in table.tables("accelerators"))
    table.end()
    if not engines:
        raise ConfigError(f"{where}: at least one [[engines]] is needed")
    return DeviceProfile(
        name=texts["name"],
        title=texts["title"],
        arch=texts["arch"],
        cpu_model=texts["cpu.model"],
        facts=facts,
        engines=engines,
        accelerators=accelerators,
        operators=operators,
    )


def _engine(table: _Table) -> ProfileEngine:
    name, version = table.text("name", ENGINES), table.text("version")
    onnx = name == "onnxruntime"
    limits = {key: table.fact(key, "count") for key in ("max_ir", "max_opset") if onnx}
    table.end()
    return ProfileEngine(name=name, version=version, **limits)


def _accelerator(table: _Table) -> Accelerator:
    name, kind = table.text("name"), table.text("kind", ("gpu", "npu"))
    cores = table.fact("cores", "count") if table.has("cores") else None
    table.end()
    return Accelerator(name=name, kind=kind, cores=cores)


class _Table:
    """Takes keys out of a table with type checks; `end` refuses what is left."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._left = dict(values)
        self._where = where

    def has(self, key: str) -> bool:
        return key in self._left

    def text(self, key: str, known: tuple[str, ...] = ()) -> str:
        value = self._take(key)
        if not isinstance(value, str) or not 1 <= len(value) <= 500:
            raise self._wrong(key, value, "a text")
        if known and value not in known:
            raise self._wrong(key, value, " or ".join(known))
        return value

    def fact(self, key: str, kind: str) -> Fact:
        value = self._take(key)
        if not isinstance(value, dict) or set(value) != {"value", "provenance", "source"}:
            raise self._wrong(key, value, "a fact: { value, provenance, source }")
        if value["provenance"] not in PROVENANCES:
            raise self._wrong(f"{key}.provenance", value["provenance"], " or ".join(PROVENANCES))
        if not isinstance(value["source"], str) or not value["source"].strip():
            raise self._wrong(f"{key}.source", value["source"], "a text that says where the value is from")
        wanted = _problem(value["value"], kind)
        if wanted:
            raise self._wrong(f"{key}.value", value["value"], wanted)
        return Fact(value=value["value"], provenance=value["provenance"], source=value["source"])

    def tables(self, key: str) -> list[_Table]:
        value = self._take(key)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self._wrong(key, value, "a list of tables")
        return [_Table(item, f"{self._where}: {key}[{index}]") for index, item in enumerate(value)]

    def end(self) -> None:
        if self._left:
            raise ConfigError(
                f"{self._where}: the key {sorted(self._left)[0]!r} is not known",
                hint="devices/README.md lists the keys of a profile.",
            )

    def _take(self, key: str) -> Any:
        if key not in self._left:
            raise ConfigError(
                f"{self._where}: {key} is missing", hint="devices/README.md lists the keys of a profile."
            )
        return self._left.pop(key)

    def _wrong(self, key: str, value: Any, wanted: str) -> ConfigError:
        return ConfigError(f"{self._where}: {key} is {str(value)[:80]!r}", hint=f"It must be {wanted}.")


def _problem(value: Any, kind: str) -> str:
    """What the value of a fact must be, or nothing if it is that."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    match kind:
        case "count":
            return "" if isinstance(value, int) and is_number and value > 0 else "a whole number above 0"
        case "number":
            return "" if is_number and 0 < value < float("inf") else "a number above 0"
        case "factor":
            return "" if is_number and 1 <= value < float("inf") else "a number of at least 1"
        case "version":
            good = isinstance(value, str) and re.fullmatch(r"\d+\.\d+", value) is not None
            return "" if good else "a version such as '3.11', as text"
        case _:
            good = isinstance(value, list) and set(map(str, value)) <= set(ISA_FLAGS)
            return "" if good else f"a list out of {', '.join(ISA_FLAGS)}"


def _flatten(raw: Mapping[str, Any]) -> dict[str, Any]:
    """``{"cpu": {"cores": …}}`` -> ``{"cpu.cores": …}``; facts and lists stay whole."""
    groups = {key.partition(".")[0] for key in (*_FACTS, *_SPEED, *_TEXTS) if "." in key}
    flat: dict[str, Any] = {}
    for key, value in raw.items():
        if key in groups and isinstance(value, dict):
            flat.update({f"{key}.{inner}": item for inner, item in value.items()})
        else:
            flat[key] = value
    return flat
