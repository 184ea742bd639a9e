"""Latency on devices that are not here: provenance, intervals, and never another architecture's timing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_models import real_model

from skerry_contract.errors import ConfigError, InputError
from skerry_packager.costs import OperatorTable, fit, parse_table, read_table
from skerry_packager.latency import (
    Estimator,
    Measurement,
    Peaks,
    from_peaks,
    from_table,
    is_here,
    read_measurements,
)
from skerry_packager.operations import OTHER, from_profile
from skerry_packager.results import Latency, VariantResult, Verdict
from skerry_packager.tflite_operations import from_tflite
from skerry_runtime.worker.bench_ops.cases import cases
from skerry_runtime.worker.bench_ops.work import Work

SIZES = [10.0**power for power in (4, 5, 6, 7, 8)]


def true_us(work: Work) -> float:
    """The law of a machine that was made up: 2 us a node, 10 G operations/s, 4 GB/s."""
    rate = {"int8": 40e3, "fp32": 10e3, "fp16": 10e3}[work.datatype]
    return 2.0 + work.flops / rate + work.bytes / 4e3


def made_up_table(noise: float = 0.0, seed: int = 0) -> dict[str, Any]:
    """A table of that machine, each point off by up to the share `noise`."""
    random = np.random.default_rng(seed)
    points = []
    for kind, datatype in [
        ("conv-dense", "fp32"), ("conv-dense", "int8"), ("matmul", "fp32"), ("unary", "fp32"),
        ("binary", "fp32"),
    ]:  # fmt: skip
        for flops in SIZES:
            size = flops / (50 if kind in ("conv-dense", "matmul") else 0.25)
            us = true_us(Work(kind, datatype, flops, size)) * random.uniform(1 - noise, 1 + noise)
            points.append(
                {"operator": kind, "size": str(flops), "kind": kind, "datatype": datatype, "flops": flops,
                 "bytes": size, "us": us, "low_us": us * 0.99, "high_us": us * 1.02, "rounds": 9}
            )  # fmt: skip
    machine = {
        "title": "Made-up board", "arch": "aarch64", "cpu": "none", "cores": 4, "isa": ["neon"],
        "ram_total_bytes": 2**30, "ram_available_bytes": 2**29, "flash_total_bytes": 2**34,
        "flash_free_bytes": 2**33, "libc": "glibc", "libc_version": "2.36", "python": "3.11.2",
        "kernel": "6.1", "packages": {"onnxruntime": "1.23.2"}, "governor": "performance", "notes": [],
    }  # fmt: skip
    return {
        "schema": "skerry-operator-table/1", "made": "2026-05-04T10:00:00Z", "seconds": 60.0,
        "machine": machine,
        "engine": {"name": "onnx", "version": "1.23.2"}, "threads": 1, "call_us": 30.0, "drift": 1.02,
        "operators": points, "missing": [], "left_out": [],
    }  # fmt: skip


def table(noise: float = 0.0, seed: int = 0) -> OperatorTable:
    return parse_table(made_up_table(noise, seed), "table")


MODEL = (
    Work("conv-dense", "fp32", 3e7, 6e5),
    Work("unary", "fp32", 2e5, 1.6e6),
    Work("conv-dense", "fp32", 5e6, 1e5),
    Work("matmul", "fp32", 2e6, 4e4),
)
TRUTH = 30 + sum(true_us(work) for work in MODEL)
PEAKS = Peaks(fp32_gflops=25, int8_gops=100, memory_gb_s=4, node_us=2)


def tried(**more: Any) -> VariantResult:
    return VariantResult(
        name="fp32", verdict=Verdict.OK, reason="", digest="sha256:aa", operations=MODEL, **more
    )


def pi(**more: Any) -> Estimator:
    return Estimator(profile="pi", engines={"onnxruntime": "1.23.2"}, **more)


MEASURED = Measurement(
    digest="sha256:aa", profile="pi", engine="onnxruntime", version="1.23.2", p50_us=8100, p95_us=9300,
    source="pi-17",
)  # fmt: skip


# --- the order of evidence -----------------------------------------------------------------------------


def test_what_was_measured_there_goes_before_all() -> None:
    estimate = pi(measurements=[MEASURED], table=table(), peaks=PEAKS)(tried())
    assert estimate is not None
    assert (estimate.p50_us, estimate.high_us, estimate.verified) == (8100, 9300, True)
    assert estimate.provenance == "measured on pi-17 with onnxruntime 1.23.2"


@pytest.mark.parametrize(
    "other",
    [
        replace(MEASURED, digest="sha256:bb"),
        replace(MEASURED, profile="jetson"),
        replace(MEASURED, version="1.32.0"),
    ],
)
def test_another_file_device_or_engine_was_not_measured(other: Measurement) -> None:
    estimate = pi(measurements=[other], table=table(), peaks=PEAKS)(tried())
    assert estimate is not None
    assert estimate.provenance == "predicted from operators timed on Made-up board with onnx 1.23.2"
    assert not estimate.verified


def test_a_table_says_nothing_of_the_kernels_of_another_engine() -> None:
    estimate = pi(table=table(), peaks=PEAKS)(tried(model=b"\x1c\0\0\0TFL3"))
    assert estimate is not None
    assert estimate.provenance.startswith("not verified")


def test_without_a_table_the_peaks_are_all_and_not_verified() -> None:
    estimate = pi(peaks=PEAKS)(tried())
    assert estimate is not None
    assert estimate.provenance.startswith("not verified")
    assert estimate.low_us * 9 == pytest.approx(estimate.high_us, rel=0.01)


def test_nothing_known_is_no_estimate() -> None:
    assert pi()(tried()) is None
    assert pi(table=table(), peaks=PEAKS)(replace(tried(), operations=())) is None


def test_this_machines_timing_counts_only_where_the_profile_is_of_this_machine() -> None:
    timed = tried(latency=Latency(p50_us=5, p95_us=6, ratio=1, best_ratio=1, pairs=9))
    home, away = pi(peaks=PEAKS, here=True)(timed), pi(peaks=PEAKS)(timed)
    assert home is not None
    assert away is not None
    assert (home.p50_us, home.high_us, home.verified) == (5, 6, True)
    assert away.p50_us > 100
    machine = made_up_table()["machine"]
    assert is_here(table(), machine, "1.23.2")
    assert not is_here(table(), machine, "1.32.0")
    assert not is_here(table(), {**machine, "arch": "x86_64"}, "1.23.2")
    assert not is_here(table(), {**machine, "cpu": "another"}, "1.23.2")


# --- the sum over operators ----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_the_interval_holds_the_truth(noise: float, seed: int) -> None:
    estimate = from_table(MODEL, table(noise, seed))
    assert estimate is not None
    assert estimate.low_us < TRUTH < estimate.high_us
    assert estimate.low_us < estimate.p50_us < estimate.high_us


def test_a_noisy_table_gives_a_wider_interval() -> None:
    quiet, noisy = from_table(MODEL, table()), from_table(MODEL, table(0.4))
    assert quiet is not None
    assert noisy is not None
    assert noisy.high_us / noisy.low_us > quiet.high_us / quiet.low_us


@pytest.mark.parametrize("kind", ["conv-dense", "matmul", "unary", "pool", "gru", OTHER])
@pytest.mark.parametrize("datatype", ["fp32", "int8", "fp16"])
def test_more_work_never_costs_less(kind: str, datatype: str) -> None:
    costs = table(0.3)
    us = [costs.cost([Work(kind, datatype, size, size / 10)]).us for size in SIZES]
    assert us == sorted(us)
    more = [PEAKS.us(Work(kind, datatype, size, size / 10)) for size in SIZES]
    assert more == sorted(more)


def test_a_law_is_found_again() -> None:
    line = table().lines["conv-dense", "fp32"]
    assert line.us(MODEL[0]) == pytest.approx(true_us(MODEL[0]), rel=0.02)
    assert fit([{"us": 5.0, "high_us": 5.0, "flops": 1e6, "bytes": 1e4}]).us(
        Work("x", "fp32", 1e6, 1e4)
    ) == pytest.approx(5)


def test_integers_are_quicker_where_the_table_says_so() -> None:
    floats, integers = (table().cost([Work("conv-dense", kind, 1e8, 1e6)]).us for kind in ("fp32", "int8"))
    assert integers < floats / 2


def test_operators_that_the_table_lacks_widen_the_interval_or_end_it() -> None:
    lacks = table().cost([*MODEL, Work(OTHER, "fp32", 1e6, 1e6)])
    assert lacks.unknown > 0
    assert lacks.spread > table().cost(MODEL).spread
    assert from_table([Work(OTHER, "fp32", 1e9, 1e9)], table()) is None


def test_a_processor_without_fp16_is_as_slow_as_in_fp32() -> None:
    half = Work("matmul", "fp16", 1e9, 1e6)
    assert PEAKS.us(half) == PEAKS.us(replace(half, datatype="fp32"))
    assert replace(PEAKS, fp16_gflops=50).us(half) < PEAKS.us(half)


def test_peaks_are_a_roofline() -> None:
    estimate = from_peaks([Work("unary", "fp32", 1.0, 4e6)], PEAKS, "pi")
    assert estimate is not None
    assert estimate.p50_us == pytest.approx(2 + 1000, rel=0.01)


def test_a_profile_of_the_engine_becomes_work() -> None:
    def event(name: str, inputs: list[dict[str, list[int]]], output: list[int]) -> dict[str, Any]:
        args = {"op_name": name, "input_type_shape": inputs, "output_type_shape": [{"float": output}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "args": args}

    events = [
        {"cat": "Session", "name": "model_run"},
        event("If", [{"bool": [1]}], [1]),
        event("FusedConv", [{"float": [1, 16, 8, 8]}, {"float": [32, 16, 3, 3]}], [1, 32, 8, 8]),
        event("Reshape", [{"float": [1, 32, 8, 8]}, {"int64": [2]}], [1, 2048]),
        event("Gemm", [{"float": [1, 2048]}, {"float": [10, 2048]}, {"float": [10]}], [1, 10]),
        event("TreeEnsembleClassifier", [{"float": [1, 10]}], [1, 2]),
    ]
    conv, view, product, trees = from_profile(events)
    assert (conv.kind, conv.flops) == ("conv-dense", 2 * 32 * 64 * 16 * 9)
    assert view.bytes == 0
    assert (product.kind, product.flops) == ("matvec", 2 * 2048 * 10)
    assert trees.kind == OTHER


def test_a_tflite_file_becomes_work() -> None:
    for case in cases("tflite"):
        found = [work for work in from_tflite(case.build(3)) if case.work.kind != "quantize"]
        assert [(each.kind, each.datatype, each.flops) for each in found] == [
            (case.work.kind, case.work.datatype, case.work.flops)
        ] * len(found)
        assert len(found) == (0 if case.work.kind == "quantize" else 3)


def test_fp16_weights_of_a_real_tflite_model_cost_nothing_when_it_runs() -> None:
    path = "mediapipe/mediapipe/modules/face_detection/face_detection_short_range.tflite"
    found = from_tflite(real_model(path).read_bytes())
    assert {each.kind for each in found} >= {"conv-narrow", "conv-pointwise", "conv-depthwise"}
    assert "quantize" not in {each.kind for each in found}


# --- files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda raw: raw.update(schema="skerry-operator-table/2"), "schema"),
        (lambda raw: raw.update(colour="red"), "colour"),
        (lambda raw: raw.pop("drift"), "drift"),
        (lambda raw: raw.update(drift=0.5), "drift"),
        (lambda raw: raw.update(call_us=math.nan), "call_us"),
        (lambda raw: raw.update(operators=[]), "operators"),
        (lambda raw: raw["operators"][3].update(us=-1), "operators[3]"),
        (lambda raw: raw["operators"][0].update(kind="magic"), "operators[0]"),
        (lambda raw: raw["operators"][0].update(datatype="fp8"), "operators[0]"),
        (lambda raw: raw["operators"][0].update(flops=True), "flops"),
        (lambda raw: raw["operators"][0].pop("rounds"), "operators[0]"),
        (lambda raw: raw["machine"].update(cores="four"), "machine.cores"),
        (lambda raw: raw["machine"].pop("arch"), "machine"),
        (lambda raw: raw.update(engine="onnx"), "engine"),
    ],
)
def test_a_table_is_read_strictly(change: Callable[[Any], object], named: str) -> None:
    raw = made_up_table()
    change(raw)
    with pytest.raises(ConfigError) as caught:
        parse_table(raw, "table")
    assert named in caught.value.message
    assert "bench-ops" in caught.value.hint


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    with pytest.raises(InputError):
        read_table(path)
    for text in ("", "[]", "[" * 100_000, "{"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no operator table"):
            read_table(path)
    path.write_text(json.dumps(made_up_table()))
    assert read_table(path).digest.startswith("sha256:")


ENTRY = {
    "digest": "sha256:aa", "profile": "pi", "engine": "onnxruntime", "version": "1.23.2", "p50_us": 8100,
    "p95_us": 9300, "source": "pi-17",
}  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    [
        {**ENTRY, "p50_us": 0}, {**ENTRY, "p95_us": "9"}, {**ENTRY, "engine": "torch"},
        {**ENTRY, "source": " "},
        {**ENTRY, "more": 1}, {key: ENTRY[key] for key in ENTRY if key != "digest"}, "fast",
    ],
)  # fmt: skip
def test_measurements_are_read_strictly(tmp_path: Path, entry: object) -> None:
    path = tmp_path / "measured.json"
    good = {"schema": "skerry-measurements/1", "measurements": [ENTRY]}
    path.write_text(json.dumps(good))
    assert read_measurements(path) == (MEASURED,)
    path.write_text(json.dumps({**good, "measurements": [ENTRY, entry]}))
    with pytest.raises(ConfigError, match=r"measurements\[1\]"):
        read_measurements(path)


def test_what_holds_no_measurements_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "measured.json"
    with pytest.raises(InputError):
        read_measurements(path)
    for text in ("", "[]", '{"schema": "skerry-measurements/2", "measurements": []}', "{}"):
        path.write_text(text)
        with pytest.raises(ConfigError, match="no measurements"):
            read_measurements(path)
