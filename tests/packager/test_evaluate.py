"""`skerry_packager.metrics` and `evaluate`: what a variant loses, bounded, and what makes it unsound."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.packager.onnx_models import Array, Value, build, digits, gemm_model

from skerry_contract.errors import DataError, InputError, ModelError
from skerry_contract.limits import MIB
from skerry_packager.datasets import Dataset, match_dataset
from skerry_packager.engine import Session
from skerry_packager.evaluate import Gate, Reference, Unsound, compare, measure_latency
from skerry_packager.inspect import TensorInfo
from skerry_packager.memory import measure_memory, memory_bounds
from skerry_packager.metrics import Form, Head, Metric, bootstrap_bound, choose_heads, exact_bound
from skerry_packager.results import Fidelity, Verdict

INPUT = TensorInfo(name="x", dtype="float32", shape=("N", 64))


def dataset(rows: int = 200, labels: bool = True) -> Dataset:
    images, classes = digits()
    arrays = {"x": images[1000 : 1000 + rows]} | ({"y": classes[1000 : 1000 + rows]} if labels else {})
    return match_dataset(arrays, [INPUT])


def changed(noise: float) -> onnx.ModelProto:
    """The digit reader with noise on its weights."""
    model = gemm_model()
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        wobble = np.random.default_rng(0).normal(0, noise, array.shape).astype(np.float32)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array + wobble * array.std(), tensor.name))
    return model


def judged(candidate: onnx.ModelProto, data: Dataset, task: str | None = None) -> Fidelity:
    reference = Reference(Session(gemm_model().SerializeToString()), data, "search")
    return compare(reference, Session(candidate.SerializeToString()), reference.heads(task)[1])


def test_fp32_against_itself_loses_nothing() -> None:
    found = judged(gemm_model(), dataset())
    assert (found.metric, found.drop, found.drop_bound, found.changed) == ("accuracy", 0, 0, False)
    assert found.reference == found.candidate > 0.9
    assert found.mean_kl == 0
    assert found.sqnr_db is None


def test_labels_give_the_accuracy_and_a_bound_above_the_drop() -> None:
    data = dataset(400)
    found = judged(changed(1.0), data)
    images, labels = digits()
    scores = Session(changed(1.0).SerializeToString()).run({"x": images[1000:1400]})[0]
    assert found.candidate == pytest.approx(float((scores.argmax(1) == labels[1000:1400]).mean()))
    assert found.drop == pytest.approx(found.reference - found.candidate)
    assert 0 < found.drop < found.drop_bound
    assert found.changed
    verdict, reason = Gate(0.01).judge(found)
    assert verdict is Verdict.ACCURACY
    assert "allowed 0.0100" in reason
    assert Gate(0.9).judge(found)[0] is Verdict.OK


def test_without_labels_probabilities_give_agreement_and_kl() -> None:
    found = judged(changed(0.01), dataset(labels=False))
    assert found.metric == "top1-agreement"
    assert found.mean_kl is not None
    assert 0 < found.mean_kl < 0.01


def test_a_flip_between_equally_likely_classes_costs_nothing_without_labels() -> None:
    """One tie in 200 rows is 0.5 points of disagreement, and no loss that fp32 could tell."""
    data = match_dataset(
        {"x": np.zeros((200, 2), np.float32)}, [TensorInfo(name="x", dtype="float32", shape=("N", 2))]
    )

    def constant(bias: list[float]) -> onnx.ModelProto:
        nodes = [helper.make_node("Add", ["x", "b"], ["l"]), helper.make_node("Softmax", ["l"], ["p"])]
        return build(
            nodes,
            {"b": np.array(bias, np.float32)},
            ("N", 2),
            outputs=[Value("p", TensorProto.FLOAT, ["N", 2])],
        )

    reference = Reference(Session(constant([0.0, 1e-6]).SerializeToString()), data, "search")
    tie = compare(reference, Session(constant([1e-6, 0.0]).SerializeToString()), reference.heads(None)[1])
    assert tie.candidate == 0
    assert tie.drop_bound < 1e-5
    sure = Reference(Session(constant([0.0, 9.0]).SerializeToString()), data, "search")
    flip = compare(sure, Session(constant([9.0, 0.0]).SerializeToString()), sure.heads(None)[1])
    assert flip.drop > 0.99


def test_what_is_scored_follows_from_outputs_labels_and_task() -> None:
    rng = np.random.default_rng(0)
    probabilities = [[np.full((1, 4), 0.25, np.float32)] for _ in range(4)]
    logits = [[rng.normal(0, 3, (1, 4)).astype(np.float32)] for _ in range(4)]
    unit = [[row[0] / np.linalg.norm(row[0])] for row in logits]
    label: list[list[Array]] = [[np.array([k], np.int64), row[0]] for k, row in enumerate(logits)]
    classes = np.array([0, 3, 1, 2])

    def head(
        samples: list[list[Array]], labels: Array | None = None, task: str | None = None
    ) -> tuple[str, Head]:
        names = [f"o{k}" for k in range(len(samples[0]))]
        found, heads = choose_heads(samples, labels, names, task)
        return found, heads[0]

    assert head(probabilities) == ("classification", Head(0, Metric.AGREEMENT, Form.PROBABILITIES))
    assert head(logits) == ("other", Head(0, Metric.SQNR))
    assert head(logits, task="classification") == ("classification", Head(0, Metric.AGREEMENT, Form.LOGITS))
    assert head(unit) == ("embedding", Head(0, Metric.COSINE))
    assert head(logits, classes) == ("classification", Head(0, Metric.ACCURACY, Form.LOGITS))
    assert head(label, classes) == ("classification", Head(0, Metric.ACCURACY, Form.LABEL))
    told: list[list[Array]] = [[np.array([row[0].argmax()]), row[0]] for row in logits]
    assert head(told, classes)[1] == Head(1, Metric.ACCURACY, Form.LOGITS), "scores say more than their label"
    assert head([[row[0][:, :1]] for row in logits], np.array([7, 1, 2, 3]))[1].metric is Metric.MAE
    sigmoid = [[np.array([[0.2]], np.float32)], [np.array([[0.9]], np.float32)]]
    assert head(sigmoid, np.array([0, 1]))[1].form is Form.BINARY_PROBABILITY
    assert head(sigmoid, np.array([0.3, 0.8])) == ("regression", Head(0, Metric.MAE))
    with pytest.raises(DataError, match="fit none of the outputs"):
        head(logits, np.array([7, 1, 2, 3]))
    with pytest.raises(DataError, match="fit none of the outputs"):
        head(logits, np.array([-1, -2, -1, -3]))
    with pytest.raises(InputError, match="not known"):
        head(logits, task="guess")


def test_regression_is_judged_by_the_growth_of_its_error() -> None:
    weights = np.linspace(-1, 1, 64).astype(np.float32)[:, None]

    def line(factor: float) -> onnx.ModelProto:
        return build(
            [helper.make_node("MatMul", ["x", "w"], ["p"])], {"w": weights * np.float32(factor)},
            outputs=[Value("p", TensorProto.FLOAT, ["N", 1])],
        )  # fmt: skip

    images, _ = digits()
    truth = (images[:200] @ weights)[:, 0].astype(np.float64) + 0.01
    data = match_dataset({"x": images[:200], "y": truth}, [INPUT])
    reference = Reference(Session(line(1).SerializeToString()), data, "search")
    found = compare(reference, Session(line(1.1).SerializeToString()), reference.heads(None)[1])
    assert found.metric == "mae"
    assert found.reference == pytest.approx(0.01, abs=1e-5)
    assert found.candidate > found.reference
    assert found.drop == pytest.approx(
        (found.candidate - found.reference) / np.abs(truth - truth.mean()).mean()
    )


def test_an_output_that_no_label_judges_must_not_be_ruined_unseen() -> None:
    """A state beside the score: the score is as good as ever, the state is noise."""

    def with_state(factor: float) -> onnx.ModelProto:
        weights = np.eye(64, 10).astype(np.float32)
        return build(
            [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Mul", ["x", "f"], ["state"])],
            {"w": weights, "f": np.array([factor], np.float32)},
            outputs=[Value("p", TensorProto.FLOAT, ["N", 10]), Value("state", TensorProto.FLOAT, ["N", 64])],
        )

    images, _ = digits()
    data = match_dataset({"x": images[:100], "y": images[:100, :10].argmax(-1)}, [INPUT])
    reference = Reference(Session(with_state(1).SerializeToString()), data, "search")
    heads = reference.heads(None)[1]
    assert [head.output for head in heads] == [0], "only the score has labels"
    kept = compare(reference, Session(with_state(0.95).SerializeToString()), heads)
    assert kept.drop == 0
    with pytest.raises(Unsound, match="output 'state', which no label judges, is ruined") as caught:
        compare(reference, Session(with_state(-1).SerializeToString()), heads)
    assert caught.value.verdict is Verdict.ACCURACY


def test_dense_outputs_are_judged_by_noise_over_signal() -> None:
    def shifted(noise: float) -> onnx.ModelProto:
        wave = np.where(np.arange(64) % 2, noise, -noise).astype(np.float32)
        return build(
            [helper.make_node("Add", ["x", "w"], ["p"])], {"w": wave},
            outputs=[Value("p", TensorProto.FLOAT, ["N", 64])],
        )  # fmt: skip

    reference = Reference(Session(shifted(0).SerializeToString()), dataset(labels=False), "search")
    heads = reference.heads(None)[1]
    found = compare(reference, Session(shifted(0.01).SerializeToString()), heads)
    images = digits()[0][1000:1200]
    assert found.metric == "sqnr"
    assert found.drop == pytest.approx(1e-4 / images.var(), rel=1e-3)
    assert found.sqnr_db == pytest.approx(10 * np.log10(images.var() / 1e-4), rel=1e-3)


@pytest.mark.parametrize(
    ("nodes", "verdict"),
    [
        ([helper.make_node("Log", ["x"], ["p"])], Verdict.NAN),
        ([helper.make_node("Transpose", ["x"], ["p"])], Verdict.SHAPE),
        ([helper.make_node("Identity", ["x"], ["q"])], Verdict.SHAPE),
        ([helper.make_node("Reshape", ["x", "seven"], ["p"])], Verdict.CRASH),
    ],
)
def test_unsound_candidates_get_a_word_and_a_sentence(nodes: list[onnx.NodeProto], verdict: Verdict) -> None:
    def model(body: list[onnx.NodeProto]) -> bytes:
        name = body[-1].output[0]
        graph = helper.make_graph(
            body, "g",
            [Value("x", TensorProto.FLOAT, ["N", 64])],
            [Value(name, TensorProto.FLOAT, ["A", "B"])],
            [onnx.numpy_helper.from_array(np.array([7, -1]), "seven")],
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        return bytes(made.SerializeToString())

    source = Session(model([helper.make_node("Identity", ["x"], ["p"])]))
    reference = Reference(source, dataset(20, labels=False), "search")
    with pytest.raises(Unsound) as caught:
        compare(reference, Session(model(nodes)), reference.heads(None)[1])
    assert caught.value.verdict is verdict
    assert caught.value.reason


def test_the_bound_is_seeded_and_covers() -> None:
    """At 95% the true mean lies under the bound in about 95 of 100 experiments."""
    rng = np.random.default_rng(1)
    drops = rng.normal(0.02, 0.1, 300)
    assert bootstrap_bound(drops, 7) == bootstrap_bound(drops, 7)
    covered = sum(bootstrap_bound(rng.normal(0.02, 0.1, 100), seed) >= 0.02 for seed in range(100))
    assert 88 <= covered <= 100


def test_where_nothing_differs_the_exact_bound_is_told() -> None:
    """Rule of Clopper and Pearson for no event: 1 - 0.05 ** (1 / n)."""
    assert exact_bound(100) == pytest.approx(0.0295, abs=1e-4)
    for labels in (True, False):
        found = judged(changed(1e-6), dataset(100, labels))
        assert (found.drop, found.drop_bound, found.exact_bound) == (0, 0, exact_bound(100))
        verdict, reason = Gate(0.01).judge(found)
        assert verdict is Verdict.OK, "the bootstrap bound decides"
        assert reason.endswith("no disagreement in 100 rows (exact bound 3.0%), search")
    assert judged(changed(1.0), dataset(400)).exact_bound is None


def test_latency_is_a_paired_ratio() -> None:
    small = gemm_model()
    rng = np.random.default_rng(0)
    wide = {"a": (64, 9000), "b": (9000, 10)}
    large = build(
        [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["p"])],
        {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in wide.items()},
    )
    data = dataset(8)
    feeds = [data.feed(row) for row in range(8)]
    found = measure_latency(Session(small.SerializeToString()), Session(large.SerializeToString()), feeds)
    assert found.pairs >= 7
    assert found.ratio > 3
    assert 0 < found.p50_us <= found.p95_us


def test_memory_is_measured_in_a_fresh_process_and_bounded_from_below() -> None:
    weights = {"a": np.ones((64, 100_000), np.float32), "b": np.ones((100_000, 10), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("MatMul", ["h", "b"], ["p"])]
    large, small = build(nodes, weights), gemm_model()
    feed = dataset(1).feed(0)
    heavy, light = (measure_memory(model.SerializeToString(), feed) for model in (large, small))
    assert heavy.peak_rss_bytes - light.peak_rss_bytes > 20 * MIB
    assert heavy.load_ms > 0
    (least_large, _), (least_small, _) = (memory_bounds(model, feed) for model in (large, small))
    assert least_large <= heavy.peak_rss_bytes
    assert least_small <= light.peak_rss_bytes
    assert least_large - least_small > 28 * MIB


def test_a_model_that_a_fresh_process_cannot_load_is_an_error_and_no_crash() -> None:
    with pytest.raises(ModelError, match="ended with"):
        measure_memory(b"no model", dataset(1).feed(0))
