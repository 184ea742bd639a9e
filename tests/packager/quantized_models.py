"""A model with one layer that 8 bits cannot serve, and a job to search on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper
from tests.packager.onnx_models import Value, build

from skerry_contract.errors import ModelError
from skerry_packager.datasets import Dataset
from skerry_packager.engine import Feed, Session
from skerry_packager.evaluate import Reference, Unsound, compare
from skerry_packager.metrics import choose_heads
from skerry_packager.results import Fidelity, Objective, Target, Verdict
from skerry_packager.variants.candidate import Job

WIDTH = 192
_ROWS = np.random.default_rng(5).normal(0, 1, (48, 64, WIDTH)).astype(np.float32)
FEEDS = [{"x": row[None]} for row in _ROWS]


@cache
def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    weights = {
        f"w{number}": rng.normal(0, WIDTH**-0.5, (WIDTH, WIDTH)).astype(np.float32) for number in range(4)
    }
    # One channel is a thousand times as large as the others, and what reads it takes that back.
    peak = np.ones(WIDTH, np.float32)
    peak[3] = 1000
    weights["w1"] = weights["w1"] * peak
    weights["w2"] = weights["w2"] / peak[:, None]
    return weights


def fragile_model() -> onnx.ModelProto:
    """Four products with Relu between; the third, ``fragile``, reads one huge channel beside small ones."""
    names = ["first", "second", "fragile", "last"]
    nodes = []
    value = "x"
    for number, name in enumerate(names):
        nodes.append(helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"], name=name))
        value = f"m{number}"
        if number < 3:
            nodes.append(helper.make_node("Relu", [value], [f"r{number}"]))
            value = f"r{number}"
    return build(
        nodes,
        _weights(),
        ("N", 64, WIDTH),
        outputs=[Value(value, TensorProto.FLOAT, ["N", 64, WIDTH])],
    )


def job_for(
    model: onnx.ModelProto,
    max_drop: float = 0.01,
    feeds: Sequence[Feed] = FEEDS,
    seconds_left: Callable[[], float] = lambda: 60.0,
    objective: Objective = Objective.LATENCY,
) -> Job:
    """Trials on the second half of `feeds` (rows of a model with one input), calibration on the first."""
    half = len(feeds) // 2
    data = model.SerializeToString()
    session = Session(data)
    [name] = session.input_names
    rows = Dataset({name: np.concatenate([feed[name] for feed in feeds[half:]])}, None, {name: True})
    reference = Reference(session, rows, "search")
    samples = [session.run(feed) for feed in feeds[half : half + 4]]
    _, heads = choose_heads(samples, None, session.output_names, None)

    def trial(draft: bytes, most_rows: int) -> Fidelity:
        try:
            candidate = Session(draft)
        except ModelError as error:
            raise Unsound(Verdict.CRASH, str(error)) from error
        return compare(reference, candidate, heads, 0, most_rows)

    return Job(
        source=data,
        calibration=feeds[:half],
        targets=[Target(name="any")],
        max_drop=max_drop,
        objective=objective,
        trial=trial,
        seconds_left=seconds_left,
    )
