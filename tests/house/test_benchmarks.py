"""The benchmark's judge is not fooled: known damage gets its verdict, an untouched model does not pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from benchmarks.packager import score
from benchmarks.packager.methods import METHODS
from benchmarks.packager.metrics import LABELLED, cosine, score_row
from benchmarks.packager.prepared import SPLITS, Facts, read_prepared, write_prepared
from benchmarks.packager.tables import plot_svg, table
from benchmarks.packager.verdicts import VERDICTS, Ruling, passing, rule
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "size": 0.5,
    "ratio": 1.0,
    "drop": 0.0,
    "drop_low": 0.0,
    "drop_high": 0.0,
    "source": 0.9,
    "made": 0.9,
    "cosine": 1.0,
    "runtimes": {"old": ""},
}


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "ok"),
        ({"size": 0.96}, "not smaller"),
        ({"ratio": 1.11}, "slow"),
        ({"drop": 0.011}, "accuracy"),
        ({"runtimes": {"old": "does not load"}}, "crash"),
        ({"verdict": "nan", "reason": "row 3"}, "nan"),
        ({"drop": -0.2, "ratio": 0.2, "size": 1.5}, "not smaller"),
    ],
)
def test_the_first_broken_promise_is_the_verdict(change: dict[str, Any], verdict: str) -> None:
    assert rule({**GOOD, **change}, "accuracy", kept=False).verdict == verdict


def test_models_without_labels_are_ruled_by_cosine_and_kept_ones_must_not_grow() -> None:
    assert rule({**GOOD, "cosine": 0.98}, "cosine", kept=False).verdict == "accuracy"
    assert rule({**GOOD, "drop": 0.5}, "cosine", kept=False).verdict == "ok"
    assert rule({**GOOD, "size": 1.0}, "accuracy", kept=True).verdict == "ok"
    assert rule({**GOOD, "size": 1.001}, "accuracy", kept=True).verdict == "not smaller"


def test_passing_counts_only_ok() -> None:
    cells = [("ours", Ruling("ok", "")), ("ours", Ruling("slow", "")), ("theirs", Ruling("crash", ""))]
    assert passing(cells) == {"ours": (1, 2), "theirs": (0, 1)}


def _one(values: list[float]) -> np.ndarray:
    return np.array([values], np.float32)


@pytest.mark.parametrize(
    ("metric", "found", "label", "worth"),
    [
        ("accuracy", _one([0.1, 0.9]), 1, 1.0),
        ("accuracy", _one([0.1, 0.9]), 0, 0.0),
        ("text", np.eye(4)[[1, 1, 0, 2, 0, 2]], [1, 2, 2, -1], 1.0),
        ("text", np.eye(4)[[1, 1, 0, 3, 0, 2]], [1, 2, 2, -1], 2 / 3),
        ("text", np.eye(4)[[0, 0, 0]], [1, 2], 0.0),
        ("frames", np.array([0.9, 0.1, 0.6]), [1, 0, 0], 2 / 3),
        ("wake", np.full(8, 250), 1, 1.0),
        ("wake", np.array([255, 255, 255, 0, 0, 0]), 1, 0.0),
        ("wake", np.full(8, 250 / 255, np.float32), 1, 1.0),
        ("pitch", np.array([440.0, 441.0, 880.0, 0.0]), 440.0, 0.5),
        ("notes", _one([0.9, 0.0, 0.9, 0.0]), [1, 1, 0, 0], 0.5),
        ("mask", _one([0.9, 0.9, 0.0, 0.0]), [[1, 0, 0, 0]], 0.5),
        ("mae", _one([2.0]), 1.5, -0.5),
    ],
)
def test_every_metric_by_hand(metric: str, found: np.ndarray, label: Any, worth: float) -> None:
    assert score_row(metric, "y", {"y": found}, np.asarray(label), {}) == pytest.approx(worth)


def test_no_metric_is_untested_and_cosine_takes_the_worst_output() -> None:
    assert set(LABELLED) == {"accuracy", "text", "frames", "wake", "pitch", "notes", "mask", "mae"}
    good, bad = _one([1.0, 0.0]), _one([0.0, 1.0])
    assert cosine({"a": good, "b": good}, {"a": good, "b": good}) == 1.0
    assert cosine({"a": good, "b": bad}, {"a": good, "b": good}) == 0.0


def _model(path: Path, weight: np.ndarray, repeats: int = 1) -> None:
    """``y = x @ weight``, multiplied in vain where `repeats` is more than one."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y0"])]
    nodes += [helper.make_node("MatMul", [f"y{i}", "one"], [f"y{i + 1}"]) for i in range(repeats - 1)]
    nodes.append(helper.make_node("Identity", [f"y{repeats - 1}"], ["y"]))
    size = weight.shape[0]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, size])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.eye(size, dtype=np.float32), "one"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prepared classifier that is always right: the class is the largest input."""
    facts = Facts(
        name="toy", group="named", engine="onnx", metric="accuracy", output="y", sequences=False, states={},
        note="", source="",
    )  # fmt: skip
    rng = np.random.default_rng(0)
    rows = {split: {"x": rng.random((40, 1, 64), np.float32)} for split in SPLITS}
    labels = {split: rows[split]["x"][:, 0].argmax(axis=1) for split in SPLITS}
    _model(tmp_path / "model.onnx", np.eye(64, dtype=np.float32))
    write_prepared(tmp_path, facts, rows, labels)
    return tmp_path


def test_the_judge_sees_a_wrong_a_slow_a_broken_and_an_untouched_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score, "SECONDS", 0.002)
    prepared, made = read_prepared(folder), folder / "made.onnx"

    _model(made, np.roll(np.eye(64, dtype=np.float32), 1, axis=1))
    wrong = score.examine(prepared, made)
    assert wrong["source"] == 1.0
    assert wrong["made"] < 0.2
    assert wrong["drop_low"] > 0.5

    _model(made, np.eye(64, dtype=np.float32), repeats=200)
    assert score.examine(prepared, made)["ratio"] > 2

    _model(made, np.full((64, 64), np.nan, np.float32))
    assert score.examine(prepared, made)["verdict"] == "nan"

    made.write_bytes(b"not a model")
    assert score.examine(prepared, made)["verdict"] == "crash"

    same = score.examine(prepared, prepared.model)
    assert (same["drop"], same["cosine"]) == (0.0, 1.0)
    assert 0.5 < same["ratio"] < 1.5
    assert rule({**same, "size": 1.0, "runtimes": {}}, "accuracy", kept=False).verdict != "ok"


def test_what_was_prepared_is_read_again(folder: Path) -> None:
    prepared = read_prepared(folder)
    assert prepared.facts.name == "toy"
    labels = prepared.labels("test")
    assert labels is not None
    assert (prepared.rows("test")["x"][:, 0].argmax(axis=1) == labels).all()
    assert not np.array_equal(prepared.rows("test")["x"], prepared.rows("evaluation")["x"])


def test_every_environment_has_a_lock_and_ours_is_first() -> None:
    locks = {path.stem for path in (ROOT / "benchmarks" / "packager" / "envs").glob("*.lock")}
    assert {method.environment for method in METHODS if method.environment} <= locks
    assert METHODS[0].name == "ours"


def test_table_and_plot_show_every_cell() -> None:
    cells: list[dict[str, Any]] = [
        {
            **GOOD,
            "model": "one",
            "method": "ours",
            "group": "named",
            "engine": "onnx",
            "metric": "accuracy",
            "ruling": "ok",
        },
        {"model": "one", "method": "peer", "group": "named", "engine": "onnx", "ruling": "crash"},
    ]
    text = table(cells)
    assert "ours                 1 of 1" in text
    assert "peer                 0 of 1" in text
    assert "0.50/1.00/0.900" in text
    # A tool that writes for the newest runtime alone does not pass, and the table says so.
    old = {**cells[0], "method": "new", "metric": "accuracy", "runtimes": {"old": "no"}, "ruling": "crash"}
    assert "new                  0 of 1 (1 if only the newest runtime counts)" in table([*cells, old])
    assert plot_svg(cells).count("<title>") == 1
    assert set(VERDICTS) >= {cell["ruling"] for cell in cells}
