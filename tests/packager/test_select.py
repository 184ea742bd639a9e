"""`skerry_packager.select`: the best of all that pass, why the others lost, and what would fit."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import ModelProto, helper

from skerry_contract.errors import BudgetError, MemoryBudgetError, SizeBudgetError
from skerry_contract.limits import MIB
from skerry_packager.fit import cautions, misfits
from skerry_packager.requirements import Requirement, computes_in_fp16, lacking, requirements
from skerry_packager.results import (
    Estimate,
    Fidelity,
    Latency,
    Memory,
    Objective,
    Target,
    VariantResult,
    Verdict,
)
from skerry_packager.select import HOST_ARCH, choose, pareto

ANY = Target(name="any")
EMPTY = ModelProto(ir_version=8).SerializeToString()


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
        size_bytes=int(mib * MIB),
        fidelity=fidelity,
        latency=Latency(p50_us=1, p95_us=1, ratio=ratio, best_ratio=ratio, pairs=9),
        memory=Memory(peak_rss_bytes=ram * MIB, base_rss_bytes=40 * MIB, load_ms=1),
        **({"model": EMPTY} | more),
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
    assert "a larger --max-drop: qdq-s8s8" in loose.value.hint


def test_the_pareto_set_leaves_out_what_another_one_beats_everywhere() -> None:
    worse = tried("worse", 3, ram=90, ratio=1.1, bound=0.002)
    assert pareto([FP32, STORE, QDQ, worse]) == ("fp32", "int8-store", "qdq-u8s8")
    twin = tried("twin", 8, ram=80)
    assert pareto([FP32, twin]) == ("fp32", "twin")


# --- flash, memory, engines ----------------------------------------------------------------------------


def test_flash_holds_two_versions() -> None:
    target = Target(name="card", flash_bytes=5 * MIB)
    choice = choose([FP32, STORE], target, Objective.SIZE)
    assert choice.variants == ("int8-store",)
    assert choice.lost["fp32"] == "does not fit: flash 16.00 MiB for two slots, 5.00 MiB there"
    with pytest.raises(SizeBudgetError, match=r"4\.20 MiB for two slots, 4\.00 MiB there"):
        choose([FP32, STORE], Target(name="card", flash_bytes=4 * MIB), Objective.SIZE)


def test_a_lower_bound_over_the_budget_is_certain_an_upper_one_is_said() -> None:
    target = Target(name="board", ram_bytes=70 * MIB)
    certain = tried("a", 1, ram=60, ram_predicted_bytes=75 * MIB)
    assert [each.text for each in misfits(certain, target)] == [
        "peak memory at least 75.00 MiB, budget 70.00 MiB"
    ]
    unsure = tried("b", 1, ram=60, ram_predicted_bytes=50 * MIB, ram_upper_bytes=90 * MIB)
    assert misfits(unsure, target) == []
    assert cautions(unsure, target) == ["b may take up to 90.00 MiB of memory on board, budget 70.00 MiB"]
    assert cautions(unsure, ANY) == []


def model_of(operator: str, *types: int, domain: str = "", opset: int = 17, **attributes: int) -> bytes:
    """A file with one operator on inputs of these types."""
    names = [f"x{number}" for number in range(len(types))]
    inputs = [helper.make_tensor_value_info(*pair, None) for pair in zip(names, types, strict=True)]
    nodes = [helper.make_node(operator, names, ["y"], None, None, domain, None, **attributes)]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets).SerializeToString())


UINT8, INT8, FLOAT, FLOAT16 = 2, 3, 1, 10
OLD, NEW = {"onnxruntime": "1.23.2"}, {"onnxruntime": "1.32.0"}


def test_requirements_are_operators_with_types_and_versions() -> None:
    assert requirements(model_of("ConvInteger", UINT8, INT8)) == (
        Requirement(domain="", operator="ConvInteger", datatypes=("UINT8", "INT8"), version=17),
    )
    (bits,) = requirements(model_of("MatMulNBits", FLOAT, UINT8, domain="com.microsoft", bits=2))
    assert (bits.name, bits.version, bits.bits) == ("com.microsoft:MatMulNBits", 1, 2)


@pytest.mark.parametrize(
    ("model", "lacks"),
    [
        (model_of("ConvInteger", UINT8, INT8), ["ConvInteger with int8 is not in onnxruntime 1.23"]),
        (model_of("ConvInteger", UINT8, UINT8), []),
        (
            model_of("MatMulInteger", INT8, UINT8),
            ["MatMulInteger of int8 by uint8 is not in onnxruntime 1.23"],
        ),
        (model_of("MatMulInteger", UINT8, INT8), []),
        (
            model_of("MatMulNBits", FLOAT, UINT8, domain="com.microsoft", bits=2),
            ["MatMulNBits of 2 bits is not in onnxruntime 1.23"],
        ),
        (model_of("MatMulNBits", FLOAT, UINT8, domain="com.microsoft", bits=4), []),
    ],
)
def test_what_an_engine_lacks_is_known(model: bytes, lacks: list[str]) -> None:
    assert lacking(model, OLD) == lacks
    assert lacking(model, NEW) == []
    assert lacking(model, {}) == []


def test_an_operator_that_the_engine_lacks_does_not_fit_the_profile() -> None:
    dynamic = tried("int8-dynamic", 1, model=model_of("ConvInteger", UINT8, INT8))
    plain = tried("fp32", 8, model=model_of("Relu", FLOAT))
    target = Target(name="raspberry-pi-4", engines=OLD)
    assert choose([plain, dynamic], target, Objective.SIZE).lost["int8-dynamic"] == (
        "does not fit: ConvInteger with int8 is not in onnxruntime 1.23 on profile raspberry-pi-4"
    )
    assert (
        choose([plain, dynamic], Target(name="new", engines=NEW), Objective.SIZE).variants[0]
        == "int8-dynamic"
    )


def test_a_format_needs_an_engine_for_it() -> None:
    tflite = b"\x1c\0\0\0TFL3"
    assert lacking(tflite, {"ai-edge-litert": "2.3.0"}) == []
    assert lacking(tflite, NEW) == ["it needs an engine for TFLite; there is onnxruntime 1.32.0"]
    assert lacking(model_of("Relu", FLOAT), {"tflite-runtime": "2.14.0"}) == [
        "it needs an engine for ONNX; there is tflite-runtime 2.14.0"
    ]


# --- latency on the target -----------------------------------------------------------------------------

FOREIGN = "aarch64" if HOST_ARCH == "x86_64" else "x86_64"


def slow_there(*, fp32: float, other: float, provenance: str = "predicted from a table") -> Any:
    """An estimate by name: fp32, and all others."""

    def estimate(result: VariantResult) -> Estimate | None:
        us = fp32 if result.name == "fp32" else other
        return Estimate(p50_us=us, low_us=us / 2, high_us=us * 2, provenance=provenance)

    return estimate


def test_latency_is_that_of_the_target_not_of_this_host() -> None:
    target = Target(name="pi", arch=FOREIGN, estimate=slow_there(fp32=1000, other=3000))
    choice = choose([FP32, QDQ], target, Objective.LATENCY)  # twice as fast here, three times as slow there
    assert choice.variants == ("fp32",)
    assert choice.lost["qdq-u8s8"] == ("latency on pi (predicted from a table) 3.00 ms; fp32 has 1.00 ms")


def test_without_any_estimate_another_architecture_is_served_by_size() -> None:
    choice = choose([FP32, STORE, QDQ], Target(name="pi", arch=FOREIGN), Objective.LATENCY)
    assert choice.variants[0] == "int8-store"
    assert choice.lost["qdq-u8s8"] == (
        "size, as no latency is known on pi, 2.20 MiB; int8-store has 2.10 MiB"
    )


def test_at_home_a_measured_ratio_goes_before_peak_figures() -> None:
    guess = slow_there(fp32=1000, other=3000, provenance="not verified: from peaks")
    assert (
        choose([FP32, QDQ], Target(name="here", arch=HOST_ARCH, estimate=guess), Objective.LATENCY).variants[
            0
        ]
        == "qdq-u8s8"
    )
    assert (
        choose([FP32, QDQ], Target(name="there", arch=FOREIGN, estimate=guess), Objective.LATENCY).variants[0]
        == "fp32"
    )


def test_only_a_measured_latency_breaks_a_budget_others_are_said() -> None:
    def on(provenance: str) -> Target:
        return Target(
            name="pi", latency_p95_us=1500, estimate=slow_there(fp32=1000, other=500, provenance=provenance)
        )

    choice = choose([FP32, STORE], on("measured on pi-17"), Objective.SIZE)
    assert choice.variants == ("int8-store",)
    assert choice.lost["fp32"] == ("does not fit: latency p95 2.00 ms, budget 1.50 ms (measured on pi-17)")
    assert misfits(FP32, on("predicted")) == []
    assert cautions(FP32, on("predicted")) == [
        "fp32 may break the latency budget of pi, 1.50 ms: 1.00 ms (0.500 ms to 2.00 ms, predicted)"
    ]
    certain = Target(
        name="pi", latency_p95_us=400, estimate=slow_there(fp32=1000, other=1, provenance="predicted")
    )
    assert cautions(FP32, certain)[0].startswith("fp32 is likely to break")


def test_fp16_arithmetic_is_not_chosen_for_latency_where_there_is_none() -> None:
    half = tried("fp16", 4, ratio=0.2, model=model_of("MatMul", FLOAT16, FLOAT16))
    assert computes_in_fp16(half.model)
    assert not computes_in_fp16(model_of("MatMul", FLOAT, FLOAT))
    plain = tried("fp32", 8, model=model_of("Relu", FLOAT))
    without = choose([plain, half], Target(name="x", arch=HOST_ARCH, isa=("avx2",)), Objective.LATENCY)
    assert without.variants == ("fp32",)
    assert without.lost["fp16"] == "it calculates in fp16, which x has no instructions for"
    with_it = Target(name="pi-5", arch=HOST_ARCH, isa=("neon", "fp16"))
    assert choose([plain, half], with_it, Objective.LATENCY).variants[0] == "fp16"


def test_people_read_a_refusal_line_by_line() -> None:
    others = [Target(name="big")]
    with pytest.raises(SizeBudgetError) as caught:
        choose([FP32, STORE], Target(name="tiny", size_bytes=1 * MIB), Objective.SIZE, others)
    assert caught.value.__notes__ == [
        "no variant fits tiny:",
        "  fp32        size 8.00 MiB, budget 1.00 MiB",
        "  int8-store  size 2.10 MiB, budget 1.00 MiB",
        "What would fit:",
        "  - a profile with 2.10 MiB for the model and 80.00 MiB of memory",
        "  - the profile big (int8-store)",
        "→ Take one of these, or train a smaller model.",
    ]


# --- what would fit ------------------------------------------------------------------------------------


def test_a_refusal_names_the_profiles_and_the_drop_that_would_do() -> None:
    others = [Target(name="tiny"), Target(name="big"), Target(name="small", size_bytes=1 * MIB)]
    with pytest.raises(BudgetError) as caught:
        choose(ALL, Target(name="tiny", size_bytes=int(2.05 * MIB)), Objective.SIZE, others)
    assert "the profile big (int8-store)" in caught.value.hint
    assert "small" not in caught.value.hint.replace("smaller", "")
    assert (
        "qdq-s8s8 (2.00 MiB; accuracy: reason of qdq-s8s8; --max-drop 0.3001 takes it)" in caught.value.hint
    )
