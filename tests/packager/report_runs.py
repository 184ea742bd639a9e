"""Packaging runs for tests of the report: figures like those of real models, none measured, none random."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from skerry_contract.errors import MemoryBudgetError
from skerry_contract.limits import MIB
from skerry_packager.inspect import ModelInspection
from skerry_packager.results import (
    Choice,
    Estimate,
    Fidelity,
    GoldenData,
    Latency,
    Memory,
    Objective,
    PackResult,
    Sensitivity,
    SplitInfo,
    Target,
    VariantResult,
    Verdict,
)
from skerry_packager.runlog import Run, document

HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>"
TARGETS = (
    Target(
        name="raspberry-pi-4", size_bytes=64 * MIB, flash_bytes=128 * MIB, ram_bytes=96 * MIB,
        latency_p95_us=20_000, max_slowdown=1.1, arch="aarch64", engines={"onnxruntime": "1.23.2"},
    ),
    Target(
        name="tiny-gateway", size_bytes=2 * MIB, flash_bytes=3 * MIB, ram_bytes=60 * MIB,
        latency_p95_us=5_000, arch="aarch64", engines={"onnxruntime": "1.23.2"},
    ),
)  # fmt: skip
LINEAGE = {
    "data_hash": "sha256:" + "12" * 32,
    "code_commit": "c0ffee" * 6 + "beef",
    "hyperparameters": {"lr": 0.01, "opt": {"name": "adam"}},
    "environment": {"packing": {"onnxruntime": "1.32.0"}},
    "license": "apache-2.0",
}


def fidelity(split: str, drop: float, bound: float, exact: float | None = None) -> Fidelity:
    return Fidelity(
        split=split, metric="accuracy", samples=400, output="scores", reference=0.94, candidate=0.94 - drop,
        drop=drop, drop_bound=bound, exact_bound=exact,
    )  # fmt: skip


def variant(
    name: str,
    size: int,
    latency_us: float,
    drop: float,
    bound: float,
    *,
    verdict: Verdict = Verdict.OK,
    reason: str = "",
    exact: float | None = None,
    ram: int = 50 * MIB,
) -> VariantResult:
    return VariantResult(
        name=name,
        verdict=verdict,
        reason=reason or f"accuracy 0.9400 -> {0.94 - drop:.4f}",
        model=b"x",
        digest="sha256:" + "ab" * 32,
        size_bytes=size,
        recipe={"kind": name},
        ir=8,
        opset=17,
        ram_predicted_bytes=ram - 8 * MIB,
        ram_upper_bytes=ram + 22 * MIB,
        fidelity=fidelity("search", drop, bound, exact),
        held_out=fidelity("held-out", drop * 0.9, bound * 0.95, exact) if verdict is Verdict.OK else None,
        latency=Latency(p50_us=latency_us, p95_us=latency_us * 1.3, ratio=latency_us / 3200,
            best_ratio=latency_us / 3300, pairs=9),
        memory=Memory(peak_rss_bytes=ram, base_rss_bytes=30 * MIB, load_ms=12.0),
        slowdowns={"raspberry-pi-4": latency_us / 3200},
        estimates={
            "raspberry-pi-4": Estimate(
                p50_us=latency_us * 5, low_us=latency_us * 2.2, high_us=latency_us * 11,
                provenance="predicted from operator timings; not verified",
            )
        },
    )  # fmt: skip


def sensitivities(count: int) -> tuple[Sensitivity, ...]:
    return tuple(
        Sensitivity(
            node=f"/model/layer.{index}/conv/Conv", operator="Conv" if index % 3 else "MatMul",
            bytes_saved=9000 + 700 * index, noise=10 ** (-1.5 - index / 6), kept_float=index < 4,
        )
        for index in range(count)
    )  # fmt: skip


VARIANTS = (
    replace(variant("fp32", 3_232_000, 3200, 0.0, 0.0), held_out=fidelity("held-out", 0.0, 0.0)),
    variant("fp16-store", 1_640_000, 3210, 0.0, 0.0, exact=0.0075),
    variant("int8-store", 842_000, 3190, 0.0005, 0.002),
    variant("qdq-u8s8", 861_000, 1400, 0.012, 0.021, verdict=Verdict.ACCURACY, reason="loses 1.2 points"),
    variant("qdq-s8s8", 861_500, 1420, 0.42, 0.47, verdict=Verdict.ACCURACY, reason="loses 42 points"),
    replace(variant("mixed", 1_010_000, 1650, 0.004, 0.009), sensitivity=sensitivities(36)),
    variant("int8-dynamic", 850_000, 9900, 0.001, 0.004, ram=90 * MIB),
    VariantResult(name="fp16", verdict=Verdict.SKIPPED, reason="no profile has fp16 arithmetic"),
    VariantResult(
        name="int4-weights",
        verdict=Verdict.CRASH,
        reason="MatMulNBits(1) is not implemented",
        size_bytes=500_000,
    ),
)
LOST = {
    "fp16-store": "size 1.56 MiB; int8-store has 0.80 MiB",
    "qdq-u8s8": "accuracy: loses 1.2 points",
    "qdq-s8s8": "accuracy: loses 42 points",
    "mixed": "size 0.96 MiB; int8-store has 0.80 MiB",
    "int8-dynamic": "size 850,000 bytes; int8-store has 842,000 bytes",
    "fp16": "skipped: no profile has fp16 arithmetic",
    "int4-weights": "crash: MatMulNBits(1) is not implemented",
}


def inspection(file_name: str = "magika.onnx") -> ModelInspection:
    return ModelInspection(
        file_name=file_name, format="onnx", sha256="ab" * 32, size_bytes=3_232_000, ir=8,
        opsets={"ai.onnx": 17}, producer="", inputs=(), outputs=(), nodes=1, operators={}, parameters=1,
        weight_bytes=4, subgraphs=0, quantized_operators=0, external_files=(), metadata={}, probe="ran",
    )  # fmt: skip


def result(variants: tuple[VariantResult, ...] = VARIANTS, lost: dict[str, str] | None = None) -> PackResult:
    best = "int8-store" if any(item.name == "int8-store" for item in variants) else "fp32"
    chosen = tuple(dict.fromkeys((best, "fp32")))
    why = LOST if lost is None else lost
    why = {name: reason for name, reason in why.items() if any(item.name == name for item in variants)}
    return PackResult(
        inspection=inspection(), inputs=(), outputs=(), task="classification", metric="accuracy",
        objective=Objective.SIZE, max_drop=0.01, variants=variants,
        choices=(
            Choice(target="raspberry-pi-4", variants=chosen, lost=why, pareto=(best, "mixed")),
            Choice(
                target="tiny-gateway", variants=(best,),
                lost=why if best == "fp32" else {"fp32": "does not fit: size 3.08 MiB", **why},
                pareto=(best,),
            ),
        ),
        chosen=chosen,
        golden=GoldenData(inputs=b"", outputs={}, tolerances={}, samples=(3, 14, 159, 265)), monitoring=b"",
        splits={
            name: SplitInfo(rows=rows, sha256=digit * 64)
            for name, rows, digit in (("calibration", 200, "1"), ("search", 400, "2"), ("held-out", 400, "3"))
        },
        notes=("opset raised from 11 to 17, outputs equal to 1e-6",),
        preprocessing={"kind": "image", "scale": 0.00392},
    )  # fmt: skip


def run(**changes: Any) -> Run:
    fields: dict[str, Any] = {
        "started": "2026-01-02T03:04:05Z", "seconds": 21.5, "name": "magika", "version": "1.4.0",
        "release": 1004000, "source_file": "magika.onnx", "objective": "size", "max_drop": 0.01,
        "profiles": ("raspberry-pi-4", "tiny-gateway"), "result": result(), "bundle": "magika-1.4.0.skerry",
        "bundle_digest": "sha256:" + "ef" * 32, "bundle_bytes": 4_311_040, "targets": TARGETS,
        "options": {"monitor": "auto", "seed": 0},
        "command": ("skerry", "pack", "magika.onnx", "--name", "magika", "--evaluation", "test data.npz"),
        "lineage": LINEAGE, "environment": {"python": "3.11.2", "onnxruntime": "1.32.0"},
    }  # fmt: skip
    return Run(**(fields | changes))


def rich_document() -> dict[str, Any]:
    """Every kind of verdict, estimates, sensitivity, two profiles."""
    return document(run())


def many_document(count: int, *, spread: float = 0.3) -> dict[str, Any]:
    """So many variants, most of them close to each other."""
    made = tuple(
        variant(
            "fp32" if index == 0 else f"variant-with-long-name-{index}",
            round(900_000 * (1 + spread * math.sin(index) ** 2)),
            2000 * (1 + spread * math.cos(3 * index) ** 2),
            0.0002 * index,
            0.0004 * index,
            verdict=Verdict.OK if 0.0004 * index <= 0.01 else Verdict.ACCURACY,
        )
        for index in range(count)
    )
    return document(run(result=result(made)))


def failed_document() -> dict[str, Any]:
    """Nothing fits; what was tried is known."""
    error = MemoryBudgetError(
        "no variant fits tiny-gateway: fp32: peak memory 90 MiB, budget 60 MiB", hint="Larger."
    )
    return document(
        run(result=None, partial=VARIANTS, error=error, bundle="", bundle_digest="", bundle_bytes=0)
    )


def hostile_document() -> dict[str, Any]:
    """Every text that comes from others tries to be markup."""
    spoiled = tuple(
        replace(
            item,
            reason=HOSTILE,
            note=HOSTILE,
            sensitivity=tuple(replace(one, node=HOSTILE, operator=HOSTILE) for one in item.sensitivity),
        )
        for item in VARIANTS
    )
    made = replace(
        result((*spoiled, replace(VARIANTS[2], name=HOSTILE))), notes=(HOSTILE,),
        preprocessing={HOSTILE: HOSTILE}, states={HOSTILE: HOSTILE}, task=HOSTILE,
    )  # fmt: skip
    return document(
        run(
            name=HOSTILE, version=HOSTILE, source_file=HOSTILE, result=made, command=("skerry", HOSTILE),
            lineage={"hyperparameters": {HOSTILE: HOSTILE}, "description": HOSTILE, "tracking_uri": HOSTILE},
            environment={HOSTILE: HOSTILE}, options={HOSTILE: HOSTILE},
        )
    )  # fmt: skip
