"""`skerry_packager.metrics`: which metric may be asked for, of what, and what is said if it does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from skerry_contract.errors import DataError, InputError
from skerry_packager.metrics import METRICS, Form, Head, Metric, choose_heads, combine, score_row

Rows = list[list[np.ndarray]]
RNG = np.random.default_rng(0)
LOGITS: Rows = [[RNG.normal(0, 3, (1, 3)).astype(np.float32)] for _ in range(6)]
SIGMOID: Rows = [[np.array([[value]], np.float32)] for value in (0.2, 0.9, 0.6, 0.4, 0.1, 0.8)]
LABEL: Rows = [[np.array([number % 3], np.int64)] for number in range(6)]
CLASSES = np.array([0, 1, 2, 0, 1, 2])


def head(samples: Rows, labels: np.ndarray | None, metric: str) -> tuple[str, Head]:
    task, heads = choose_heads(samples, labels, [f"o{n}" for n in range(len(samples[0]))], None, metric)
    return task, heads[0]


def test_the_names_of_the_metrics() -> None:
    assert METRICS == ("accuracy", "f1", "auc", "mae", "top1-agreement", "cosine", "sqnr")


def test_a_metric_is_taken_of_the_output_that_the_labels_fit() -> None:
    assert head(LOGITS, CLASSES, "f1") == ("classification", Head(0, Metric.F1, Form.LOGITS))
    assert head(LOGITS, CLASSES, "auc")[1] == Head(0, Metric.AUC, Form.LOGITS)
    assert head(LABEL, CLASSES, "f1")[1] == Head(0, Metric.F1, Form.LABEL)
    assert head(SIGMOID, CLASSES % 2, "auc")[1] == Head(0, Metric.AUC, Form.BINARY_PROBABILITY)
    assert head(SIGMOID, CLASSES % 2, "mae") == ("regression", Head(0, Metric.MAE))


def test_labels_may_be_left_aside() -> None:
    assert head(LOGITS, CLASSES, "cosine") == ("embedding", Head(0, Metric.COSINE))
    assert head(LOGITS, None, "top1-agreement")[1] == Head(0, Metric.AGREEMENT, Form.LOGITS)
    assert head(LABEL, None, "top1-agreement")[1] == Head(0, Metric.AGREEMENT, Form.LABEL)
    both: Rows = [[*row, *label] for row, label in zip(LOGITS, LABEL, strict=True)]
    _, heads = choose_heads(both, None, ["scores", "label"], None, "sqnr")
    assert heads == (Head(0, Metric.SQNR),), "an output of whole numbers has no noise"


def test_dense_outputs_are_taken_as_one_vector_a_row() -> None:
    masks: Rows = [[RNG.random((1, 4, 4, 1)).astype(np.float32)] for _ in range(6)]
    assert head(masks, None, "cosine")[1] == Head(0, Metric.COSINE)
    assert head(masks, None, "sqnr")[1] == Head(0, Metric.SQNR)
    assert head(masks, np.stack([row[0][0] for row in masks]), "mae")[1] == Head(0, Metric.MAE)
    found = head(masks, None, "top1-agreement")[1]
    assert found == Head(0, Metric.AGREEMENT, Form.BINARY_PROBABILITY)
    mask = np.array([[0.9, 0.55, 0.2]], np.float32).reshape(1, 3, 1)
    other = np.array([[0.8, 0.45, 0.3]], np.float32).reshape(1, 3, 1)
    score = score_row(found, mask, other, None)
    assert score.candidate == pytest.approx(2 / 3)
    assert score.drop == pytest.approx(0.1 / 3), "a near tie that flips loses little"


@pytest.mark.parametrize(
    ("samples", "labels", "metric", "says"),
    [
        (LOGITS, CLASSES, "precision", "the metric 'precision' is not known"),
        (LOGITS, None, "f1", "the metric f1 needs labels, and the data has none"),
        (LABEL, CLASSES, "auc", "the metric auc needs scores, and output 'o0' tells the class alone"),
        (SIGMOID, CLASSES * 1.5, "accuracy", "the metric accuracy does not fit"),
        (SIGMOID, None, "cosine", "the metric cosine fits none of the outputs"),
        (LABEL, None, "cosine", "the metric cosine fits none of the outputs"),
        (LOGITS, None, "no_such_module:f", "cannot be imported"),
        (LOGITS, None, "math:nothing", "has no function 'nothing'"),
    ],
)
def test_a_metric_that_does_not_fit_says_why(
    samples: Rows, labels: np.ndarray | None, metric: str, says: str
) -> None:
    with pytest.raises(InputError, match=says) as caught:
        head(samples, labels, metric)
    assert caught.value.hint


def test_labels_that_fit_no_output_are_the_datas_fault() -> None:
    with pytest.raises(DataError, match="fit none of the outputs"):
        head(LOGITS, CLASSES + 0.5, "mae")


def test_a_function_gets_all_labels_and_all_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metrics.py").write_text(
        "import numpy as np\n\n"
        "def share(labels, outputs):\n"
        "    assert set(outputs) == {'scores', 'label'}\n"
        "    assert outputs['scores'].shape == (len(labels), 3)\n"
        "    return float((outputs['label'] == labels).mean())\n\n"
        "def error(labels, outputs):\n"
        "    return float(np.abs(outputs['scores'] - 1).mean())\n\n"
        "error.lower_is_better = True\n\n"
        "def broken(labels, outputs):\n"
        "    return outputs['missing']\n\n"
        "def endless(labels, outputs):\n"
        "    return float('nan')\n"
    )
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    labels = np.arange(200) % 3
    wanted: Rows = [[rng.random((1, 3)).astype(np.float32), labels[row : row + 1]] for row in range(200)]
    got: Rows = [[row[0] * 1.1, row[1] if place >= 20 else row[1] + 1] for place, row in enumerate(wanted)]

    def result(name: str, candidate: Rows = got) -> tuple[float, ...]:
        _, (head,) = choose_heads(wanted, labels, ["scores", "label"], None, f"my_metrics:{name}")
        assert head.name == f"my_metrics:{name}"
        rows = [
            score_row(head, head.pick(a), head.pick(b), np.asarray(label))
            for a, b, label in zip(wanted, candidate, labels, strict=True)
        ]
        found = combine(head, rows, labels, 0)
        assert found == combine(head, rows, labels, 0), "the same on every run"
        return found.reference, found.candidate, found.drop, found.drop_bound

    reference, candidate, drop, bound = result("share")
    assert (reference, candidate) == (1.0, 0.9)
    assert drop == pytest.approx(0.1)
    assert 0.12 < bound < 0.16
    reference, candidate, drop, bound = result("error")
    assert drop == pytest.approx((candidate - reference) / reference), "what should be low: relative growth"
    assert result("share", wanted)[2:] == (0, 0)
    for name, says in (("broken", "failed: KeyError"), ("endless", "returned nan")):
        with pytest.raises(DataError, match=says):
            result(name)


@pytest.mark.parametrize(
    ("rows", "noise", "least", "most"),
    [
        (50, 0.001, 0.0, 0.001),
        (50, 0.2, 0.02, 0.06),
        (2000, 0.2, 0.001, 0.002),
    ],
    ids=["outputs as before", "outputs changed", "outputs changed, many rows"],
)
def test_where_a_function_sees_no_change_the_outputs_have_a_say(
    rows: int, noise: float, least: float, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a pitch that is right within half a tone in all of 50 rows: rare mistakes are not seen."""
    name = f"blind_{rows}_{int(noise * 1000)}"
    (tmp_path / f"{name}.py").write_text("def right(labels, outputs):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    wanted: Rows = [[rng.normal(size=(1, 4)).astype(np.float32)] for _ in range(rows)]
    _, (found,) = choose_heads(wanted, None, ["pitch"], None, f"{name}:right")
    scores = [
        score_row(found, found.pick(row), found.pick([row[0] + noise * rng.normal(size=(1, 4))]), None)
        for row in wanted
    ]
    result = combine(found, scores, None, 0)
    assert result.drop == 0
    assert least <= result.drop_bound <= most
