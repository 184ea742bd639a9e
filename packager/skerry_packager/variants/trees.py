"""Tree ensembles as small as they go: the same trees, the same answers.

Exporters write a hit rate for every node, which no engine uses, flags for missing values even where all are
at their default, the mode of every node as a word, and every leaf as a node of its own.
`drop_unread_attributes` removes the first two. `as_tree_ensemble_5` writes the operator TreeEnsemble of
ai.onnx.ml 5 (onnxruntime 1.21): modes are bytes, a leaf is a target and a weight, equal leaves are stored
once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .. import graphs
from .edits import attributes_of
from .encodings import Names

ML: Final = "ai.onnx.ml"
VERSION: Final = 5
_IR: Final = 10
"""That came with it."""
OLD_ENSEMBLES: Final = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor"})
_SAME_SINCE_1: Final = frozenset(
    {
        "ArrayFeatureExtractor", "Binarizer", "FeatureVectorizer", "Imputer", "LinearClassifier",
        "LinearRegressor", "Normalizer", "OneHotEncoder", "SVMClassifier", "SVMRegressor", "Scaler",
    }
)  # fmt: skip
"""Other operators of the domain, which may stay where its version rises."""
_UNREAD: Final = frozenset({"nodes_hitrates", "nodes_hitrates_as_tensor"})
_DEFAULT_ZERO: Final = frozenset({"nodes_missing_value_tracks_true"})
_MODES: Final = ("BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ")
_TRANSFORMS: Final[Mapping[str, str]] = {"NONE": "", "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}
"""Operators that do it behind the trees: onnxruntime has SOFTMAX and LOGISTIC of TreeEnsemble 5 the wrong way
round (their numbers, 1 and 2, in the order of its own list)."""
_SUM: Final = {"AVERAGE": 0, "SUM": 1, "MIN": 2, "MAX": 3}


def drop_unread_attributes(model: ModelProto) -> int:
    """Remove what no engine reads, in place; how many ensembles became smaller."""
    return sum(
        _drop_unread(node)
        for node in graphs.all_nodes(model)
        if node.op_type in OLD_ENSEMBLES and node.domain == ML
    )


def _drop_unread(node: NodeProto) -> bool:
    gone = [index for index, attribute in enumerate(node.attribute) if _is_idle(attribute)]
    for index in reversed(gone):
        del node.attribute[index]
    return bool(gone)


def _is_idle(attribute: AttributeProto) -> bool:
    return attribute.name in _UNREAD or (attribute.name in _DEFAULT_ZERO and not any(attribute.ints))


class _NotConvertible(Exception):
    """Why an ensemble stays as it is."""


@dataclass(slots=True)
class _Forest:
    """The attributes of TreeEnsemble 5 in the making."""

    features: list[int] = field(default_factory=list)
    splits: list[float] = field(default_factory=list)
    modes: list[int] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)
    branches: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Where a node goes if it is true and if it is false."""
    leafs: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    """Whether that is a leaf."""
    roots: list[int] = field(default_factory=list)
    leaves: dict[tuple[int, float], int] = field(default_factory=dict)
    """Target and weight -> number of the leaf."""


def as_tree_ensemble_5(model: ModelProto) -> tuple[int, str]:
    """Rewrite every ensemble in place: how many, and why none if there are some that could not be."""
    ensembles = [node for node in model.graph.node if _is_old(node)]
    if not ensembles:
        return 0, ""
    everywhere = [node for node in graphs.all_nodes(model) if node.domain == ML]
    others = {node.op_type for node in everywhere} - OLD_ENSEMBLES - _SAME_SINCE_1
    if others or sum(map(_is_old, everywhere)) > len(ensembles):
        what = ", ".join(sorted(others)) or "trees in a subgraph"
        return 0, f"the version of {ML} cannot rise: {what}"
    types = _types(model)
    names = Names(graphs.names_in(model.graph))
    writers = [_Writer(names, types.get(node.input[0], 0)) for node in ensembles]
    try:
        for node, writer in zip(ensembles, writers, strict=True):
            writer.write(node)
    except _NotConvertible as why:
        return 0, str(why)
    replaced = {node.output[0]: writer for node, writer in zip(ensembles, writers, strict=True)}
    rewritten: list[NodeProto] = []
    for node in model.graph.node:
        writer_or_none = replaced.get(node.output[0])
        rewritten += [node] if writer_or_none is None else writer_or_none.nodes
    copies = [NodeProto.FromString(node.SerializeToString()) for node in rewritten]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    for writer in writers:
        model.graph.initializer.extend(writer.initializers)
    for entry in model.opset_import:
        if entry.domain == ML:
            entry.version = VERSION
    model.ir_version = max(model.ir_version, _IR)
    return len(ensembles), ""


def _is_old(node: NodeProto) -> bool:
    return node.op_type in OLD_ENSEMBLES and node.domain == ML


def _types(model: ModelProto) -> dict[str, int]:
    """Value -> type, as far as it can be inferred."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        inferred = model
    return {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.input, *inferred.graph.value_info)
    }


@dataclass(slots=True)
class _Writer:
    """Writes one ensemble anew, with the operators that make its outputs what they were."""

    names: Names
    kind: int
    """Type of the ensemble's input."""
    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)

    def write(self, node: NodeProto) -> None:
        """Raises `_NotConvertible`."""
        if self.kind not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            raise _NotConvertible("TreeEnsemble 5 takes floats and doubles")
        old = attributes_of(node)
        transform = old.get("post_transform", b"NONE").decode()
        if transform not in _TRANSFORMS:
            raise _NotConvertible(f"trees with {transform} at the end")
        if node.op_type == "TreeEnsembleRegressor":
            self._regressor(node, old, transform)
        else:
            self._classifier(node, old, transform)

    def _regressor(self, node: NodeProto, old: Mapping[str, Any], transform: str) -> None:
        aggregate = old.get("aggregate_function", b"SUM").decode()
        if aggregate != "SUM" and any(_floats(old, "base_values")):
            raise _NotConvertible("trees with base values that are not summed up")
        targets = int(old.get("n_targets", 1))
        scores = self._ensemble(node, _forest(old, "target", targets), targets, aggregate)
        self._finish(scores, transform, node.output[0])

    def _classifier(self, node: NodeProto, old: Mapping[str, Any], transform: str) -> None:
        labels = list(old.get("classlabels_int64s", ()))
        if len(labels) < 2:
            raise _NotConvertible("trees whose classes are not numbers")
        if len(labels) > 2:
            scores = self._ensemble(node, _forest(old, "class", len(labels)), len(labels), "SUM")
        else:
            scores = self._two_classes(node, old, transform)
        if labels == list(range(len(labels))):
            self._add("ArgMax", [scores], node.output[0], axis=1, keepdims=0)
        else:
            place = self._add("ArgMax", [scores], axis=1, keepdims=0)
            self._add("Gather", [self._keep(np.array(labels, np.int64)), place], node.output[0])
        self._finish(scores, transform, node.output[1])

    def _two_classes(self, node: NodeProto, old: Mapping[str, Any], transform: str) -> str:
        """onnxruntime makes two scores of one, p: 1 - p and p; or -p and p if a weight may be negative."""
        if set(old["class_ids"]) != {0} or len(_floats(old, "base_values")) > 1:
            raise _NotConvertible("two classes with scores of their own")
        positive = min(_floats(old, "class_weights")) >= 0
        if transform not in (("NONE",) if positive else ("NONE", "LOGISTIC")):
            raise _NotConvertible(f"two classes with {transform} at the end")
        one = self._ensemble(node, _forest(old, "class", 1), 1, "SUM")
        inputs = [one, self._keep(np.array([[-1, 1]], self._numbers))]
        if positive:
            inputs.append(self._keep(np.array([1, 0], self._numbers)))
        return self._add("Gemm", inputs)

    def _ensemble(self, node: NodeProto, forest: _Forest, targets: int, aggregate: str) -> str:
        leaves = list(forest.leaves)
        weights = np.array([weight for _, weight in leaves], self._numbers)
        attributes: dict[str, Any] = {
            "aggregate_function": _SUM[aggregate],
            "leaf_targetids": [target for target, _ in leaves],
            "leaf_weights": numpy_helper.from_array(weights),
            "n_targets": targets,
            "nodes_falseleafs": forest.leafs[1],
            "nodes_falsenodeids": forest.branches[1],
            "nodes_featureids": forest.features,
            "nodes_modes": numpy_helper.from_array(np.array(forest.modes, np.uint8)),
            "nodes_splits": numpy_helper.from_array(np.array(forest.splits, self._numbers)),
            "nodes_trueleafs": forest.leafs[0],
            "nodes_truenodeids": forest.branches[0],
            "tree_roots": forest.roots,
        }
        if any(forest.missing):
            attributes["nodes_missing_value_tracks_true"] = forest.missing
        return self._add("TreeEnsemble", [node.input[0]], domain=ML, **attributes)

    def _finish(self, scores: str, transform: str, output: str) -> None:
        """The outputs of the old operators are floats, whatever they calculate in."""
        operators: list[tuple[str, dict[str, Any]]] = [
            (_TRANSFORMS[transform], {"axis": 1} if transform == "SOFTMAX" else {})
        ]
        if self.kind == TensorProto.DOUBLE:
            operators.append(("Cast", {"to": TensorProto.FLOAT}))
        wanted = [operator for operator in operators if operator[0]]
        for operator, attributes in wanted:
            scores = self._add(operator, [scores], **attributes)
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, name in enumerate(names):
                    names[place] = output if name == scores else name

    @property
    def _numbers(self) -> type[np.floating[Any]]:
        return np.float64 if self.kind == TensorProto.DOUBLE else np.float32

    def _keep(self, array: np.ndarray) -> str:
        name = self.names.fresh()
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def _add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        output = output or self.names.fresh()
        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output


def _floats(old: Mapping[str, Any], name: str) -> list[float]:
    """A list of numbers, which version 3 may also keep as a tensor of doubles."""
    tensor = old.get(f"{name}_as_tensor")
    return list(old.get(name, ())) if tensor is None else numpy_helper.to_array(tensor).tolist()


def _forest(old: Mapping[str, Any], what: str, targets: int) -> _Forest:
    """The trees in depth-first order, so that numbers are small; base values as a last tree each."""
    forest = _Forest()
    trees, numbers = old["nodes_treeids"], old["nodes_nodeids"]
    at = {key: index for index, key in enumerate(zip(trees, numbers, strict=True))}
    weights: dict[tuple[int, int], tuple[int, float]] = {}
    for tree, number, target, weight in zip(
        old[f"{what}_treeids"], old[f"{what}_nodeids"], old[f"{what}_ids"], _floats(old, f"{what}_weights"),
        strict=True,
    ):  # fmt: skip
        if (tree, number) in weights:
            raise _NotConvertible("leaves with several weights each")
        weights[tree, number] = target, weight
    children = [tuple(old["nodes_truenodeids"]), tuple(old["nodes_falsenodeids"])]
    modes = [mode.decode() for mode in old["nodes_modes"]]
    values = _floats(old, "nodes_values")
    missing = list(old.get("nodes_missing_value_tracks_true", ())) or [0] * len(modes)

    def leaf(index: int) -> int:
        found = weights.get((trees[index], numbers[index]))
        if found is None:
            raise _NotConvertible("leaves without a weight")
        return forest.leaves.setdefault(found, len(forest.leaves))

    def node(feature: int, split: float, mode: int, tracks: int) -> int:
        forest.features.append(feature)
        forest.splits.append(split)
        forest.modes.append(mode)
        forest.missing.append(tracks)
        for side in (0, 1):
            forest.branches[side].append(0)
            forest.leafs[side].append(0)
        return len(forest.features) - 1

    def stump(number: int) -> None:
        """A tree that is one leaf."""
        forest.roots.append(node(0, 0.0, 0, 0))
        for side in (0, 1):
            forest.branches[side][-1], forest.leafs[side][-1] = number, 1

    for root in _roots(trees):
        if modes[root] == "LEAF":
            stump(leaf(root))
            continue
        forest.roots.append(len(forest.features))
        pending = [(root, -1, 0)]
        while pending:
            index, parent, side = pending.pop()
            if modes[index] == "LEAF":
                forest.branches[side][parent], forest.leafs[side][parent] = leaf(index), 1
                continue
            if modes[index] not in _MODES or len(forest.features) > len(modes):
                raise _NotConvertible("trees that are none")
            made = node(
                old["nodes_featureids"][index], values[index], _MODES.index(modes[index]), missing[index]
            )
            if parent >= 0:
                forest.branches[side][parent] = made
            for down in (1, 0):
                pending.append((at[trees[index], children[down][index]], made, down))
    for target, base in enumerate(_floats(old, "base_values")):
        if base:
            stump(forest.leaves.setdefault((target, base), len(forest.leaves)))
    if any(not 0 <= target < targets for target, _ in forest.leaves):
        raise _NotConvertible("leaves of unknown targets")
    return forest


def _roots(trees: Sequence[int]) -> list[int]:
    """Where each tree begins: its first node, as onnxruntime has it."""
    return [index for index, tree in enumerate(trees) if not index or trees[index - 1] != tree]
