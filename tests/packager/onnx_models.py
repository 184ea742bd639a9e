"""Real models for the packager's tests: scikit-learn's digits, read by an MLP in several ONNX forms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

Array = NDArray[Any]
Value = helper.make_tensor_value_info


@cache
def digits() -> tuple[Array, Array]:
    """Images ``[1797, 64]`` in 0..1 and labels, shuffled."""
    data = load_digits()
    order = np.random.default_rng(3).permutation(len(data.target))
    return (data.data[order] / 16).astype(np.float32), data.target[order].astype(np.int64)


@cache
def layers() -> tuple[Array, Array, Array, Array]:
    """Weights and biases of an MLP 64-64-10, trained on the first 700 digits."""
    images, labels = digits()
    reader = MLPClassifier((64,), solver="lbfgs", max_iter=300, random_state=0).fit(
        images[:700], labels[:700]
    )
    (w0, w1), (b0, b1) = reader.coefs_, reader.intercepts_
    return tuple(array.astype(np.float32) for array in (w0, b0, w1, b1))


def splits(shape: tuple[int, ...] = (64,), name: str = "x") -> tuple[dict[str, Array], dict[str, Array]]:
    """Calibration and labelled evaluation data that the model was not trained on."""
    images, labels = digits()
    images = images.reshape(-1, *shape)
    return {name: images[700:900]}, {name: images[900:1500], "y": labels[900:1500]}


def build(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, Array],
    shape: Sequence[int | str | None] = ("N", 64),
    *,
    opset: int = 13,
    outputs: Sequence[onnx.ValueInfoProto] = (),
) -> onnx.ModelProto:
    """A checked model with the input ``x`` and, unless told otherwise, the output ``p`` of shape [N, 10]."""
    graph = helper.make_graph(
        list(nodes),
        "digits",
        [Value("x", TensorProto.FLOAT, list(shape))],
        list(outputs) or [Value("p", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def gemm_model(opset: int = 13) -> onnx.ModelProto:
    """Gemm, Relu, Gemm, Softmax."""
    w0, b0, w1, b1 = layers()
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["l"], name="second"),
        helper.make_node("Softmax", ["l"], ["p"], axis=1),
    ]
    return build(nodes, {"w0": w0, "b0": b0, "w1": w1, "b1": b1}, opset=opset)


def zipmap_model() -> onnx.ModelProto:
    """The same, ending in a list of dictionaries, as skl2onnx exports classifiers."""
    model = gemm_model()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    model.graph.node[3].output[0] = "inner"
    model.graph.node.append(
        helper.make_node("ZipMap", ["inner"], ["p"], domain="ai.onnx.ml", classlabels_int64s=list(range(10)))
    )
    kind = onnx.TypeProto()
    kind.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    kind.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.output[0].type.CopyFrom(kind)
    return model


def conv_model() -> onnx.ModelProto:
    """The same function as a convolution 8 x 8 with BatchNormalization, then MatMul and Add."""
    w0, b0, w1, b1 = layers()
    scale = np.linspace(0.5, 2, 64).astype(np.float32)
    variance = np.linspace(0.2, 3, 64).astype(np.float32)
    mean = np.linspace(-1, 1, 64).astype(np.float32)
    undo = scale / np.sqrt(variance + np.float32(1e-5))  # the normalization undoes what the kernel carries
    kernel = (w0.T / undo[:, None]).reshape(64, 1, 8, 8).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "bb", "m", "v"], ["n"], epsilon=1e-5),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w1"], ["mm"], name="matmul"),
        helper.make_node("Add", ["mm", "b1"], ["l"]),
        helper.make_node("Softmax", ["l"], ["p"], axis=1),
    ]
    weights = {"k": kernel, "s": scale, "bb": b0 + mean * undo, "m": mean, "v": variance, "w1": w1, "b1": b1}
    return build(nodes, weights, ("N", 1, 8, 8))


def if_model() -> onnx.ModelProto:
    """All weights inside the branches of an If, as Constant nodes, as exporters write them."""
    w0, b0, w1, b1 = layers()

    def branch(name: str) -> onnx.GraphProto:
        arrays = {"w0": w0, "b0": b0, "w1": w1, "b1": b1}
        constants = [
            helper.make_node("Constant", [], [f"{name}_{key}"], value=numpy_helper.from_array(array))
            for key, array in arrays.items()
        ]
        nodes = [
            helper.make_node("MatMul", ["x", f"{name}_w0"], [f"{name}_a"], name=f"{name}_first"),
            helper.make_node("Add", [f"{name}_a", f"{name}_b0"], [f"{name}_h"]),
            helper.make_node("Relu", [f"{name}_h"], [f"{name}_r"]),
            helper.make_node("MatMul", [f"{name}_r", f"{name}_w1"], [f"{name}_m"], name=f"{name}_second"),
            helper.make_node("Add", [f"{name}_m", f"{name}_b1"], [f"{name}_l"]),
        ]
        return helper.make_graph(
            [*constants, *nodes], name, [], [Value(f"{name}_l", TensorProto.FLOAT, ["N", 10])]
        )

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "dark"], ["bright"]),
        helper.make_node(
            "If", ["bright"], ["l"], name="If_0", then_branch=branch("t"), else_branch=branch("e")
        ),
        helper.make_node("Softmax", ["l"], ["p"], axis=1),
    ]
    return build(nodes, {"dark": np.array(20, np.float32)})
