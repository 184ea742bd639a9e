"""The low-memory form of a variant: the same graph in onnxruntime's own format, which a device maps.

The weights stay pages of a file that the kernel may drop, instead of one or two copies of its own; they are
used where they lie, so they are not packed into the layout that a processor likes, and products take longer
(docs/adr/0014). It is converted here and not on the device, so that its bytes are the signed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import onnx

from skerry_contract.errors import ModelError
from skerry_contract.limits import MIB
from skerry_runtime.worker.engines.flatbuffer import Budget, root
from skerry_runtime.worker.engines.onnx import FAILURES

from ..engine import ENGINE, brief
from ..fit import misfits, ram_bytes
from ..memory import mapped_bounds, weight_bytes
from ..results import FP32, Objective, Target, VariantResult
from ..scratch import scratch
from .candidate import Candidate, Outcome, Skipped
from .int4 import INT4_WEIGHTS
from .ort_file import canonical

SUFFIX: Final = "-mapped"
MIN_WEIGHTS: Final = 1 * MIB
"""Below that there is nothing to gain."""


def parents(
    results: Sequence[VariantResult], targets: Sequence[Target], objective: Objective
) -> list[VariantResult]:
    """Whose low-memory forms are worth trying; none unless RAM is the objective, or else too short.

    fp32 itself, and the leanest of those that calculate in integers: all that is merely stored smaller is
    fp32 again in memory, and products with int4 weights are slow and large where those are not packed. Pure.
    """
    passing = [result for result in results if result.passed]
    short = any(
        passing and all(any(one.what == "memory" for one in misfits(each, target)) for each in passing)
        for target in targets
    )
    if objective is not Objective.RAM and not short:
        return []
    integers = [
        result for result in passing if result.recipe.get("quantized_compute") and result.name != INT4_WEIGHTS
    ]
    return [result for result in passing if result.name == FP32] + sorted(integers, key=ram_bytes)[:1]


def mapped(parent: VariantResult) -> Outcome:
    """Convert a judged ONNX variant."""
    name = parent.name + SUFFIX
    model = onnx.load_model_from_string(parent.model)
    weights = weight_bytes(model)
    recipe = {"kind": "ort-mapped", "of": parent.name, "onnxruntime": ENGINE.version, "source": parent.recipe}
    if weights < MIN_WEIGHTS:
        return Skipped(name=name, reason=f"only {weights} bytes of weights to map", recipe=recipe)
    try:
        data = converted(parent.model)
    except ModelError as error:
        return Skipped(name=name, reason=error.message, recipe=recipe)
    except FAILURES as error:
        return Skipped(name=name, reason=f"the engine does not convert it: {brief(error)}", recipe=recipe)
    return Candidate(
        name=name,
        data=data,
        recipe=recipe,
        note=f"{parent.name} with its weights mapped from the file; products take longer",
        quantized_compute=bool(parent.recipe.get("quantized_compute")),
        ram_bounds=mapped_bounds(model, parent.ram_predicted_bytes, parent.ram_upper_bytes),
    )


def versions_of(data: bytes) -> tuple[int, int]:
    """IR version and opset in a file of the ORT format."""
    model = root(data, Budget(1000)).table(1)
    if model is None:
        return 0, 0
    opsets = {entry.text(0): entry.scalar(1, "q") for entry in model.tables(1)}
    return model.scalar(0, "q"), opsets.get("", opsets.get("ai.onnx", 0))


def converted(model: bytes) -> bytes:
    """The ORT format, with all optimizations that hold on every processor. The same bytes on every run."""
    import onnxruntime as ort  # the engine is imported already, its telemetry off

    with scratch("mapped") as folder:
        path = folder / "model.ort"
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.save_model_format", "ORT")
        options.add_session_config_entry("session.disable_prepacking", "1")
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        return canonical(path.read_bytes())
