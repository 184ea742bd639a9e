"""Two or more packaging runs side by side: what went in, what came out, and which differences count. Pure.

A difference of an input always counts. A difference of an outcome counts where it is larger than what the
measurement itself varies by: losses beyond each other's 95% bound, latency by 10%, memory by 5%, size by 1%.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

_INPUTS: Final = (
    "name", "version", "source_file", "source_digest", "objective", "max_drop", "metric", "labelled", "task",
)  # fmt: skip
_TREES: Final = ("splits", "targets", "options", "preprocessing", "lineage", "environment")
"""Inputs that are trees of names and values."""
_NOISE: Final[Mapping[str, float]] = {
    "size": 0.01, "bundle bytes": 0.01, "RAM here": 0.05, "latency vs fp32": 0.10, "seconds": 0.5,
}  # fmt: skip
"""Outcome -> relative difference that may be chance, or does not matter. Less is better for all of them."""


class Change(StrEnum):
    """How a value compares with that of the first run."""

    SAME = "same"
    CHANGED = "changed"
    BETTER = "better"
    WORSE = "worse"
    NOISE = "noise"
    """It differs, but not by more than measurements do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One value of every run."""

    group: str
    """``input``, ``outcome`` or the name of a variant."""
    what: str
    values: tuple[Any, ...]
    changes: tuple[Change, ...]
    """For each run, against the first one; the first is ``same``."""

    @property
    def counts(self) -> bool:
        """Whether any run differs significantly."""
        return any(change not in (Change.SAME, Change.NOISE) for change in self.changes)


def compare_runs(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """All rows that say something; those that are equal in every run too.

    Args:
        runs: at least two, as `skerry_packager.runlog.RunLog.run` gives them.
    """
    return [*_inputs(runs), *_outcomes(runs), *_variants(runs)]


def _inputs(runs: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    for name in _INPUTS:
        yield _plain_row("input", name, [run.get(name) for run in runs])
    for tree in _TREES:
        flat = [dict(flatten(run.get(tree) or {}, f"{tree}.")) for run in runs]
        for key in dict.fromkeys(key for values in flat for key in values):
            yield _plain_row("input", key, [values.get(key) for values in flat])


def _outcomes(runs: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    yield _plain_row("outcome", "outcome", [run.get("outcome") for run in runs])
    yield _plain_row("outcome", "error", [run.get("error") for run in runs])
    choices = [
        {profile: choice["variants"] for profile, choice in (run.get("choices") or {}).items()}
        for run in runs
    ]
    for profile in dict.fromkeys(profile for choice in choices for profile in choice):
        best = [(choice.get(profile) or [None])[0] for choice in choices]
        yield _plain_row("outcome", f"chosen for {profile}", best)
    chosen = [_chosen(run) for run in runs]
    yield from _figures("outcome", chosen)
    yield _figure_row("outcome", "bundle bytes", [run.get("bundle_bytes") for run in runs])
    yield _plain_row("outcome", "bundle digest", [run.get("bundle_digest") for run in runs])
    yield _figure_row("outcome", "seconds", [run.get("seconds") for run in runs])


def _variants(runs: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    tried = [{row["name"]: row for row in run["variants"]} for run in runs]
    for name in dict.fromkeys(name for rows in tried for name in rows):
        rows = [variants.get(name, {}) for variants in tried]
        yield _plain_row(name, "verdict", [row.get("verdict") for row in rows])
        yield from _figures(name, rows)


def _figures(group: str, rows: Sequence[Mapping[str, Any]]) -> Iterable[Row]:
    yield _figure_row(group, "size", [row.get("size") for row in rows])
    yield _loss_row(group, rows)
    yield _figure_row(group, "latency vs fp32", [row.get("latency_ratio") for row in rows])
    yield _figure_row(group, "RAM here", [row.get("ram_measured_bytes") for row in rows])


def _chosen(run: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row of the best variant."""
    names = run.get("chosen") or [None]
    return next((row for row in run["variants"] if row["name"] == names[0]), {})


def _plain_row(group: str, what: str, values: Sequence[Any]) -> Row:
    changes = tuple(Change.SAME if value == values[0] else Change.CHANGED for value in values)
    return Row(group=group, what=what, values=tuple(values), changes=changes)


def _figure_row(group: str, what: str, values: Sequence[float | None]) -> Row:
    changes = tuple(_judge(values[0], value, _NOISE[what]) for value in values)
    return Row(group=group, what=what, values=tuple(values), changes=changes)


def _judge(first: float | None, value: float | None, noise: float) -> Change:
    if value == first:
        return Change.SAME
    if first is None or value is None:
        return Change.CHANGED
    if abs(value - first) <= noise * abs(first):
        return Change.NOISE
    return Change.BETTER if value < first else Change.WORSE


def _loss_row(group: str, rows: Sequence[Mapping[str, Any]]) -> Row:
    """The last word on each variant; it differs where one's mean lies beyond the other's bound. Losses of
    different metrics are never better or worse."""
    losses = [_loss(row) for row in rows]
    changes = []
    for row, found in zip(rows, losses, strict=True):
        first = losses[0]
        if found == first:
            changes.append(Change.SAME)
        elif found is None or first is None or row.get("metric") != rows[0].get("metric"):
            changes.append(Change.CHANGED)
        elif found[0] > first[1]:
            changes.append(Change.WORSE)
        else:
            changes.append(Change.BETTER if first[0] > found[1] else Change.NOISE)
    values = tuple(None if found is None else found[0] for found in losses)
    return Row(group=group, what="loss", values=values, changes=tuple(changes))


def _loss(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean and bound, with the exact bound where the bootstrap's says nothing."""
    for prefix, bound in (("held_out_", "held_out_bound"), ("", "drop_bound")):
        mean, upper = row.get(f"{prefix}drop"), row.get(bound)
        if mean is not None and upper is not None:
            return float(mean), max(float(upper), float(row.get(f"{prefix}exact_bound") or 0.0))
    return None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of a tree by their dotted names.

    >>> list(flatten({"a": {"b": 1}, "c": [2]}))
    [('a.b', 1), ('c', [2])]
    """
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
