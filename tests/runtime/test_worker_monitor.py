"""What the monitor concludes from what it was told; the time is given to it."""

from __future__ import annotations

from skerry_runtime.worker.monitor import RECENT_S, Monitor, Totals


def test_counts_whose_fault_it_was() -> None:
    monitor = Monitor()
    assert monitor.totals() == Totals()
    monitor.answered(1.0, 100.0)
    monitor.failed(fault_of_model=True)
    monitor.failed(fault_of_model=False)
    monitor.nonfinite_input()
    assert monitor.totals() == Totals(requests=3, failures=1, nonfinite_inputs=1)


def test_a_latency_is_recent_for_some_seconds() -> None:
    monitor = Monitor()
    assert monitor.latency_p95_us(0.0) == 0.0
    for microseconds in range(1, 101):
        monitor.answered(0.0, float(microseconds))
    assert 95 <= monitor.latency_p95_us(1.0) <= 96
    monitor.answered(RECENT_S, 7.0)
    assert monitor.latency_p95_us(RECENT_S + 1) == 7.0
    assert monitor.latency_p95_us(3 * RECENT_S) == 0.0
