"""Small real models for the worker's tests, and generation folders as an agent would lay them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from skerry_contract.digests import Digest, digest_of, hex_of
from skerry_contract.manifest import BlobRef, Manifest, TensorSpec, Tolerance, Variant
from skerry_contract.monitoring import ClassPrediction, FloatFeature, MonitoringSpec, Source
from skerry_contract.strict_json import canonical
from skerry_contract.tensors import DTYPE_OF_DATATYPE, Tensor, write_tensors
from skerry_runtime.worker.engines import DTYPES, import_engine

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class ZooModel:
    """Bytes of a model with all that a manifest says about it."""

    data: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    golden: tuple[Arrays, ...]
    spec: MonitoringSpec
    name: str = "digits"
    version: str = "1.0.0"


@cache
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: float32 ``[rows, 1, 8, 8]`` in 0..1, and the labels."""
    data = load_digits()
    return (data.images[:, None] / 16.0).astype(np.float32), data.target


@cache
def digits() -> ZooModel:
    """A digit reader: softmax regression on the real digits."""
    images, labels = digit_images()
    fitted = LogisticRegression(max_iter=300).fit(images.reshape(len(images), -1), labels)
    weights = numpy_helper.from_array(fitted.coef_.T.astype(np.float32), "w")
    bias = numpy_helper.from_array(fitted.intercept_.astype(np.float32), "b")
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    return ZooModel(
        data=onnx_bytes(
            nodes,
            [("image", TensorProto.FLOAT, ["n", 1, 8, 8])],
            [("probabilities", TensorProto.FLOAT, ["n", 10])],
            [weights, bias],
        ),
        inputs=(TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8)),),
        outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 10)),),
        golden=tuple({"image": images[k : k + 1]} for k in range(5)),
        spec=MonitoringSpec(
            rows=len(images),
            features=(
                _image_feature("brightness", 0.1, 0.5),
                _image_feature("contrast", 0.2, 0.5),
                _image_feature("sharpness", 0.1, 3.0),
            ),
            prediction=ClassPrediction(
                output="probabilities", form="probabilities", classes=10, probabilities=(0.1,) * 10
            ),
        ),
    )


def counting_loop() -> ZooModel:
    """Adds 1 as often as its input says: a model that hangs when it is told to."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["more"], ["more_out"]),
            helper.make_node("Add", ["value", "one"], ["value_out"]),
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
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    nodes = [helper.make_node("Loop", ["times", "", "zero"], ["count"], body=body)]
    return _plain(
        "counter",
        nodes,
        ("times", TensorProto.INT64, "INT64", [1]),
        ("count", TensorProto.FLOAT, "FP32", [1]),
        np.array([3], np.int64),
        [numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )


def hungry() -> ZooModel:
    """Makes a tensor of as many zeros as its input says."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Reshape", ["sum", "one"], ["total"]),
    ]
    return _plain(
        "hungry",
        nodes,
        ("size", TensorProto.INT64, "INT64", [1]),
        ("total", TensorProto.FLOAT, "FP32", [1]),
        np.array([8], np.int64),
        [numpy_helper.from_array(np.ones(1, np.int64), "one")],
    )


def logarithm() -> ZooModel:
    """NaN for a negative number, -infinity for 0."""
    return _plain(
        "logarithm",
        [helper.make_node("Log", ["x"], ["y"])],
        ("x", TensorProto.FLOAT, "FP32", ["n", 2]),
        ("y", TensorProto.FLOAT, "FP32", ["n", 2]),
        np.array([[1.0, 2.0]], np.float32),
        [],
    )


def wide() -> ZooModel:
    """8 MB of weights: it takes some milliseconds to load."""
    weights = np.random.default_rng(0).normal(size=(1000, 2000)).astype(np.float32)
    return _plain(
        "wide",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        ("x", TensorProto.FLOAT, "FP32", ["n", 1000]),
        ("y", TensorProto.FLOAT, "FP32", ["n", 2000]),
        np.ones((1, 1000), np.float32),
        [numpy_helper.from_array(weights, "w")],
    )


def squash() -> ZooModel:
    """A sigmoid: finite for any number but NaN."""
    return _plain(
        "squash",
        [helper.make_node("Sigmoid", ["x"], ["y"])],
        ("x", TensorProto.FLOAT, "FP32", ["n", 2]),
        ("y", TensorProto.FLOAT, "FP32", ["n", 2]),
        np.array([[1.0, 2.0]], np.float32),
        [],
    )


def lay_out(
    folder: Path,
    model: ZooModel,
    *,
    budgets: Mapping[str, int] | None = None,
    engine: str = "onnx",
    golden_outputs: Sequence[Arrays] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a generation folder; the recorded answers are the engine's own unless others are given."""
    folder.mkdir(parents=True)

    def blob(data: bytes) -> BlobRef:
        digest = digest_of(data)
        (folder / hex_of(digest)).write_bytes(data)
        return BlobRef(digest=digest, size=len(data))

    if golden_outputs is None:
        session = import_engine("onnx").load(model.data)
        golden_outputs = [session.run(sample) for sample in model.golden]
    manifest = Manifest(
        name=model.name,
        version=model.version,
        release=1,
        inputs=model.inputs,
        outputs=model.outputs,
        variants=(
            Variant(
                id="fp32",
                engine=engine,
                model=blob(model.data),
                golden_outputs=blob(_stacked("outputs", model.outputs, golden_outputs)),
                tolerances={spec.name: Tolerance(atol=1e-4, rtol=1e-3) for spec in model.outputs},
            ),
        ),
        golden_inputs=blob(_stacked("inputs", model.inputs, model.golden)),
        monitoring=blob(model.spec.to_bytes()),
    )
    data = replace(manifest, **(changes or {})).to_bytes()
    (folder / "manifest.json").write_bytes(data)
    describe(folder, digest_of(data), budgets)
    return folder


def describe(folder: Path, bundle: Digest, budgets: Mapping[str, int] | None = None) -> None:
    """Write ``generation.json``."""
    text = canonical({"variant": "fp32", "bundle": bundle, "budgets": dict(budgets or {})})
    (folder / "generation.json").write_bytes(text)


def onnx_bytes(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    initializers: Sequence[onnx.TensorProto] = (),
    *,
    domains: Sequence[str] = ("",),
) -> bytes:
    """A serialized ONNX model of opset 17."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*info) for info in inputs],
        [helper.make_tensor_value_info(*info) for info in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid(domain, 1 if domain else 17) for domain in domains]
    data: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return data


def _plain(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    taken: tuple[str, int, str, Sequence[int | str]],
    given: tuple[str, int, str, Sequence[int | str]],
    golden: np.ndarray,
    initializers: Sequence[onnx.TensorProto],
) -> ZooModel:
    def spec(info: tuple[str, int, str, Sequence[int | str]]) -> TensorSpec:
        shape = tuple(size if isinstance(size, int) else -1 for size in info[3])
        return TensorSpec(name=info[0], datatype=info[2], shape=shape)

    return ZooModel(
        name=name,
        data=onnx_bytes(
            nodes, [(taken[0], taken[1], taken[3])], [(given[0], given[1], given[3])], initializers
        ),
        inputs=(spec(taken),),
        outputs=(spec(given),),
        golden=({taken[0]: golden},),
        spec=MonitoringSpec(rows=1, features=()),
    )


def _stacked(prefix: str, specs: Sequence[TensorSpec], samples: Sequence[Arrays]) -> bytes:
    tensors = {}
    for spec in specs:
        stack = np.stack([sample[spec.name] for sample in samples]).astype(DTYPES[spec.datatype])
        tensors[f"{prefix}/{spec.name}"] = Tensor(
            DTYPE_OF_DATATYPE[spec.datatype], stack.shape, stack.tobytes()
        )
    return write_tensors(tensors)


def _image_feature(statistic: str, low: float, high: float) -> FloatFeature:
    step = (high - low) / 8
    return FloatFeature(
        name=f"image.{statistic}",
        source=Source(kind="image", tensor="image", statistic=statistic, layout="NCHW"),
        edges=tuple(low + step * i for i in range(9)),
        probabilities=(0.0,) * 6 + (0.125,) * 8 + (0.0,) * 6,
        mean=(low + high) / 2,
        sd=step * 2,
        iqr=step * 3,
    )
