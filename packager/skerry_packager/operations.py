"""What a model really executes: the operators that the engine ran after its own fusions, and their load.

The source is onnxruntime's profile of one run: every node with the shapes that it had, those that depend on
the data too. A loop's body counts once for each iteration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from skerry_runtime.worker.bench_ops import work
from skerry_runtime.worker.bench_ops.work import Work

OTHER: Final = "other"
"""Kind of operators that no table knows."""

_SIZES: Final = {
    "float": 4, "float16": 2, "bfloat16": 2, "double": 8, "bool": 1,
    **{f"{sign}int{bits}": bits // 8 for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_CONTROL: Final = frozenset({"If", "Loop", "Scan"})
"""Their bodies' operators are listed themselves."""
_VIEWS: Final = frozenset(
    ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size", "Constant",
     "ConstantOfShape", "Range")
)  # fmt: skip
_KINDS: Final[Mapping[str, str]] = {
    name: kind
    for kind, names in {
        "softmax": "Softmax LogSoftmax",
        "normalize": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization "
        "SkipSimplifiedLayerNormalization RMSNormalization InstanceNormalization BatchNormalization "
        "GroupNormalization LpNormalization",
        "binary": "Add Sub Mul Div Max Min PRelu Where Equal Less Greater LessOrEqual GreaterOrEqual And Or "
        "Sum QLinearAdd QLinearMul BiasAdd",
        "unary": "Relu Clip LeakyRelu Abs Neg Floor Ceil Round Sqrt Reciprocal HardSigmoid HardSwish Cast "
        "Not Sign GlobalAveragePool GlobalMaxPool ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd "
        "ReduceSumSquare ReduceL2 ArgMax ArgMin CumSum QLinearGlobalAveragePool QLinearReduceMean "
        "QLinearLeakyRelu QLinearSigmoid QLinearSoftmax",
        "transcendental": "Sigmoid Tanh Exp Log Erf Gelu FastGelu QuickGelu BiasGelu Softplus Elu Selu Mish "
        "Sin Cos Pow Swish",
        "quantize": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear",
        "copy": "Transpose Concat Slice Split Gather GatherElements GatherND Pad Expand Tile Resize Upsample "
        "ScatterND ScatterElements DepthToSpace SpaceToDepth OneHot Trilu QLinearConcat",
    }.items()
    for name in names.split()
}
_WEIGHT_INPUT: Final[Mapping[str, tuple[int, str]]] = {
    "Conv": (1, ""), "FusedConv": (1, ""), "NhwcFusedConv": (1, ""), "ConvTranspose": (1, ""),
    "QLinearConv": (3, "int8"), "ConvInteger": (1, "int8"),
    "MatMul": (1, ""), "Gemm": (1, ""), "FusedMatMul": (1, ""), "FusedGemm": (1, ""),
    "QLinearMatMul": (3, "int8"), "QGemm": (3, "int8"), "MatMulInteger": (1, "int8"),
    "MatMulIntegerToFloat": (1, "int8"), "DynamicQuantizeMatMul": (1, "int8"),
}  # fmt: skip
"""Operator -> (which input holds the weights, datatype if it is not that of the input)."""

Shapes = Sequence[tuple[str, Sequence[int]]]
"""(type, shape) of each tensor of a node."""


def from_profile(events: Sequence[Mapping[str, Any]]) -> tuple[Work, ...]:
    """The load of every operator that ran, in order. `events` is a profile of onnxruntime, parsed."""
    found: list[Work] = []
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            args = event["args"]
            name = str(args["op_name"])
            if name not in _CONTROL:
                found += _work(name, _shapes(args["input_type_shape"]), _shapes(args["output_type_shape"]))
    return tuple(found)


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> Shapes:
    return [(kind, shape) for entry in entries for kind, shape in entry.items()]


def _work(name: str, inputs: Shapes, outputs: Shapes) -> Iterator[Work]:
    if name in _WEIGHT_INPUT and inputs and outputs:
        yield from _weighted(name, inputs, outputs)
        return
    if name in ("LSTM", "GRU", "DynamicQuantizeLSTM"):
        kind = "gru" if name == "GRU" else "lstm"
        weights = inputs[1][1]
        # Shapes: x [steps, batch, inputs], w [directions, gates * hidden, inputs], r [.., .., hidden].
        if name == "DynamicQuantizeLSTM":
            weights = [weights[0], weights[2], weights[1]]
        hidden = weights[1] // (3 if kind == "gru" else 4)
        yield work.recurrent(kind, inputs[0][1], weights, hidden, _datatype(inputs))
        return
    if name in _VIEWS:
        yield Work("copy", "fp32", 0.0, 0.0)
        return
    if name.removeprefix("QLinear") in ("MaxPool", "AveragePool", "LpPool") and inputs and outputs:
        x, y = inputs[0][1], outputs[0][1]
        # The window is not in the profile: at least what is between two outputs, and mostly 3 x 3.
        window = max(9, round(math.prod(x) / max(1, math.prod(y))))
        yield work.pool(x, y, window, _datatype(inputs))
        return
    elements = max((math.prod(shape) for _, shape in (*inputs, *outputs)), default=0)
    moved = sum(_SIZES.get(kind, 4) * math.prod(shape) for kind, shape in (*inputs, *outputs))
    if name in ("Slice", "Gather", "GatherElements", "GatherND", "Split"):
        moved = 2 * sum(_SIZES.get(kind, 4) * math.prod(shape) for kind, shape in outputs)
        elements = sum(math.prod(shape) for _, shape in outputs)
    yield Work(_KINDS.get(name, OTHER), _datatype(inputs), float(elements), float(moved))


def _weighted(name: str, inputs: Shapes, outputs: Shapes) -> Iterator[Work]:
    index, datatype = _WEIGHT_INPUT[name]
    x, w, y = inputs[0][1], inputs[index][1], outputs[0][1]
    datatype = datatype or _datatype(inputs)
    if name == "ConvTranspose":
        # Each input element meets every weight of its channel: as a convolution from y to x.
        yield work.conv(y, w, x, datatype)
    elif "Conv" in name:
        yield work.conv(x, w, y, datatype)
    else:
        if name == "DynamicQuantizeMatMul":
            yield work.streaming("quantize", "fp32", x, x)
        rows = math.prod(y) // max(1, y[-1]) if y else 1
        inner = w[0] if len(w) == 1 else math.prod(w[-2:]) // max(1, y[-1] if y else 1)
        yield work.matmul((rows, inner), w, y, datatype)


def _datatype(inputs: Shapes) -> str:
    kind = inputs[0][0] if inputs else ""
    return {"float16": "fp16", "int8": "int8", "uint8": "int8"}.get(kind, "fp32")
