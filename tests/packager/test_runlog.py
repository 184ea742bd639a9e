"""The log of packaging runs: complete, in one transaction, open to other tools."""

from __future__ import annotations

import csv
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.packager.cli_runner import run as skerry
from tests.packager.report_runs import run as rich_run

from skerry_contract.errors import InputError, MemoryBudgetError, ModelError, StorageError
from skerry_contract.limits import MIB
from skerry_packager.inspect import ModelInspection
from skerry_packager.results import (
    Choice,
    Fidelity,
    GoldenData,
    Latency,
    Memory,
    Objective,
    PackResult,
    SplitInfo,
    VariantResult,
    Verdict,
)
from skerry_packager.runlog import Run, RunLog, document
from skerry_packager.runlog_columns import RUNS
from skerry_packager.runlog_columns import VARIANTS as VARIANTS_COLUMNS

FIDELITY = Fidelity(
    split="search",
    output="scores",
    metric="accuracy",
    samples=200,
    reference=0.97,
    candidate=0.96,
    drop=0.01,
    drop_bound=0.02,
)
VARIANTS = (
    VariantResult(
        name="fp32", verdict=Verdict.OK, reason="", model=b"x" * 100, size_bytes=100, ram_predicted_bytes=7
    ),
    VariantResult(
        name="int8-store",
        verdict=Verdict.OK,
        reason="",
        model=b"x" * 40,
        size_bytes=40,
        recipe={"kind": "store", "bits": 8},
        fidelity=FIDELITY,
        held_out=FIDELITY,
        latency=Latency(p50_us=900.0, p95_us=1200.0, ratio=0.9, best_ratio=0.88, pairs=9),
        memory=Memory(peak_rss_bytes=5000, base_rss_bytes=4000, load_ms=3.0),
    ),
    VariantResult(name="qdq", verdict=Verdict.ACCURACY, reason="loses 9 points", model=b"x", size_bytes=30),
    VariantResult(name="dynamic", verdict=Verdict.SKIPPED, reason="no MatMul"),
)


def result() -> PackResult:
    inspection = ModelInspection(
        file_name="d.onnx", format="onnx", sha256="ab" * 32, size_bytes=100, ir=8, opsets={"ai.onnx": 17},
        producer="", inputs=(), outputs=(), nodes=1, operators={}, parameters=1, weight_bytes=4, subgraphs=0,
        quantized_operators=0, external_files=(), metadata={}, probe="ran",
    )  # fmt: skip
    lost = {"qdq": "accuracy: loses 9 points", "dynamic": "skipped: no MatMul"}
    return PackResult(
        inspection=inspection, inputs=(), outputs=(), task="classification", metric="accuracy",
        objective=Objective.SIZE, max_drop=0.02, variants=VARIANTS,
        choices=(Choice(target="pi", variants=("int8-store", "fp32"), lost=lost, pareto=("int8-store",)),),
        chosen=("int8-store", "fp32"),
        golden=GoldenData(inputs=b"", outputs={}, tolerances={}, samples=()), monitoring=b"",
        splits={"search": SplitInfo(rows=200, sha256="cd")}, notes=("opset raised",),
    )  # fmt: skip


def packed(name: str = "digits", version: str = "1.0.0") -> Run:
    return Run(
        started="2026-01-02T03:04:05Z", seconds=1.5, name=name, version=version, release=1,
        source_file="d.onnx", objective="size", max_drop=0.02, profiles=("pi",), result=result(),
        bundle="d.skerry", bundle_digest="sha256:ef", bundle_bytes=4096, lineage={"data_hash": "x"},
    )  # fmt: skip


def failed() -> Run:
    return Run(
        started="2026-01-02T03:04:06Z", seconds=0.5, name="digits", version="2.0.0", release=2,
        source_file="e.onnx", objective="size", max_drop=0.02, profiles=("pi",),
        error=MemoryBudgetError("needs 64 MiB", hint="less"),
    )  # fmt: skip


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs.db")


def test_a_run_comes_back_with_every_variant(log: RunLog) -> None:
    number = log.record(packed())
    found = log.run(number)
    assert (found["outcome"], found["name"], found["chosen"]) == ("packed", "digits", ["int8-store", "fp32"])
    assert found["source_digest"] == "sha256:" + "ab" * 32
    assert (found["splits"], found["notes"]) == ({"search": {"rows": 200, "sha256": "cd"}}, ["opset raised"])
    fp32, int8, qdq, dynamic = found["variants"]
    assert (fp32["ram_bytes"], fp32["latency_ratio"]) == (7, None)
    assert (fp32["chosen"], fp32["chosen_for"], fp32["fallback_for"]) == (0, [], ["pi"])
    assert (int8["chosen"], int8["chosen_for"], int8["fallback_for"]) == (1, ["pi"], [])
    assert (int8["size"], int8["size_ratio"], int8["drop"], int8["held_out_bound"]) == (40, 0.4, 0.01, 0.02)
    assert (int8["latency_ratio"], int8["ram_bytes"], int8["recipe"]) == (
        0.9,
        5000,
        {"kind": "store", "bits": 8},
    )
    assert (qdq["verdict"], qdq["chosen"], qdq["lost"]) == ("accuracy", 0, {"pi": "accuracy: loses 9 points"})
    assert (dynamic["verdict"], dynamic["size"], dynamic["reason"]) == ("skipped", None, "no MatMul")


def test_a_failed_run_is_kept_with_its_reason(log: RunLog) -> None:
    found = log.run(log.record(failed()))
    assert (found["outcome"], found["error_code"], found["error"]) == (
        "failed",
        "budget.memory",
        "needs 64 MiB",
    )
    assert (found["variants"], found["bundle"], found["chosen"]) == ([], None, None)


def test_the_newest_run_comes_first_and_names_filter(log: RunLog) -> None:
    for name in ("a", "b", "a"):
        log.record(packed(name))
    assert [run["id"] for run in log.runs()] == [3, 2, 1]
    assert [run["id"] for run in log.runs(name="a", limit=1)] == [3]


def test_plain_sql_reads_it(log: RunLog) -> None:
    log.record(packed())
    log.close()
    with sqlite3.connect(log.path) as db:
        rows = db.execute(
            "select r.name, v.name from runs r join variants v on v.run = r.id where v.chosen order by v.size"
        ).fetchall()
    db.close()
    assert rows == [("digits", "int8-store")]


def test_a_run_is_written_whole_or_not_at_all(log: RunLog) -> None:
    log._db.execute("drop table variants")
    log._db.execute("create table variants (run text check (run is null))")
    with pytest.raises(StorageError):
        log.record(packed())
    assert log.runs() == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"not a database, but long enough to be taken for one" * 50),
        lambda path: path.mkdir(),
        lambda path: _user_version(path, 99),
    ],
)
def test_a_file_that_is_no_log_is_named(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = tmp_path / "runs.db"
    spoil(path)
    with pytest.raises(StorageError, match=r"runs\.db") as caught:
        RunLog(path)
    assert "--run-log" in caught.value.hint


def test_reading_does_not_make_a_log(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        RunLog(tmp_path / "runs.db", create=False)
    assert not list(tmp_path.iterdir())
    assert skerry("runs", "list", "--run-log", tmp_path / "runs.db").code == 2


def test_a_log_of_the_first_schema_keeps_its_rows_and_takes_new_ones(log: RunLog) -> None:
    log.record(packed())
    log.close()
    first = {
        "exact_bound", "score", "held_out_samples", "held_out_exact_bound", "held_out_score", "estimates",
        "sensitivity", "pareto_for", "ram_upper_bytes", "reference", "opset",
    }  # fmt: skip
    with sqlite3.connect(log.path) as db:
        for column in first:
            db.execute(f"alter table variants drop column {column}")
        for column in ("targets", "choices", "command", "options", "error_hint"):
            db.execute(f"alter table runs drop column {column}")
        db.execute("pragma user_version = 1")
    db.close()
    again = RunLog(log.path)
    assert again.run(1)["variants"][1]["exact_bound"] is None
    assert again.run(again.record(packed("other")))["variants"][1]["score"] == 0.96
    assert "int8-store: chosen for pi" in skerry("runs", "show", "1", "--run-log", log.path).out


def test_a_failed_run_keeps_what_it_had_tried(log: RunLog) -> None:
    found = log.run(log.record(replace(failed(), partial=VARIANTS)))
    assert [(row["name"], row["verdict"]) for row in found["variants"]] == [
        ("fp32", "ok"), ("int8-store", "ok"), ("qdq", "accuracy"), ("dynamic", "skipped"),
    ]  # fmt: skip
    assert (found["variants"][1]["size_ratio"], found["variants"][1]["chosen"]) == (0.4, 0)
    assert found["error_hint"] == "less"


def test_a_document_that_was_never_written_equals_one_that_was(log: RunLog) -> None:
    number = log.record(rich_run())
    assert {**document(rich_run()), "id": number} == {
        **log.run(number),
        "variants": [
            {key: value for key, value in row.items() if key not in ("run", "position")}
            for row in log.run(number)["variants"]
        ],
    }


def test_limits_estimates_and_sensitivity_are_kept(log: RunLog) -> None:
    found = log.run(log.record(rich_run()))
    assert found["targets"]["tiny-gateway"]["flash_bytes"] == 3 * MIB
    assert found["choices"]["raspberry-pi-4"] == {
        "pareto": ["int8-store", "mixed"], "variants": ["int8-store", "fp32"],
    }  # fmt: skip
    mixed = next(row for row in found["variants"] if row["name"] == "mixed")
    assert mixed["pareto_for"] == ["raspberry-pi-4"]
    assert mixed["estimates"]["raspberry-pi-4"]["provenance"].endswith("not verified")
    assert (mixed["sensitivity"][0]["kept_float"], len(mixed["sensitivity"])) == (True, 36)
    assert mixed["ram_upper_bytes"] > mixed["ram_measured_bytes"] > mixed["ram_predicted_bytes"]
    assert found["command"][:2] == ["skerry", "pack"]
    assert found["golden_rows"] == [3, 14, 159, 265]


def test_figures_that_are_not_finite_are_no_figures(log: RunLog) -> None:
    lost = replace(FIDELITY, drop=float("inf"), drop_bound=float("nan"))
    spoiled = replace(result(), variants=(VARIANTS[0], replace(VARIANTS[1], fidelity=lost)))
    number = log.record(replace(packed(), result=spoiled))
    assert log.run(number)["variants"][1]["drop"] is None
    shown = skerry("runs", "show", number, "--json", "--run-log", log.path)
    assert "Infinity" not in shown.out
    assert "NaN" not in shown.out


def test_every_column_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "experiment-tracking.md").read_text(encoding="utf-8")
    for columns in (RUNS, VARIANTS_COLUMNS):
        for name, column in columns.items():
            assert f"| `{name}` | {column.about} |" in page, name


def test_runs_are_filtered_by_failure_and_time(log: RunLog) -> None:
    for day, run in enumerate((packed(), failed(), packed("other")), 1):
        log.record(replace(run, started=f"2026-03-0{day}T12:00:00Z"))
    assert [run["id"] for run in log.runs(failed=True)] == [2]
    assert [run["id"] for run in log.runs(since="2026-03-02")] == [3, 2]
    assert [run["id"] for run in log.runs(since="2026-03-02T12:00:01Z", name="other")] == [3]
    listed = skerry("runs", "list", "--failed", "--since", "2026-03-01", "--json", "--run-log", log.path)
    assert [run["id"] for run in listed.json["runs"]] == [2]
    assert skerry("runs", "list", "--since", "1h", "--json", "--run-log", log.path).json == {"runs": []}


@pytest.mark.parametrize("since", ["yesterday", "2026-13-01", "7w", "99999999999d"])
def test_a_time_that_is_none_is_refused(log: RunLog, since: str) -> None:
    refused = skerry("runs", "list", "--since", since, "--run-log", log.path)
    assert (refused.code, "is no" in refused.text) == (2, True)


def test_many_packs_write_one_log_at_once(tmp_path: Path) -> None:
    """The first use of a log makes its tables: all of them race for that, too."""
    path = tmp_path / "runs.db"
    program = (
        "import sys; from pathlib import Path; from tests.packager.report_runs import run\n"
        "from skerry_packager.runlog import RunLog\n"
        "sys.stdin.read()\n"
        "log = RunLog(Path(sys.argv[1]))\n"
        "for _ in range(10): log.record(run())\n"
    )
    root = Path(__file__).parents[2]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            cwd=root, stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(4)
    ]  # fmt: skip
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
        writer.stdin = None
    for writer in writers:
        _, complaints = writer.communicate(timeout=60)
        assert writer.returncode == 0, complaints.decode()
    log = RunLog(path)
    assert [run["id"] for run in log.runs(limit=100)] == list(range(40, 0, -1))
    assert all(len(log.run(number)["variants"]) == 9 for number in (1, 40))
    log.close()


def test_the_log_is_exported_whole(log: RunLog, tmp_path: Path) -> None:
    log.record(packed())
    log.record(replace(failed(), error=ModelError("=cmd|' /C calc'!A0")))
    lines = skerry("runs", "export", "--run-log", log.path).out.splitlines()
    assert [json.loads(line)["id"] for line in lines] == [2, 1]
    assert json.loads(lines[1])["variants"][1]["recipe"] == {"bits": 8, "kind": "store"}
    table = tmp_path / "runs.csv"
    written = skerry("runs", "export", "--format", "csv", "--out", table, "--run-log", log.path)
    assert written.code == 0
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run.id"], row["name"]) for row in rows] == [
        ("2", ""), ("1", "fp32"), ("1", "int8-store"), ("1", "qdq"), ("1", "dynamic"),
    ]  # fmt: skip
    assert rows[0]["run.error"].startswith("'="), "no spreadsheet takes it for a formula"
    assert json.loads(rows[2]["lost"]) == {}


def test_a_loss_of_zero_says_how_little_that_proves(log: RunLog) -> None:
    same = replace(FIDELITY, candidate=0.97, drop=0.0, drop_bound=0.0, exact_bound=1 - 0.05 ** (1 / 200))
    variants = [replace(variant, fidelity=same, held_out=same) for variant in VARIANTS[:2]]
    log.record(replace(packed(), result=replace(result(), variants=(*variants, *VARIANTS[2:]))))
    found = log.run(1)["variants"][1]
    assert found["exact_bound"] == found["held_out_exact_bound"] == pytest.approx(0.0149, abs=1e-4)
    shown = skerry("runs", "show", "1", "--run-log", log.path).out
    assert "≤1.5% exact" in shown
    assert "held-out: no disagreement in 200 rows (exact bound 1.5%)" in shown


def test_the_table_says_what_its_figures_are_of(log: RunLog) -> None:
    log.record(packed())
    wide = skerry("runs", "show", "1", "--run-log", log.path)
    assert "search loss" in wide.out
    assert "RAM here" in wide.out
    assert "0.9 ms" in wide.out
    assert "held-out: loss +1.00%, at most +2.00% (95%)" in wide.out
    narrow = skerry("runs", "show", "1", "--run-log", log.path, env={"COLUMNS": "80"}).out
    assert "p50 here" not in narrow
    table = narrow[narrow.index("variant ") : narrow.index("fp32: ")]
    assert max(map(len, table.splitlines())) <= 80


def test_the_commands_show_it(log: RunLog) -> None:
    log.record(packed())
    log.record(failed())
    listed = skerry("runs", "list", "--run-log", log.path)
    assert listed.code == 0
    assert "digits 2.0.0" in listed.out
    assert "budget.memory" in listed.out
    shown = skerry("runs", "show", "1", "--run-log", log.path)
    assert "int8-store: chosen for pi" in shown.out
    assert "fp32: the fallback of pi" in shown.out
    assert "qdq: accuracy: loses 9 points" in shown.out
    assert [run["id"] for run in skerry("runs", "list", "--run-log", log.path, "--json").json["runs"]] == [
        2,
        1,
    ]
    assert skerry("runs", "show", "1", "--run-log", log.path, "--json").json["variants"][1]["size"] == 40
    missing = skerry("runs", "show", "7", "--run-log", log.path, "--json")
    assert (missing.code, missing.json["error"]["code"]) == (1, "not_found")


def _user_version(path: Path, version: int) -> None:
    with sqlite3.connect(path) as db:
        db.execute(f"pragma user_version = {version}")
    db.close()
