"""`skerry_packager.select`: the best of all that pass, why the others lost, and what would fit."""

from __future__ import annotations

from typing import Any

import pytest

from skerry_contract.errors import BudgetError, MemoryBudgetError, SizeBudgetError
from skerry_contract.limits import MIB
from skerry_packager.results import Fidelity, Latency, Memory, Objective, Target, VariantResult, Verdict
from skerry_packager.select import choose, pareto

ANY = Target(name="any")


def tried(
    name: str,
    mib: float,
    *,
    ram: int = 60,
    ratio: float = 1.0,
    bound: float = 0.0,
    verdict: Verdict = Verdict.OK,
    **more: Any,
) -> VariantResult:
    fidelity = Fidelity(
        split="search", metric="accuracy", samples=100, output="p",
        reference=0.9, candidate=0.9 - bound, drop=bound, drop_bound=bound,
    )  # fmt: skip
    return VariantResult(
        name=name,
        verdict=verdict,
        reason=f"reason of {name}",
        model=b"m",
        size_bytes=int(mib * MIB),
        fidelity=fidelity,
        latency=Latency(p50_us=1, p95_us=1, ratio=ratio, pairs=9),
        memory=Memory(peak_rss_bytes=ram * MIB, base_rss_bytes=40 * MIB, load_ms=1),
        **more,
    )


FP32 = tried("fp32", 8, ram=80)
STORE = tried("int8-store", 2.1, ram=80, bound=0.001)
QDQ = tried("qdq-u8s8", 2.2, ram=50, ratio=0.5, bound=0.005)
BAD = tried("qdq-s8s8", 2.0, bound=0.3, verdict=Verdict.ACCURACY)
ALL = [FP32, STORE, QDQ, BAD]


@pytest.mark.parametrize(
    ("objective", "best"),
    [(Objective.SIZE, "int8-store"), (Objective.LATENCY, "qdq-u8s8"), (Objective.RAM, "qdq-u8s8")],
)
def test_each_objective_takes_the_minimum_with_fp32_behind_it(objective: Objective, best: str) -> None:
    choice = choose(ALL, ANY, objective)
    assert choice.variants == (best, "fp32")
    assert set(choice.lost) == {"int8-store", "qdq-u8s8", "qdq-s8s8"} - {best}


def test_every_loser_is_told_why() -> None:
    lost = choose(ALL, Target(name="t", ram_bytes=70 * MIB), Objective.SIZE).lost
    assert lost["qdq-s8s8"] == "accuracy: reason of qdq-s8s8"
    assert lost["int8-store"] == "does not fit: peak memory 80.00 MiB, budget 70.00 MiB"
    assert lost["fp32"] == "does not fit: peak memory 80.00 MiB, budget 70.00 MiB"
    assert choose(ALL, ANY, Objective.SIZE).lost["qdq-u8s8"] == "size 2.20 MiB; int8-store has 2.10 MiB"


def test_sizes_that_look_equal_are_told_in_bytes() -> None:
    one, other = tried("a", 0.79), tried("b", 0.7901)
    assert choose([one, other], ANY, Objective.SIZE).lost["b"] == "size 828,479 bytes; a has 828,375 bytes"
    close = choose([tried("a", 2, ratio=0.501), tried("b", 1, ratio=0.502)], ANY, Objective.LATENCY)
    assert close.lost["b"] == "latency 0.5020 x fp32; a has 0.5010 x fp32"
    with pytest.raises(SizeBudgetError, match="size 828,375 bytes, budget 828,374 bytes"):
        choose([one], Target(name="t", size_bytes=828_374), Objective.SIZE)


def test_fp32_is_a_candidate_itself() -> None:
    choice = choose([FP32, BAD], ANY, Objective.SIZE)
    assert choice.variants == ("fp32",)


def test_a_tie_goes_to_what_keeps_more() -> None:
    choice = choose([FP32, tried("b", 2, bound=0.004), tried("a", 2, bound=0.005)], ANY, Objective.SIZE)
    assert choice.variants[0] == "b"
    assert choice.lost["a"] == "the same size as b, which keeps no less of fp32"


def test_a_variant_that_the_engine_cannot_load_does_not_fit() -> None:
    newer = tried("new", 1, ir=10, opset=21)
    choice = choose([FP32, newer], Target(name="old", max_opset=17, max_ir=9), Objective.SIZE)
    assert choice.variants == ("fp32",)
    assert choice.lost["new"] == "does not fit: opset 21, engine loads 17; IR 10, engine loads 9"


def test_when_nothing_fits_the_numbers_and_what_would_fit_are_told() -> None:
    with pytest.raises(SizeBudgetError) as size:
        choose([FP32, STORE], Target(name="tiny", size_bytes=1 * MIB), Objective.SIZE)
    assert "fp32: size 8.00 MiB, budget 1.00 MiB" in size.value.message
    assert "2.10 MiB for the model and 80.00 MiB of memory" in size.value.hint
    with pytest.raises(MemoryBudgetError):
        choose([FP32, STORE], Target(name="tiny", ram_bytes=45 * MIB), Objective.SIZE)
    with pytest.raises(BudgetError) as loose:
        choose(ALL, Target(name="tiny", size_bytes=int(2.05 * MIB)), Objective.SIZE)
    assert "with a larger --max-drop: qdq-s8s8" in loose.value.hint


def test_the_pareto_set_leaves_out_what_another_one_beats_everywhere() -> None:
    worse = tried("worse", 3, ram=90, ratio=1.1, bound=0.002)
    assert pareto([FP32, STORE, QDQ, worse]) == ("fp32", "int8-store", "qdq-u8s8")
    twin = tried("twin", 8, ram=80)
    assert pareto([FP32, twin]) == ("fp32", "twin")
