"""Stateful models are judged on rollouts of whole sequences, from the data to the golden samples."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.packager.onnx_models import Array
from tests.packager.stateful_models import KEEP, average_model, lstm_model, sounds
from tests.real_models import real_model

from skerry_contract.errors import DataError
from skerry_contract.monitoring import ClassPrediction
from skerry_contract.tensors import read_tensors
from skerry_packager.calibrate import collect_ranges
from skerry_packager.datasets import Dataset, match_dataset
from skerry_packager.engine import Feed, Session
from skerry_packager.evaluate import Gate, Reference, Unsound, compare
from skerry_packager.golden import choose_samples, golden_candidates, golden_inputs, golden_outputs
from skerry_packager.inspect import TensorInfo, inspect_model
from skerry_packager.metrics import Head, Metric
from skerry_packager.normalize import normalize
from skerry_packager.reference import build_spec
from skerry_packager.results import Fidelity, Verdict
from skerry_packager.rollouts import Runner, moments, roll, sample_feeds
from skerry_packager.splits import cut_sequences, make_splits
from skerry_packager.states import find_states
from skerry_packager.variants import storage
from skerry_packager.variants.candidate import Candidate

X = TensorInfo(name="x", dtype="float32", shape=("N", 4))
H = TensorInfo(name="h", dtype="float32", shape=("N", 4))
LOOPS = {"hn": "h"}
RATE = TensorInfo(name="sr", dtype="int64", shape=())


def walks(rows: int = 40, steps: int = 200, seed: int = 0) -> Array:
    """Slow waves, so that the average moves by less than a coarse grid at each step."""
    rng = np.random.default_rng(seed)
    time = np.arange(steps)[None, :, None]
    phase = rng.uniform(0, 2 * np.pi, (rows, 1, 4))
    speed = rng.uniform(60, 160, (rows, 1, 4))
    return (2 * np.sin(2 * np.pi * time / speed + phase)).astype(np.float32)


def sequences(x: Array | None = None, **others: Array) -> Dataset:
    return match_dataset({"x": walks() if x is None else x, **others}, [X, H], loops=LOOPS)


def session(model: onnx.ModelProto) -> Session:
    return Session(model.SerializeToString())


def averages(x: Array) -> Array:
    """What `average_model` computes, in float64."""
    states = [np.zeros_like(x[:, 0], dtype=np.float64)]
    for step in range(x.shape[1]):
        states.append(KEEP * states[-1] + (1 - KEEP) * x[:, step])
    return np.stack(states[1:], axis=1)


def real_labels(data: Dataset) -> Array:
    """Of all steps that are no padding, one after another."""
    found = [label for row in range(len(data)) if (label := data.label(row)) is not None]
    return np.concatenate([np.ravel(label) for label in found])


def judged(data: Dataset, source: onnx.ModelProto, candidate: onnx.ModelProto) -> Fidelity:
    reference = Reference(session(source), data, "search")
    return compare(reference, session(candidate), reference.heads(None)[1])


# --- data ---------------------------------------------------------------------------------------------------


def test_a_row_is_a_whole_sequence_and_states_begin_with_zeros() -> None:
    data = sequences(walks(3, 5))
    assert data.sequences
    assert (len(data), data.steps(0)) == (3, 5)
    feed = data.feed(1, 4)
    np.testing.assert_array_equal(feed["x"], walks(3, 5)[1, 4:5])
    np.testing.assert_array_equal(feed["h"], np.zeros((1, 4)))


def test_steps_may_be_complete_and_initial_states_given() -> None:
    start = np.random.default_rng(0).random((3, 1, 4)).astype(np.float32)
    data = sequences(walks(3, 5)[:, :, None], h=start)
    assert data.feed(1, 2)["x"].shape == (1, 4)
    np.testing.assert_array_equal(data.feed(1)["h"], start[1])
    np.testing.assert_array_equal(sequences(walks(3, 5), h=start[:, 0]).feed(1)["h"], start[1])


@pytest.mark.parametrize(
    "rate", [np.array(16000), np.full(3, 16000), np.full((3, 5), 16000)], ids=["scalar", "rows", "steps"]
)
def test_inputs_that_stay_the_same_are_given_once(rate: Array) -> None:
    data = match_dataset({"x": walks(3, 5), "sr": rate}, [X, H, RATE], loops=LOOPS)
    assert data.sequences
    feed = data.feed(2, 3)
    assert (feed["sr"].shape, int(feed["sr"])) == ((), 16000)


def test_short_sequences_are_padded_and_their_padding_is_never_looked_at() -> None:
    x, lengths = walks(4, 30), np.array([30, 10, 20, 5])
    for row, length in enumerate(lengths):
        x[row, length:] = np.nan
    labels = np.where(np.isnan(x[:, :, 0]), -7, averages(x)[:, :, 0] > 0).astype(np.int64)
    data = sequences(x, lengths=lengths, y=labels)
    assert data.first_not_finite() == ""
    assert [data.steps(row) for row in range(4)] == lengths.tolist()
    runner = Runner(session(average_model()), data)
    for row, answer in enumerate(runner.answers(range(4))):
        np.testing.assert_allclose(answer[0][:, 0], averages(x)[row, : lengths[row]], atol=1e-5)
    assert -7 not in real_labels(data)
    padding = x.copy()
    padding[1, 10:] = 3.0
    assert sequences(padding, lengths=lengths).row_digest(1) == data.row_digest(1)


def test_rows_without_time_are_judged_one_by_one_and_that_is_said() -> None:
    data = sequences(walks(1, 50)[0])
    assert not data.sequences
    assert len(data) == 50
    assert data.feed(3)["h"].shape == (1, 4)
    splits = make_splits(None, data)
    (note,) = [note for note in splits.notes if "no time axis" in note]
    assert "Give 'x' as [sequences, steps, *one step's input]" in note


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((3, 5, 3), np.float32)}, r"shape \[N, 4\] in the model"),
        ({"x": walks(3, 5), "y": np.zeros((3, 4))}, r"labels of shape \[3, 4\] for sequences of 5 steps"),
        ({"x": walks(3, 5), "lengths": np.array([5, 6, 1])}, "from 1 to 5"),
        ({"x": walks(3, 5), "lengths": np.array([5, 0, 1])}, "from 1 to 5"),
        ({"x": walks(3, 5), "lengths": np.array([5, 1])}, "differ in their number of rows"),
        ({"x": walks(1, 5)[0], "lengths": np.full(5, 1)}, "no input has a time axis"),
        ({"x": np.array([walks(1, 5)[0], walks(1, 6)[0]], dtype=object)}, "array of Python objects"),
        ({"q": walks(3, 5), "z": walks(3, 5)}, r"missing: \['x'\]"),
    ],
)
def test_sequences_that_do_not_fit_are_named(arrays: dict[str, Array], says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        match_dataset(arrays, [X, H], loops=LOOPS)
    assert caught.value.hint


def test_inputs_with_different_numbers_of_steps_are_refused() -> None:
    other = TensorInfo(name="z", dtype="float32", shape=(1, 7))
    with pytest.raises(DataError, match="differ in their number of steps"):
        match_dataset(
            {"x": walks(3, 5)[:, :, None], "z": np.zeros((3, 6, 7), np.float32)}, [X, H, other], loops=LOOPS
        )


# --- splits -------------------------------------------------------------------------------------------------


def test_whole_sequences_are_split() -> None:
    splits = make_splits(None, sequences(walks(60, 20)))
    assert [len(part) for part in (splits.calibration, splits.search, splits.held_out)] == [12, 24, 24]
    assert splits.search.steps(0) == 20
    assert any("only 24 held-out sequences" in note for note in splits.notes)


def test_few_long_recordings_are_cut_into_pieces_that_stay_together() -> None:
    x = walks(3, 6000)
    labels = np.arange(3 * 6000).reshape(3, 6000)
    data = sequences(x, y=labels, lengths=np.array([6000, 6000, 3000]))
    splits = make_splits(None, data)
    parts = [splits.calibration, splits.search, splits.held_out]
    assert [len(part) for part in parts] == [6, 12, 12]
    assert any("3 sequences were cut into 30 pieces of up to 500 steps" in note for note in splits.notes)
    seen = [set(real_labels(part).tolist()) for part in parts]
    assert len(seen[0] | seen[1] | seen[2]) == sum(map(len, seen)) == 15_000
    shared = [{part.numbers[row] for row in range(len(part))} for part in parts]
    assert sum(map(len, shared)) <= 3 + 2, "at most one recording lies on each of the two borders"
    first = splits.search
    start = int(real_labels(first)[0]) % 6000
    np.testing.assert_array_equal(first.feed(0, 7)["x"][0], x[first.numbers[0], start + 7])
    assert splits.held_out_rows == tuple(splits.held_out.numbers)


@pytest.mark.parametrize(
    "extra", [{"y": np.array([0, 1, 0])}, {"h": np.zeros((3, 1, 4), np.float32)}], ids=["label", "state"]
)
def test_sequences_with_a_label_or_state_of_their_own_stay_whole(extra: Mapping[str, Array]) -> None:
    data = sequences(walks(3, 2000), **extra)
    assert cut_sequences(data) == (data, "")


# --- rollouts -----------------------------------------------------------------------------------------------


def test_a_rollout_feeds_on_its_own_states() -> None:
    x = walks(2, 100)
    steps = list(roll(session(average_model()), sequences(x), 1))
    assert [moment.step for moment in steps] == list(range(100))
    np.testing.assert_array_equal(steps[40].feed["h"], steps[39].outputs[1])
    np.testing.assert_allclose(steps[99].outputs[0][0], averages(x)[1, 99], atol=1e-5)


@pytest.mark.parametrize("kind", ["average", "lstm"])
def test_side_by_side_and_alone_give_the_same(kind: str) -> None:
    if kind == "lstm":
        model, loops = lstm_model(), {"hn": "h", "cn": "c"}
        state = TensorInfo(name="h", dtype="float32", shape=(1, "N", 8))
        inputs = [
            TensorInfo(name="x", dtype="float32", shape=("N", 6)), state,
            TensorInfo(name="c", dtype="float32", shape=(1, "N", 8)),
        ]  # fmt: skip
        x = np.random.default_rng(1).normal(0, 1, (20, 50, 6)).astype(np.float32)
    else:
        model, loops, inputs, x = average_model(), LOOPS, [X, H], walks(20, 50)
    data = match_dataset({"x": x, "lengths": np.arange(31, 51)}, inputs, loops=loops)
    together = Runner(session(model), data)
    answers = list(together.answers(range(20)))
    assert together.abreast
    alone = [np.stack([moment.outputs[0] for moment in roll(session(model), data, row)]) for row in range(20)]
    for one, other in zip(answers, alone, strict=True):
        np.testing.assert_allclose(one[0], other, atol=1e-6)


def test_rows_that_would_change_each_other_run_alone() -> None:
    """As a scale of dynamic quantization does, which is taken over the whole batch."""
    model = average_model()
    most = onnx.helper.make_node("ReduceMax", ["taken"], ["most"], keepdims=0)
    model.graph.node.insert(2, most)
    model.graph.node[3].input[1] = "mixed"
    model.graph.node.insert(3, onnx.helper.make_node("Add", ["taken", "most"], ["mixed"]))
    onnx.checker.check_model(model)
    data = sequences(walks(20, 10))
    runner = Runner(session(model), data)
    answers = list(runner.answers(range(20)))
    assert not runner.abreast
    for row, answer in enumerate(answers):
        alone = [moment.outputs[0] for moment in roll(session(model), data, row)]
        np.testing.assert_array_equal(answer[0], np.stack(alone))


def test_a_fixed_batch_runs_alone() -> None:
    fixed = [TensorInfo(name=name, dtype="float32", shape=(1, 4)) for name in ("x", "h")]
    data = match_dataset({"x": walks(4, 10)}, fixed, loops=LOOPS)
    runner = Runner(session(average_model(batch=1)), data)
    found = np.stack([answer[0][:, 0] for answer in runner.answers(range(4))])
    assert not runner.abreast
    np.testing.assert_allclose(found, averages(walks(4, 10)), atol=1e-6)


# --- judging ------------------------------------------------------------------------------------------------


def test_a_candidate_that_is_good_step_by_step_and_drifts_is_refused() -> None:
    """Rounding the state to a 32nd is nothing in one step, and stops a slow average for good."""
    x, source, coarse = walks(), average_model(), average_model(grid=1 / 32)
    steps = list(moments(session(source), sequences(x), 2000))
    singles = match_dataset(
        {
            "x": np.concatenate([moment.feed["x"] for moment in steps]),
            "h": np.concatenate([moment.feed["h"] for moment in steps]),
        },
        [X, H],
        loops=LOOPS,
    )
    gate = Gate(0.01)
    one_by_one = judged(singles, source, coarse)
    assert gate.judge(one_by_one)[0] is Verdict.OK
    rolled = judged(sequences(x), source, coarse)
    assert rolled.samples == 40
    assert rolled.drop > 20 * one_by_one.drop
    assert gate.judge(rolled)[0] is Verdict.ACCURACY
    assert gate.judge(judged(sequences(x), source, average_model(grid=1e-4)))[0] is Verdict.OK


def test_fp32_against_itself_loses_nothing() -> None:
    found = judged(sequences(), average_model(), average_model())
    assert (found.drop, found.drop_bound, found.changed, found.metric) == (0, 0, False, "sqnr")


def test_a_crash_or_nan_in_the_middle_is_found_with_its_step() -> None:
    x = walks(4, 300)
    first = int(np.argwhere((averages(x) > 0.8).any(axis=(0, 2)))[0][0])
    with pytest.raises(Unsound, match=r"NaN .* first at step \d+ of 300") as caught:
        judged(sequences(x), average_model(), average_model(broken_after=0.8))
    assert caught.value.verdict is Verdict.NAN
    assert first > 5
    wide = average_model()
    wide.graph.node[-2].op_type = "Concat"
    wide.graph.node[-2].input.append("sum")
    wide.graph.node[-2].attribute.append(onnx.helper.make_attribute("axis", 1))
    for value in wide.graph.output:
        value.type.tensor_type.shape.dim[1].dim_value = 8
    with pytest.raises(Unsound) as caught:
        judged(sequences(x), average_model(), wide)
    assert caught.value.verdict is Verdict.CRASH, "the second step cannot take the state of the first"


def test_labels_of_steps_are_met_by_steps() -> None:
    """A label of each step, shorter sequences and padding that is no label."""
    x = walks(60, 40)
    model = _threshold_model()
    lengths = np.array([40 - row % 20 for row in range(60)])
    truth = (averages(x)[:, :, 0] > 0.05).astype(np.int64)
    for row, length in enumerate(lengths):
        truth[row, length:] = -1
    found = judged(sequences(x, y=truth, lengths=lengths), model, model)
    assert (found.metric, found.samples) == ("accuracy", 60)
    expected = [
        np.mean((averages(x)[row, :length, 0] >= 0) == truth[row, :length])
        for row, length in enumerate(lengths)
    ]
    assert found.reference == pytest.approx(np.mean(expected), abs=0.02)


def test_a_label_of_the_whole_sequence_is_met_by_its_highest_score() -> None:
    """A wake word that was heard once was heard."""
    x = walks(60, 40)
    truth = (averages(x)[:, :, 0].max(axis=1) >= 0).astype(np.int64)
    assert 0 < truth.mean() < 1
    found = judged(sequences(x, y=truth), _threshold_model(), _threshold_model())
    assert (found.metric, found.reference) == ("accuracy", 1.0)


def _threshold_model() -> onnx.ModelProto:
    """The sigmoid of the first number's average: above 0 or not."""
    model = average_model()
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.node[-1].CopyFrom(onnx.helper.make_node("Gather", ["hn", "first"], ["one"], axis=1))
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["one"], ["y"]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    onnx.checker.check_model(model, full_check=True)
    return model


# --- time ---------------------------------------------------------------------------------------------------


class SlowSession(Session):
    """As a large model: every inference takes a while."""

    def run(self, feed: Feed, names: object = None) -> list[Array]:
        time.sleep(0.002)  # it is the time itself that is tested
        return super().run(feed)


def test_fp32_settles_on_a_power_of_two_of_rows_spread_over_all() -> None:
    rows = np.random.default_rng(0).random((1000, 4)).astype(np.float32)
    data = match_dataset({"x": rows, "h": rows}, [X, H])
    model = average_model().SerializeToString()
    reference = Reference(SlowSession(model), data, "search")
    (note,) = reference.settle(1000, 0.2)
    kept = reference.rows()
    assert len(kept) in (16, 32, 64, 128, 256)
    assert note == f"search: {len(kept)} of 1000 rows within the time of 0.2 s"
    assert min(kept) < 200 < 800 < max(kept)
    found = compare(reference, Session(model), reference.heads(None)[1])
    assert (found.samples, found.changed) == (len(kept), False)
    fast = Reference(Session(model), data, "search")
    assert fast.settle(1000) == []
    assert fast.rows(16) == kept[:16], "a trial takes the first of the same rows"
    assert fast.settle(64) == [
        "search: 64 of 1000 rows judge, for one inference takes much work: "
        "a longer --time-limit lets more of them judge"
    ]
    assert fast.rows() == kept[:64] if len(kept) >= 64 else fast.rows()[: len(kept)] == kept


def test_data_on_which_the_model_says_nothing_is_noted() -> None:
    reference = Reference(session(average_model()), sequences(np.zeros((20, 30, 4), np.float32)), "search")
    (note,) = reference.settle(20)
    assert note.startswith("search: output 'y' is the same number everywhere")


def test_a_slow_candidate_is_judged_on_fewer_rows() -> None:
    rows = np.random.default_rng(0).random((1000, 4)).astype(np.float32)
    data = match_dataset({"x": rows, "h": rows}, [X, H])
    model = average_model().SerializeToString()
    reference = Reference(Session(model), data, "search")
    heads = reference.heads(None)[1]
    assert compare(reference, SlowSession(model), heads, seconds=0.0).samples == 16
    assert compare(reference, Session(model), heads, most_rows=100).samples == 100
    assert compare(reference, Session(model), heads).samples == 1000


# --- what else is made from rollouts ------------------------------------------------------------------------


def test_calibration_sees_states_as_fp32_makes_them() -> None:
    x = walks(10, 100)
    model = average_model()
    feeds = sample_feeds(session(model), sequences(x), 500)
    assert len(feeds) == 500
    seen = collect_ranges(model, ["h", "hn"], iter(feeds))
    reached = averages(x)
    assert seen["hn"].low == pytest.approx(reached.min(), rel=0.1)
    assert seen["hn"].high == pytest.approx(reached.max(), rel=0.1)
    assert 0 < seen["h"].high <= seen["hn"].high * 1.1
    (middle,) = sample_feeds(session(model), sequences(walks(1, 101)), 1)
    np.testing.assert_array_equal(middle["x"][0], walks(1, 101)[0, 50])


def test_golden_samples_are_single_steps_in_the_middle_of_rollouts() -> None:
    x = walks(10, 100)
    model = average_model()
    reference = Reference(session(model), sequences(x), "held-out")
    found = golden_candidates(reference)
    places = choose_samples([moment.outputs for moment in found], Head(0, Metric.SQNR), 6)
    chosen = [found[place] for place in places]
    assert sum(bool(np.any(moment.feed["h"])) for moment in chosen) >= 5, "one may be a beginning"
    inputs = read_tensors(golden_inputs([moment.feed for moment in chosen]))
    assert {name: tensor.shape for name, tensor in inputs.items()} == {
        "inputs/x": (6, 1, 4), "inputs/h": (6, 1, 4),
    }  # fmt: skip
    _, recorded = golden_outputs(session(model), [moment.feed for moment in chosen])
    for moment, outputs in zip(chosen, recorded, strict=True):
        np.testing.assert_allclose(outputs[0][0], averages(x)[moment.row, moment.step], atol=1e-5)


def test_devices_watch_steps_and_no_states() -> None:
    x = walks(20, 50)
    spec = build_spec(session(average_model()), [sequences(x)], Head(0, Metric.SQNR))
    assert spec.rows == 1000
    assert [feature.name for feature in spec.features] == [
        *(f"x[{index}]" for index in range(4)), *(f"y[{index}]" for index in range(4)),
    ]  # fmt: skip
    first = spec.features[4]
    assert first.probabilities
    reached = averages(x)[:, :, 0]
    assert getattr(first, "mean", None) == pytest.approx(reached.mean(), abs=1e-4)
    assert not isinstance(spec.prediction, ClassPrediction)


# --- real models --------------------------------------------------------------------------------------------

SILERO = ("silero_vad.onnx", "silero_vad_16k_op15.onnx", "silero_vad_half.onnx")


def voice(name: str, rows: int = 24, steps: int = 80) -> tuple[onnx.ModelProto, Dataset]:
    """A voice detector and sequences for it."""
    path = real_model(f"silero_vad/silero_vad/data/{name}")
    inspection = inspect_model(path)
    loops = find_states(inspection.inputs, inspection.outputs)
    assert loops == {"stateN": "state"}
    arrays: dict[str, Array] = {"input": sounds(rows, steps)}
    if any(info.name == "sr" for info in inspection.inputs):
        arrays["sr"] = np.array(16_000)
    data = match_dataset(arrays, inspection.inputs, loops=loops)
    return normalize(onnx.load(path), [data.feed(0)]).model, data


@pytest.mark.parametrize("name", SILERO)
def test_a_real_voice_detector_keeps_its_promise_when_stored_small(name: str) -> None:
    model, data = voice(name)
    reference = Reference(session(model), data, "search")
    heads = reference.heads(None)[1]
    assert [head.output for head in heads] == [0], "states are not scored"
    speech = np.concatenate([answer[0].ravel() for answer in reference.answers(range(len(data)))])
    assert speech.min() < 0.1 < 0.6 < speech.max(), "the sounds must make it speak up"
    for store in (storage.fp16_store, storage.int8_store):
        made = store(model)
        assert isinstance(made, Candidate)
        found = compare(reference, Session(made.data), heads)
        assert Gate(0.01).judge(found)[0] is Verdict.OK, (made.name, found)
        assert found.changed


def test_a_real_voice_detector_with_a_coarse_state_is_refused_only_by_the_rollout() -> None:
    """The state is rounded where it leaves the model: it counts one step later, and not before."""
    model, data = voice("silero_vad_half.onnx")
    coarse = onnx.ModelProto()
    coarse.CopyFrom(model)
    for node in coarse.graph.node:
        for place, name in enumerate(node.output):
            if name == "stateN":
                node.output[place] = "fine"
    coarse.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), "grid"))
    coarse.graph.node.extend(
        [
            onnx.helper.make_node("Div", ["fine", "grid"], ["scaled"]),
            onnx.helper.make_node("Round", ["scaled"], ["whole"]),
            onnx.helper.make_node("Mul", ["whole", "grid"], ["stateN"]),
        ]
    )
    reference = Reference(session(model), data, "search")
    heads = reference.heads(None)[1]
    steps = list(moments(session(model), data, 300))
    candidate = session(coarse)
    alone = [np.abs(candidate.run(moment.feed)[0] - moment.outputs[0]).max() for moment in steps]
    assert max(alone) < 1e-5
    found = compare(reference, candidate, heads)
    assert Gate(0.01).judge(found)[0] is Verdict.ACCURACY


def spectra(seed: int, steps: int) -> Array:
    """Slowly wandering spectra as a wake word takes them: ``[steps, 3, 40]`` in int8."""
    rng = np.random.default_rng(seed)
    walk = np.cumsum(rng.normal(0, 12, (steps * 3, 40)), axis=0) * rng.uniform(0.2, 1.5)
    walk += 40 * np.sin(np.arange(40) / rng.uniform(2, 8) + rng.uniform(0, 6)) + rng.uniform(-60, 60)
    return np.clip(walk, -128, 127).astype(np.int8).reshape(steps, 3, 40)


def test_a_wake_word_that_remembers_inside_is_rolled_out_from_a_reset() -> None:
    path = real_model("pymicro_wakeword/pymicro_wakeword/models/okay_nabu.tflite")
    model = Session(path.read_bytes(), "tflite")
    (given,) = model.inputs
    info = TensorInfo(name=given.name, dtype=given.datatype.lower(), shape=given.shape)
    frames = np.stack([spectra(seed, 60) for seed in (1, 8, 34)])
    data = match_dataset({"x": frames}, [info], inner=True)
    assert data.sequences
    reference = Reference(model, data, "search")
    answers = [answer[0] for answer in reference.answers(range(3))]
    assert answers[0].shape == (60, 1, 1)
    assert all(answer.any() for answer in answers), "the sounds must make it speak up"
    found = compare(reference, Session(path.read_bytes(), "tflite"), reference.heads(None)[1])
    assert not found.changed, "every sequence begins afresh, whatever ran before"
    moved = [moment for moment in golden_candidates(reference) if moment.step]
    assert not moved, "first steps alone need no memory"
    (again, *_) = sample_feeds(model, data, 40)
    np.testing.assert_array_equal(again[given.name], frames[0, :1].reshape(again[given.name].shape))
    assert len(sample_feeds(model, data, 40)) == 40
    forgetful = []
    for step in range(60):
        model.reset()
        forgetful.append(model.run(data.feed(2, step))[0])
    assert not np.array_equal(answers[2], np.stack(forgetful)), "it does remember"
