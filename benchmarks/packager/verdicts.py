"""From what was measured to one word per cell, and the line "passing of N". Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

VERDICTS: Final = ("ok", "crash", "nan", "accuracy", "slow", "not smaller")
MOST_SIZE: Final = 0.95
MOST_DROP: Final = 0.01
LEAST_COSINE: Final = 0.99
MOST_LATENCY: Final = 1.10
MOST_SECONDS: Final = 60.0
MOST_BYTES: Final = 1.5e9
"""The last two are the bar for ours; they are shown for all and decide no verdict."""


@dataclass(frozen=True, slots=True)
class Ruling:
    verdict: str
    """One of `VERDICTS`."""
    reason: str


def rule(cell: Mapping[str, Any], metric: str, kept: bool) -> Ruling:
    """The first promise that is broken, in the order of `VERDICTS`.

    Args:
        cell: what `benchmarks.packager.child` and `benchmarks.packager.score` found, ``size`` among it: bytes
            of the made model over the bytes of its source.
        kept: the model cannot be made smaller; then it must not grow.
    """
    if "verdict" in cell:
        return Ruling(cell["verdict"], cell["reason"])
    failed = {version: said for version, said in cell["runtimes"].items() if said}
    if failed:
        version, said = next(iter(failed.items()))
        return Ruling("crash", f"on {version}: {said}")
    if metric == "cosine" and cell["cosine"] < LEAST_COSINE:
        return Ruling("accuracy", f"cosine {cell['cosine']:.4f}")
    if metric != "cosine" and cell["drop"] > MOST_DROP:
        return Ruling(
            "accuracy",
            f"{cell['source']:.4f} -> {cell['made']:.4f}, drop {cell['drop']:.4f} "
            f"({cell['drop_low']:.4f} to {cell['drop_high']:.4f})",
        )
    if cell["ratio"] > MOST_LATENCY:
        return Ruling("slow", f"{cell['ratio']:.2f} of the latency")
    most = 1.0 if kept else MOST_SIZE
    if cell["size"] > most:
        return Ruling("not smaller", f"{cell['size']:.3f} of the size")
    return Ruling("ok", f"size {cell['size']:.2f}, latency {cell['ratio']:.2f}")


def passing(cells: Iterable[tuple[str, Ruling]]) -> dict[str, tuple[int, int]]:
    """Method -> how many of its cells pass, and how many it has. Cells are pairs of method and ruling."""
    found: dict[str, tuple[int, int]] = {}
    for method, ruling in cells:
        good, total = found.get(method, (0, 0))
        found[method] = (good + (ruling.verdict == "ok"), total + 1)
    return found
