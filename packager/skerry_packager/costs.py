"""The operator table of a device, and what follows from it: the cost of any operator, with its uncertainty.

For each family and datatype the table's points are fitted by ``overhead + flops x a + bytes x b``, none of
them negative, so that more work never costs less. How far the points lie from that line is its spread.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np

from skerry_contract.digests import digest_of
from skerry_contract.errors import ConfigError, InputError
from skerry_contract.limits import MIB
from skerry_runtime.worker.bench_ops.measure import SCHEMA
from skerry_runtime.worker.bench_ops.work import DATATYPES, KINDS, Work

_MAX_BYTES: Final = 4 * MIB
_KEYS: Final = frozenset(
    ("schema", "made", "seconds", "machine", "engine", "threads", "call_us", "drift", "operators", "missing",
     "left_out")
)  # fmt: skip
_MACHINE: Final[Mapping[str, type | tuple[type, ...]]] = {
    "title": str, "arch": str, "cpu": str, "cores": int, "isa": list, "ram_total_bytes": int,
    "ram_available_bytes": int, "flash_total_bytes": int, "flash_free_bytes": int, "libc": str,
    "libc_version": str, "python": str, "kernel": str, "packages": dict, "governor": str, "notes": list,
}  # fmt: skip
_POINT: Final = frozenset(
    ("operator", "size", "kind", "datatype", "flops", "bytes", "us", "low_us", "high_us", "rounds")
)
_LEAST_SPREAD: Final = 0.1
"""No line is believed closer than this, in log units (about 10%)."""
_UNKNOWN_SPREAD: Final = 1.1
"""Of an operator that the table does not know (a factor 3)."""
_STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "conv-pointwise": ("conv-dense", "matmul"), "conv-dense": ("conv-pointwise", "matmul"),
    "conv-narrow": ("conv-dense", "conv-pointwise"),
    "conv-depthwise": ("conv-dense",), "matmul": ("conv-pointwise", "matvec"), "matvec": ("matmul",),
    "gru": ("lstm", "matvec"), "lstm": ("gru", "matvec"), "unary": ("binary",), "binary": ("unary",),
    "transcendental": ("softmax", "binary"), "softmax": ("transcendental",), "normalize": ("softmax",),
    "pool": ("unary",), "copy": ("unary",), "quantize": ("unary",), "other": ("unary", "binary"),
}  # fmt: skip
"""Family -> those that answer for it where the table lacks it."""


@dataclass(frozen=True, slots=True)
class Line:
    """The cost of one family in one datatype, in microseconds."""

    overhead: float
    per_flop: float
    per_byte: float
    spread: float
    """Root mean square of log(measured / line) over the points."""

    def us(self, work: Work) -> float:
        return self.overhead + work.flops * self.per_flop + work.bytes * self.per_byte


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of a whole model."""

    us: float
    spread: float
    """Standard deviation of its logarithm."""
    unknown: float
    """Share of `us` that no point of the table stands for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTable:
    """What ``skerry-runtime bench-ops`` found on one device."""

    machine: Mapping[str, Any]
    engine: str
    """``onnx`` or ``tflite``."""
    version: str
    """Of the engine."""
    made: str
    call_us: float
    """What a call costs whatever the model does."""
    drift: float
    """By which factor the machine's own speed changed meanwhile."""
    lines: Mapping[tuple[str, str], Line]
    points: Sequence[Mapping[str, Any]]
    digest: str = ""
    """Of the file."""

    def cost(self, operations: Iterable[Work]) -> Cost:
        """The sum over a model's operators, one call included.

        Errors of one family are taken to be the same for all of its operators, those of different families
        to be independent.
        """
        sums: dict[tuple[str, str], float] = {}
        spreads: dict[tuple[str, str], float] = {}
        unknown = 0.0
        for work in operations:
            line, known = self._line(work)
            us = line.us(work)
            key = work.kind, work.datatype
            sums[key] = sums.get(key, 0.0) + us
            spreads[key] = line.spread if known else _UNKNOWN_SPREAD
            unknown += 0.0 if known else us
        total = sum(sums.values()) + self.call_us
        variance = sum((sums[key] * spreads[key]) ** 2 for key in sums) / total**2
        return Cost(total, math.sqrt(variance + math.log(self.drift) ** 2), unknown / total)

    def _line(self, work: Work) -> tuple[Line, bool]:
        """The line of a family, and whether it is its own."""
        own = self.lines.get((work.kind, work.datatype))
        if own is not None:
            return own, True
        for kind, datatype in _stand_ins(work):
            if (kind, datatype) in self.lines:
                # Element-wise work differs little between datatypes: its bytes are counted as they are.
                same = kind == work.kind and work.kind not in _ARITHMETIC
                return self.lines[kind, datatype], same
        return max(self.lines.values(), key=lambda line: line.us(work)), False


_ARITHMETIC: Final = frozenset(
    ("conv-dense", "conv-narrow", "conv-pointwise", "conv-depthwise", "matmul", "matvec", "lstm", "gru")
)


def _stand_ins(work: Work) -> Iterable[tuple[str, str]]:
    yield work.kind, "fp32"
    for datatype in (work.datatype, "fp32"):
        for kind in _STAND_INS[work.kind]:
            yield kind, datatype


def fit(points: Sequence[Mapping[str, Any]]) -> Line:
    """The line through the points of one family that has the least relative error.

    With three coefficients at most, trying every subset of them finds the best that has no negative one.
    """
    us = np.array([point["us"] for point in points], float)
    columns = np.array([[1.0, point["flops"], point["bytes"]] for point in points], float)
    best, least = np.array([us.max(), 0.0, 0.0]), math.inf
    for count in range(1, min(3, len(points)) + 1):
        for chosen in combinations(range(3), count):
            weighted = columns[:, chosen] / us[:, None]
            scale = np.maximum(np.abs(weighted).max(axis=0), 1e-300)
            found = np.linalg.lstsq(weighted / scale, np.ones(len(us)), rcond=None)[0] / scale
            error = float(np.sum((weighted @ found - 1) ** 2))
            if (found >= 0).all() and found.any() and error < least - 1e-12:
                best, least = np.zeros(3), error
                best[list(chosen)] = found
    residuals = np.log(us / np.maximum(columns @ best, 1e-9))
    noise = np.log([max(point["high_us"], point["us"]) / point["us"] for point in points])
    free = max(1, len(points) - int(np.count_nonzero(best)))
    spread = math.sqrt(float(np.sum(residuals**2)) / free + float(np.median(noise)) ** 2 / 4)
    overhead, per_flop, per_byte = best.tolist()
    return Line(overhead, per_flop, per_byte, max(_LEAST_SPREAD, min(spread, _UNKNOWN_SPREAD)))


def read_table(path: Path) -> OperatorTable:
    """An operator table from a file.

    Raises:
        InputError: it cannot be read.
        ConfigError: it is no such table.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}", hint="Give a file that 'skerry-runtime bench-ops' wrote."
        ) from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: an operator table has at most {_MAX_BYTES} bytes")
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _wrong(str(path), "it is not JSON") from error
    return parse_table(raw, str(path), digest_of(data))


def parse_table(raw: Any, where: str, digest: str = "") -> OperatorTable:
    """Check and fit a parsed table. Raises `ConfigError` with what is wrong."""
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        raise _wrong(where, f"its schema is not {SCHEMA!r}")
    if set(raw) != _KEYS:
        raise _wrong(where, f"missing or unknown: {', '.join(sorted(set(raw) ^ _KEYS))}")
    machine, engine, points = raw["machine"], raw["engine"], raw["operators"]
    if not isinstance(machine, dict) or set(machine) != set(_MACHINE):
        raise _wrong(where, "machine has missing or unknown keys")
    for key, kind in _MACHINE.items():
        if not isinstance(machine[key], kind) or isinstance(machine[key], bool):
            raise _wrong(where, f"machine.{key} is {str(machine[key])[:40]!r}")
    if not isinstance(engine, dict) or set(engine) != {"name", "version"}:
        raise _wrong(where, "engine must have a name and a version")
    for key in ("call_us", "drift", "seconds"):
        if not _positive(raw[key]):
            raise _wrong(where, f"{key} is {str(raw[key])[:40]!r}")
    if raw["drift"] < 1 or not isinstance(points, list) or not points:
        raise _wrong(where, "it has no operators, or a drift below 1")
    families: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for number, point in enumerate(points):
        _check_point(point, f"{where}: operators[{number}]")
        families.setdefault((point["kind"], point["datatype"]), []).append(point)
    return OperatorTable(
        machine=machine,
        engine=str(engine["name"]),
        version=str(engine["version"]),
        made=str(raw["made"]),
        call_us=float(raw["call_us"]),
        drift=float(raw["drift"]),
        lines={key: fit(found) for key, found in families.items()},
        points=points,
        digest=digest,
    )


def _check_point(point: Any, where: str) -> None:
    if not isinstance(point, dict) or set(point) != _POINT:
        raise _wrong(where, "missing or unknown keys")
    if point["kind"] not in KINDS or point["datatype"] not in DATATYPES:
        raise _wrong(where, f"unknown kind or datatype {point['kind']!r} {point['datatype']!r}"[:120])
    for key in ("us", "low_us", "high_us"):
        if not _positive(point[key]):
            raise _wrong(where, f"{key} is {str(point[key])[:40]!r}")
    for key in ("flops", "bytes"):
        if not _positive(point[key]) and point[key] != 0:
            raise _wrong(where, f"{key} is {str(point[key])[:40]!r}")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _wrong(where: str, why: str) -> ConfigError:
    return ConfigError(
        f"{where} is no operator table: {why}",
        hint="Make one on the device: skerry-runtime bench-ops --out FILE.",
    )
