"""Storage variants: small in the file, fp32 in memory, so accuracy and speed stay as they were.

Weights are stored as fp16, int8 or int4 (see `encodings`) and rebuilt by operators that onnxruntime folds
into plain weights when it loads the model. (``DequantizeLinear`` would not be folded, and costs up to 2.1
times the latency.) It reaches into the bodies of If, Loop and Scan, where quantizers do nothing. Tree
ensembles keep their numbers in attributes; those are rewritten as they are (see `trees`).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from .. import graphs
from .candidate import Candidate, Outcome, Skipped
from .encodings import FLOAT_TYPES, Encode, Names, as_fp16_or_fp32, as_int4_or_int8, as_int8_or_fp16
from .trees import OLD_ENSEMBLES, as_tree_ensemble_5

FP16_STORE: Final = "fp16-store"
INT8_STORE: Final = "int8-store"
INT4_STORE: Final = "int4-store"
TREE_STORE: Final = "tree-store"
MIN_ELEMENTS: Final = 256
"""Smaller tensors cost more in nodes than they save."""
MIN_SAVED_BYTES: Final = 128
OPSET_CAST: Final = 9
"""Lowest opset whose Cast and Mul (broadcasting) do what is needed here."""


@dataclass(slots=True)
class StorageCount:
    """What a storage pass did."""

    tensors: int = 0
    in_subgraphs: int = 0
    saved_bytes: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    """``fp16``, ``int8``, ``int4`` -> how many weights."""
    left: Counter[str] = field(default_factory=Counter)
    """Why large weights stayed as they were -> how many."""


def fp16_store(model: ModelProto) -> Outcome:
    """fp32 weights as fp16, half the size."""
    return store(model, FP16_STORE, as_fp16_or_fp32)


def int8_store(model: ModelProto) -> Outcome:
    """fp32 weights as symmetric int8 per channel, a quarter of the size; else fp16."""
    return store(model, INT8_STORE, as_int8_or_fp16)


def int4_store(model: ModelProto) -> Outcome:
    """Large fp32 weights as int4 in blocks, an eighth of the size; int8 or fp16 for the others."""
    outcome = store(model, INT4_STORE, as_int4_or_int8)
    if isinstance(outcome, Candidate) and not outcome.recipe["forms"].get("int4"):
        return Skipped(
            name=INT4_STORE,
            reason=f"no weight gains from int4; used {INT8_STORE} instead",
            recipe=outcome.recipe,
        )
    return outcome


def tree_store(model: ModelProto) -> Outcome:
    """Tree ensembles as the operator of ai.onnx.ml 5, with every number that they had."""
    small = ModelProto()
    small.CopyFrom(model)
    count, obstacle = as_tree_ensemble_5(small)
    recipe = {"kind": TREE_STORE, "trees": count}
    if not count:
        return Skipped(name=TREE_STORE, reason=obstacle or "the model has no tree ensemble", recipe=recipe)
    plural = "" if count == 1 else "s"
    return Candidate(
        name=TREE_STORE,
        data=small.SerializeToString(deterministic=True),
        recipe=recipe,
        note=f"{count} tree ensemble{plural} as TreeEnsemble of ai.onnx.ml 5",
    )


def shrink_rest(model: ModelProto) -> StorageCount:
    """Store the remaining float weights of a (partly quantized) model as int8, in place."""
    if graphs.opset_of(model) < OPSET_CAST:
        return StorageCount()
    return shrink(model, as_int8_or_fp16)


def store(model: ModelProto, name: str, encode: Encode) -> Outcome:
    """A copy of the model with every large weight in the form that `encode` gives it, or why not."""
    opset = graphs.opset_of(model)
    small = ModelProto()
    small.CopyFrom(model)
    if 0 < opset < OPSET_CAST:
        done = StorageCount()
        done.left[f"opset {opset} is too old: Cast needs {OPSET_CAST} or later"] += 1
    else:
        done = shrink(small, encode)
    recipe = {
        "kind": name, "min_elements": MIN_ELEMENTS, "tensors": done.tensors,
        "forms": dict(sorted(done.forms.items())),
    }  # fmt: skip
    if not done.tensors:
        return Skipped(name=name, reason=_why_nothing(model, done), recipe=recipe)
    before = model.ByteSize()
    data = small.SerializeToString(deterministic=True)
    if len(data) >= before:
        return Skipped(name=name, reason=f"not smaller: {len(data)} bytes instead of {before}", recipe=recipe)
    return Candidate(name=name, data=data, recipe=recipe, note=_note(done))


def _note(done: StorageCount) -> str:
    inside = f", {done.in_subgraphs} of them inside subgraphs" if done.in_subgraphs else ""
    mixed = ""
    if len(done.forms) > 1:
        mixed = f" ({', '.join(f'{count} as {form}' for form, count in sorted(done.forms.items()))})"
    left = [f"{count} left: {why}" for why, count in sorted(done.left.items())]
    return "; ".join([f"{done.tensors} weights stored smaller{mixed}{inside}", *left])


def _why_nothing(model: ModelProto, done: StorageCount) -> str:
    if done.left:
        return "; ".join(f"{count} weights: {why}" for why, count in sorted(done.left.items()))
    if any(node.op_type in OLD_ENSEMBLES for node in graphs.all_nodes(model)):
        return f"the numbers are attributes of tree ensembles: see {TREE_STORE}"
    kept = Counter(graphs.operator_name(node) for node in graphs.all_nodes(model) if _numbers(node))
    if kept:
        names = ", ".join(f"`{name}`" for name in sorted(kept))
        return f"the numbers are attributes of {names}, which cannot be stored smaller"
    already = sum(map(graphs.is_quantized_operator, graphs.all_nodes(model)))
    if already:
        return f"already quantized ({already} operators), no float weight of {MIN_ELEMENTS} or more"
    if any(function.node for function in model.functions):
        return "the weights are inside local functions, which could not be inlined"
    return f"no fp32 weight has {MIN_ELEMENTS} or more numbers: nothing to store smaller"


def _numbers(node: NodeProto) -> bool:
    """Whether the node keeps many floats in an attribute."""
    return any(
        (attribute.type == AttributeProto.FLOATS and len(attribute.floats) >= MIN_ELEMENTS)
        or (attribute.type == AttributeProto.TENSOR and math.prod(attribute.t.dims) >= MIN_ELEMENTS
            and attribute.t.data_type in FLOAT_TYPES)
        for attribute in node.attribute
    )  # fmt: skip


def shrink(model: ModelProto, encode: Encode) -> StorageCount:
    """As `store`, in place; weights that must stay constants or would not become smaller are left."""
    count = StorageCount()
    names = Names(graphs.names_in(model.graph))
    for number, graph in enumerate(list(graphs.all_graphs(model.graph))):
        untouchable = needed_as_they_are(graph)
        gone: list[int] = []
        added: list[NodeProto] = []
        tensors: list[TensorProto] = []
        for index, tensor in enumerate(graph.initializer):
            if not is_large(tensor):
                continue
            if tensor.name in untouchable:
                count.left[untouchable[tensor.name]] += 1
                continue
            stored = encode(graphs.array_of(tensor), tensor.data_type, tensor.name, names)
            if stored is None or stored.saved < MIN_SAVED_BYTES:
                count.left[_why_kept(tensor)] += 1
                continue
            gone.append(index)
            tensors.extend(stored.initializers)
            added.extend(stored.nodes)
            count.tensors += 1
            count.in_subgraphs += number > 0
            count.forms[stored.form] += 1
            count.saved_bytes += stored.saved
        for index in reversed(gone):
            del graph.initializer[index]
        graph.initializer.extend(tensors)
        for position, node in enumerate(added):
            graph.node.insert(position, node)
    return count


def is_large(tensor: TensorProto) -> bool:
    """Whether it is a float weight that is worth storing smaller."""
    return tensor.data_type in FLOAT_TYPES and math.prod(tensor.dims) >= MIN_ELEMENTS


def _why_kept(tensor: TensorProto) -> str:
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return "half precision already"
    return "a smaller form would lose too much or save too little"


def needed_as_they_are(graph: GraphProto) -> dict[str, str]:
    """Weights that are outputs, and inputs of quantization operators, whose scales must stay constants."""
    names = {value.name: "they are outputs of the graph" for value in graph.output}
    for inner in graphs.all_graphs(graph):
        for node in inner.node:
            if graphs.is_quantized_operator(node):
                names.update(dict.fromkeys(node.input, "scales of quantization operators"))
    return names
