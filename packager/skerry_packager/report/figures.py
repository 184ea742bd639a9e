"""Figures for people: sizes, times and losses as short text, the same on the page and on the terminal."""

from __future__ import annotations

from skerry_contract.limits import KIB, MIB

from ..console import size
from .evidence import Evidence, Judged, Tried

METRICS = {
    "accuracy": "accuracy",
    "f1": "F1",
    "auc": "AUC",
    "mae": "mean absolute error",
    "top1-agreement": "agreement with fp32",
    "cosine": "cosine similarity with fp32",
    "sqnr": "noise against fp32, relative power",
}
"""Metric -> what it is called."""


def duration(microseconds: float | None) -> str:
    """Three digits.

    >>> duration(1234.0), duration(250_000.0), duration(161.2), duration(None)
    ('1.23 ms', '250 ms', '161 µs', '')
    """
    if microseconds is None:
        return ""
    if microseconds < 999.5:
        return f"{microseconds:.3g} µs"
    milliseconds = microseconds / 1000
    if milliseconds >= 10_000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds:.3g} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def loss(value: float) -> str:
    """A loss in points (1 point is 0.01).

    >>> loss(0.0123), loss(-0.00004), loss(0.0)
    ('+1.23 pt', '-0.004 pt', '0 pt')
    """
    points = value * 100
    if abs(points) < 0.0005:
        return "0 pt"
    return f"{points:+.3f} pt" if abs(points) < 0.01 else f"{points:+.2f} pt"


def bound(judged: Judged) -> str:
    """The upper end of the loss; the exact bound where no row disagrees and the bootstrap knows none."""
    if judged.exact is not None:
        return f"≤ {judged.exact:.1%} exact"
    return f"≤ {loss(judged.bound)}" + (" by the odds" if judged.by_odds else "")


def scored(tried: Tried, metric: str) -> str:
    """The variant's own figure."""
    judged = tried.judged
    if judged is None or judged.score is None:
        return ""
    if metric in ("accuracy", "f1", "auc", "top1-agreement"):
        return f"{judged.score:.2%}"
    return f"{judged.score:.4g}"


def bytes_unit(largest: float) -> tuple[float, str]:
    """The unit that an axis of bytes is written in."""
    if largest >= MIB:
        return float(MIB), "MiB"
    return (float(KIB), "KiB") if largest >= KIB else (1.0, "B")


def time_unit(largest: float) -> tuple[float, str]:
    """The unit that an axis of microseconds is written in."""
    if largest >= 1_000_000:
        return 1_000_000.0, "s"
    return (1000.0, "ms") if largest >= 100 else (1.0, "µs")


def tick(value: float, unit: float) -> str:
    return f"{value / unit:.4g}"


def headline(evidence: Evidence) -> str:
    """The outcome in a sentence."""
    if evidence.failed:
        return str(evidence.row.get("error") or "failed")
    parts = []
    for limits in evidence.limits:
        best = evidence.variant(limits.variants[0]) if limits.variants else None
        if best is not None:
            parts.append(f"{limits.name} gets {best.name} ({size(best.size)}{_of_fp32(best)})")
    return "; ".join(parts) or ", ".join(evidence.row.get("chosen") or ())


def _of_fp32(tried: Tried) -> str:
    return f", {tried.ratio:.0%} of fp32" if tried.ratio and tried.ratio != 1 else ""


def accuracy_class(tried: Tried, max_drop: float) -> str:
    """``keeps`` (no loss worth speaking of), ``within`` the gate, ``over`` it, or ``unknown``."""
    judged = tried.judged
    if tried.number == 1 and tried.passed:
        return "keeps"
    if judged is None:
        return "unknown"
    if judged.bound > max_drop:
        return "over"
    return "keeps" if judged.bound <= max_drop / 10 else "within"
