"""Digit readers that pass every self-test and misbehave when they are asked for two images at once.

They are real ONNX models: with ``n`` images they add ``0 * f(n)`` to the right answer, and ``f(2)``
traps, never ends, is no number, or takes more memory than there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.runtime.model_zoo import ZooModel, digits

ROWS = 2
"""So many images bring it out."""


def crashes() -> ZooModel:
    """SIGFPE on x86: the smallest int64 divided by -1 is no int64, and ONNX Runtime does not look."""
    return _with(
        helper.make_node("Mul", ["n", "two"], ["twice"]),
        helper.make_node("Sub", ["three", "twice"], ["divisor"]),
        helper.make_node("Div", ["lowest", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["f"], to=TensorProto.FLOAT),
        three=3,
        two=2,
        lowest=np.iinfo(np.int64).min,
    )


def hangs() -> ZooModel:
    """Counts to 2^60."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["more_out"]),
            helper.make_node("Add", ["value", "tenth"], ["value_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("more_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value_out", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.full(1, 0.1, np.float32), "tenth")],
    )
    return _with(
        helper.make_node("Sub", ["n", "one"], ["extra"]),
        helper.make_node("Mul", ["extra", "many"], ["times"]),
        helper.make_node("Cast", ["one"], ["begin"], to=TensorProto.FLOAT),
        helper.make_node("Loop", ["times", "", "begin"], ["f"], body=body),
        one=1,
        many=1 << 60,
    )


def not_a_number() -> ZooModel:
    """The logarithm of a negative number."""
    return _with(
        helper.make_node("Mul", ["n", "two"], ["twice"]),
        helper.make_node("Sub", ["three", "twice"], ["sign"]),
        helper.make_node("Cast", ["sign"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Log", ["real"], ["f"]),
        three=3,
        two=2,
    )


def eats(mebibytes: int) -> ZooModel:
    """So much memory for every image beyond the first, which is touched."""
    return _with(
        helper.make_node("Sub", ["n", "one"], ["extra"]),
        helper.make_node("Mul", ["extra", "much"], ["more"]),
        helper.make_node("Add", ["more", "one"], ["size"]),
        helper.make_node(
            "ConstantOfShape",
            ["size"],
            ["ones"],
            value=numpy_helper.from_array(np.ones(1, np.float32)),
        ),
        helper.make_node("ReduceSum", ["ones"], ["f"], keepdims=1),
        one=1,
        much=mebibytes << 18,
    )


def _with(*nodes: onnx.NodeProto, **constants: int) -> ZooModel:
    """The digit reader plus zero times ``f``, which the nodes make of ``n``, the number of images."""
    model = onnx.load_from_string(digits().data)
    names: Sequence[str] = [output.name for output in model.graph.output]
    for node in model.graph.node:
        node.output[:] = [f"{name}.plain" if name in names else name for name in node.output]
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array([value], np.int64), name) for name, value in constants.items()
    )
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nought"))
    model.graph.node.extend(
        [
            helper.make_node("Shape", ["image"], ["n"], start=0, end=1),
            *nodes,
            helper.make_node("Mul", ["f", "nought"], ["nothing"]),
            helper.make_node("Add", [f"{names[0]}.plain", "nothing"], [names[0]]),
        ]
    )
    onnx.checker.check_model(model)
    return replace(digits(), data=model.SerializeToString())
