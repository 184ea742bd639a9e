"""The mapped, low-memory form of a variant: when it is tried, what judges it, and what a device sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.packager.cli_runner import run
from tests.packager.onnx_models import Value, build, conv_model, digits, gemm_model, layers, splits
from tests.packager.packing_inputs import write_inputs

from skerry_contract.bundle import BundleReader
from skerry_contract.errors import IncompatibleError, ModelError
from skerry_contract.limits import MIB
from skerry_contract.manifest import Execution, Lineage, parse_manifest
from skerry_contract.messages import EngineInfo, Hardware
from skerry_packager.build import Identity, assemble
from skerry_packager.datasets import Dataset
from skerry_packager.engine import Session
from skerry_packager.evaluate import Gate, Reference
from skerry_packager.formats import Prepared
from skerry_packager.formats.onnx import FORMAT
from skerry_packager.judge import Judge
from skerry_packager.memory import mapped_bounds, weight_bytes
from skerry_packager.normalize import normalize
from skerry_packager.pipeline import pack_variants
from skerry_packager.requirements import lacking, min_engine, requirements
from skerry_packager.results import Memory, Objective, PackResult, Target, VariantResult, Verdict
from skerry_packager.splits import make_splits
from skerry_packager.variants.candidate import Candidate, Job, Outcome, Skipped
from skerry_packager.variants.mapped import converted, mapped, parents
from skerry_packager.variants.onnx import generate
from skerry_packager.variants.ort_file import canonical
from skerry_runtime.agent.choose import choose_variant

HIDDEN = 16_384
"""Columns of the first layer: 4 MiB of weights."""


def large_model() -> onnx.ModelProto:
    """The digit reader with a hidden layer that is mostly idle."""
    w0, b0, w1, b1 = layers()
    weights = {
        "w0": np.pad(w0, ((0, 0), (0, HIDDEN - w0.shape[1]))),
        "b0": np.pad(b0, (0, HIDDEN - len(b0))),
        "w1": np.pad(w1, ((0, HIDDEN - len(w1)), (0, 0))),
        "b1": b1,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"], axis=-1),
    ]
    return build(nodes, weights)


FEW = ("int8-store", "int8-dynamic")
"""Of all variants that the pipeline tries, so that the tests are quick."""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackResult]:
    def generate_few(model: onnx.ModelProto, job: Job) -> Iterator[tuple[str, Callable[[], Outcome]]]:
        return ((name, make) for name, make in generate(model, job) if name in FEW)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skerry_packager.formats.onnx.generate", generate_few)
        yield packed(tmp_path_factory.mktemp("pack") / "model.onnx")


def packed(path: Path) -> PackResult:
    path.write_bytes(large_model().SerializeToString())
    calibration, evaluation = splits()
    evaluation = {name: array[:120] for name, array in evaluation.items()}
    return pack_variants(
        path,
        calibration=calibration,
        evaluation=evaluation,
        targets=(Target(name="pi"),),
        objective=Objective.RAM,
    )


def test_for_ram_it_is_tried_measured_and_chosen(result: PackResult) -> None:
    lean, fp32 = result.variant("fp32-mapped"), result.variant("fp32")
    assert lean.verdict is Verdict.OK, lean.reason
    assert lean.memory is not None
    assert fp32.memory is not None
    assert lean.memory.peak_rss_bytes < fp32.memory.peak_rss_bytes - 2 * MIB
    assert lean.ram_predicted_bytes <= lean.memory.peak_rss_bytes
    assert lean.ram_predicted_bytes < fp32.ram_predicted_bytes - 4 * MIB
    assert lean.latency is not None
    assert (lean.ir, lean.opset) == (fp32.ir, fp32.opset)
    assert lean.model[4:8] == b"ORTM"
    assert lean.recipe["of"] == "fp32"
    best, fallback = result.choices[0].variants
    assert best.endswith("-mapped")
    assert result.variant(best).held_out is not None
    assert fallback == "fp32"


def test_it_answers_as_fp32_does(result: PackResult) -> None:
    feed = {"x": splits()[1]["x"][:50]}
    [wanted], [got] = (Session(result.variant(name).model).run(feed) for name in ("fp32", "fp32-mapped"))
    np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_a_device_takes_it_by_its_ram_and_its_engine(result: PackResult) -> None:
    identity = Identity(name="digits", version="1.0.0", release=1)
    manifest = assemble(identity, result, Lineage()).manifest
    lean = next(variant for variant in manifest.variants if variant.id.endswith("-mapped"))
    fp32 = manifest.variant("fp32")
    assert lean.requires.min_engine == min_engine(result.variant(lean.id).model) == "1.23"
    assert fp32.requires.min_engine == ""
    hardware = Hardware(arch="x86_64", cores=4, ram_bytes=512 * MIB, isa=(), device_class="")
    new, old = (EngineInfo(name="onnx", version=version) for version in ("1.32.0", "1.22.1"))
    # A bundle that lists fp32 first: the budget decides.
    turned = replace(manifest, variants=(fp32, lean))
    budget = (fp32.requires.ram_bytes + lean.requires.ram_bytes) // 2
    choice = choose_variant(turned, hardware, [new], ram_budget_bytes=budget)
    assert choice.variant.id == lean.id
    assert "passed over: fp32 needs" in choice.reason
    with pytest.raises(IncompatibleError, match=r"needs onnx 1\.23 \(here: 1\.22\.1\)"):
        choose_variant(turned, hardware, [old], ram_budget_bytes=budget)
    assert choose_variant(manifest, hardware, [old]).variant.id == "fp32"


def test_how_it_should_run_is_written_for_every_variant(result: PackResult) -> None:
    wish = Execution(providers=("cuda",), threads=3)
    told = assemble(Identity(name="digits", version="1.0.0", release=1, execution=wish), result, Lineage())
    assert [v.execution for v in parse_manifest(told.manifest_bytes).variants] == [wish, wish]


def tried(name: str, ram_mib: int, *, integers: bool = False, verdict: Verdict = Verdict.OK) -> VariantResult:
    return VariantResult(
        name=name,
        verdict=verdict,
        reason="",
        model=onnx.ModelProto(ir_version=8).SerializeToString(),
        recipe={"quantized_compute": integers},
        memory=Memory(peak_rss_bytes=ram_mib * MIB, base_rss_bytes=40 * MIB, load_ms=1),
    )


ALL = [
    tried("fp32", 100),
    tried("int8-store", 110),
    tried("qdq-u8s8", 80, integers=True),
    tried("int8-dynamic", 70, integers=True),
    tried("int4-weights", 60, integers=True),
    tried("qdq-s8s8", 50, integers=True, verdict=Verdict.ACCURACY),
]


def names(targets: list[Target], objective: Objective = Objective.SIZE) -> list[str]:
    return [result.name for result in parents(ALL, targets, objective)]


def test_it_is_tried_only_where_ram_counts() -> None:
    roomy, tight, tiny = (Target(name=str(mib), ram_bytes=mib * MIB) for mib in (200, 75, 45))
    lean = ["fp32", "int8-dynamic"]
    assert names([roomy], Objective.RAM) == lean
    assert names([roomy]) == []
    assert names([tight]) == [], "int8-dynamic fits"
    assert names([tiny]) == lean
    assert names([roomy, tiny], Objective.LATENCY) == lean
    assert names([Target(name="flash", size_bytes=1)]) == []
    assert parents([], [tiny], Objective.RAM) == []


def test_a_model_with_few_weights_gains_nothing() -> None:
    small = replace(tried("fp32", 100), model=conv_model().SerializeToString())
    outcome = mapped(small)
    assert isinstance(outcome, Skipped)
    assert "bytes of weights" in outcome.reason


def test_a_weight_that_is_only_stored_small_counts_as_it_is_in_memory(result: PackResult) -> None:
    sizes = [
        weight_bytes(onnx.load_model_from_string(result.variant(n).model)) for n in ("fp32", "int8-store")
    ]
    assert sizes[0] == pytest.approx(4 * HIDDEN * (64 + 1 + 10) + 40, rel=0.01)
    assert sizes[1] >= sizes[0]


def test_bounds_without_weights() -> None:
    model = large_model()
    weights = weight_bytes(model)
    lower, upper = mapped_bounds(model, 40 * MIB + weights + 1000, 64 * MIB + 2 * weights)
    assert lower == 40 * MIB + 1000
    assert lower < upper <= 64 * MIB + weights


def test_the_same_bytes_every_time_and_what_an_engine_must_be() -> None:
    data = converted(large_model().SerializeToString())
    assert converted(large_model().SerializeToString()) == data
    assert requirements(data) == ()
    assert lacking(data, {"onnxruntime": "1.23.2"}) == []
    assert lacking(data, {"onnxruntime": "1.22.0"}) == [
        "a mapped model needs onnxruntime 1.23; there is 1.22.0"
    ]
    assert "engine for ONNX" in lacking(data, {"tflite-runtime": "2.14.0"})[0]


def test_what_is_no_model_is_skipped_with_the_engine_s_reason() -> None:
    model = large_model()
    model.graph.node[1].op_type = "NoSuchOperator"
    outcome = mapped(replace(tried("fp32", 100), model=model.SerializeToString()))
    assert isinstance(outcome, Skipped)
    assert "does not convert" in outcome.reason
    good = mapped(replace(tried("fp32", 100), model=large_model().SerializeToString()))
    assert isinstance(good, Candidate)
    assert good.ram_bounds is not None


def test_a_file_that_is_laid_out_in_another_way_is_not_touched() -> None:
    for data in (b"", b"\x10\0\0\0ORTM", large_model().SerializeToString()):
        with pytest.raises(ModelError, match="not understood"):
            canonical(data)
    once = converted(large_model().SerializeToString())
    with pytest.raises(ModelError, match="not understood"):
        canonical(once[:40] + b"\xff" * 64 + once[104:])


@pytest.mark.attack
@pytest.mark.parametrize("how", ["name", "shape", "type"])
def test_m12_a_variant_that_the_manifest_would_not_describe_is_never_packed(how: str) -> None:
    images, labels = digits()
    rows = [Dataset({"x": images[part]}, labels[part], {"x": True}) for part in (slice(40), slice(40, 140))]
    source = normalize(gemm_model(), [{"x": images[:1]}]).data
    judge = Judge(FORMAT, Prepared(source), make_splits(rows[0], rows[1], 0), Gate(0.5), None, None, 0)
    model = onnx.load_model_from_string(source)
    output = model.graph.output[0]
    match how:
        case "name":
            model.graph.node.append(helper.make_node("Identity", [output.name], ["other"]))
            output.name = "other"
        case "shape":
            output.type.tensor_type.shape.dim[0].dim_value = 1
        case "type":
            model.graph.node.append(helper.make_node("Cast", [output.name], ["other"], to=11))
            output.name, output.type.tensor_type.elem_type = "other", 11
    judged = judge.judge(Candidate(name="made", data=model.SerializeToString(), recipe={}))
    assert judged.verdict is Verdict.SHAPE
    assert "the manifest's" in judged.reason


def test_a_model_that_gives_nan_now_and_then_is_flagged() -> None:
    logarithm = build([helper.make_node("Log", ["x"], ["p"])], {}, outputs=[Value("p", 1, ["N", 64])])
    numbers = np.ones((40, 64), np.float32)
    numbers[::4, 0] = -1
    data = Dataset({"x": numbers}, None, {"x": True})
    notes = Reference(Session(logarithm.SerializeToString()), data, "search").settle(40)
    assert any("NaN or infinite values on 10 of 40 rows whose data has none" in note for note in notes)


def test_the_command_takes_threads_and_known_accelerators(tmp_path: Path) -> None:
    inputs = write_inputs(tmp_path)
    arguments = inputs.arguments(
        "--profile", "x86-gateway", "--out", tmp_path / "a.skerry", "--time-limit", "0.1s"
    )
    refused = run(*arguments, "--provider", "gpu")
    assert refused.code == 2
    assert "cuda" in refused.text
    done = run(*arguments, "--threads", "2", "--provider", "tensorrt", "--provider", "cuda")
    assert done.code == 0, done.text
    with (tmp_path / "a.skerry").open("rb") as file:
        manifest = parse_manifest(BundleReader(file).manifest_bytes)
    assert {v.execution.providers for v in manifest.variants} == {("tensorrt", "cuda")}
    assert {v.execution.threads for v in manifest.variants} == {2}
