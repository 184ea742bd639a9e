"""One clean form of a model before anything is derived from it: every step proved on sample inputs.

Local functions are inlined, Constant nodes become initializers, what depends on constants alone is folded
under a cap (see `folding`), ZipMap goes, weights move inside the file, overridable initializers become
constant, and the opset rises where that leaves the outputs as they were. A step that cannot be proved is not
taken, and the notes say so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper, version_converter

from skerry_contract.errors import ModelError

from . import graphs
from .engine import Feed, Session, brief
from .folding import fold_constants

OPSET_WANTED: Final = 17
"""Low enough for every engine of the last years, high enough for per-channel quantization (13)."""
OPSET_PER_CHANNEL: Final = 13
_SAME_RELATIVE: Final = 1e-4
_WRONG_TYPE: Final = re.compile(
    r"of output arg \((.+?)\) of node \(.*?\) does not match expected type \(tensor\((\w+)\)\)"
)
_SCALAR_VALUES: Final = {
    "value_float": np.float32,
    "value_int": np.int64,
    "value_floats": np.float32,
    "value_ints": np.int64,
}


@dataclass(frozen=True, slots=True)
class Normalized:
    """The model that every variant starts from; `data` is the fp32 variant, byte for byte."""

    model: ModelProto
    data: bytes
    notes: tuple[str, ...]


def normalize(model: ModelProto, samples: Sequence[Feed], max_ir: int = 0, max_opset: int = 0) -> Normalized:
    """Normalize a copy of `model`, whose external data must be inside.

    Args:
        samples: a few complete inputs that the outputs are compared on.
        max_ir: highest IR version that the targets' engines load; 0 sets no limit.
        max_opset: likewise for the default domain.

    Raises:
        ModelError: the model does not run on the samples, or needs a newer engine than the targets have.
    """
    notes: list[str] = []
    clean = ModelProto()
    clean.CopyFrom(model)
    del clean.training_info[:]
    if remove_zipmap(clean.graph):
        notes.append("ZipMap removed: the probabilities are a plain tensor now")
    _refuse_non_tensors(clean.graph)
    session, repaired = load_repaired(clean)
    notes += repaired
    wanted = [session.run(feed) for feed in samples]
    _declare_types(clean.graph, wanted)
    clean = _inline_functions(clean, samples, wanted, notes)
    _drop_unused_imports(clean)
    for graph in graphs.all_graphs(clean.graph):
        _constants_to_initializers(graph)
    _pin_initializers(clean)
    _prove(clean, samples, wanted, "Constant nodes to initializers")
    clean = _fold(clean, samples, wanted, notes)
    _free_false_dimensions(clean.graph, wanted)
    clean = _raise_opset(clean, samples, wanted, max_opset, notes)
    if all(node.domain in graphs.DEFAULT_DOMAINS for node in graphs.all_nodes(clean)):
        del clean.graph.value_info[:]  # every engine infers these shapes itself
    _fit_ir(clean, max_ir, max_opset, notes)
    data = clean.SerializeToString(deterministic=True)
    return Normalized(clean, data, tuple(notes))


def load_repaired(model: ModelProto) -> tuple[Session, list[str]]:
    """Load it; types of outputs that the engine refuses become those that it finds, in place. With notes.

    skl2onnx declares the scores of trees with double inputs as doubles, and the operator gives floats.

    Raises:
        ModelError: the engine refuses the model for another reason.
    """
    notes: list[str] = []
    for _ in range(len(model.graph.output) + 1):
        try:
            return Session(model.SerializeToString()), notes
        except ModelError as error:
            found = _WRONG_TYPE.search(error.message)
            if found is None or not _declare_type(model.graph, found[1], found[2]):
                raise
            notes.append(f"output {found[1]!r} gives {found[2]} numbers, other than the file declares")
    return Session(model.SerializeToString()), notes


def _declare_type(graph: GraphProto, output: str, name: str) -> bool:
    """Whether there is such an output, and such a type."""
    kind = dict(TensorProto.DataType.items()).get(name.upper(), 0)
    values = [value for value in graph.output if value.name == output and kind]
    for value in values:
        value.type.tensor_type.elem_type = kind
    return bool(values)


def _declare_types(graph: GraphProto, results: list[list[np.ndarray]]) -> None:
    """Give outputs without a type the one that they have, with free dimensions."""
    for index, value in enumerate(graph.output):
        if value.type.WhichOneof("value") is None and results:
            found = results[0][index]
            kind = onnx.helper.np_dtype_to_tensor_dtype(found.dtype)
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, [None] * found.ndim))


def _inline_functions(
    model: ModelProto, samples: Sequence[Feed], wanted: list[list[np.ndarray]], notes: list[str]
) -> ModelProto:
    """Nothing that looks for weights or operators looks into local functions."""
    if not model.functions:
        return model
    try:
        flat = onnx.inliner.inline_local_functions(model)
        _drop_unused_imports(flat)
        error = _difference(flat, samples, wanted)
    except (ModelError, RuntimeError, ValueError) as problem:
        failure = brief(problem)
    else:
        if error <= _SAME_RELATIVE:
            notes.append(f"{len(model.functions)} local functions inlined")
            return flat
        failure = f"the outputs change by {error:.1e}"
    notes.append(f"local functions kept: they cannot be inlined ({failure[:160]})")
    return model


def _drop_unused_imports(model: ModelProto) -> None:
    """Engines refuse a domain that they do not know, used or not."""
    used = {node.domain for node in graphs.all_nodes(model)}
    used |= {function.domain for function in model.functions}
    seen: set[tuple[str, int]] = set()
    for index in reversed(range(len(model.opset_import))):
        entry = model.opset_import[index]
        key = entry.domain, entry.version
        if key in seen or (entry.domain not in used and entry.domain not in graphs.DEFAULT_DOMAINS):
            del model.opset_import[index]
        seen.add(key)


def _fold(
    model: ModelProto, samples: Sequence[Feed], wanted: list[list[np.ndarray]], notes: list[str]
) -> ModelProto:
    folded = ModelProto()
    folded.CopyFrom(model)
    count = fold_constants(folded)
    if not count:
        return model
    try:
        error = _difference(folded, samples, wanted)
    except ModelError as problem:
        notes.append(f"constants kept as they are: folding them fails ({problem.message[:160]})")
        return model
    if not error <= _SAME_RELATIVE:
        notes.append(f"constants kept as they are: folding them changes the outputs by {error:.1e}")
        return model
    notes.append(f"{count} nodes that depend on constants alone folded")
    return folded


def remove_zipmap(graph: GraphProto) -> int:
    """How many there were. skl2onnx ends classifiers in a list of dictionaries; a device serves tensors."""
    zipmaps = [node for node in graph.node if node.op_type == "ZipMap" and node.domain == "ai.onnx.ml"]
    for node in zipmaps:
        index, output = next(item for item in enumerate(graph.output) if item[1].name == node.output[0])
        # float or double, as the classifier: the engine knows, see `_declare_types`.
        graph.output[index].CopyFrom(onnx.helper.make_empty_tensor_value_info(output.name))
        identity = onnx.helper.make_node(
            "Identity", [node.input[0]], [output.name], name=node.name or "ZipMapRemoved"
        )
        node.CopyFrom(identity)
    return len(zipmaps)


def _refuse_non_tensors(graph: GraphProto) -> None:
    for value in graph.output:
        kind = value.type.WhichOneof("value")
        if kind is None:  # not declared; if it is no tensor, the engine says so
            continue
        if kind != "tensor_type" or value.type.tensor_type.elem_type == TensorProto.STRING:
            what = "text" if kind == "tensor_type" else f"a {kind.removesuffix('_type')}"
            raise ModelError(
                f"output {value.name!r} is {what}, which devices do not serve",
                hint="Export the model with numbers as outputs: class numbers, not names; no lists or maps.",
            )


def _constants_to_initializers(graph: GraphProto) -> None:
    outputs = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in graph.node:
        tensor = _constant_tensor(node)
        # A constant that is itself an output stays a node: some engines refuse an initializer there.
        if tensor is None or node.output[0] in outputs:
            kept.append(node)
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept)


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in graphs.DEFAULT_DOMAINS or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(attribute.t)
        return tensor
    if attribute.name in _SCALAR_VALUES:
        value = onnx.helper.get_attribute_value(attribute)
        return numpy_helper.from_array(np.asarray(value, dtype=_SCALAR_VALUES[attribute.name]))
    return None


def _pin_initializers(model: ModelProto) -> None:
    """An initializer that is also an input could be overridden at run time, so engines may not fold it."""
    required = graphs.real_inputs(model.graph)
    if len(required) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(required)
    # Before IR 4 every initializer had to be an input, too, and the converter of opsets insists.
    model.ir_version = max(model.ir_version, 4)


def _free_false_dimensions(graph: GraphProto, results: list[list[np.ndarray]]) -> None:
    """Exporters declare output shapes that the model does not keep; a device would refuse its answers."""
    for index, value in enumerate(graph.output):
        kind = value.type.tensor_type
        shapes = [result[index].shape for result in results]
        if not value.type.HasField("tensor_type") or not shapes:
            continue
        sizes: list[int | str | None] = [
            size.dim_value if size.HasField("dim_value") else (size.dim_param or None)
            for size in kind.shape.dim
        ]
        if not kind.HasField("shape") or any(len(shape) != len(sizes) for shape in shapes):
            sizes = [None] * len(shapes[0])
        true = [
            None if isinstance(size, int) and any(shape[axis] != size for shape in shapes) else size
            for axis, size in enumerate(sizes)
        ]
        if true != sizes or not kind.HasField("shape"):
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind.elem_type, true))


def _prove(model: ModelProto, samples: Sequence[Feed], wanted: list[list[np.ndarray]], step: str) -> None:
    error = _difference(model, samples, wanted)
    if not error <= _SAME_RELATIVE:
        raise ModelError(
            f"{step} changed the outputs by {error:.1e} of their range",
            hint="Please report the model's operators; exporting it with a newer opset may help.",
        )


def _difference(model: ModelProto, samples: Sequence[Feed], wanted: list[list[np.ndarray]]) -> float:
    """Largest difference over the outputs' range; infinite where names, shapes or types differ.

    Raises:
        ModelError: the engine does not load or run the model.
    """
    session = Session(model.SerializeToString())
    return max(
        (relative_difference(a, b) for feed, old in zip(samples, wanted, strict=True)
         for a, b in zip(session.run(feed), old, strict=True)),
        default=0.0,
    )  # fmt: skip


def relative_difference(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference over the largest magnitude of `other`; infinite if they cannot be compared."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    if one.dtype.kind != "f":
        return 0.0 if np.array_equal(one, other) else float("inf")
    finite = np.isfinite(other)
    if not np.array_equal(finite, np.isfinite(one)):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(other[finite]).max()) or 1.0
    return float(np.abs(one[finite].astype(np.float64) - other[finite]).max()) / scale


def _raise_opset(
    model: ModelProto,
    samples: Sequence[Feed],
    wanted: list[list[np.ndarray]],
    max_opset: int,
    notes: list[str],
) -> ModelProto:
    opset = graphs.opset_of(model)
    goal = min(OPSET_WANTED, max_opset or OPSET_WANTED)
    if not 0 < opset < goal:
        return model
    failure = ""
    for target in sorted({goal, min(goal, OPSET_PER_CHANNEL)}, reverse=True):
        if target <= opset:
            break
        try:
            raised = version_converter.convert_version(model, target)
            raised.ir_version = max(raised.ir_version, model.ir_version)
            error = _difference(raised, samples, wanted)
        except (ModelError, RuntimeError, ValueError, version_converter.ConvertError) as problem:
            failure = brief(problem)
            continue
        if error <= _SAME_RELATIVE:
            del raised.metadata_props[:]
            raised.metadata_props.extend(model.metadata_props)
            notes.append(f"opset {opset} raised to {target} (outputs equal to {max(error, 1e-9):.0e})")
            return raised
        failure = f"the outputs change by {error:.1e}"
    notes.append(f"opset {opset} kept: it cannot be raised ({failure[:160]})")
    return model


def _fit_ir(model: ModelProto, max_ir: int, max_opset: int, notes: list[str]) -> None:
    """Lower the IR version to what the opset needs, so that older engines load the file."""
    opset = graphs.opset_of(model)
    needed = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    # Initializers that are no inputs came with IR 4, local functions with overloads with IR 10.
    needed = max(needed, 10 if model.functions else 4)
    if model.ir_version < 4 or model.ir_version > needed:
        model.ir_version = needed
    if max_opset and opset > max_opset:
        raise ModelError(
            f"the model uses opset {opset}; the profile's engine loads at most {max_opset}",
            hint=f"Export it with opset {min(OPSET_WANTED, max_opset)}, or update the engine in the profile.",
        )
    if max_ir and model.ir_version > max_ir:
        raise ModelError(
            f"the model needs IR version {model.ir_version}; the profile's engine loads at most {max_ir}",
            hint="Export it with an older opset, or update the engine in the profile.",
        )
