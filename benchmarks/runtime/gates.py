"""The gates: what is measured against what, how much may come out, and the word for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

PASS: Final = "PASS"  # noqa: S105 - no secret
FAIL: Final = "FAIL"
ABSENT: Final = "not run"
SHOWN: Final = "-"
VERDICTS: Final = (PASS, FAIL, ABSENT, SHOWN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One row of the table."""

    key: str
    measure: str
    """The module of `benchmarks.runtime.measures` that finds the figure."""
    what: str
    against: str
    unit: str
    """``x``: a ratio within one run. ``us``, ``s``, ``kB``, ``MB``, ``bad``, ``failed``: as it stands."""
    bar: float | None = None
    """None: the figure is shown and decides nothing."""
    least: bool = False
    """Whether the figure must be at least the bar, instead of at most."""

    @property
    def target(self) -> str:
        """The bar for people."""
        if self.bar is None:
            return ""
        sign, unit = ">=" if self.least else "<=", "" if self.unit == "x" else " "
        return f"{sign} {self.bar:g}{unit}{self.unit}"


GATES: Final = (
    Gate(key="mlp-raw", measure="latency", what="MLP, JSON over UDS, p50",
         against="raw ORT", unit="x", bar=13),
    Gate(key="mlp-fastapi", measure="latency", what="MLP, JSON over UDS, p50",
         against="FastAPI + uvicorn, TCP", unit="x", bar=0.2),
    Gate(key="mlp-fastapi-fast", measure="latency", what="MLP, JSON over UDS, p50",
         against="the same with uvloop and httptools", unit="x"),
    Gate(key="conv-raw", measure="latency", what="conv, binary over UDS, p50",
         against="raw ORT", unit="x", bar=2.6),
    Gate(key="shared", measure="latency", what="MLP, shared-memory call, p50",
         against="raw ORT", unit="us", bar=15),
    Gate(key="rate-mlserver", measure="rate", what="requests/s, 8 connections",
         against="MLServer", unit="x", bar=8, least=True),
    Gate(key="rate-bentoml", measure="rate", what="requests/s, 8 connections",
         against="BentoML", unit="x", bar=20, least=True),
    Gate(key="rate-fastapi", measure="rate", what="requests/s, 8 connections",
         against="FastAPI + uvicorn, TCP", unit="x"),
    Gate(key="memory", measure="memory", what="daemon's unevictable memory",
         against="one process: ORT + paho + sqlite3", unit="x", bar=1.15),
    Gate(key="agent-rss", measure="memory", what="agent alone, RSS",
         against="", unit="MB"),
    Gate(key="large-model", measure="large", what="34 MB model, unevictable",
         against="plain ORT", unit="x", bar=0.35),
    Gate(key="idle-cpu", measure="idle", what="CPU at 10 Hz",
         against="ORT default, 2 threads", unit="x", bar=0.02),
    Gate(key="flash", measure="flash", what="flash bytes per event, whole life",
         against="its payload", unit="x", bar=1.1),
    Gate(key="flash-window", measure="flash", what="flash bytes per window, whole life",
         against="its payload", unit="x"),
    Gate(key="cuts-install", measure="cuts", what="power cuts during install",
         against=">= 200, ext4 and xfs", unit="bad", bar=0),
    Gate(key="cuts-outbox", measure="cuts", what="power cuts, outbox",
         against=">= 200, ext4 and xfs", unit="bad", bar=0),
    Gate(key="swap-failed", measure="swap", what="swap under load, requests",
         against="", unit="failed", bar=0),
    Gate(key="swap-p99", measure="swap", what="swap under load, p99",
         against="steady state", unit="x", bar=1.3),
    Gate(key="start", measure="start", what="start to first answer",
         against="", unit="s", bar=1),
    Gate(key="wheel", measure="wheel", what="the device's code in the wheel",
         against="", unit="kB", bar=300),
    Gate(key="64mb", measure="small", what="most memory in a cgroup of 64 MB",
         against="", unit="MB", bar=64),
)  # fmt: skip
"""Every row of the design's table, and below them the figures that stand alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What came out for a gate."""

    value: float | None
    """Median; None if nothing could be measured, and ``detail`` says why."""
    low: float | None = None
    high: float | None = None
    """Quartiles over the rounds."""
    detail: str = ""
    failed: bool = False
    """The measurement itself shows that the gate is missed, whatever its value."""


def verdict(gate: Gate, figure: Figure | None) -> str:
    """One of `VERDICTS`."""
    if figure is None:
        return ABSENT
    if figure.failed:
        return FAIL
    if figure.value is None:
        return ABSENT
    if gate.bar is None:
        return SHOWN
    kept = figure.value >= gate.bar if gate.least else figure.value <= gate.bar
    return PASS if kept else FAIL


def measures_of(keys: Iterable[str]) -> list[str]:
    """The measures for these gates, or for all if none is named, in the order of the table.

    Raises:
        KeyError: no gate and no measure has that name.
    """
    wanted = set(keys)
    known = {gate.key for gate in GATES} | {gate.measure for gate in GATES}
    if unknown := wanted - known:
        raise KeyError(", ".join(sorted(unknown)))
    chosen = [gate.measure for gate in GATES if not wanted or {gate.key, gate.measure} & wanted]
    return list(dict.fromkeys(chosen))


def failing(figures: Mapping[str, Figure]) -> list[Gate]:
    """Gates that are missed."""
    return [gate for gate in GATES if verdict(gate, figures.get(gate.key)) == FAIL]
