"""``skerry runs compare``: what went in, what came out, and which differences count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.packager.cli_runner import run as skerry
from tests.packager.report_runs import LINEAGE, VARIANTS, fidelity, result, run

from skerry_packager.results import Latency, VariantResult
from skerry_packager.runlog import Run, RunLog, document
from skerry_packager.runlog_compare import Change, Row, compare_runs


def rows(*runs: Run) -> dict[tuple[str, str], Row]:
    return {(row.group, row.what): row for row in compare_runs([document(item) for item in runs])}


def other_int8(**changes: Any) -> Run:
    """The same run, but for one variant."""
    made: tuple[VariantResult, ...] = tuple(
        replace(item, **changes) if item.name == "int8-store" else item for item in VARIANTS
    )
    return run(result=result(made))


def test_equal_runs_differ_in_nothing() -> None:
    found = rows(run(), run())
    assert not any(row.counts for row in found.values())
    assert {change for row in found.values() for change in row.changes} == {Change.SAME}


def test_inputs_are_compared_leaf_by_leaf() -> None:
    other = run(
        version="1.5.0",
        lineage={**LINEAGE, "hyperparameters": {"lr": 0.02, "opt": {"name": "adam"}}},
        environment={"python": "3.11.2", "onnxruntime": "1.33.0"},
        options={"monitor": "auto", "seed": 1},
    )
    changed = {row.what: row.values for row in rows(run(), other).values() if row.counts}
    assert changed == {
        "version": ("1.4.0", "1.5.0"),
        "lineage.hyperparameters.lr": (0.01, 0.02),
        "environment.onnxruntime": ("1.32.0", "1.33.0"),
        "options.seed": (0, 1),
    }


@pytest.mark.parametrize(
    ("changes", "what", "change"),
    [
        ({"size_bytes": 700_000}, "size", Change.BETTER),
        ({"size_bytes": 843_000}, "size", Change.NOISE),
        (
            {"latency": Latency(p50_us=1, p95_us=1, ratio=1.05, best_ratio=1.0, pairs=9)},
            "latency vs fp32",
            Change.NOISE,
        ),
        (
            {"latency": Latency(p50_us=1, p95_us=1, ratio=1.5, best_ratio=1.4, pairs=9)},
            "latency vs fp32",
            Change.WORSE,
        ),
        ({"latency": None}, "latency vs fp32", Change.CHANGED),
        ({"held_out": fidelity("held-out", 0.001, 0.003)}, "loss", Change.NOISE),
        ({"held_out": fidelity("held-out", 0.008, 0.0095)}, "loss", Change.WORSE),
        ({"memory": None}, "RAM here", Change.CHANGED),
    ],
)
def test_an_outcome_counts_where_it_differs_by_more_than_measurements_do(
    changes: dict[str, Any], what: str, change: Change
) -> None:
    found = rows(run(), other_int8(**changes))
    assert found["int8-store", what].changes == (Change.SAME, change)
    assert found["outcome", what].changes == (Change.SAME, change), "it is the one that was chosen"
    assert not found["fp16-store", what].counts


def test_a_loss_of_nothing_is_as_unsure_as_its_rows_are_few() -> None:
    nothing = other_int8(held_out=fidelity("held-out", 0.0, 0.0, exact=0.0075))
    assert rows(nothing, other_int8())["int8-store", "loss"].changes[1] is Change.NOISE
    worse = other_int8(held_out=fidelity("held-out", 0.009, 0.0098))
    assert rows(nothing, worse)["int8-store", "loss"].changes[1] is Change.WORSE


def test_a_failed_run_and_a_variant_that_only_one_has_can_be_compared() -> None:
    few = run(result=result(VARIANTS[:3]))
    found = rows(few, run())
    assert found["mixed", "verdict"].values == (None, "ok")
    failed = rows(run(), run(result=None, partial=VARIANTS[:2]))
    assert failed["outcome", "chosen for raspberry-pi-4"].values == ("int8-store", None)


def test_the_command_shows_the_differences_and_json_has_them(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db")
    log.record(run())
    log.record(other_int8(size_bytes=700_000))
    log.record(run(version="1.5.0"))
    log.close()
    shown = skerry("runs", "compare", 1, 2, 3, "--run-log", log.path)
    assert shown.code == 0
    assert "+ 683.6 KiB" in shown.out
    assert "* 1.5.0" in shown.out
    assert "source_file" not in shown.out
    assert "source_file" in skerry("runs", "compare", 1, 2, "--all", "--run-log", log.path).out
    found = skerry("runs", "compare", 1, 2, "--json", "--run-log", log.path).json
    assert found["runs"] == [1, 2]
    assert {
        "group": "int8-store", "what": "size", "values": [842_000, 700_000], "changes": ["same", "better"],
        "significant": True,
    } in found["rows"]  # fmt: skip
    for wrong in ((1,), (1, 1), range(1, 12)):
        assert skerry("runs", "compare", *wrong, "--run-log", log.path).code == 2
    assert skerry("runs", "compare", 1, 9, "--run-log", log.path).code == 1


def test_runs_without_a_difference_say_so(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "runs.db")
    log.record(run())
    log.record(run())
    log.close()
    assert skerry("runs", "compare", 1, 2, "--run-log", log.path).out == "no difference\n"
