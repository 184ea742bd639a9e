"""The same model in fewer bytes: what no engine reads goes, and what stays is written as short as it can be.

The last step of every variant, so that reports still speak the engineer's names: comments and names of nodes
go, inner values get short names (inputs and outputs keep theirs), equal constants become one, small whole
numbers and lists of attributes are packed. Not one number of the model changes. The model's own metadata
stays: applications read class names and vocabularies there.
"""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto, numpy_helper

from . import graphs
from .packed import pack_lists
from .variants.trees import drop_unread_attributes

_FIRST: Final = string.ascii_letters + "_"
_LATER: Final = _FIRST + string.digits
_WHOLE: Final[Mapping[int, str]] = {TensorProto.INT64: "int64_data", TensorProto.INT32: "int32_data"}
"""Types whose small numbers are shorter one by one than as raw bytes."""
_MOST_WHOLE: Final = 1 << 16
"""Numbers of a tensor of which the shorter form is looked for."""
_WIDEST: Final = 10
"""Bytes of a negative number."""


def compact(data: bytes) -> bytes:
    """The shortest form of an ONNX file; the same bytes every time, and those of a compact file again."""
    model = onnx.load_model_from_string(data)
    _drop_comments(model)
    drop_unread_attributes(model)
    for graph in graphs.all_graphs(model.graph):
        _merge_equal(graph)
    for tensor in graphs.all_tensors(model):
        _shorten(tensor)
    _rename(model)
    small = pack_lists(model.SerializeToString(deterministic=True))
    return min(small, data, key=len)


def _drop_comments(model: ModelProto) -> None:
    for field in ("doc_string", "producer_name", "producer_version"):
        model.ClearField(field)
    standard = all(node.domain in graphs.DEFAULT_DOMAINS for node in graphs.all_nodes(model))
    for graph in graphs.all_graphs(model.graph):
        graph.name = "g"
        graph.ClearField("doc_string")
        del graph.metadata_props[:]
        del graph.quantization_annotation[:]
        if standard:
            del graph.value_info[:]  # every engine infers them itself
        for value in (*graph.input, *graph.output, *graph.value_info):
            value.ClearField("doc_string")
            del value.metadata_props[:]
    for node in graphs.all_nodes(model):
        node.ClearField("name")
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
            if attribute.type == AttributeProto.TENSOR:
                attribute.t.ClearField("name")
    for tensor in graphs.all_tensors(model):
        tensor.ClearField("doc_string")
        del tensor.metadata_props[:]


def _merge_equal(graph: GraphProto) -> None:
    """One of several initializers with the same type, shape and bytes; outputs stay what they are."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    kept: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    merged: dict[str, str] = {}
    for tensor in graph.initializer:
        if tensor.name in fixed or tensor.data_type == TensorProto.STRING:
            continue
        array = numpy_helper.to_array(tensor)
        first = kept.setdefault((tensor.data_type, array.shape, array.tobytes()), tensor.name)
        if first != tensor.name:
            merged[tensor.name] = first
    if not merged:
        return
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name in merged:
            del graph.initializer[index]
    for inner in graphs.all_graphs(graph):
        for node in inner.node:
            for place, name in enumerate(node.input):
                if name in merged:
                    node.input[place] = merged[name]
        for value in inner.output:
            value.name = merged.get(value.name, value.name)


def _shorten(tensor: TensorProto) -> None:
    """Raw bytes for all types but small whole numbers, which are shorter one by one."""
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return
    array = numpy_helper.to_array(tensor)
    plain = numpy_helper.from_array(array, tensor.name)
    if plain.data_type != tensor.data_type:  # types that numpy does not know
        return
    field = _WHOLE.get(tensor.data_type)
    if field and 0 < array.size <= _MOST_WHOLE:
        sizes = (_varint_bytes(number) for number in array.ravel().tolist())
        if sum(sizes) < array.nbytes:
            plain.ClearField("raw_data")
            getattr(plain, field).extend(array.ravel().tolist())
    if plain.ByteSize() < tensor.ByteSize():
        tensor.CopyFrom(plain)


def _varint_bytes(number: int) -> int:
    return _WIDEST if number < 0 else max(1, -(-number.bit_length() // 7))


def _rename(model: ModelProto) -> None:
    """The shortest names for what is named most often; one name stays one name wherever it appears."""
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)} | {""}
    counted = Counter(name for name in _names(model.graph) if name not in fixed)
    fresh = (name for name in _short_names() if name not in fixed)
    short = dict(zip((name for name, _ in counted.most_common()), fresh, strict=False))
    for graph in graphs.all_graphs(model.graph):
        for node in graph.node:
            for values in (node.input, node.output):
                for place, name in enumerate(values):
                    values[place] = short.get(name, name)
        for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            named.name = short.get(named.name, named.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = short.get(sparse.values.name, sparse.values.name)


def _names(root: GraphProto) -> Iterator[str]:
    """Every use of a name of a value, in order."""
    for graph in graphs.all_graphs(root):
        for node in graph.node:
            yield from (*node.input, *node.output)
        for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
            yield named.name
        for sparse in graph.sparse_initializer:
            yield sparse.values.name


def _short_names() -> Iterator[str]:
    for length in itertools.count():
        for first in _FIRST:
            for rest in itertools.product(_LATER, repeat=length):
                yield first + "".join(rest)
