"""The first detector: evidence and effect, in two windows in a row.

Per device and model. Windows are merged until they hold `N_MIN` rows. Rows are correlated, so evidence is
reckoned as if only one in `DESIGN_EFFECT` rows were independent (what an AR(1) sequence of rho = .9 is
worth), which no shuffled-rows test does. It knows a device by its reference alone: a device that always
differs from it alerts. The self-starting e-detector with an alarm budget takes its place behind the same two
methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import msgspec
import numpy as np

from skerry_contract.messages import Severity
from skerry_contract.monitoring import MonitoringSpec
from skerry_contract.summary import WindowSummary, decode, encode, merge

from .statistics import Distance, expected_total_variation, feature_distance, prediction_distance

N_MIN: Final = 200
"""Rows below which nothing is judged."""
DESIGN_EFFECT: Final = 20.0
EVIDENCE_Z: Final = 4.0
"""Standard errors; also fixes the bound of the total variation at the same one-sided level."""
_LOG_LEVEL: Final = 10.36
"""-ln of that level, 3.2e-5."""

# Effect sizes: location in sigma, total variation beyond chance, change of the null rate.
_WARN: Final = (0.10, 0.05, 0.05)
_MAJOR: Final = (0.25, 0.10, 0.10)
MAJOR_SHARE: Final = 0.05
"""Of the devices with the model: below it, a major effect is a warning."""


class Phase(StrEnum):
    """Where a device and model is; diagram and rules are `TRANSITIONS`."""

    NORMAL = "normal"
    SUSPECT = "suspect"
    ALERT = "alert"
    RECOVERING = "recovering"


TRANSITIONS: Final[Mapping[tuple[Phase, bool], Phase]] = MappingProxyType(
    {
        (Phase.NORMAL, False): Phase.NORMAL,
        (Phase.NORMAL, True): Phase.SUSPECT,
        (Phase.SUSPECT, False): Phase.NORMAL,
        (Phase.SUSPECT, True): Phase.ALERT,
        (Phase.ALERT, False): Phase.RECOVERING,
        (Phase.ALERT, True): Phase.ALERT,
        (Phase.RECOVERING, False): Phase.NORMAL,
        (Phase.RECOVERING, True): Phase.ALERT,
    }
)
"""(phase, the window drifted) -> phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One feature of a judged window."""

    distance: Distance
    severity: Severity | None
    """None: no evidence. INFO: evidence without a relevant effect."""

    def sentence(self) -> str:
        """For people, with its numbers."""
        d = self.distance
        parts = [f"{d.shift:+.1f} sigma".replace("-", "\N{MINUS SIGN}")] if d.shift else []
        parts.append(f"TV {d.total_variation:.2f}")
        if abs(d.null_change) >= 0.01:
            parts.append(f"nulls {d.null_rate:.0%}")
        if d.out_of_range >= 0.01:
            parts.append(f"{d.out_of_range:.0%} out of range")
        return f"{d.name}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A window of at least `N_MIN` rows, judged."""

    rows: int
    findings: tuple[Finding, ...]
    """The most severe and farthest first."""
    before: Phase
    phase: Phase

    @property
    def severity(self) -> Severity | None:
        """Of the worst feature."""
        return self.findings[0].severity if self.findings else None


class Detector:
    """One device's windows of one model, in order.

    >>> from skerry_contract.monitoring import CategoryFeature, MonitoringSpec, Source
    >>> from skerry_contract.summary import FeatureSketch, WindowSummary
    >>> source = Source(kind="column", tensor="x")
    >>> gate = CategoryFeature(name="gate", source=source, values=(0.0, 1.0), probabilities=(0.5, 0.5, 0.0))
    >>> def window(seq, counts):
    ...     return WindowSummary(
    ...         spec_hash=bytes(8), bundle=bytes(8), boot=bytes(16), seq=seq, start_utc_ms=0, start_mono_ms=0,
    ...         duration_ms=1, clock_quality=1, rows=sum(counts), features=(FeatureSketch(counts=counts),))
    >>> detector = Detector(MonitoringSpec(rows=10_000, features=(gate,)))
    >>> detector.update(window(1, (60, 40, 0))) is None  # too few rows: they are kept
    True
    >>> for seq in (2, 3, 4):
    ...     print(detector.update(window(seq, (3000, 10, 0))).phase)
    suspect
    alert
    alert
    """

    def __init__(self, spec: MonitoringSpec, memory: bytes | None = None) -> None:
        """``memory`` is what `dump` gave, also of a detector under another spec."""
        self._spec = spec
        known = msgspec.json.decode(memory, type=_Memory) if memory else _Memory()
        self._phase = known.phase
        self._pending = decode(known.pending) if known.pending else None

    def update(self, summary: WindowSummary) -> Judgement | None:
        """Take the next window; None while there are too few rows to judge."""
        pending = self._pending
        if pending is not None and (pending.spec_hash, pending.bundle) == (summary.spec_hash, summary.bundle):
            summary = merge(pending, summary)
        if summary.rows < N_MIN:
            self._pending = summary
            return None
        self._pending = None
        findings = judge(self._spec, summary)
        drifted = bool(findings) and findings[0].severity not in (None, Severity.INFO)
        before, self._phase = self._phase, TRANSITIONS[self._phase, drifted]
        return Judgement(rows=summary.rows, findings=findings, before=before, phase=self._phase)

    def dump(self) -> bytes:
        """All it remembers."""
        pending = encode(self._pending) if self._pending is not None else b""
        return msgspec.json.encode(_Memory(phase=self._phase, pending=pending))


class _Memory(msgspec.Struct, frozen=True):
    phase: Phase = Phase.NORMAL
    pending: bytes = b""


def judge(spec: MonitoringSpec, summary: WindowSummary) -> tuple[Finding, ...]:
    """Every feature, and the predictions, of one window; the most severe and farthest first."""
    pairs = zip(spec.features, summary.features, strict=True)
    findings = [
        _finding(feature_distance(f, sketch, spec.rows), f.probabilities, spec.rows) for f, sketch in pairs
    ]
    if spec.prediction is not None and summary.prediction is not None:
        distance = prediction_distance(spec.prediction, summary.prediction, spec.rows)
        findings.append(_finding(distance, spec.prediction.probabilities, spec.rows))
    return tuple(sorted(findings, key=_rank, reverse=True))


def capped(severity: Severity, share: float) -> Severity:
    """A major effect on few of the devices is a warning."""
    return Severity.WARN if severity is Severity.MAJOR and share < MAJOR_SHARE else severity


def _finding(distance: Distance, p: tuple[float, ...], m: int) -> Finding:
    effects = (
        abs(distance.location),
        distance.total_variation - distance.expected_variation,
        abs(distance.null_change),
    )
    proven = _evidence(distance, p, m)
    # Only an effect that is proven itself counts.
    relevant = [effect if sure else 0.0 for effect, sure in zip(effects, proven, strict=True)]
    severity: Severity | None = None
    if any(proven):
        severity = Severity.INFO
    if any(effect >= limit for effect, limit in zip(relevant, _WARN, strict=True)):
        severity = Severity.WARN
    if any(effect >= limit for effect, limit in zip(relevant, _MAJOR, strict=True)):
        severity = Severity.MAJOR
    return Finding(distance=distance, severity=severity)


def _evidence(distance: Distance, p: tuple[float, ...], m: int) -> tuple[bool, bool, bool]:
    """Whether chance explains neither the location, nor the total variation, nor the nulls."""
    rows = distance.rows / DESIGN_EFFECT
    location = variation = False
    if rows:
        location = abs(distance.location) >= EVIDENCE_Z * math.sqrt(1 / rows + 1 / m)
        # McDiarmid: one row moves the total variation by at most 1/n.
        margin = math.sqrt(_LOG_LEVEL / (2 * rows))
        variation = distance.total_variation >= expected_total_variation(np.array(p), rows, m) + margin
    before = distance.null_rate - distance.null_change
    all_rows = distance.rows / (1 - distance.null_rate) if distance.null_rate < 1 else N_MIN
    spread = max(before * (1 - before), 1 / m) * (DESIGN_EFFECT / max(all_rows, 1) + 1 / m)
    return location, variation, abs(distance.null_change) >= EVIDENCE_Z * math.sqrt(spread)


def _rank(finding: Finding) -> tuple[int, float]:
    order = list(Severity)
    level = -1 if finding.severity is None else order.index(finding.severity)
    return level, max(abs(finding.distance.location), finding.distance.total_variation)
