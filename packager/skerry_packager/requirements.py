"""What a variant asks of an engine: operators with their types and versions; and what each engine lacks.

A table, not a trial: what another version of an engine does is not to be found out with this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from . import graphs

ONNX_LIBRARIES: Final = ("onnxruntime",)
TFLITE_LIBRARIES: Final = ("ai-edge-litert", "tflite-runtime")
_TFLITE_MARK: Final = b"TFL3"
_ORT_MARK: Final = b"ORTM"
MAPPED_SINCE: Final = "1.23"
"""Oldest onnxruntime that was seen to load what the newest converts to its own format: 12 real models, by
1.23.2, 1.28 and 1.32."""
_COMPUTING: Final = frozenset(("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "GRU", "RNN"))


@dataclass(frozen=True, slots=True, order=True)
class Requirement:
    """One operator in one form."""

    domain: str
    """Empty for ONNX's own."""
    operator: str
    datatypes: tuple[str, ...]
    """Of the inputs, as ``UINT8``; empty where it is not in the file."""
    version: int
    """Of the operator set."""
    bits: int = 0
    """Attribute of that name, of weight-only operators; 0 if it has none."""

    @property
    def name(self) -> str:
        return f"{self.domain}:{self.operator}" if self.domain else self.operator


@dataclass(frozen=True, slots=True)
class _Gap:
    """What versions of a library before `since` do not have."""

    library: str
    since: tuple[int, int]
    operator: str
    what: str
    datatypes: frozenset[tuple[str, str]] = frozenset()
    """Only if the first two inputs have these types; empty matches all."""
    bits: frozenset[int] = frozenset()


@lru_cache(maxsize=16)  # as many models as one run has variants
def requirements(model: bytes, engine: str = "onnx") -> tuple[Requirement, ...]:
    """Every operator that a model file asks for, each form once, sorted.

    Of a file of TFLite, or in onnxruntime's own format, none is known.

    Args:
        engine: ``onnx`` or ``tflite``, as in the manifest.
    """
    if engine != "onnx" or is_ort(model):
        return ()
    return tuple(sorted(set(_required(onnx.load_model_from_string(model)))))


def _required(model: ModelProto) -> Iterator[Requirement]:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    types = dict(_types(model))
    for node in graphs.all_nodes(model):
        domain = "" if node.domain in graphs.DEFAULT_DOMAINS else node.domain
        yield Requirement(
            domain=domain,
            operator=node.op_type,
            datatypes=tuple(types.get(name, "") for name in node.input),
            version=versions.get(node.domain, versions.get(domain, 0)),
            bits=next((a.i for a in node.attribute if a.name == "bits"), 0),
        )


def _types(model: ModelProto) -> Iterator[tuple[str, str]]:
    """Value -> type, as far as the file says it or it follows from one operator."""
    for graph in graphs.all_graphs(model.graph):
        for value in (*graph.value_info, *graph.input, *graph.output):
            if value.type.tensor_type.elem_type:
                yield value.name, TensorProto.DataType.Name(value.type.tensor_type.elem_type)
        for tensor in graph.initializer:
            yield tensor.name, TensorProto.DataType.Name(tensor.data_type)
        for node in graph.node:
            kind = _output_type(node)
            if kind:
                yield node.output[0], kind


def _output_type(node: NodeProto) -> str:
    if node.op_type == "DynamicQuantizeLinear":
        return "UINT8"
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            return str(TensorProto.DataType.Name(attribute.i))
        if node.op_type == "Constant" and attribute.name == "value":
            return str(TensorProto.DataType.Name(attribute.t.data_type))
    return ""


def is_tflite(model: bytes) -> bool:
    """Whether a model file is of TFLite, by its mark."""
    return model[4:8] == _TFLITE_MARK


def is_ort(model: bytes) -> bool:
    """Whether a model file is in onnxruntime's own format, by its mark."""
    return model[4:8] == _ORT_MARK


def min_engine(model: bytes) -> str:
    """Lowest version of the engine that loads a file, where that is known; else empty."""
    return MAPPED_SINCE if is_ort(model) else ""


def lacking(model: bytes, engines: Mapping[str, str]) -> list[str]:
    """Why no engine of a device loads a model; empty if one does, as far as is known.

    Args:
        engines: library -> version; empty if it is not known what the device has.
    """
    if not engines:
        return []
    tflite = is_tflite(model)
    fitting = {
        name: engines[name] for name in (TFLITE_LIBRARIES if tflite else ONNX_LIBRARIES) if name in engines
    }
    if not fitting:
        have = " and ".join(f"{name} {version}" for name, version in engines.items())
        return [f"it needs an engine for {'TFLite' if tflite else 'ONNX'}; there is {have}"]
    if tflite:
        return []
    if is_ort(model):
        return [
            f"a mapped model needs {library} {MAPPED_SINCE}; there is {version}"
            for library, version in fitting.items()
            if _number(version) < _number(MAPPED_SINCE)
        ]
    needed = requirements(model)
    return [
        f"{gap.what} is not in {library} {'.'.join(version.split('.')[:2])}"
        for library, version in fitting.items()
        for gap in _GAPS
        if gap.library == library
        and _number(version) < gap.since
        and any(_hits(gap, each) for each in needed)
    ]


def computes_in_fp16(model: bytes) -> bool:
    """Whether convolutions or products of an ONNX model have 16-bit weights as they are, not only stored."""
    if is_tflite(model):
        return False
    return any(
        each.operator in _COMPUTING and not each.domain and "FLOAT16" in each.datatypes[1:2]
        for each in requirements(model)
    )


def _hits(gap: _Gap, each: Requirement) -> bool:
    return (
        each.name == gap.operator
        and (not gap.datatypes or each.datatypes[:2] in gap.datatypes)
        and (not gap.bits or each.bits in gap.bits)
    )


def _number(version: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


_GAPS: Final = (
    _Gap(
        "onnxruntime", (1, 24), "ConvInteger", "ConvInteger with int8",
        frozenset({("UINT8", "INT8"), ("INT8", "INT8"), ("INT8", "UINT8")}),
    ),
    _Gap(
        "onnxruntime", (1, 24), "MatMulInteger", "MatMulInteger of int8 by uint8",
        frozenset({("INT8", "UINT8")}),
    ),
    _Gap("onnxruntime", (1, 24), "com.microsoft:MatMulNBits", "MatMulNBits of 2 bits", bits=frozenset({2})),
    _Gap("onnxruntime", (1, 21), "ai.onnx.ml:TreeEnsemble", "TreeEnsemble"),
)  # fmt: skip
"""Found by loading one model per operator and type with 1.23.2, 1.24, 1.25, 1.26, 1.28 and 1.32 on x86_64."""
