"""The self-test in a disposable process: good models are Ready, bad ones Failed, mad ones die alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.runtime.model_zoo import counting_loop, digits, hungry, lay_out, wide
from tests.runtime.worker_harness import Worker, ZygoteHarness
from tests.waiting import wait_until

from skerry_contract.limits import MIB
from skerry_runtime.ipc import Failed, Ready


@pytest.fixture(scope="module")
def zygote() -> Iterator[ZygoteHarness]:
    with ZygoteHarness() as running:
        yield running


def failed(zygote: ZygoteHarness, worker: Worker, code: str) -> str:
    """The hint of a failure; the process has ended by itself."""
    error = worker.expect(Failed).error
    assert error.code == code, error
    assert os.waitstatus_to_exitcode(zygote.wait_exited(worker)) == 1
    return error.hint


def test_a_good_model_is_ready(zygote: ZygoteHarness, tmp_path: Path) -> None:
    budgets = {"ram_bytes": 512 * MIB, "latency_p95_us": 5_000_000, "load_ms": 60_000}
    worker = zygote.spawn("preflight", lay_out(tmp_path / "g", digits(), budgets=budgets))
    ready = worker.expect(Ready)
    assert 0 < ready.latency_p50_us <= ready.latency_p95_us
    assert ready.load_ms > 0
    assert 20 * MIB < ready.rss_bytes < 512 * MIB
    assert ready.engine_version.count(".") >= 2
    assert os.waitstatus_to_exitcode(zygote.wait_exited(worker)) == 0


@pytest.mark.parametrize(
    ("budgets", "code"),
    [
        ({"ram_bytes": 10 * MIB}, "budget.memory"),
        ({"latency_p95_us": 1}, "budget.latency"),
    ],
)
def test_over_a_budget(zygote: ZygoteHarness, tmp_path: Path, budgets: dict[str, int], code: str) -> None:
    worker = zygote.spawn("preflight", lay_out(tmp_path / "g", digits(), budgets=budgets))
    assert "budget" in failed(zygote, worker, code)


def test_loading_takes_too_long(zygote: ZygoteHarness, tmp_path: Path) -> None:
    worker = zygote.spawn("preflight", lay_out(tmp_path / "g", wide(), budgets={"load_ms": 1}))
    assert "budget" in failed(zygote, worker, "budget.latency")


def test_another_answer_than_the_recorded_one(zygote: ZygoteHarness, tmp_path: Path) -> None:
    uniform = [{"probabilities": np.full((1, 10), 0.1, np.float32)}] * 5
    worker = zygote.spawn("preflight", lay_out(tmp_path / "g", digits(), golden_outputs=uniform))
    assert "another variant" in failed(zygote, worker, "selftest")


def test_the_model_of_another_engine(zygote: ZygoteHarness, tmp_path: Path) -> None:
    worker = zygote.spawn("preflight", lay_out(tmp_path / "g", digits(), engine="tflite"))
    failed(zygote, worker, "engine")


def test_what_is_no_model(zygote: ZygoteHarness, tmp_path: Path) -> None:
    answers = [{"probabilities": np.zeros((1, 10), np.float32)}] * 5
    folder = lay_out(tmp_path / "g", replace(digits(), data=b"no model"), golden_outputs=answers)
    failed(zygote, zygote.spawn("preflight", folder), "engine")


def test_a_damaged_store(zygote: ZygoteHarness, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "g", digits())
    (folder / "manifest.json").unlink()
    assert "Install" in failed(zygote, zygote.spawn("preflight", folder), "slot")


@pytest.mark.attack
def test_m6_a_model_that_asks_for_256_gib(zygote: ZygoteHarness, tmp_path: Path) -> None:
    greedy = replace(hungry(), golden=({"size": np.array([1 << 36], np.int64)},))
    folder = lay_out(tmp_path / "g", greedy, golden_outputs=[{"total": np.zeros(1, np.float32)}])
    failed(zygote, zygote.spawn("preflight", folder, ram_limit_bytes=256 * MIB), "budget.memory")


@pytest.mark.attack
def test_m6_the_memory_limit_holds_below_what_the_machine_has(zygote: ZygoteHarness, tmp_path: Path) -> None:
    """400 MiB: there on this machine, and over the limit."""
    greedy = replace(hungry(), golden=({"size": np.array([100 * MIB], np.int64)},))
    folder = lay_out(tmp_path / "g", greedy, golden_outputs=[{"total": np.zeros(1, np.float32)}])
    worker = zygote.spawn("preflight", folder, ram_limit_bytes=128 * MIB)
    failed(zygote, worker, "budget.memory")


@pytest.mark.attack
def test_m7_a_model_that_hangs_is_killed_from_outside_and_reported(
    zygote: ZygoteHarness, tmp_path: Path
) -> None:
    endless = replace(counting_loop(), golden=({"times": np.array([1 << 60], np.int64)},))
    folder = lay_out(tmp_path / "g", endless, golden_outputs=[{"count": np.zeros(1, np.float32)}])
    worker = zygote.spawn("preflight", folder)
    # It is in the loop once it burns its processor.
    wait_until(lambda: _cpu_ticks(worker.pid) > 30, "the loop")
    os.kill(worker.pid, signal.SIGKILL)
    worker.expect_end()
    assert os.WTERMSIG(zygote.wait_exited(worker)) == signal.SIGKILL
    assert zygote.process.poll() is None


def _cpu_ticks(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])
