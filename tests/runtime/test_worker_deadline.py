"""When an inference hangs: what the deadline is made of, what counts against it, and what follows for others."""

from __future__ import annotations

import http.client
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.runtime.agent_world import Device, Hammer, UnixConnection, make_bundle
from tests.runtime.model_zoo import counting_loop
from tests.runtime.worker_harness import json_request
from tests.waiting import wait_until

from skerry_contract.manifest import Budgets
from skerry_contract.signing import EcdsaSigner
from skerry_runtime.worker.deadline import LEAST_S, TIMES, TIMES_BUDGET, Deadline, deadline_s

MOST_S = 30.0
FOREVER = 1 << 60


# --- the rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p95_us", "budget_us", "seconds"),
    [
        pytest.param(100.0, 0, LEAST_S, id="a quick model"),
        pytest.param(100_000.0, 0, TIMES * 0.1, id="a slow one"),
        pytest.param(100.0, 400_000, TIMES_BUDGET * 0.4, id="one that may be slow"),
        pytest.param(5_000_000.0, 0, MOST_S, id="one that takes seconds"),
    ],
)
def test_a_model_s_deadline_follows_from_its_own_latency(p95_us: float, budget_us: int, seconds: float) -> None:
    assert deadline_s(p95_us, budget_us, MOST_S) == pytest.approx(seconds)


@given(st.floats(0, 1e9), st.integers(0, 10**9))
def test_no_deadline_is_outside_its_bounds(p95_us: float, budget_us: int) -> None:
    assert LEAST_S <= deadline_s(p95_us, budget_us, MOST_S) <= MOST_S


def deadline(seconds: float = 2.0) -> Deadline:
    return Deadline(seconds, MOST_S, golden_elements=64, tick_s=0.2)


def ticks(deadline: Deadline, moments: list[float], began: float, elements: int = 64) -> list[bool]:
    return [deadline.passed(now, max(0.0, now - began), elements) for now in moments]


def moments(first: float, last: float, step: float = 0.2) -> list[float]:
    return [first + step * index for index in range(round((last - first) / step) + 1)]


def test_an_inference_may_take_its_time_and_no_longer() -> None:
    found = ticks(deadline(), moments(100.0, 102.4), began=100.1)
    assert not any(found[:-2])
    assert found[-1]


def test_nothing_hangs_while_nothing_runs() -> None:
    watched = deadline()
    assert not any(watched.passed(now, 0.0, 0) for now in moments(0.0, 100.0))


def test_a_larger_request_has_more_time_but_not_for_ever() -> None:
    assert deadline().allowed_s(64 * 5) == 10.0
    assert deadline().allowed_s(1) == 2.0
    assert deadline().allowed_s(1 << 40) == MOST_S


def test_time_in_which_the_process_stood_still_does_not_count() -> None:
    watched = deadline()
    stalled = [*moments(100.0, 101.0), *moments(110.0, 110.6)]
    assert not any(ticks(watched, stalled, began=100.1))
    assert watched.passed(112.0, 11.9, 64) is True


def test_a_stall_is_forgotten_by_the_next_inference() -> None:
    watched = deadline()
    ticks(watched, [100.0, 100.2, 110.0], began=100.1)
    assert any(ticks(watched, moments(110.2, 113.0), began=110.3))


# --- in the daemon -----------------------------------------------------------------------------------


def ask_for_ever(path: Path, outcome: list[str]) -> None:
    """A request whose inference does not return; what the client sees is kept."""
    connection = UnixConnection(path)
    try:
        body = json.dumps(json_request(times=np.array([FOREVER], np.int64)))
        connection.request("POST", "/v2/models/counter/infer", body)
        outcome.append(str(connection.getresponse().status))
    except (OSError, http.client.HTTPException) as error:
        outcome.append(type(error).__name__)
    finally:
        connection.close()


def count(path: Path) -> float:
    connection = UnixConnection(path)
    try:
        connection.request(
            "POST", "/v2/models/counter/infer", json.dumps(json_request(times=np.array([3], np.int64)))
        )
        answer = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    return float(answer["outputs"][0]["data"][0])


def test_a_hung_inference_costs_its_own_worker_and_nobody_else(
    loner: Device, tmp_path: Path, signer: EcdsaSigner
) -> None:
    loner.install(make_bundle(signer).write(tmp_path))
    quick = make_bundle(signer, model=counting_loop(), budgets=Budgets())
    loner.install(quick.write(tmp_path))
    counter = Path(loner.model("counter")["socket"])
    assert count(counter) == 3
    hanging, other = loner.model("counter")["active"]["pid"], loner.model()["active"]["pid"]
    outcome: list[str] = []
    asked = threading.Thread(target=ask_for_ever, args=(counter, outcome), daemon=True)
    with Hammer(loner.data / "run" / "skerry.sock") as hammer:
        asked.start()
        wait_until(lambda: outcome, "the end of who asked for too much")
        # In probation the model is rolled back for it, and there is nothing to return to.
        model = loner.wait_state("rolled_back", "1.0.0", name="counter")
        seen = sum(hammer.answers.values())
        wait_until(lambda: sum(hammer.answers.values()) > seen + 5, "answers of the other model")
    assert hammer.failures == []
    assert outcome != ["200"]
    assert "has not returned for 2 s" in model["error"]["message"]
    assert loner.model()["active"]["pid"] == other
    assert hanging not in loner.workers("serve")
