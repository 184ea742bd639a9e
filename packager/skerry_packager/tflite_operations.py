"""What a TFLite model executes: its operators and their load, from the shapes in the file.

Dimensions that the file leaves free count as 1, as the file itself has them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from skerry_runtime.worker.bench_ops import work
from skerry_runtime.worker.bench_ops.work import Work

from .operations import OTHER
from .tflite.model import NUMPY_OF_TYPE, numbers, operator_name, parse, type_name

_KINDS: Final[Mapping[str, str]] = {
    name: kind
    for kind, names in {
        "softmax": "SOFTMAX LOG_SOFTMAX",
        "normalize": "L2_NORMALIZATION LOCAL_RESPONSE_NORMALIZATION",
        "binary": "ADD SUB MUL DIV MAXIMUM MINIMUM PRELU SQUARED_DIFFERENCE SELECT SELECT_V2 EQUAL LESS "
        "GREATER LESS_EQUAL GREATER_EQUAL NOT_EQUAL LOGICAL_AND LOGICAL_OR",
        "unary": "RELU RELU6 RELU_N1_TO_1 LEAKY_RELU ABS NEG FLOOR CEIL ROUND SQRT RSQRT SQUARE HARD_SWISH "
        "CAST MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD ARG_MAX ARG_MIN",
        "transcendental": "LOGISTIC TANH EXP LOG ELU GELU SIN COS POW",
        "quantize": "QUANTIZE DEQUANTIZE",
        "copy": "TRANSPOSE CONCATENATION SLICE STRIDED_SLICE SPLIT SPLIT_V GATHER GATHER_ND PAD PADV2 "
        "MIRROR_PAD TILE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR PACK UNPACK SPACE_TO_DEPTH DEPTH_TO_SPACE "
        "BROADCAST_TO SPACE_TO_BATCH_ND BATCH_TO_SPACE_ND ASSIGN_VARIABLE READ_VARIABLE REVERSE_V2",
    }.items()
    for name in names.split()
}  # fmt: skip
_VIEWS: Final = frozenset(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "SHAPE", "VAR_HANDLE", "CALL_ONCE"))
_POOLS: Final = frozenset(("MAX_POOL_2D", "AVERAGE_POOL_2D", "L2_POOL_2D"))


def from_tflite(data: bytes) -> tuple[Work, ...]:
    """The load of every operator of the main graph, in order.

    Constants that are only rebuilt (fp16 weights behind DEQUANTIZE) cost nothing at run time.

    Raises:
        ModelError: the file is damaged, or the TFLite engine is not installed.
    """
    model = parse(data)
    graph = model.subgraphs[0]
    constant = {
        number
        for number, tensor in enumerate(graph.tensors)
        if (content := model.buffers[tensor.buffer].data) is not None and len(content)
    }
    found: list[Work] = []
    for operator in graph.operators or ():
        inputs, outputs = numbers(operator.inputs), numbers(operator.outputs)
        name = operator_name(model.operatorCodes[operator.opcodeIndex])
        if name in ("DEQUANTIZE", "DENSIFY") and set(inputs) <= constant:
            constant.update(outputs)
            continue
        read = [graph.tensors[number] for number in inputs if number >= 0]
        made = [graph.tensors[number] for number in outputs if number >= 0]
        found += _work(name, operator, read, made)
    return tuple(found)


def _work(name: str, operator: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Iterator[Work]:
    shapes = [_shape(tensor) for tensor in inputs]
    made = [_shape(tensor) for tensor in outputs]
    datatype = _datatype(inputs)
    if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
        yield _convolution(name, shapes, made[0], datatype)
    elif name in ("FULLY_CONNECTED", "BATCH_MATMUL"):
        a, b, y = shapes[0], shapes[1], made[0]
        rows = max(1, math.prod(y) // max(1, y[-1] if y else 1))
        yield work.matmul((rows, math.prod(a) // rows), b, y, datatype)
    elif name in _POOLS:
        window = operator.builtinOptions.filterHeight * operator.builtinOptions.filterWidth
        yield work.pool(shapes[0], made[0], window, datatype)
    elif name in _VIEWS:
        yield Work("copy", "fp32", 0.0, 0.0)
    else:
        elements = max((math.prod(shape) for shape in (*shapes, *made)), default=0)
        moved = sum(_bytes(tensor) for tensor in (*inputs, *outputs))
        yield Work(_KINDS.get(name, OTHER), datatype, float(elements), float(moved))


def _convolution(name: str, shapes: Sequence[Sequence[int]], y: Sequence[int], datatype: str) -> Work:
    """TFLite has channels last, and weights ``[M, *kernel, C]``; depthwise ``[1, *kernel, C]``."""
    if name == "TRANSPOSE_CONV":
        # Each input element meets every weight of its channel: as a convolution from the output to it.
        _, weights, x = shapes[:3]
        return work.conv(_first(y), (weights[3], weights[0], *weights[1:3]), _first(x), datatype)
    x, weights = shapes[:2]
    if name == "DEPTHWISE_CONV_2D":
        return work.conv(_first(x), (weights[3], 1, *weights[1:3]), _first(y), datatype)
    return work.conv(_first(x), (weights[0], weights[3], *weights[1:3]), _first(y), datatype)


def _first(shape: Sequence[int]) -> tuple[int, ...]:
    """``[N, H, W, C]`` -> ``[N, C, H, W]``."""
    return (shape[0], shape[3], shape[1], shape[2])


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(max(1, size) for size in numbers(tensor.shape))


def _bytes(tensor: Any) -> int:
    dtype = NUMPY_OF_TYPE.get(type_name(tensor))
    return (4 if dtype is None else dtype.itemsize) * math.prod(_shape(tensor))


def _datatype(inputs: Sequence[Any]) -> str:
    kind = type_name(inputs[0]) if inputs else ""
    return {"FLOAT16": "fp16", "INT8": "int8", "UINT8": "int8"}.get(kind, "fp32")
