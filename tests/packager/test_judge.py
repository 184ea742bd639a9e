"""`skerry_packager.judge`: every candidate is judged as it is packed."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.packager.onnx_models import digits, gemm_model

from skerry_packager.compact import compact
from skerry_packager.datasets import Dataset
from skerry_packager.engine import Session
from skerry_packager.evaluate import Gate, measure_latency
from skerry_packager.formats import Prepared
from skerry_packager.formats.onnx import FORMAT
from skerry_packager.judge import Judge
from skerry_packager.normalize import normalize
from skerry_packager.results import FP32, Verdict
from skerry_packager.splits import make_splits
from skerry_packager.variants.candidate import Candidate, Outcome, Skipped


def rows(count: int, start: int = 700) -> Dataset:
    images, labels = digits()
    part = slice(start, start + count)
    return Dataset({"x": images[part]}, labels[part], {"x": True})


@cache
def judge() -> Judge:
    images, _ = digits()
    prepared = Prepared(normalize(gemm_model(), [{"x": images[:1]}]).data)
    splits = make_splits(rows(40), rows(400, 900), 0)
    return Judge(FORMAT, prepared, splits, Gate(0.01), None, None, 0)


def candidate(data: bytes, name: str = "made") -> Candidate:
    return Candidate(name=name, data=data, recipe={"kind": name})


def test_fp32_is_packed_compact_and_compared_with_the_source_that_has_names() -> None:
    result = judge().judge(judge().source)
    assert (result.name, result.verdict) == (FP32, Verdict.OK)
    assert result.model == compact(judge().prepared.data)
    assert result.size_bytes < len(judge().prepared.data)
    assert result.fidelity is not None
    assert not result.fidelity.changed
    assert any(node.name for node in onnx.load_model_from_string(judge().prepared.data).graph.node)


def test_what_only_drops_names_is_no_variant() -> None:
    model = onnx.load_model_from_string(judge().prepared.data)
    for node in model.graph.node:
        node.ClearField("name")
    result = judge().judge(candidate(model.SerializeToString()))
    assert (result.verdict, result.reason) == (
        Verdict.SKIPPED, "nothing gained: the outputs equal fp32's, no smaller"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Skipped(name="made", reason="no weight"), "no weight"),
        (None, "nothing changed: the file equals fp32"),
    ],
)
def test_what_was_not_made_says_why(outcome: Outcome | None, reason: str) -> None:
    result = judge().judge_made("made", lambda: outcome or candidate(judge().prepared.data))
    assert (result.verdict, result.reason, result.model) == (Verdict.SKIPPED, reason, b"")


def test_a_candidate_that_does_not_load_is_a_crash_with_its_reason() -> None:
    model = onnx.load_model_from_string(judge().prepared.data)
    model.graph.node.append(helper.make_node("NoSuchOperator", ["p"], ["q"]))
    result = judge().judge(candidate(model.SerializeToString()))
    assert result.verdict is Verdict.CRASH
    assert "NoSuchOperator" in result.reason


def test_a_model_is_as_fast_as_itself() -> None:
    images, _ = digits()
    data = judge().prepared.data
    feeds = [{"x": image[None]} for image in images[:8]]
    found = measure_latency(Session(data), Session(data), feeds)
    assert found.best_ratio == pytest.approx(1, abs=0.15)
    assert found.pairs <= 45
    assert np.isfinite(found.p95_us)
