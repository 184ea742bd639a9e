"""Mixed precision: it passes where all in int8 does not, and says what it left and why."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from PIL import Image, ImageDraw, ImageFont
from tests.packager.onnx_models import Array, gemm_model
from tests.packager.quantized_models import FEEDS, fragile_model, job_for
from tests.real_models import real_model

from skerry_packager.calibrate import collect_ranges
from skerry_packager.normalize import normalize
from skerry_packager.results import Objective
from skerry_packager.variants import qdq
from skerry_packager.variants.candidate import Candidate, Job, Outcome, Skipped
from skerry_packager.variants.mixed import mixed
from skerry_packager.variants.mixed_store import mixed_store
from skerry_packager.variants.onnx import VARIANT_NAMES, generate


def mixture(job: Job) -> Outcome:
    base = qdq.prepare(fragile_model())
    return mixed(base, collect_ranges(base.model, base.tensors, job.calibration), job)


def all_in_int8(job: Job) -> Candidate:
    base = qdq.prepare(fragile_model())
    ranges = collect_ranges(base.model, base.tensors, job.calibration)
    outcome = qdq.quantize(base, ranges, qdq.SCHEMES[2])
    assert isinstance(outcome, Candidate)
    return outcome


def test_a_mixture_passes_where_all_in_int8_does_not() -> None:
    job = job_for(fragile_model())
    assert job.trial(all_in_int8(job).data, 0).drop_bound > 10 * job.max_drop
    found = mixture(job)
    assert isinstance(found, Candidate)
    assert job.trial(found.data, 0).drop_bound <= job.max_drop
    assert len(found.data) < 0.3 * len(job.source)
    assert found.recipe["float"] == ["fragile"]
    assert found.recipe["rest"] == "int8"
    assert found.recipe["complete"]
    assert found.recipe["search"][0]["passed"] is False
    assert found.quantized_compute
    onnx.checker.check_model(onnx.load_model_from_string(found.data), full_check=True)


def test_the_sensitivities_name_the_most_harmful_first() -> None:
    found = mixture(job_for(fragile_model()))
    assert isinstance(found, Candidate)
    assert found.sensitivity[0].node == "fragile"
    assert [entry.kept_float for entry in found.sensitivity] == [True, False, False, False]
    assert all(entry.bytes_saved == 3 * 192 * 192 for entry in found.sensitivity)


@pytest.mark.parametrize("objective", Objective)
def test_the_same_inputs_give_the_same_bytes(objective: Objective) -> None:
    one, other = (mixture(job_for(fragile_model(), objective=objective)) for _ in range(2))
    assert isinstance(one, Candidate)
    assert one == other


def test_the_search_stops_when_the_time_is_up_with_the_best_so_far() -> None:
    """Every look at the clock takes a second here: time for some trials, not for all."""
    outcomes = []
    for seconds in (1, 12, 14, 1000):
        clock = itertools.count()
        outcomes.append(mixture(job_for(fragile_model(), seconds_left=lambda: float(seconds - next(clock)))))  # noqa: B023
    assert isinstance(outcomes[0], Skipped)
    assert "the time was up before a mixture was found" in outcomes[0].reason
    cut = [found for found in outcomes[1:3] if isinstance(found, Candidate)]
    assert cut
    job = job_for(fragile_model())
    for found in cut:
        assert not found.recipe["complete"]
        assert "another run may find another mixture" in found.note
        assert job.trial(found.data, 0).drop_bound <= job.max_drop
    assert isinstance(outcomes[3], Candidate)
    assert outcomes[3].recipe["complete"]


def lines_of_text(count: int) -> list[dict[str, Array]]:
    """Rendered lines as PP-OCR reads them: ``[1, 3, 48, 320]`` from -1 to 1."""
    rng = np.random.default_rng(0)
    font = ImageFont.load_default(28)
    words = ["edge", "model", "packs", "quick", "foxes", "0123", "total", "EUR", "45.90", "street"]
    feeds = []
    for _ in range(count):
        red, green, blue = (int(shade) for shade in rng.integers(200, 255, 3))
        image = Image.new("RGB", (320, 48), (red, green, blue))
        text = " ".join(rng.choice(words, size=3))
        ImageDraw.Draw(image).text((5, 5), text, fill=(30, 30, 30), font=font)
        pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        feeds.append({"x": (pixels + rng.normal(0, 0.02, pixels.shape)).astype(np.float32)})
    return feeds


@pytest.mark.slow
def test_a_text_reader_that_int8_ruins_is_repaired() -> None:
    """PP-OCRv4: 47 operators in int8 change the answers, about half of them do not."""
    path = "rapidocr_onnxruntime/rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
    feeds = lines_of_text(32)
    model = normalize(onnx.load(real_model(path)), feeds[:2]).model
    job = job_for(model, feeds=feeds, max_drop=0.015)
    base = qdq.prepare(model)
    ranges = collect_ranges(base.model, base.tensors, job.calibration)
    whole = qdq.quantize(base, ranges, qdq.SCHEMES[0])
    assert isinstance(whole, Candidate)
    assert job.trial(whole.data, 0).drop_bound > job.max_drop
    found = mixed(base, ranges, job)
    assert isinstance(found, Candidate)
    assert job.trial(found.data, 0).drop_bound <= job.max_drop
    assert found.recipe["quantized"] >= 10
    # How the rest is stored depends on the rows; either way it is smaller than fp16 for all.
    assert found.recipe["rest"] in ("int8", "fp16")
    assert len(found.data) < 0.5 * len(job.source)


def test_nothing_to_repair_is_said() -> None:
    outcome = mixture(job_for(fragile_model(), max_drop=1000.0))
    assert isinstance(outcome, Skipped)
    assert outcome.reason == "nothing to repair: all 4 operators pass in int8"


def test_operators_that_are_too_small_to_gain_are_said() -> None:
    base = qdq.prepare(gemm_model())
    feeds = [{"x": feed["x"][0, :1, :64]} for feed in FEEDS]
    outcome = mixed(base, collect_ranges(base.model, base.tensors, feeds), job_for(fragile_model()))
    assert isinstance(outcome, Skipped)
    assert "the conversions cost more than they save" in outcome.reason


def test_storage_is_mixed_where_int4_for_all_loses_too_much() -> None:
    """int8 for all keeps 0.0002 here, int4 for all loses 0.03: some weights go down."""
    job = job_for(fragile_model(), max_drop=0.02)
    found = mixed_store(fragile_model(), job)
    assert isinstance(found, Candidate)
    assert (found.recipe["small"], found.recipe["large"]) == ("int4", "int8")
    assert 0 < len(found.recipe["int4"]) < 4
    assert job.trial(found.data, 0).drop_bound <= job.max_drop
    again = mixed_store(fragile_model(), job)
    assert isinstance(again, Candidate)
    assert again.data == found.data


def test_storage_goes_up_to_fp16_where_int8_loses_too_much() -> None:
    job = job_for(fragile_model(), max_drop=0.00015)
    found = mixed_store(fragile_model(), job)
    assert isinstance(found, Candidate)
    assert (found.recipe["small"], found.recipe["large"]) == ("int8", "fp16")
    assert job.trial(found.data, 0).drop_bound <= job.max_drop


def test_every_variant_is_made_or_gives_a_reason() -> None:
    job = job_for(fragile_model())
    outcomes = {name: make() for name, make in generate(fragile_model(), job)}
    assert tuple(outcomes) == VARIANT_NAMES
    assert all(outcome.name == name for name, outcome in outcomes.items())
    made = {name for name, outcome in outcomes.items() if isinstance(outcome, Candidate)}
    assert {"fp16-store", "int8-store", "qdq-u8s8", "qdq-s8s8", "mixed"} <= made
    assert all(outcome.reason for outcome in outcomes.values() if isinstance(outcome, Skipped))


def test_a_model_that_cannot_be_calibrated_gives_reasons_and_is_still_stored() -> None:
    """The calibration rows do not fit the model, as when a shape is bound inside of it."""
    job = job_for(fragile_model())
    broken = Job(
        source=job.source, calibration=[{"x": FEEDS[0]["x"][:, :, :7]}], targets=job.targets,
        max_drop=job.max_drop, trial=job.trial, seconds_left=job.seconds_left,
    )  # fmt: skip
    outcomes = {name: make() for name, make in generate(fragile_model(), broken)}
    assert isinstance(outcomes["int8-store"], Candidate)
    for name in ("qdq-u8s8", "mixed"):
        outcome = outcomes[name]
        assert isinstance(outcome, Skipped)
        assert outcome.reason.startswith("calibration failed: the model fails on this input")
