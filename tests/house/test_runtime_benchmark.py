"""The runtime benchmark's own arithmetic: what it says PASS to has kept its gate, and nothing else has."""

from __future__ import annotations

import importlib
import json
import os
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from benchmarks.runtime import gates, processes, report, spread
from benchmarks.runtime.client import missing_bytes
from benchmarks.runtime.gates import GATES, Figure, Gate, verdict
from benchmarks.runtime.measures import cuts, wheel
from benchmarks.runtime.servers import ENVIRONMENTS, from_oip, from_rows
from tests.torture.results import title_of

ROOT = Path(__file__).resolve().parents[2]
AT_MOST = Gate(key="a", measure="m", what="a", against="b", unit="x", bar=2.0)
AT_LEAST = Gate(key="a", measure="m", what="a", against="b", unit="x", bar=2.0, least=True)


@pytest.mark.parametrize(
    ("gate", "figure", "word"),
    [
        (AT_MOST, Figure(value=2.0), "PASS"),
        (AT_MOST, Figure(value=2.01), "FAIL"),
        (AT_LEAST, Figure(value=2.0), "PASS"),
        (AT_LEAST, Figure(value=1.99), "FAIL"),
        (AT_MOST, Figure(value=1.0, failed=True), "FAIL"),
        (AT_MOST, Figure(value=None, detail="no root"), "not run"),
        (AT_MOST, None, "not run"),
        (Gate(key="a", measure="m", what="a", against="", unit="MB"), Figure(value=9.0), "-"),
    ],
)
def test_a_verdict_follows_the_bar(gate: Gate, figure: Figure | None, word: str) -> None:
    assert verdict(gate, figure) == word


def test_every_gate_of_the_design_is_there_with_its_bar() -> None:
    bars = {gate.key: (gate.bar, gate.least) for gate in GATES if gate.bar is not None}
    assert bars == {
        "mlp-raw": (13, False),
        "mlp-fastapi": (0.2, False),
        "conv-raw": (2.6, False),
        "shared": (15, False),
        "rate-mlserver": (8, True),
        "rate-bentoml": (20, True),
        "memory": (1.15, False),
        "large-model": (0.35, False),
        "idle-cpu": (0.02, False),
        "flash": (1.1, False),
        "cuts-install": (0, False),
        "cuts-outbox": (0, False),
        "swap-failed": (0, False),
        "swap-p99": (1.3, False),
        "start": (1, False),
        "wheel": (300, False),
        "64mb": (64, False),
    }


def test_gates_are_chosen_by_their_names_or_their_measures() -> None:
    assert gates.measures_of([]) == list(dict.fromkeys(gate.measure for gate in GATES))
    assert gates.measures_of(["conv-raw", "mlp-raw", "idle"]) == ["latency", "idle"]
    with pytest.raises(KeyError, match="speed"):
        gates.measures_of(["speed"])


@pytest.mark.parametrize("name", sorted({gate.measure for gate in GATES}))
def test_every_measure_imports(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.runtime.measures.{name}").measure)


def test_every_peer_has_its_lock() -> None:
    locks = {path.stem for path in (ROOT / "benchmarks" / "runtime" / "envs").glob("*.lock")}
    assert set(ENVIRONMENTS) == locks


def test_ratios_are_those_of_the_rounds_and_not_of_the_medians() -> None:
    found = spread.ratios([10.0, 40.0, 90.0], [10.0, 20.0, 30.0])
    assert (found.median, found.low, found.high) == (2.0, 1.5, 2.5)
    assert spread.differences([3.0, 5.0], [1.0, 1.0]).median == 3.0
    assert spread.spread([7.0]) == spread.Spread(7.0, 7.0, 7.0)
    with pytest.raises(ValueError, match="zip"):
        spread.ratios([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="nothing"):
        spread.ratios([], [])


def test_sides_take_turns_and_each_begins_as_often() -> None:
    order: list[str] = []

    def turn(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = spread.in_turns(3, {name: partial(turn, name) for name in "abc"})
    assert "".join(order) == "abcbcacab"
    assert found == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_quantiles_are_nearest_ranks() -> None:
    values = [float(one) for one in range(100, 0, -1)]
    assert spread.quantile(values, 0.99) == 100.0
    assert spread.quantile(values, 0.5) == 51.0


SMAPS = """\
55d0c8400000-7ffc2b5f9000 ---p 00000000 00:00 0                          [rollup]
Rss:               31904 kB
Pss:               25117 kB
Pss_Dirty:         18000 kB
Pss_Anon:          17000 kB
Pss_File:           8000 kB
Pss_Shmem:           117 kB
Private_Dirty:     16500 kB
VmFlags: rd ex
"""


def test_unevictable_is_anonymous_and_shared_memory() -> None:
    found = processes.parse_smaps(SMAPS)
    assert (found.rss, found.pss) == (31904 << 10, 25117 << 10)
    assert found.unevictable == 17117 << 10
    assert (found + found).private_dirty == 2 * (16500 << 10)
    with pytest.raises(KeyError):
        processes.parse_smaps(SMAPS.replace("Pss_Anon", "Anon"))


def test_this_process_has_memory_time_and_itself_as_a_tree() -> None:
    me = os.getpid()
    assert 0 < processes.memory_of(me).unevictable <= processes.memory_of(me).rss
    before = processes.cpu_seconds(me)
    sum(range(100_000))
    assert processes.cpu_seconds(me) > before > 0
    assert processes.tree(me)[0] == me
    assert processes.tree_seconds(me) > 0
    assert processes.written_bytes(me) >= 0


def test_a_family_is_all_descendants() -> None:
    parents = {2: 1, 3: 1, 4: 2, 5: 4, 9: 8}
    assert processes.family(parents, 1) == [1, 2, 3, 4, 5]
    assert processes.family(parents, 8) == [8, 9]


@pytest.mark.parametrize("name", ["Content-Length", "content-length"])
def test_an_answer_is_complete_with_its_last_byte(name: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\nServer: x\r\n{name}: 4\r\n\r\nbody".encode()
    head = answer.index(b"\r\n\r\n")
    for length in range(1, head + 4):
        assert missing_bytes(answer[:length]) == -1
    for length in range(head + 4, len(answer) + 1):
        assert missing_bytes(answer[:length]) == len(answer) - length
    with pytest.raises(ValueError, match="Content-Length"):
        missing_bytes(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        missing_bytes(b"")


def test_all_servers_answers_are_read_alike() -> None:
    output = {"name": "y", "datatype": "FP32", "shape": [1, 2]}
    plain = json.dumps({"outputs": [{**output, "data": [0.5, 2.0]}]}).encode()
    head = json.dumps({"outputs": [output]}).encode()
    binary = head + b"\0\0\0\x3f\0\0\0\x40"
    answers = [
        from_oip("HTTP/1.1 200 OK", plain),
        from_oip(f"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: {len(head)}\r\n", binary),
        from_rows("", b'{"data": [[0.5, 2.0]]}'),
        from_rows("", b"[[0.5, 2.0]]"),
    ]
    assert [answer.tolist() for answer in answers] == [[[0.5, 2.0]]] * 4


def test_only_the_devices_packages_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "skerry.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("skerry_runtime/a.py", "x = 1\n" * 1000)
        archive.writestr("skerry_contract/b.py", "y = 2\n")
        archive.writestr("skerry_packager/c.py", "z = 3\n" * 1000)
    with zipfile.ZipFile(path) as archive:
        zipped, plain, files = wheel.sizes(archive.infolist())
    assert (plain, files) == (6006, 2)
    assert 0 < zipped < 300


def _cuts(what: str, system: str, count: int, bad: int = 0) -> dict[str, Any]:
    return {"means": f"power cut, {system}, {what}", "cases": count, "bad": bad}


def test_power_cuts_count_only_where_both_file_systems_saw_enough() -> None:
    assert title_of("cut/ext4/models") == _cuts("models", "ext4", 0)["means"]
    others = [{"means": "killed at a system call", "cases": 2000, "bad": 3}]
    few = [*others, _cuts("models", "ext4", 200), _cuts("models", "xfs", 199)]
    assert cuts.figure(few, "models").value is None
    assert cuts.figure([*few[:2], _cuts("models", "xfs", 200)], "models").value == 0
    assert cuts.figure([*few[:2], _cuts("models", "xfs", 200, bad=1)], "models").value == 1
    assert cuts.figure([*few[:2], _cuts("models", "xfs", 200)], "outbox").value is None
    assert cuts.figure([_cuts("outbox", "xfs", 3, bad=2)], "outbox").value == 2


def test_without_a_report_of_power_cuts_nothing_is_claimed(tmp_path: Path) -> None:
    found = cuts.measure(SimpleNamespace(torture=tmp_path / "none.json"))  # type: ignore[arg-type]
    assert {figure.value for figure in found.values()} == {None}
    assert "make torture" in found["cuts-install"].detail


def test_table_plot_and_summary_show_what_passes_and_what_fails() -> None:
    figures = {
        "mlp-raw": Figure(value=12.5, low=12.0, high=13.5, detail="80 against 6.4 us"),
        "conv-raw": Figure(value=3.1),
        "rate-bentoml": Figure(value=40.0),
        "agent-rss": Figure(value=23.4),
        "cuts-outbox": Figure(value=None, detail="no report"),
    }
    text = report.table(figures)
    assert "12.5" in text
    assert "12 to 13.5" in text
    assert "80 against 6.4 us" in text
    assert report.summary(figures).startswith("2 of 4 gates pass; missed: conv-raw; 1 not run")
    assert len(report.markdown(figures).splitlines()) == len(figures) + 2
    assert report.plot_svg(figures).count('height="14"') == 3
    by_key = {gate.key: gate for gate in GATES}
    assert report.share_of_bar(by_key["rate-bentoml"], figures["rate-bentoml"]) == 0.5
    assert report.share_of_bar(by_key["conv-raw"], figures["conv-raw"]) == pytest.approx(3.1 / 2.6)
    assert report.share_of_bar(by_key["agent-rss"], figures["agent-rss"]) is None
