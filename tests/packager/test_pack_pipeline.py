"""`skerry_packager.pipeline`: a real model from the file to chosen variants, as ``skerry pack`` runs it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.packager.onnx_models import Value, conv_model, gemm_model, if_model, splits

from skerry_contract.errors import DataError, InputError, ModelError, SizeBudgetError
from skerry_contract.limits import MIB
from skerry_contract.manifest import BlobRef, Manifest, Variant
from skerry_contract.monitoring import parse_spec
from skerry_packager.pipeline import pack_variants
from skerry_packager.results import Objective, PackResult, Target, Verdict
from skerry_packager.variants.onnx import VARIANT_NAMES
from skerry_runtime.worker.engines.onnx import load_engine
from skerry_runtime.worker.golden import read_golden

PI = Target(name="raspberry-pi-4", size_bytes=8 * MIB, ram_bytes=512 * MIB, max_ir=11, max_opset=23)


def pack(
    folder: Path, model: onnx.ModelProto, targets: tuple[Target, ...] = (PI,), **options: object
) -> PackResult:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    shape = tuple(size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim[1:])
    calibration, evaluation = splits(shape)
    given = {"calibration": calibration, "evaluation": evaluation, "targets": targets} | options
    return pack_variants(path, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> PackResult:
    return pack(tmp_path_factory.mktemp("pack"), conv_model())


def test_every_variant_is_tried_and_judged_with_a_reason(result: PackResult) -> None:
    names = [variant.name for variant in result.variants]
    assert names == ["fp32", *VARIANT_NAMES]
    made = {"fp32", "fp16-store", "int8-store", "qdq-u8s8", "qdq-s8s8", "qdq-u8s8-mse"}
    assert made <= {variant.name for variant in result.variants if variant.passed}
    assert all(variant.reason for variant in result.variants)
    for variant in result.variants:
        if variant.verdict is Verdict.SKIPPED:
            continue
        assert variant.fidelity is not None
        assert variant.memory is not None
        assert variant.latency is not None
        assert variant.digest == "sha256:" + hashlib.sha256(variant.model).hexdigest()
        assert variant.ram_predicted_bytes <= variant.memory.peak_rss_bytes
    assert (result.task, result.metric) == ("classification", "accuracy")


def test_the_chosen_one_is_the_smallest_with_fp32_behind_it_and_the_last_word_is_held_out(
    result: PackResult,
) -> None:
    [choice] = result.choices
    passing = [variant for variant in result.variants if variant.passed]
    chosen, fallback = choice.variants
    assert result.variant(chosen).size_bytes == min(variant.size_bytes for variant in passing)
    assert fallback == "fp32"
    assert set(choice.lost) == {variant.name for variant in result.variants} - set(choice.variants)
    for name in result.chosen:
        held_out = result.variant(name).held_out
        assert held_out is not None
        assert held_out.split == "held-out"
        assert held_out.samples == result.splits["held-out"].rows


def test_the_device_accepts_the_golden_data_of_every_chosen_variant(result: PackResult) -> None:
    blob = BlobRef(digest=result.variant("fp32").digest, size=1)  # type: ignore[arg-type]
    variants = tuple(
        Variant(
            id=name, engine="onnx", model=blob, golden_outputs=blob, tolerances=result.golden.tolerances[name]
        )
        for name in result.chosen
    )
    manifest = Manifest(
        name="digits", version="1.0.0", release=1, inputs=result.inputs, outputs=result.outputs,
        variants=variants, golden_inputs=blob, monitoring=blob,
    )  # fmt: skip
    for variant in variants:
        golden = read_golden(manifest, variant, result.golden.inputs, result.golden.outputs[variant.id])
        session = load_engine().load(result.variant(variant.id).model)
        assert len(golden.samples) == len(result.golden.samples) == 8
        for index, sample in enumerate(golden.samples):
            golden.check(index, session.run(sample.inputs))


def test_the_monitoring_spec_is_readable_and_about_the_data(result: PackResult) -> None:
    spec = parse_spec(result.monitoring)
    assert spec.rows == sum(split.rows for split in result.splits.values())
    assert [feature.name for feature in spec.features] == ["x.brightness", "x.contrast", "x.sharpness"]
    assert spec.prediction is not None


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, result: PackResult) -> None:
    again = pack(tmp_path, conv_model())
    for one, other in zip(result.variants, again.variants, strict=True):
        assert (one.model, one.recipe, one.fidelity, one.held_out) == (
            other.model, other.recipe, other.fidelity, other.held_out,
        )  # fmt: skip
        assert (one.verdict, one.reason, one.ram_predicted_bytes) == (
            other.verdict, other.reason, other.ram_predicted_bytes,
        )  # fmt: skip
    assert (again.golden, again.monitoring, again.chosen, again.splits) == (
        result.golden, result.monitoring, result.chosen, result.splits,
    )  # fmt: skip


def test_weights_inside_an_if_end_in_the_int8_store(tmp_path: Path) -> None:
    found = pack(tmp_path, if_model())
    assert found.choices[0].variants == ("int8-store", "fp32")
    assert found.choices[0].lost["qdq-u8s8"] == (
        "skipped: 0 of 4 operators quantized: the weights are inside `If_0`"
    )


def test_targets_choose_for_themselves(tmp_path: Path) -> None:
    found = pack(tmp_path, gemm_model(), (PI, Target(name="small", size_bytes=12_000)))
    assert [choice.target for choice in found.choices] == ["raspberry-pi-4", "small"]
    assert found.choices[1].variants[0] != "fp32"
    assert "fp32" in found.choices[1].lost
    assert set(found.chosen) == {name for choice in found.choices for name in choice.variants}


def test_a_model_that_fits_nowhere_is_refused_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(SizeBudgetError, match="fp32: size") as caught:
        pack(tmp_path, gemm_model(), (Target(name="tiny", size_bytes=1000),))
    assert "What would fit: a profile with" in caught.value.hint


def test_the_objective_may_be_ram_or_latency(tmp_path: Path) -> None:
    for objective in (Objective.LATENCY, Objective.RAM):
        found = pack(tmp_path, gemm_model(), objective=objective)
        best = found.variant(found.chosen[0])
        fp32 = found.variant("fp32")
        assert best.latency is not None
        assert fp32.latency is not None
        assert best.memory is not None
        assert fp32.memory is not None
        if objective is Objective.LATENCY:
            assert best.latency.ratio <= fp32.latency.ratio
        else:
            assert best.memory.peak_rss_bytes <= fp32.memory.peak_rss_bytes


def test_external_data_ends_inside_the_variants(tmp_path: Path) -> None:
    onnx.save_model(
        gemm_model(), tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    calibration, evaluation = splits()
    found = pack_variants(
        tmp_path / "model.onnx", calibration=calibration, evaluation=evaluation, targets=[PI]
    )
    assert "1 external data files repacked into the model file" in found.notes
    model = onnx.load_model_from_string(found.variant("fp32").model)
    assert all(tensor.data_location == TensorProto.DEFAULT for tensor in model.graph.initializer)


def test_a_quantized_model_passes_through(tmp_path: Path) -> None:
    first = pack(tmp_path, gemm_model())
    path = tmp_path / "quantized.onnx"
    path.write_bytes(first.variant("qdq-u8s8").model)
    calibration, evaluation = splits()
    found = pack_variants(path, calibration=calibration, evaluation=evaluation, targets=[PI])
    assert found.variant("qdq-u8s8").verdict is Verdict.SKIPPED
    assert "already quantized" in found.variant("qdq-u8s8").reason
    assert any("already quantized" in note for note in found.notes)


def test_progress_names_every_step(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    pack(tmp_path, gemm_model(), progress=lambda what, done, total: seen.append((what, done, total)))
    assert [done for _, done, _ in seen] == list(range(len(seen)))
    assert seen[0][0] == "inspect"
    assert seen[-1] == ("done", seen[-1][2], seen[-1][2])


def test_options_and_data_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no device profile"):
        pack(tmp_path, gemm_model(), ())
    with pytest.raises(InputError, match="largest drop"):
        pack(tmp_path, gemm_model(), max_drop=1.5)
    with pytest.raises(DataError, match="evaluation data: input 'x'"):
        pack(tmp_path, gemm_model(), evaluation={"x": np.zeros((50, 32), np.float32)})
    with pytest.raises(InputError, match="no such file"):
        pack(tmp_path, gemm_model(), evaluation=tmp_path / "none.npz")


def test_text_inputs_are_refused_early(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node(
                "LabelEncoder", ["x"], ["p"], domain="ai.onnx.ml", keys_strings=["a"], values_floats=[1.0]
            )
        ],
        "g",
        [Value("x", TensorProto.STRING, ["N", 1])],
        [Value("p", TensorProto.FLOAT, ["N", 1])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 2)], ir_version=8
    )
    path = tmp_path / "text.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="takes strings"):
        pack_variants(path, evaluation={"x": np.array([["a"]] * 9)}, targets=[PI])


def test_a_model_with_nan_on_every_row_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sub", ["x", "big"], ["d"]), helper.make_node("Log", ["d"], ["p"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [Value("x", TensorProto.FLOAT, ["N", 64])],
        [Value("p", TensorProto.FLOAT, ["N", 64])],
        [numpy_helper.from_array(np.array(9, np.float32), "big")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with pytest.raises(DataError, match=r"NaN or infinite values on every row .* though the data has none"):
        pack(tmp_path, model, evaluation={"x": splits()[1]["x"]})


def test_nan_in_the_data_is_not_blamed_on_the_model(tmp_path: Path) -> None:
    _, evaluation = splits()
    rows = {"x": evaluation["x"].copy()}
    rows["x"][17, 3] = np.nan
    found = pack(tmp_path, gemm_model(), evaluation=rows)
    assert "evaluation data: input 'x' has NaN or infinite values in row 17" in found.notes
    assert found.metric == "top1-agreement", "one bad row does not change what is compared"
    rows["x"][:, 0] = np.nan
    with pytest.raises(
        DataError, match=r"input 'x' has NaN or infinite values in row \d+ and \d+ more: fp32"
    ):
        pack(tmp_path, gemm_model(), evaluation=rows)
