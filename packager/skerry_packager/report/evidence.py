"""A packaging run as the report needs it: typed, complete with defaults, whatever schema its log had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..results import FP32, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What a variant loses on one split."""

    split: str
    samples: int
    drop: float
    bound: float
    """Upper end of the one-sided 95% interval."""
    exact: float | None
    reference: float | None
    score: float | None

    @property
    def by_odds(self) -> bool:
        """Whether the bound is seen to be about the odds of the rows that flipped, and `drop` about their
        labels: then the loss that is shown lies above its bound (decision 0010)."""
        return self.exact is None and self.drop > self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """Latency on a profile's devices, µs."""

    p50: float
    low: float
    high: float
    provenance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """What quantizing one operator alone costs."""

    node: str
    operator: str
    bytes_saved: int
    noise: float
    kept_float: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One variant."""

    number: int
    """From 1, in the order of trying."""
    name: str
    verdict: str
    reason: str
    note: str
    chosen_for: tuple[str, ...]
    fallback_for: tuple[str, ...]
    pareto_for: tuple[str, ...]
    lost: Mapping[str, str]
    size: int | None
    ratio: float | None
    search: Judged | None
    held_out: Judged | None
    p50_us: float | None
    latency_ratio: float | None
    estimates: Mapping[str, Guess]
    slowdowns: Mapping[str, float]
    """Profile -> latency there as a multiple of fp32's."""
    ram_lower: int | None
    ram_measured: int | None
    ram_upper: int | None
    sensitivity: tuple[Operator, ...]

    @property
    def passed(self) -> bool:
        return self.verdict == Verdict.OK

    @property
    def judged(self) -> Judged | None:
        """The last word that was spoken."""
        return self.held_out or self.search

    @property
    def why(self) -> str:
        """For whom it was chosen, or why it lost."""
        words = [
            f"{word} {', '.join(profiles)}"
            for word, profiles in (("chosen for", self.chosen_for), ("fallback of", self.fallback_for))
            if profiles
        ]
        reasons: dict[str, list[str]] = {}
        for profile, reason in self.lost.items():
            reasons.setdefault(reason, []).append(profile)
        if not words and len(reasons) == 1:
            return next(iter(reasons))
        words += [f"{', '.join(profiles)}: {reason}" for reason, profiles in reasons.items()]
        return "; ".join(words) or self.reason or "not chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A device profile's; 0 where there is none."""

    name: str
    size: int = 0
    flash: int = 0
    ram: int = 0
    latency_us: int = 0
    slowdown: float = 0.0
    """Largest accepted latency as a multiple of fp32's."""
    arch: str = ""
    engines: Mapping[str, str]
    variants: tuple[str, ...] = ()
    """What was chosen for it, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A whole run."""

    row: Mapping[str, Any]
    """The document it was read from, for what is only shown."""
    tried: tuple[Tried, ...]
    limits: tuple[Limits, ...]
    max_drop: float
    metric: str

    @property
    def failed(self) -> bool:
        return bool(self.row["outcome"] == "failed")

    @property
    def title(self) -> str:
        return f"{self.row['name']} {self.row['version']}"

    def variant(self, name: str) -> Tried | None:
        return next((tried for tried in self.tried if tried.name == name), None)

    @property
    def judgeable(self) -> tuple[Tried, ...]:
        """Those that were compared with fp32."""
        return tuple(tried for tried in self.tried if tried.judged is not None and tried.name != FP32)

    @property
    def confirmed(self) -> bool:
        """Whether any variant got as far as the held-out rows."""
        return any(tried.held_out for tried in self.tried)


def read_evidence(row: Mapping[str, Any]) -> Evidence:
    """From a document of `skerry_packager.runlog`; columns of an older schema may be None."""
    choices = row.get("choices") or {}
    targets = row.get("targets") or {}
    variants = row.get("variants") or []
    names = dict.fromkeys([*(row.get("profiles") or ()), *targets])
    return Evidence(
        row=row,
        tried=tuple(_tried(number, variant) for number, variant in enumerate(variants, 1)),
        limits=tuple(_limits(name, targets.get(name) or {}, choices.get(name) or {}) for name in names),
        max_drop=float(row.get("max_drop") or 0.0),
        metric=str(row.get("metric") or ""),
    )


def _limits(name: str, target: Mapping[str, Any], choice: Mapping[str, Any]) -> Limits:
    return Limits(
        name=name,
        size=target.get("size_bytes") or 0,
        flash=target.get("flash_bytes") or 0,
        ram=target.get("ram_bytes") or 0,
        latency_us=target.get("latency_p95_us") or 0,
        slowdown=target.get("max_slowdown") or 0.0,
        arch=target.get("arch") or "",
        engines=target.get("engines") or {},
        variants=tuple(choice.get("variants") or ()),
    )


def _tried(number: int, row: Mapping[str, Any]) -> Tried:
    get = row.get
    return Tried(
        number=number,
        name=str(row["name"]),
        verdict=str(row["verdict"]),
        reason=get("reason") or "",
        note=get("note") or "",
        chosen_for=tuple(get("chosen_for") or ()),
        fallback_for=tuple(get("fallback_for") or ()),
        pareto_for=tuple(get("pareto_for") or ()),
        lost=get("lost") or {},
        size=get("size"),
        ratio=get("size_ratio"),
        search=_judged(row, "search", "", "drop_bound"),
        held_out=_judged(row, "held-out", "held_out_", "held_out_bound"),
        p50_us=get("latency_p50_us"),
        latency_ratio=get("latency_ratio"),
        estimates={name: _guess(guess) for name, guess in (get("estimates") or {}).items()},
        slowdowns=get("slowdowns") or {},
        ram_lower=get("ram_predicted_bytes"),
        ram_measured=get("ram_measured_bytes"),
        ram_upper=get("ram_upper_bytes"),
        sensitivity=tuple(
            Operator(
                node=str(item["node"]),
                operator=str(item["operator"]),
                bytes_saved=int(item["bytes_saved"]),
                noise=float(item["noise"] or 0.0),
                kept_float=bool(item["kept_float"]),
            )
            for item in get("sensitivity") or ()
        ),
    )


def _judged(row: Mapping[str, Any], split: str, prefix: str, bound: str) -> Judged | None:
    if row.get(f"{prefix}drop") is None or row.get(bound) is None:
        return None
    return Judged(
        split=split,
        samples=row.get(f"{prefix}samples") or 0,
        drop=row[f"{prefix}drop"],
        bound=row[bound],
        exact=row.get(f"{prefix}exact_bound"),
        reference=row.get(f"{prefix}reference"),
        score=row.get(f"{prefix}score"),
    )


def _guess(guess: Mapping[str, Any]) -> Guess:
    return Guess(
        p50=guess["p50_us"], low=guess["low_us"], high=guess["high_us"], provenance=guess["provenance"]
    )
