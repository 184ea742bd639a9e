"""Variants of TFLite models: smaller at the same speed, or in integers; never nothing without a word."""

from __future__ import annotations

import importlib.util
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from tests import tflite_models
from tests.real_models import MODELS, ROOT, real_model
from tests.runtime import tflite_runs

from skerry_contract.errors import ModelError
from skerry_packager.engine import Feed
from skerry_packager.results import Fidelity
from skerry_packager.tflite import quantizer
from skerry_packager.tflite.floats import (
    Encode,
    Stored,
    Weight,
    as_fp16,
    as_int8,
    store,
    unpack_fp16,
    unpack_sparse,
    weights,
)
from skerry_packager.tflite.model import parse, serialize, type_name
from skerry_packager.variants.candidate import Candidate, Job, Outcome, Skipped
from skerry_packager.variants.tflite import VARIANT_NAMES, fp16_store, generate, int8_store
from skerry_packager.variants.tflite_mixed_store import stored, unpacked
from skerry_runtime.worker.engines import import_engine

MODULES = "mediapipe/mediapipe/modules"
IRIS = f"{MODULES}/iris_landmark/iris_landmark.tflite"
FACE = f"{MODULES}/face_landmark/face_landmark.tflite"
HAND = f"{MODULES}/hand_landmark/hand_landmark_lite.tflite"
SPARSE = f"{MODULES}/face_detection/face_detection_full_range_sparse.tflite"
PITCH = "basic_pitch/basic_pitch/saved_models/icassp_2022/nmp.tflite"
WAKE = "pymicro_wakeword/pymicro_wakeword/models/alexa.tflite"


def job(source: bytes, calibration: Sequence[Feed] = (), seconds: float = 100.0) -> Job:
    def trial(_: bytes, __: int) -> Fidelity:
        raise AssertionError("no draft of TFLite is tried")

    return Job(
        source=source,
        calibration=calibration,
        targets=(),
        max_drop=0.01,
        trial=trial,
        seconds_left=lambda: seconds,
    )


def feeds(source: bytes, count: int) -> list[Feed]:
    session = import_engine("tflite").load(source)
    return [tflite_runs.feed(session, seed) for seed in range(count)]


def made(source: bytes, name: str, calibration: Sequence[Feed] = ()) -> Outcome:
    return dict(generate(job(source, calibration)))[name]()


def candidate(outcome: Outcome) -> Candidate:
    assert isinstance(outcome, Candidate), outcome
    return outcome


def reason(outcome: Outcome) -> str:
    assert isinstance(outcome, Skipped), "made, where nothing could be"
    return outcome.reason


def noise(source: bytes, variant: bytes) -> float:
    """Root mean square error of the worst output, in units of its own size."""
    engine = import_engine("tflite")
    before, after = engine.load(source), engine.load(variant)
    assert (before.inputs, before.outputs) == (after.inputs, after.outputs)
    feed = tflite_runs.feed(before, 0)
    expected, found = before.run(feed), after.run(feed)
    return max(
        float(np.sqrt(np.mean(np.square(found[name] - array))) / np.sqrt(np.mean(np.square(array))))
        for name, array in expected.items()
    )


def partitions(data: bytes) -> int:
    """Into how many pieces XNNPACK tears the graph: each border costs copies and conversions."""
    interpreter = Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    return Counter(entry["op_name"] for entry in interpreter._get_ops_details())["DELEGATE"]


def weight_types(data: bytes) -> set[str]:
    model = parse(data)
    return {
        type_name(tensor)
        for graph in model.subgraphs
        for tensor in graph.tensors
        if model.buffers[tensor.buffer].data is not None and len(model.buffers[tensor.buffer].data) >= 512
    }


def test_every_variant_has_a_name_of_its_own() -> None:
    source = tflite_models.dense().data()
    assert [name for name, _ in generate(job(source))] == list(VARIANT_NAMES)
    assert len(set(VARIANT_NAMES)) == len(VARIANT_NAMES)


def test_fp16_store_halves_fp32_weights() -> None:
    source = real_model(IRIS).read_bytes()
    found = candidate(fp16_store(source))
    assert 0.45 < len(found.data) / len(source) < 0.55
    assert noise(source, found.data) < 1e-3
    assert partitions(found.data) == partitions(source) == 1
    assert not found.quantized_compute
    assert found.data == candidate(fp16_store(source)).data


@pytest.mark.parametrize(
    ("path", "share", "most"), [(IRIS, 0.31, 0.02), (FACE, 0.59, 0.02), (HAND, 0.61, 0.6), (PITCH, 0.55, 0.1)]
)
def test_int8_store_keeps_one_graph_of_fp32(path: str, share: float, most: float) -> None:
    """Half of a model of fp16 weights, a quarter of one of fp32."""
    source = real_model(path).read_bytes()
    found = candidate(int8_store(source))
    assert len(found.data) < share * len(source)
    assert noise(source, found.data) < most
    assert partitions(found.data) == partitions(source)
    assert "INT8" in weight_types(found.data)
    assert not found.quantized_compute
    assert found.data == candidate(int8_store(source)).data


def test_stored_weights_run_on_the_old_library(tmp_path: Path) -> None:
    source = real_model(IRIS).read_bytes()
    models = [tmp_path / "source.tflite", tmp_path / "fp16.tflite", tmp_path / "int8.tflite"]
    for path, data in zip(
        models, (source, candidate(fp16_store(source)).data, candidate(int8_store(source)).data), strict=True
    ):
        path.write_bytes(data)
    result = tmp_path / "old.npz"
    done = subprocess.run(
        [str(ROOT / ".envs/tflite-legacy/bin/python"), tflite_runs.__file__, str(result), *map(str, models)],
        env={"PYTHONPATH": str(ROOT / "runtime")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with np.load(result) as arrays:
        for name in ("output_eyes_contours_and_brows", "output_iris"):
            expected = arrays[f"source.tflite/0/{name}"]
            spread = float(np.abs(expected).max())
            np.testing.assert_allclose(arrays[f"fp16.tflite/0/{name}"], expected, atol=1e-3 * spread)
            np.testing.assert_allclose(arrays[f"int8.tflite/0/{name}"], expected, atol=2e-2 * spread)


def test_what_is_small_already_is_said_to_be() -> None:
    wake = real_model(WAKE).read_bytes()
    for name in VARIANT_NAMES:
        assert "already quantized" in reason(made(wake, name, feeds(wake, 2)))
    assert "already stored as fp16 (113 weights)" in reason(fp16_store(real_model(FACE).read_bytes()))
    tiny = tflite_models.dense(columns=4, outputs=4).data()
    assert "no fp32 weight has 256 or more" in reason(int8_store(tiny))


def test_sparse_weights_stay_sparse_in_int8() -> None:
    """Their zeros are not stored; beside them lie the places of the numbers, which stay as they are."""
    source = real_model(SPARSE).read_bytes()
    found = candidate(int8_store(source))
    assert len(found.data) < 0.9 * len(source)
    assert noise(source, found.data) < 0.1
    assert partitions(found.data) == partitions(source) == 1
    sparse = [
        type_name(tensor) for tensor in parse(found.data).subgraphs[0].tensors if tensor.sparsity is not None
    ]
    assert sparse.count("INT8") == 38, "the others have too few numbers"
    assert len(sparse) == 46


def test_places_that_lie_are_left_alone() -> None:
    model = parse(real_model(SPARSE).read_bytes())
    graph = model.subgraphs[0]
    tensor = next(tensor for tensor in graph.tensors if tensor.sparsity is not None)
    others = sum(tensor.sparsity is not None for tensor in graph.tensors) - 1
    tensor.sparsity.dimMetadata[-1].arrayIndices.values = np.full_like(
        tensor.sparsity.dimMetadata[-1].arrayIndices.values, 255
    )
    assert unpack_sparse(model) == others


def test_dense_again_is_the_same_model() -> None:
    source = real_model(SPARSE).read_bytes()
    model = parse(source)
    unpack_fp16(model)
    assert unpack_sparse(model, dense=True) == 46
    assert noise(source, serialize(model)) < 1e-5


@pytest.mark.parametrize("path", [FACE, HAND, IRIS, SPARSE, PITCH])
@pytest.mark.parametrize("seed", [0, 1])
def test_int8_and_fp16_side_by_side_do_not_tear_the_graph(path: str, seed: int) -> None:
    """Whichever weights are int8: what an operator reads beside one stays fp32."""
    source = real_model(path).read_bytes()
    rng = np.random.default_rng(seed)
    names = [weight.name for weight in weights(unpacked(source), 256) if rng.random() < 0.5]
    assert len(set(names)) == len(names) > 0

    def some(weight: Weight) -> Stored | None:
        return as_int8(weight) if weight.name in names else None

    data = stored(source, some, as_fp16)
    assert {"INT8", "FLOAT16"} <= weight_types(data)
    assert partitions(data) == partitions(source)


def test_int8_and_fp16_in_one_operator_do() -> None:
    """The reason of that rule; when it no longer holds the rule can go."""
    model = unpacked(real_model(HAND).read_bytes())
    for least, encode in ((16, as_fp16), (256, as_int8)):

        def fitting(weight: Weight, encode: Encode = encode) -> Stored | None:
            return encode(weight) if (weight.array.ndim < 2) == (encode is as_fp16) else None

        store(model, least, fitting)
    assert partitions(serialize(model)) > 5


def searched(source: bytes, allowed: float, seconds: float = 100.0) -> Outcome:
    """`mixed-store` where a draft loses its noise on some rows."""
    engine = import_engine("tflite")
    rows = feeds(source, 4)
    before = engine.load(source)
    wanted = [before.run(feed) for feed in rows]

    def trial(model: bytes, _: int) -> Fidelity:
        session = engine.load(model)
        lost = max(
            float(np.mean(np.square(found[name] - array)) / np.mean(np.square(array)))
            for feed, expected in zip(rows, wanted, strict=True)
            for found in [session.run(feed)]
            for name, array in expected.items()
        )
        return Fidelity(
            split="search", metric="sqnr", samples=4, output="", reference=0.0, candidate=lost, drop=lost,
            drop_bound=lost,
        )  # fmt: skip

    made = Job(
        source=source, calibration=rows, targets=(), max_drop=allowed, trial=trial,
        seconds_left=lambda: seconds,
    )  # fmt: skip
    return dict(generate(made))["mixed-store"]()


def test_weights_that_do_harm_stay_as_they_were() -> None:
    """int8 for all ruins this model; int8 for most of it does not."""
    source = real_model(HAND).read_bytes()
    plain = candidate(int8_store(source)).data
    found = candidate(searched(source, 0.01))
    assert len(plain) < len(found.data) < 0.9 * len(source)
    assert noise(source, found.data) ** 2 < 0.05 < noise(source, plain) ** 2
    assert partitions(found.data) == partitions(source) == 1
    assert "FLOAT16" in weight_types(found.data)
    assert f"{len(found.recipe['int8'])} of " in found.note
    assert not found.quantized_compute


def test_where_int8_passes_for_all_there_is_a_reserve() -> None:
    source = real_model(IRIS).read_bytes()
    found = candidate(searched(source, 0.5))
    assert len(candidate(int8_store(source)).data) < len(found.data) < 0.6 * len(source)
    assert "a reserve" in found.note


def test_no_time_is_a_reason() -> None:
    assert "the time was up" in reason(searched(real_model(IRIS).read_bytes(), 0.01, seconds=0.0))


def test_numbers_too_large_for_fp16_stay() -> None:
    b = tflite_models.dense()
    weights = np.full((32, 64), 1e6, np.float32)
    b.model.buffers[1].data = np.frombuffer(weights.tobytes(), np.uint8)
    assert "not smaller" in reason(fp16_store(b.data()))


@pytest.mark.parametrize("path", [IRIS, HAND, PITCH])
def test_the_litert_quantizer_makes_dynamic_integers(path: str) -> None:
    """Also of fp16 weights and of files before 2020, on which by itself it silently does nothing."""
    source = real_model(path).read_bytes()
    found = candidate(made(source, "litert-int8-dynamic"))
    assert len(found.data) < 0.62 * len(source)
    assert "INT8" in weight_types(found.data)
    assert found.quantized_compute
    assert noise(source, found.data) < 0.7


def test_the_litert_quantizer_gets_sparse_weights_with_their_zeros() -> None:
    """Of what it makes of them otherwise no library loads anything."""
    source = real_model(SPARSE).read_bytes()
    found = quantizer.quantize(source, "static", feeds(source, 2), 60)
    assert noise(source, found) < 1.0


@pytest.mark.parametrize("path", [IRIS, FACE])
def test_static_integers_keep_float_inputs_and_outputs(path: str) -> None:
    source = real_model(path).read_bytes()
    found = candidate(made(source, "litert-int8-static", feeds(source, 4)))
    assert len(found.data) < 0.65 * len(source)
    session = import_engine("tflite").load(found.data)
    assert {port.datatype for port in (*session.inputs, *session.outputs)} == {"FP32"}
    assert noise(source, found.data) < 0.1
    assert found.recipe["calibration_feeds"] == "4"


def test_static_needs_calibration_data() -> None:
    assert reason(made(real_model(IRIS).read_bytes(), "litert-int8-static")) == "there is no calibration data"


@pytest.mark.parametrize("name", ["litert-int8-dynamic", "litert-int8-static"])
def test_names_and_free_rows_stay_as_the_manifest_says_them(name: str) -> None:
    source = real_model(PITCH).read_bytes()
    session = import_engine("tflite").load(candidate(made(source, name, feeds(source, 1))).data)
    before = import_engine("tflite").load(source)
    assert (session.inputs, session.outputs) == (before.inputs, before.outputs)
    assert [port.name for port in session.outputs] == ["onset", "note", "contour"]


def test_a_crash_of_the_quantizer_is_a_reason() -> None:
    """It dies by a signal on models that are quantized already."""
    source = real_model(WAKE).read_bytes()
    with pytest.raises(ModelError, match=r"crashed on this model \(signal \d+\)"):
        quantizer.quantize(source, "static", feeds(source, 2), 60)


def test_a_quantizer_that_changes_nothing_is_caught() -> None:
    with pytest.raises(ModelError, match="changed nothing"):
        quantizer.quantize(real_model(WAKE).read_bytes(), "dynamic", (), 60)


def test_the_quantizer_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "_BOOT", "import time; time.sleep(60)")
    with pytest.raises(ModelError, match="did not finish in 1 s"):
        quantizer.quantize(real_model(IRIS).read_bytes(), "dynamic", (), 1)


def test_without_the_quantizer_the_reason_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str, package: str | None = None) -> Any:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", nothing)
    assert "pip install 'skerry[litert-quantizer]'" in reason(
        made(real_model(IRIS).read_bytes(), "litert-int8-dynamic")
    )


def test_all_real_float_models_get_a_variant() -> None:
    for path in sorted(MODELS.rglob("*.tflite")):
        if "attention" in path.name or "wakeword" in str(path):
            continue
        source = path.read_bytes()
        assert len(candidate(int8_store(source)).data) < len(source), path.name
